"""Compute log-likelihoods of continuations under a language model; every evaluation task is scored with them.

A multiple-choice question asks for several continuations of one context, so its requests share work. Equal inputs (of
choices that differ in their last token only) are computed once. The prefix that the inputs of a question share is read
once and kept in a cache (`ddl.model.cache`). Everything is computed in fp32.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ddl.errors import UserError
from ddl.model.cache import Cache
from ddl.model.language_model import LanguageModel

BATCH_TOKENS = 4096  # tokens per forward pass without a scale's settings; near the optimum of small models on a CPU
HEAD_TOKENS = 1024  # positions per call of the head: with GPT-2's vocabulary, logits of a whole batch take gigabytes
SHORTEST_PREFIX = 8  # tokens; sharing a shorter prefix saves less than the second pass costs
LARGEST_GROUP = 8  # most inputs that share one prefix
SIMILAR = 0.85  # a batch takes only lengths of at least about this fraction of its longest, to limit padding
SMALL = 1 / 4  # a batch below this fraction of `batch_tokens` also takes groups of dissimilar length

Pair = tuple[list[int], list[int]]
Ids = tuple[int, ...]


class ScoringError(UserError):
    """A request that cannot be scored: it is empty or too long."""


class Scored(Protocol):
    """The interface that `Scorer` needs from a model."""

    sequence_length: int
    device: torch.device

    def new_cache(self) -> Cache | None:
        """An empty cache, or None for a model that always reads whole inputs."""

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Token ids int64 [B, T] that follow those in the cache -> [B, T, d]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> fp32 [N, vocab_size]."""


class OwnModel:
    """A `LanguageModel`, which can reuse shared prefixes through its cache."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model.eval()
        self.sequence_length = model.config.sequence_length
        self.device = model.embedding.weight.device

    def new_cache(self) -> Cache:
        return Cache(self.model.config.layers)

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        return self.model.hidden(ids, cache=cache)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)


class ForeignModel:
    """Any causal model of transformers. Caches differ between such models, so it always reads whole inputs.

    Args:
        model: an `AutoModelForCausalLM` in fp32.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.sequence_length: int = model.config.max_position_embeddings
        self.device = model.device

    def new_cache(self) -> None:
        return None

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        return self.model(ids, use_cache=False).logits  # some heads do more than one matrix product

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.float()


@dataclass(frozen=True)
class Group:
    """Inputs whose first `prefix` tokens are the same."""

    prefix: int
    inputs: tuple[Ids, ...]

    @property
    def rest(self) -> int:
        """Number of tokens after the prefix, in the longest input."""
        return max(len(ids) for ids in self.inputs) - self.prefix


def grade(prefix: int) -> int:
    """Length class of a prefix: within a class, the shortest is more than `SIMILAR` times the longest; -1 for none."""
    return math.ceil(math.log(prefix, 1 / SIMILAR)) if prefix else -1


