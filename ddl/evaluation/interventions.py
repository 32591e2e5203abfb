"""Interventions: what a trained model loses when a residual rule does something else at test time.

An intervention replaces the rule of one sublayer, of several or of all by a changed one; nothing is trained again. A
change in loss says how much the trained model relies on what was changed, and not how useful it is to have it in
training. Losses are summed by document, so that differences can be paired.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddl.data.sequences import TokenSequences
from ddl.evaluation.loglikelihood import head
from ddl.evaluation.rule_parts import Constant, Given, Inputs, carry, has_part, watched, with_parts, write
from ddl.model.language_model import LanguageModel
from ddl.model.residual import Delta, Rule

Change = Callable[[Rule, Inputs], Tensor]  # the changed next state

SEED = 0  # of random directions
CHUNK = 4096  # sequences whose documents are counted at a time


class Changed(Rule):
    """A rule whose next state is computed by `change`."""

    def __init__(self, rule: Rule, change: Change) -> None:
        super().__init__()
        self.rule, self.change = rule, change

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        return self.change(self.rule, Inputs(X, x_in, c, h))


def skip(rule: Rule, inputs: Inputs) -> Tensor:
    """X' = X, as with a closed gate or a branch of zero."""
    return inputs.X


def scaled(factor: float) -> Change:
    """The change of the state multiplied by a factor."""
    return lambda rule, inputs: inputs.X + factor * (rule(*inputs) - inputs.X)


def erase_only(rule: Rule, inputs: Inputs) -> Tensor:
    """Nothing is written: X' = A X, which is X - beta k k^T X for the delta rule."""
    return carry(rule, inputs, inputs.X)


def write_only(rule: Rule, inputs: Inputs) -> Tensor:
    """Nothing is erased: X' = X + W, which is X + beta k v^T for the delta rule."""
    return inputs.X + write(rule, inputs)


def constant(part: str, value: Tensor) -> Change:
    """The gate (`gate`) or the target (`value`) is the same for all tokens."""
    return lambda rule, inputs: with_parts(rule, **{part: Constant(value)})(*inputs)


def random_direction(generator: torch.Generator) -> Change:
    """Every token and sublayer writes to, and erases along, a direction drawn at random."""

    def change(rule: Rule, inputs: Inputs) -> Tensor:
        drawn = torch.randn(inputs.h.shape, generator=generator).to(inputs.h)
        return with_parts(rule, direction=Given(drawn))(*inputs)

    return change


@contextmanager
def replaced(model: LanguageModel, changes: dict[int, Change]) -> Iterator[None]:
    """Change the rules of some sublayers, by index, and restore them in the end."""
    places = [(block, name) for block in model.blocks for name in ("attention_rule", "mlp_rule")]
    originals = [cast(Rule, getattr(block, name)) for block, name in places]
    try:
        for index, change in changes.items():
            setattr(*places[index], Changed(originals[index], change))
        yield
    finally:
        for place, original in zip(places, originals, strict=True):
            setattr(*place, original)


