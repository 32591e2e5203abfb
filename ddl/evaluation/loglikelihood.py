"""Log-likelihoods of continuations under a language model: what every task of the evaluation is made of.

A multiple-choice question asks for several continuations of one context. Two things are therefore done once instead of
once a request: inputs that are equal (choices that differ in their last token only), and the prefix that the inputs of
a question share, which the model reads once and remembers (`ddl.model.cache`). Everything is computed in fp32.
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

BATCH_TOKENS = 4096  # of one forward pass where no scale says otherwise; near the optimum of small models on a CPU
HEAD_TOKENS = 1024  # at a time: the logits of a whole batch are gigabytes at GPT-2's vocabulary
SHORTEST_PREFIX = 8  # tokens; the second pass of a shorter one costs more than it saves
LARGEST_GROUP = 8  # inputs that share a prefix
SIMILAR = 0.85  # lengths of one batch are at least about this share of its longest: more is lost to padding
SMALL = 1 / 4  # of a full batch: one that is smaller takes what is next, alike or not

Pair = tuple[list[int], list[int]]
Ids = tuple[int, ...]


class ScoringError(UserError):
    """A request that no model can answer."""


class Scored(Protocol):
    """What `Scorer` asks of a model."""

    sequence_length: int
    device: torch.device

    def new_cache(self) -> Cache | None:
        """An empty memory, or None for a model that is always given whole inputs."""

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """int64 [B, T], the tokens after those of the cache -> [B, T, d]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> fp32 [N, vocab_size]."""


class OwnModel:
    """A `LanguageModel`, which remembers prefixes."""

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
    """Any causal model of transformers. Its memory has no common form, so it reads whole inputs.

    Args:
        model: `AutoModelForCausalLM`, in fp32.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.sequence_length: int = model.config.max_position_embeddings
        self.device = model.device

    def new_cache(self) -> None:
        return None

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        return self.model(ids, use_cache=False).logits  # some models do more than a product after their last state

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.float()


@dataclass(frozen=True)
class Group:
    """Inputs that begin with the same `prefix` tokens."""

    prefix: int
    inputs: tuple[Ids, ...]

    @property
    def rest(self) -> int:
        """Tokens of the longest input after the prefix."""
        return max(len(ids) for ids in self.inputs) - self.prefix


def grade(prefix: int) -> int:
    """Lengths of the same grade differ by less than `SIMILAR`; no prefix is a grade of its own."""
    return math.ceil(math.log(prefix, 1 / SIMILAR)) if prefix else -1


class Scorer:
    """Scores requests.

    Args:
        model: on the device where it is to run.
        batch_tokens: of one forward pass, padding included.
        share: whether inputs share the computation of their prefix, if the model can.
    """

    def __init__(self, model: Scored, batch_tokens: int, share: bool = True) -> None:
        self.model, self.batch_tokens, self.share = model, batch_tokens, share

    def score(self, pairs: Sequence[Pair], progress: bool = False) -> list[tuple[float, bool]]:
        """Score (context, continuation) token ids, neither of them empty.

        What does not fit the model loses context on the left.

        Args:
            pairs: the requests.
            progress: whether to show a bar, on a terminal only.

        Returns:
            For each pair, in order: (log p(continuation | context) in nats, whether greedy decoding would produce it).

        Raises:
            ScoringError: an empty context, or a continuation that is empty or longer than the model's sequences.
        """
        length = self.model.sequence_length
        # Two pairs can make the same input and split it at different places: one row serves both, but each is scored
        # at its own positions.
        members: dict[Ids, list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not context or not 1 <= len(continuation) <= length:
                raise ScoringError(
                    f"request {index}: expected some context and 1 to {length} tokens of continuation, "
                    f"found {len(context)} and {len(continuation)}"
                )
            members.setdefault(tuple((context + continuation)[-length - 1 : -1]), []).append(index)
        # A prefix ends where the first scored position begins.
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
        """Groups of similar lengths, the longest first, as many at a time as fit; the order of `groups` is no matter.

        A batch reads the shortest of its prefixes once a group, and every row is padded to the longest.
        """
        batch: list[Group] = []
        prefix = rest = rows = size = 0  # the shortest prefix, the longest rest, rows and tokens of the batch
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

        Padding stands on the right, where a causal model does not see it. The head is applied to the scored positions
        only: it is the larger part of the work of a small model.
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
        """Integers on the model's device."""
        return torch.tensor(values, device=self.model.device)


def head(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets, `HEAD_TOKENS` at a time.

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
    """Partition inputs into groups of a common prefix such that the most tokens need not be read again.

    In alphabetical order the inputs that share most stand side by side, so a partition is a way to cut that list; a
    group of m inputs with a common prefix of p tokens saves (m - 1) p, and the best cuts follow one after another.

    Args:
        limits: input -> tokens that a prefix of it may have at most.
    """
    ordered = sorted(limits)
    shared = [0, *(min(limits[a], limits[b], common(a, b)) for a, b in pairwise(ordered))]
    saved, starts = [0], [0]  # by the best partition of the first j inputs, and where its last group starts
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
