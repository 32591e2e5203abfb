"""What the residual rules of a trained model do: `ddl mechanism --scale laptop --data D --run R --out F`.

The model runs on validation tokens in fp32 through the rules themselves, without fused operations. For every sublayer,
at the end of training and at every snapshot of the run, this observes gate, readout, target, write and erasure, and how
directions and state move through depth. `ddl.evaluation.rule_parts` defines the parts for any rule; what a rule does
not have is left out. `mechanism.json` in the output folder holds the observations, `interventions.json` the losses that
`ddl.evaluation.interventions` measures on the same tokens.
"""

import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddl.config import Scale
from ddl.data.sequences import TokenSequences, load_manifest
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.interventions import intervene
from ddl.evaluation.model_check import EvaluationError, check_model
from ddl.evaluation.rule_parts import Inputs, carry, direction, has_part, watched, write
from ddl.files import write_json
from ddl.model.language_model import LanguageModel
from ddl.model.residual import Rule
from ddl.model.run_files import load_model, snapshot_steps
from ddl.provenance import provenance

QUANTILES = (0.05, 0.5, 0.95)
BINS = 40  # of a gate's histogram over [0, 2]
EVERY = 8  # the product of all frozen maps is decomposed for one token in so many
DIGITS = 6  # significant digits that are kept
SUBLAYERS = ("attention", "mlp")


class Observer:
    """Observes all sublayers of a model while it runs: `observe` for each batch, then the results.

    Args:
        model: with `kernels: reference` or any other setting under which its blocks call their rules.

    Attributes:
        tokens: for each sublayer, quantity -> one value per token.
        whole: the same for quantities of the whole stack of sublayers.
        alignment: (sublayers, sublayers), squared cosine of two sublayers' directions, mean over tokens.
        spread: (sublayers,), participation ratio of a sublayer's directions over tokens, between 1 and d.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model, count = model, len(model.rules())
        self._tokens: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in range(count)]
        self._whole: dict[str, list[Tensor]] = defaultdict(list)
        self._moments = torch.zeros(count, model.config.width, model.config.width)

    @torch.inference_mode()
    def observe(self, ids: Tensor) -> None:
        """Run the model on token ids (B, T)."""
        self._directions: list[Tensor] = []
        self._shrinking: list[Tensor] = []
        with watched(self.model, self._see):
            self.model.hidden(ids)
        k, b = torch.stack(self._directions, dim=1), torch.stack(self._shrinking, dim=1)  # (N, sublayers, d), (N, ...)
        self._whole["squared_cosines"].append(cosines(k).square())
        for name, values in zip(("largest", "smallest"), extreme_singular_values(k[::EVERY], b[::EVERY]), strict=True):
            self._whole[name].append(values)

    def _see(self, index: int, rule: Rule, inputs: Inputs, X_next: Tensor) -> None:
        k = direction(rule, inputs)
        if index == 0:
            self._start = self._kept = inputs.X
        self._kept = carry(rule, inputs, self._kept)
        b = 1 - along(k, carry(rule, inputs, spread_over(k, inputs.X))).mean(-1)
        before = self._directions[-1] if index else None
        for name, values in quantities(rule, inputs, X_next, k, before, self._start, self._kept).items():
            self._tokens[index][name].append(values.float().flatten().cpu())
        k, b = k.flatten(0, 1).float(), b.flatten().float()
        self._directions.append(k)
        self._shrinking.append(b)
        self._moments[index] += (k.mT @ k).cpu()

    @property
    def tokens(self) -> list[dict[str, Tensor]]:
        return [{name: torch.cat(parts) for name, parts in found.items()} for found in self._tokens]

    @property
    def whole(self) -> dict[str, Tensor]:
        """`rank`: participation ratio of a token's directions over sublayers; extreme singular values of the map."""
        squared = torch.cat(self._whole["squared_cosines"])
        rank = squared.shape[-1] ** 2 / squared.sum((1, 2))
        return {"rank": rank} | {name: torch.cat(self._whole[name]) for name in ("largest", "smallest")}

    @property
    def alignment(self) -> Tensor:
        return torch.cat(self._whole["squared_cosines"]).mean(0)

    @property
    def spread(self) -> Tensor:
        traces = self._moments.diagonal(dim1=1, dim2=2).sum(1)
        return traces.square() / self._moments.square().sum((1, 2))