class Scorer:
    """Scores requests with a model.

    Args:
        model: the model, on the device where it runs.
        batch_tokens: tokens per forward pass, padding included.
        share: whether inputs share the computation of their prefix, if the model supports it.
    """

    def __init__(self, model: Scored, batch_tokens: int, share: bool = True) -> None:
        self.model, self.batch_tokens, self.share = model, batch_tokens, share

    def score(self, pairs: Sequence[Pair], progress: bool = False) -> list[tuple[float, bool]]:
        """Score requests (context, continuation) of token ids.

        A request that is longer than the model's sequences loses context on the left.

        Args:
            pairs: the requests; neither context nor continuation may be empty.
            progress: whether to show a progress bar, on a terminal only.

        Returns:
            For each request, in order: log p(continuation | context) in nats, and whether greedy decoding would
            produce the continuation.

        Raises:
            ScoringError: an empty context, or a continuation that is empty or longer than the model's sequences.
        """
        length = self.model.sequence_length
        # Two requests can have the same input and split it at different places. They share one row and are scored at
        # different positions.
        members: dict[Ids, list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not context or not 1 <= len(continuation) <= length:
                raise ScoringError(
                    f"request {index}: expected some context and 1 to {length} tokens of continuation, "
                    f"found {len(context)} and {len(continuation)}"
                )
            members.setdefault(tuple((context + continuation)[-length - 1 : -1]), []).append(index)
        # A shared prefix must end before the first scored position.
        shares = self.share and self.model.new_cache() is not None
        limits = {
            ids: min(len(ids) - len(pairs[index][1]) for index in found) if shares else 0
            for ids, found in members.items()
        }
        groups = group_inputs(limits)
        results: list[tuple[float, bool]] = [(math.nan, False)] * len(pairs)
        with tqdm(total=len(pairs), unit=" requests", file=sys.__stderr__, disable=None if progress else True) as bar:
            for batch in self.batches(groups):
                inputs = [ids for group in batch for ids in group.inputs]
                wanted = [(row, index) for row, ids in enumerate(inputs) for index in members[ids]]
                scores = self.forward(batch, [row for row, _ in wanted], [pairs[index][1] for _, index in wanted])
                for (_, index), score in zip(wanted, scores, strict=True):
                    results[index] = score
                bar.update(len(wanted))
        return results

    def batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Form batches of groups with similar lengths, the longest first; the order of `groups` does not matter.

        In a batch, each group reads a prefix as long as the shortest one, and every row is padded to the longest.
        """
        batch: list[Group] = []
        prefix = rest = rows = size = 0  # of the batch: shortest prefix, longest rest, number of rows and of tokens
        for group in sorted(groups, key=lambda group: (-grade(group.prefix), -group.rest, -group.prefix, group.inputs)):
            shorter, longer = min(prefix, group.prefix), max(rest + prefix, group.rest + group.prefix)
            tokens = (len(batch) + 1) * shorter + (rows + len(group.inputs)) * (longer - shorter)
            first = batch[0] if batch else group
            alike = grade(group.prefix) == grade(first.prefix) and group.rest >= SIMILAR * first.rest
            if batch and tokens <= self.batch_tokens and (alike or size < SMALL * self.batch_tokens):
                batch.append(group)
                prefix, rest, rows, size = shorter, longer - shorter, rows + len(group.inputs), tokens
                continue
            if batch:
                yield batch
            batch, prefix, rest, rows = [group], group.prefix, group.rest, len(group.inputs)
            size = prefix + rows * rest
        if batch:
            yield batch

    @torch.inference_mode()
    def forward(self, batch: list[Group], rows: list[int], targets: list[list[int]]) -> list[tuple[float, bool]]:
        """Score `targets[i]` at the last positions of input number `rows[i]` of the batch.

        Padding is on the right, where a causal model does not see it. The head is applied only to the scored positions,
        because it is the larger part of a small model's work.
        """
        inputs = [ids for group in batch for ids in group.inputs]
        prefix, width = min(group.prefix for group in batch), max(len(ids) for ids in inputs)
        cache = self.model.new_cache() if prefix else None
        if cache is not None:
            self.model.hidden(self.tensor([group.inputs[0][:prefix] for group in batch]), cache)
            cache.reorder(self.tensor([i for i, group in enumerate(batch) for _ in group.inputs]))
        padded = self.tensor([[*ids[prefix:], *[0] * (width - len(ids))] for ids in inputs])
        lengths = [len(target) for target in targets]
        starts = [row * (width - prefix) + len(inputs[row]) - prefix - n for row, n in zip(rows, lengths, strict=True)]
        where = self.tensor([start + i for start, n in zip(starts, lengths, strict=True) for i in range(n)])
        token = self.tensor([token for target in targets for token in target])
        hidden = self.model.hidden(padded, cache).flatten(0, 1)[where]
        log_p, greedy = [], []
        for logits, part in head(self.model.logits, hidden, token):
            log_p.append(-F.cross_entropy(logits, part, reduction="none"))
            greedy.append(logits.argmax(1) == part)
        offsets = np.cumsum([0, *lengths[:-1]])
        totals = np.add.reduceat(torch.cat(log_p).double().cpu().numpy(), offsets)
        hits = np.logical_and.reduceat(torch.cat(greedy).cpu().numpy(), offsets)
        return list(zip(totals.tolist(), hits.tolist(), strict=True))

    def tensor(self, values: Sequence[Any]) -> Tensor:
        """Make an integer tensor on the model's device."""
        return torch.tensor(values, device=self.model.device)


def head(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and targets for `HEAD_TOKENS` positions at a time.

    Args:
        logits: [n, d] -> fp32 [n, vocab_size].
        hidden: [N, d].
        targets: int64 [N].

    Yields:
        (logits [n, vocab_size], targets [n]).
    """
    for part, target in zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True):
        yield logits(part), target


def group_inputs(limits: dict[Ids, int]) -> list[Group]:
    """Partition inputs into groups with a common prefix so that the groups save the most tokens.

    In lexicographic order, inputs with long common prefixes are neighbours, so a partition cuts the sorted list into
    runs. A group of m inputs with a common prefix of p tokens saves (m - 1) p tokens. Dynamic programming over the
    sorted list finds the best cuts.

    Args:
        limits: input -> largest number of tokens that its prefix may have.
    """
    ordered = sorted(limits)
    shared = [0, *(min(limits[a], limits[b], common(a, b)) for a, b in pairwise(ordered))]
    saved, starts = [0], [0]  # for the best partition of the first j inputs: tokens saved, start of its last group
    for j in range(1, len(ordered) + 1):
        best, start, prefix = saved[j - 1], j - 1, sys.maxsize
        for i in range(j - 2, max(-1, j - 1 - LARGEST_GROUP), -1):
            prefix = min(prefix, shared[i + 1])
            if prefix < SHORTEST_PREFIX:
                break
            if (total := saved[i] + (j - 1 - i) * prefix) > best:
                best, start = total, i
        saved.append(best)
        starts.append(start)
    groups, stop = [], len(ordered)
    while stop:
        start = starts[stop]
        prefix = min(shared[start + 1 : stop], default=0)
        groups.append(Group(prefix, tuple(ordered[start:stop])))
        stop = start
    return groups


def common(a: Ids, b: Ids) -> int:
    """Length of the common prefix of two inputs."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