@torch.inference_mode()
def part_means(model: LanguageModel, batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    """Mean gate () and mean target (d_v,) of each sublayer over tokens; empty for a rule without them."""
    sums: list[dict[str, Tensor]] = [{} for _ in model.rules()]

    def see(index: int, rule: Rule, inputs: Inputs, X_next: Tensor) -> None:
        found: dict[str, Tensor] = {}
        if has_part(rule, "gate"):
            found["gate"] = rule.gate(inputs.c)  # type: ignore[operator]
        if has_part(rule, "value"):
            found["value"] = rule.value(inputs.x_in, inputs.c, inputs.h)  # type: ignore[operator]
        for name, values in found.items():
            sums[index][name] = sums[index].get(name, 0) + values.double().sum((0, 1))

    with watched(model, see):
        for ids, _ in batches:
            model.hidden(ids)
    tokens = sum(ids.numel() for ids, _ in batches)
    return [{name: (total / tokens).float() for name, total in found.items()} for found in sums]


def changes_of(rule: Rule, means: dict[str, Tensor], seed: int) -> dict[str, Change]:
    """Name -> change, for the changes that make a difference to a rule of this kind; `seed` is of random directions."""
    found: dict[str, Change] = {"closed": skip}
    if "gate" not in means:
        found |= {"half": scaled(0.5), "double": scaled(2.0)}
    else:
        found |= {
            "gate 1": constant("gate", torch.ones_like(means["gate"])),
            "mean gate": constant("gate", means["gate"]),
        }
    if "value" in means:
        found["mean target"] = constant("value", means["value"])
    if isinstance(rule, Delta):
        found["random direction"] = random_direction(torch.Generator().manual_seed(seed))
    return found


def plan(
    model: LanguageModel, means: list[dict[str, Tensor]], erases: bool
) -> Iterator[tuple[str, str, dict[int, Change]]]:
    """Every intervention as (change, sublayers, changes by index).

    `sublayers` is the index of one, `0..i` for all up to one, `i..` for all from one on, or `all`.
    """
    rules = model.rules()
    changes = [
        changes_of(rule, found, SEED + index) for index, (rule, found) in enumerate(zip(rules, means, strict=True))
    ]
    if erases:
        changes = [found | {"write off": erase_only, "erase off": write_only} for found in changes]
    everywhere = range(len(rules))
    for name in changes[0]:
        for index in everywhere:
            yield name, str(index), {index: changes[index][name]}
        if name != "closed":
            yield name, "all", {index: changes[index][name] for index in everywhere}
    for index in everywhere[1:]:
        yield "closed", f"{index}..", dict.fromkeys(everywhere[index:], skip)
        yield "closed", f"0..{index - 1}", dict.fromkeys(everywhere[:index], skip)
    yield "closed", "all", dict.fromkeys(everywhere, skip)


@torch.inference_mode()
def token_losses(model: LanguageModel, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, (B, T) -> (B T,) in fp64."""
    hidden = model.hidden(ids).flatten(0, 1)
    parts = [
        F.cross_entropy(logits, part, reduction="none")
        for logits, part in head(model.logits, hidden, targets.flatten())
    ]
    return torch.cat(parts).double()


def document_numbers(data: TokenSequences, chosen: np.ndarray, end_of_text: int) -> Tensor:
    """The document of each target of the chosen sequences, int64 (len(chosen), T), numbered from the split's start.

    A document starts with an end-of-text token.
    """
    found: dict[int, Tensor] = {}
    begun = 0
    wanted = set(chosen.tolist())
    for start in range(0, int(chosen.max()) + 1, CHUNK):
        rows = range(start, min(start + CHUNK, len(data)))
        starts = data.batch(rows)[1] == end_of_text
        numbers = begun + starts.flatten().cumsum(0).view(starts.shape)
        begun = int(numbers[-1, -1])
        found |= {row: numbers[row - start] for row in rows if row in wanted}
    return torch.stack([found[row] for row in chosen.tolist()])


def intervene(
    model: LanguageModel, data: TokenSequences, chosen: np.ndarray, end_of_text: int, batch_tokens: int
) -> dict[str, Any]:
    """Losses of a model under every intervention, by document.

    Args:
        model: with `kernels: reference`, so that its blocks call their rules.
        chosen: indices of sequences in increasing order.

    Returns:
        documents: their numbers, those of which a token is predicted;
        tokens: predicted tokens of each;
        loss: summed loss of each in nats, nothing changed;
        changes: one entry per intervention, with `change`, `sublayers` and `loss`.
    """
    device = model.embedding.weight.device
    documents, place = document_numbers(data, chosen, end_of_text).unique(return_inverse=True)
    tokens = place.flatten().bincount()
    rows = max(1, batch_tokens // data.sequence_length)
    pairs = [data.batch(chosen[start : start + rows]) for start in range(0, len(chosen), rows)]
    batches = [(ids.to(device), targets.to(device)) for ids, targets in pairs]

    def by_document() -> list[float]:
        losses = torch.cat([token_losses(model, ids, targets) for ids, targets in batches]).cpu()
        sums = torch.zeros(len(documents), dtype=torch.float64).index_add(0, place.flatten(), losses)
        return [round(value, 4) for value in sums.tolist()]

    unchanged, entries = by_document(), []
    for change, sublayers, changes in plan(model, part_means(model, batches), erases(model, batches[0][0])):
        with replaced(model, changes):
            entries.append({"change": change, "sublayers": sublayers, "loss": by_document()})
    return {"documents": documents.tolist(), "tokens": tokens.tolist(), "loss": unchanged, "changes": entries}


@torch.inference_mode()
def erases(model: LanguageModel, ids: Tensor) -> bool:
    """Whether any rule of the model takes something from the state, seen on one batch."""
    shares = []

    def see(index: int, rule: Rule, inputs: Inputs, X_next: Tensor) -> None:
        shares.append(float((carry(rule, inputs, inputs.X) - inputs.X).norm() / inputs.X.norm()))

    with watched(model, see):
        model.hidden(ids)
    return max(shares) > 1e-5  # the parts are differences in fp32