def quantities(
    rule: Rule, inputs: Inputs, X_next: Tensor, k: Tensor, before: Tensor | None, start: Tensor, kept: Tensor
) -> dict[str, Tensor]:
    """One value per token for everything that is observed at one sublayer, each (B, T).

    Args:
        k: unit direction, (B, T, d).
        before: the one of the sublayer before, (B T, d); None at the first.
        start: the state before the first sublayer.
        kept: what the frozen maps up to this sublayer have left of it.
    """
    X = inputs.X
    written = write(rule, inputs)
    erased = X_next - X - written
    readout, target = along(k, X), along(k, written)
    found = {
        "write": length(written),  # |W|, which is beta |v| in the delta rule
        "erase": length(erased),  # |E|, there beta |r|
        "erase_share": length(erased) / (length(erased) + length(written)).clamp_min(1e-12),
        "readout": readout.norm(dim=-1),  # r = k^T X
        "cosine": torch.cosine_similarity(readout, target, dim=-1),  # of readout and write, over value channels
        "energy_before": (readout.norm(dim=-1) / length(X)).square(),
        "energy_after": (along(k, X_next).norm(dim=-1) / length(X_next)).square(),
        "change": length(X_next - X) / length(X),
        "growth": length(X_next) / length(start),
        "survival": inner(start, kept) / inner(start, start),
    }
    if before is not None:
        found["turn"] = (k.flatten(0, 1) * before).sum(-1)  # cosine with the direction before
    if has_part(rule, "gate"):
        found["gate"] = rule.gate(inputs.c)  # type: ignore[operator]
    if has_part(rule, "value"):
        v = rule.value(inputs.x_in, inputs.c, inputs.h).norm(dim=-1)  # type: ignore[operator]
        found |= {"target": v, "overwrites": (found["readout"] > v).float()}
    return found


def along(k: Tensor, X: Tensor) -> Tensor:
    """k^T X, (B, T, d) and a state -> (B, T, d_v)."""
    return torch.einsum("bti,btij->btj", k, wide(X))


def wide(X: Tensor) -> Tensor:
    """A state with its value channels, (B, T, d, d_v)."""
    return X.unsqueeze(-1) if X.dim() == 3 else X


def spread_over(k: Tensor, X: Tensor) -> Tensor:
    """The direction in every value channel, with the shape of X."""
    return k if X.dim() == 3 else k.unsqueeze(-1).expand_as(X).contiguous()


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """Inner product of two states, (B, T)."""
    return (X * Y).flatten(2).sum(-1)


def length(X: Tensor) -> Tensor:
    """Frobenius norm of a state, (B, T)."""
    return X.flatten(2).norm(dim=-1)


def cosines(k: Tensor) -> Tensor:
    """Inner products of unit directions, (N, sublayers, d) -> (N, sublayers, sublayers)."""
    return k @ k.mT


