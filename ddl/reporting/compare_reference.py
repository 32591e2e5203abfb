"""Compare the losses of a run with those of committed reference results: is my result right?

    ddl compare --results results/laptop

Another processor adds the same numbers in another order, and training amplifies that until a run differs as much as one
with another seed. A loss is therefore within the band if it is as close to the reference as two seeds are in 95 of 100
cases, by the noise study. So one in twenty numbers is expected outside.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from ddl.layout import BASELINE
from ddl.reporting.keep_reference import REFERENCE, KeepError
from ddl.reporting.read_results import Results
from ddl.reporting.seed_noise import noise_of
from ddl.reporting.seed_statistics import LEVEL
from ddl.reporting.table_format import DASH, decimals_for

RUN = ["size", "variant", "seed"]
BOTH = ["val_loss_here", "val_loss_reference"]


@dataclass(frozen=True)
class Compared:
    """One number of both results, in nats; `band` is NaN where the noise was not measured."""

    size: str
    what: str
    seed: int
    here: float
    reference: float
    band: float

    @property
    def verdict(self) -> str:
        """Within or outside the band; a dash where there is none."""
        if not math.isfinite(self.band):
            return DASH
        return "within" if abs(self.here - self.reference) <= self.band else "outside"


def reference_of(here: Results, name: str | None) -> Results:
    """The committed results of a name, or those of the same scale.

    Raises:
        KeepError: there are none, several of the scale and no name, or those of the name are of another scale.
    """
    every = {path.parent.name: Results(path.parent) for path in sorted(REFERENCE.glob("*/numbers.json"))}
    same = {name: results for name, results in every.items() if results.scale.name == here.scale.name}
    if name is None and len(same) == 1:
        return next(iter(same.values()))
    if name is None or name not in same:
        found = f"{name}, which is not one" if name else "none" if not same else "several and no --name"
        raise KeepError(
            f"expected one of the results in results/reference that are of the scale {here.scale.name} "
            f"({', '.join(same) or DASH}), found {found}"
        )
    return same[name]


def compare(results: Path, name: str | None = None) -> list[Compared]:
    """Losses and differences from the baseline, of all runs that both results have.

    Args:
        name: of the folder in `results/reference`; None for that of the same scale.

    Raises:
        KeepError: there are no such reference results.
        ResultsError: the folder holds no results of a scale.
    """
    here = Results(results)
    reference = reference_of(here, name)
    columns = [*RUN, "val_loss"]
    both = here.validation()[columns].merge(reference.validation()[columns], on=RUN, suffixes=("_here", "_reference"))
    both = both.dropna(subset=BOTH)
    found = []
    for size, rows in both.groupby("size", sort=False):
        noise = noise_of(here.scale, str(size))
        quantile = stats.t.ppf((1 + LEVEL) / 2, len(noise.designs) * (noise.seeds - 1)) if noise else math.nan
        run, difference = (noise.run, noise.difference) if noise else (math.nan, math.nan)
        found += [_compared(row, "loss", row, math.sqrt(2) * quantile * run) for _, row in rows.iterrows()]
        base = rows[rows["variant"] == BASELINE].set_index("seed")
        for _, row in rows[(rows["variant"] != BASELINE) & rows["seed"].isin(base.index)].iterrows():
            gap = row.copy()
            gap[BOTH] -= base.loc[row["seed"], BOTH]
            found.append(_compared(row, "minus the baseline", gap, math.sqrt(2) * quantile * difference))
    return found


def _compared(run: "pd.Series[float]", what: str, values: "pd.Series[float]", band: float) -> Compared:
    here, reference = (float(values[name]) for name in BOTH)
    return Compared(str(run["size"]), f"{run['variant']} {what}", int(run["seed"]), here, reference, band)


def report(results: Path, name: str | None = None) -> str:
    """The comparison as a table, with a summary in its last line."""
    found = compare(results, name)
    if not found:
        return f"{results} has no run with a loss that the reference results have too"
    judged = [each for each in found if each.verdict != DASH]
    lines = [("size", "number", "seed", "here", "reference", "difference", "band", "")]
    for each in found:
        decimals = decimals_for(each.band) if math.isfinite(each.band) else 2
        band = f"±{each.band:.{decimals}f}" if math.isfinite(each.band) else DASH
        cells = (f"{each.here:.{decimals}f}", f"{each.reference:.{decimals}f}")
        difference = f"{each.here - each.reference:+.{decimals}f}"
        lines.append((each.size, each.what, str(each.seed), *cells, difference, band, each.verdict))
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    outside = sum(each.verdict == "outside" for each in judged)
    if not judged:
        return "\n".join([*text, "", "The noise of this scale has not been measured, so there is no band."])
    return "\n".join(
        [
            *text,
            "",
            f"{outside} of {len(judged)} numbers are outside the band; {(1 - LEVEL) * len(judged):.1f} are expected if "
            "only rounding and seeds differ.",
        ]
    )
