"""Read what `ddl mechanism` measured, and compare interventions with models that were trained with the same change.

An intervention is measured on the same documents as the unchanged model, so their losses are paired. With one seed the
interval of a difference is over documents, and says nothing about other seeds. With several it is over seeds.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ddl.layout import MECHANISM
from ddl.reporting.read_results import REFERENCE_DIR, Results
from ddl.reporting.seed_statistics import Estimate, over_seeds, paired_difference
from ddl.reporting.statistics import LEVEL
from ddl.reporting.table_format import DASH, significant

# (a change of all sublayers at test time, design) -> the design that was trained with it
COUNTERPARTS = {
    ("erase off", "ddl-dv1"): "write-only",
    ("erase off", "ddl-cc"): "write-only-cc",
    ("gate 1", "ddl-dv1"): "ddl-dv1-fixed-gate",
    ("gate 1", "ddl-cc"): "ddl-cc-fixed-gate",
}
SAME = ("scale", "backbone", "steps", "learning_rate")  # columns that two runs must share to be compared


class Mechanism:
    """The measurements of all runs of a scale.

    Attributes:
        sublayers: one row per size, variant, seed, step, sublayer and group of tokens (`tokens`).
        stacks: one row per size, variant, seed and step, for all sublayers together.
        missing: files that do not exist.
        width: size -> d.
    """

    def __init__(self, results: Results) -> None:
        observed: list[dict[str, Any]] = []
        whole: list[dict[str, Any]] = []
        self._changes: dict[tuple[str, str, str, str], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self.missing: list[str] = []
        self.width: dict[str, int] = {}
        for size, variant, seed in results.runs():
            run: dict[str, Any] = {"size": size, "variant": variant, "seed": seed}
            found = self._read(results.path, f"{MECHANISM.format(**run)}/mechanism.json")
            observed += [run | row for row in found.get("sublayers", [])]
            whole += [run | row for row in found.get("stacks", [])]
            if found:
                self.width[size] = found["width"]
            found = self._read(results.path, f"{MECHANISM.format(**run)}/interventions.json")
            for entry in found.get("changes", []):
                rise = np.subtract(entry["loss"], found["loss"])
                self._changes[size, variant, entry["change"], entry["sublayers"]].append(
                    (rise, np.array(found["tokens"]))
                )
        columns = ["size", "variant", "seed", "step", "sublayer", "kind", "tokens", "n", "gate", "target", "overwrites"]
        self.sublayers = _with_columns(observed, columns)
        self.stacks = _with_columns(whole, ["size", "variant", "seed", "step"])

    def _read(self, folder: Path, name: str) -> dict[str, Any]:
        if not (folder / name).is_file():
            self.missing.append(name)
            return {}
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))

    def last(self, tokens: str = "all") -> pd.DataFrame:
        """Rows of `sublayers` after the last step of each run, for one group of tokens."""
        rows = self.sublayers[self.sublayers["tokens"] == tokens]
        return rows[rows["step"] == rows.groupby(["size", "variant", "seed"])["step"].transform("max")]

    def difference(self, size: str, variant: str, change: str, sublayers: str) -> Estimate | None:
        """Loss after an intervention minus loss before, in nats per token; None if it was not made.

        The interval is over seeds if there are several, else over documents.
        """
        runs = self._changes.get((size, variant, change, sublayers), [])
        if len(runs) == 1:
            return over_documents(*runs[0])
        return over_seeds([float(sums.sum() / tokens.sum()) for sums, tokens in runs]) if runs else None


def _with_columns(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*columns, *(name for name in frame if name not in columns)])


def over_documents(sums: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Mean per token of a quantity that is summed by document, with an interval over documents.

    Args:
        sums: (documents,).
        tokens: (documents,), weights.
    """
    n, mean = len(sums), float(sums.sum() / tokens.sum())
    scores = (sums - mean * tokens) * n / tokens.sum()  # what each document adds to the mean, linearised
    sd = float(scores.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, sd, n)


def study_rows(folder: Path = REFERENCE_DIR / "studies") -> pd.DataFrame:
    """The committed rows of all studies; without any, an empty table."""
    frames = [pd.read_csv(path) for path in sorted(folder.glob("*.csv")) if "." not in path.stem]
    return (
        pd.concat(frames, ignore_index=True) if frames else _with_columns([], ["size", "variant", "seed", "val_loss"])
    )


def overwrites(erase_share: Any, before: Any, after: Any) -> Any:
    """Whether sublayers find more energy along k than chance, leave less of it, and erase more than they write.

    Args:
        erase_share: length of the erase term relative to the sum of both terms' lengths; a number or a column.
        before, after: energy of the state along k relative to chance, 1/d, of the same form.
    """
    return (erase_share > 0.5) & (before > 1) & (after < before)


@dataclass(frozen=True)
class Retrained:
    """A difference between two trained designs; `estimate` is None for the given reason."""

    estimate: Estimate | None
    reason: str = ""


def retrained(rows: pd.DataFrame, size: str, design: str, changed: str | None) -> Retrained:
    """Loss of the design that was trained with a change minus the loss of the one without, paired by seed.

    Args:
        rows: a table with columns size, variant, seed and val_loss. Runs are compared only if they agree in the columns
            of `SAME` that it has; of several such sets, the one with the most seeds counts.
        changed: the design that was trained with the change; None if there is none.
    """
    if changed is None:
        return Retrained(None, "no design is trained with this change")
    runs = rows[(rows["size"] == size) & rows["variant"].isin([design, changed])].dropna(subset=["val_loss"])
    keys = [name for name in SAME if name in runs]
    best: Estimate | None = None
    for _, group in runs.groupby(keys) if keys else [((), runs)]:
        losses = {
            variant: dict(zip(part["seed"], part["val_loss"], strict=False))
            for variant, part in group.groupby("variant")
        }
        common = losses.get(design, {}).keys() & losses.get(changed, {}).keys()
        if common and (best is None or len(common) > best.n):
            best = paired_difference(losses[changed], losses[design])
    if best is None:
        return Retrained(None, f"no study has runs of {changed} and {design} at the {size} size")
    return Retrained(best)


def shown(estimate: Estimate | None, digits: int = 2) -> str:
    """A mean and the half-width of its interval, to the digit that the interval carries; a dash for None."""
    if estimate is None:
        return DASH
    if not math.isfinite(estimate.half_width):
        return significant(estimate.mean, digits)
    width = max(estimate.half_width, 1e-6)
    decimals = min(max(-math.floor(math.log10(width)), 0), 4)
    return f"{estimate.mean:+.{decimals}f} ± {estimate.half_width:.{decimals}f}"


def seeds_phrase(seeds: Iterable[int]) -> str:
    """E.g. "1 seed" or "5 seeds"."""
    count = len(set(seeds))
    return f"{count} seed{'s' if count != 1 else ''}"