def extreme_singular_values(k: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest singular value of the product of I - b k k^T over sublayers.

    The product is the identity outside the span of the directions, so a matrix of the size of the span has the others.

    Args:
        k: (N, sublayers, d), unit directions; the first sublayer comes first.
        b: (N, sublayers), how much of the state along k each removes.

    Returns:
        two tensors (N,).
    """
    basis = torch.linalg.qr(k.mT).Q  # (N, d, span)
    inside = k @ basis
    product = torch.eye(inside.shape[-1], dtype=k.dtype, device=k.device).expand(len(k), -1, -1)
    for q, share in zip(inside.unbind(1), b.unbind(1), strict=True):
        product = product - (share.unsqueeze(-1) * q).unsqueeze(-1) * (q.unsqueeze(1) @ product)
    singular = torch.linalg.svdvals(product)
    if basis.shape[-1] == k.shape[-1]:
        return singular[:, 0], singular[:, -1]
    return singular[:, 0].clamp_min(1), singular[:, -1].clamp_max(1)


def explained(values: Tensor, groups: Tensor) -> float | None:
    """Share of the variance that the group of a token explains, adjusted for the number of groups.

    Values that do not depend on the group give 0 on average. None if there is no variance or no group with two tokens.

    Args:
        values: (N,).
        groups: int64 (N,), e.g. the position or the id of a token.
    """
    x, (_, group, counts) = values.double(), groups.unique(return_inverse=True, return_counts=True)
    within, total = len(x) - len(counts), float((x - x.mean()).square().sum())
    if within < 1 or total <= 1e-12 * len(x):
        return None
    means = torch.zeros(len(counts), dtype=x.dtype).index_add(0, group, x) / counts
    rest = float((x - means[group]).square().sum())
    return 1 - (rest / within) / (total / (len(x) - 1))


def rare(ids: Tensor) -> Tensor:
    """Whether a token is among the rarer half: its id occurs less often in `ids` than that of the median token."""
    _, inverse, counts = ids.unique(return_inverse=True, return_counts=True)
    often = counts[inverse]
    return often < often.median()


def summarise(values: dict[str, Tensor], chosen: Tensor) -> dict[str, Any]:
    """Mean of every quantity over the chosen tokens; for gate and shares also their spread."""
    row: dict[str, Any] = {"n": int(chosen.sum())}
    for name, found in values.items():
        part = found[chosen]
        row[name] = rounded(part.mean())
        if name in ("gate", "erase_share"):
            row[f"{name}_sd"] = rounded(part.std()) if len(part) > 1 else None
            for level, value in zip(QUANTILES, np.quantile(part.numpy(), QUANTILES), strict=True):
                row[f"{name}_p{round(100 * level):02d}"] = rounded(value)
    return row


def rounded(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def observe(
    model: LanguageModel, inputs: Tensor, targets: Tensor, batch_tokens: int, split: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Observe a model on sequences.

    Args:
        inputs, targets: int64 (sequences, T).
        split: also summarise rare and frequent tokens on their own.

    Returns:
        one row per sublayer and group of tokens; the quantities of the whole stack.
    """
    observer, device = Observer(model), model.embedding.weight.device
    for part in inputs.split(max(1, batch_tokens // inputs.shape[1])):
        observer.observe(part.to(device))
    chosen = {"all": torch.ones(inputs.numel(), dtype=torch.bool)}
    if split:
        for name, ids in (("input", inputs.flatten()), ("target", targets.flatten())):
            chosen |= {f"rare {name}": rare(ids), f"frequent {name}": ~rare(ids)}
    ids, positions = inputs.flatten(), torch.arange(inputs.shape[1]).repeat(len(inputs))
    rows = []
    for index, values in enumerate(observer.tokens):
        place = {"sublayer": index, "block": index // 2, "kind": SUBLAYERS[index % 2]}
        for name, mask in chosen.items():
            rows.append(place | {"tokens": name} | summarise(values, mask))
        whole = rows[-len(chosen)]
        whole["direction_rank"] = rounded(observer.spread[index])
        if "gate" in values:
            counts = torch.histc(values["gate"], BINS, 0.0, 2.0).long().tolist()
            by = {"position": explained(values["gate"], positions), "token": explained(values["gate"], ids)}
            whole |= {f"gate_by_{name}": None if share is None else rounded(share) for name, share in by.items()}
            whole["gate_histogram"] = counts
    stack: dict[str, Any] = {
        name: {"mean": rounded(values.mean()), "p05": rounded(low), "p95": rounded(high)}
        for name, values in observer.whole.items()
        for low, high in [np.quantile(values.cpu().numpy(), (QUANTILES[0], QUANTILES[-1]))]
    }
    stack["alignment"] = [[rounded(value) for value in row] for row in observer.alignment.tolist()]
    return rows, stack


def plain_model(run: Path, step: int | None, device: str) -> LanguageModel:
    """The model of a run, or of one of its snapshots, in fp32 and without fused operations."""
    trained = load_model(run, device, step)
    plain = dataclasses.replace(trained.config, kernels="reference", state_memory="stored", state_dtype="parameters")
    model = LanguageModel(plain).to(device)
    model.load_state_dict(trained.state_dict())
    return model.eval()


def spread_sequences(data: TokenSequences, tokens: int) -> np.ndarray:
    """Indices of sequences that are spread evenly over a split and hold about `tokens` tokens, or all of them."""
    count = min(max(tokens // data.sequence_length, 1), len(data))
    return np.linspace(0, len(data) - 1, count).astype(np.int64)


def measure_run(scale: Scale, run: Path, data: Path, out: Path) -> None:
    """Observe a run and its snapshots, intervene in it, and write mechanism.json and interventions.json.

    Args:
        data: results/<scale>/data.

    Raises:
        DataError, ModelFileError, TokenizerError, EvaluationError: data or run are missing, damaged or do not match.
    """
    started = time.monotonic()
    torch.set_num_threads(scale.training.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    split = TokenSequences(data / "manifest.json", "val", scale.sequence_length)
    model, settings = plain_model(run, None, device), scale.evaluation
    check_model(scale, model, split.vocab_size, data)
    if any(rule.takes is not Tensor for rule in model.rules()):
        raise EvaluationError(
            f"{run}: expected a design whose rules change one tensor, found reader {model.config.reader!r}, with which "
            "the state is several"
        )
    chosen = spread_sequences(split, settings.mechanism_tokens)
    inputs, targets = split.batch(chosen)
    final = json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"]
    rows, stacks = [], []
    for step in [*(step for step in snapshot_steps(run) if step < final), final]:
        observed = model if step == final else plain_model(run, step, device)
        found, stack = observe(observed, inputs, targets, settings.batch_tokens, split=step == final)
        rows += [{"step": step} | row for row in found]
        stacks.append({"step": step} | stack)
    made = {"tokens": inputs.numel(), "width": model.config.width, "sublayers": rows, "stacks": stacks}
    write_json(out / "mechanism.json", made | {"provenance": provenance()})
    tokenizer = load_tokenizer(data / load_manifest(data / "manifest.json")["tokenizer"]["file"])
    losses = intervene(model, split, chosen, end_of_text_id(tokenizer), settings.batch_tokens)
    write_json(out / "interventions.json", losses | {"provenance": provenance()})
    print(
        f"{run}: {len(stacks)} steps and {len(losses['changes'])} interventions on {inputs.numel()} tokens of "
        f"{len(losses['tokens'])} documents, {time.monotonic() - started:.1f} s"
    )
