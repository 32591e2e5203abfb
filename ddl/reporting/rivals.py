"""Residual designs of several papers side by side, from the rows of the study `rivals`.

A design is compared at its own learning rate: of those at which it has as many runs as at any, the one with the lowest
mean loss. The small models run at the rate that all studies share, and where the half-length runs of `rivals-rates` are
noticeably better at another one, at that too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ddl.config import SIZES, load_scale, load_variants
from ddl.files import finite
from ddl.layout import BASELINE, REFERENCE
from ddl.reporting.judged_claims import FAIR, LADDER, SCALE
from ddl.reporting.read_studies import at_best_rate, losses, rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, holm, over_seeds, p_value
from ddl.reporting.table_format import DASH
from ddl.reporting.token_ladder import Ladder

STUDY, TUNING = "rivals", "rivals-rates"
SPEEDS = REFERENCE / "designs.csv"  # rows of benchmarks/designs.py
STRONG = "normalised-branch-ec"  # the strongest baseline of the controls
NOTICEABLE = 0.03  # nats between two tuning runs: more than twice the noise of a paired difference
ALPHA = 0.05  # of the p-values adjusted for all designs
COSTS = ("params", "flops_per_token")
WIDER = (BASELINE, "baseline-equal-parameters", "baseline-equal-flops", "baseline-wider")  # ever wider MLPs


@dataclass(frozen=True)
class Compared:
    """One design at one size. Differences are in nats, negative if the design is better; None for too few runs."""

    slug: str
    rate: float  # the learning rate of its runs
    loss: Estimate
    diverged: int  # runs without a loss
    params: int
    flops: float  # per token; NaN if the rule does not count them
    stream_cosine: float  # between two streams at the readout, mean over seeds; NaN for one stream
    over_baseline: Estimate | None
    p: float | None  # of that difference, adjusted for all designs by Holm's method
    over_strong: Estimate | None
    at_equal_params: Estimate | None  # minus a baseline with a wider MLP, interpolated between two that were run
    at_equal_flops: Estimate | None
    at_equal_time: Estimate | None  # minus the baseline with as many more tokens as it trains faster, in plain PyTorch

    @property
    def is_better(self) -> bool:
        """Whether the design ends below the baseline, beyond the noise and the number of designs."""
        return self.over_baseline is not None and self.over_baseline.mean < 0 and (self.p or 0.0) < ALPHA


def compared(size: str, rows: pd.DataFrame | None = None) -> list[Compared]:
    """All designs of the study at one size, each at its own learning rate, from the lowest loss to the highest."""
    every = rows_if_any(STUDY) if rows is None else rows
    own = at_own_rate(every[(every["size"] == size) & (every["backbone"] == FAIR)])
    if own.empty:
        return []
    by_design = {str(slug): losses(group) for slug, group in own.groupby("variant", sort=False)}
    by_design = {slug: runs for slug, runs in by_design.items() if runs}
    blocks = Blocks.if_enough(by_design)
    params, flops = ({str(k): float(v) for k, v in own.groupby("variant")[name].first().items()} for name in COSTS)
    rates = own.groupby("variant")["learning_rate"].first()
    cosines = own.groupby("variant")["stream_cosine"].mean() if "stream_cosine" in own else pd.Series(dtype=float)
    differences = blocks_against(blocks, BASELINE)
    strong = blocks_against(blocks, STRONG)
    freedom = blocks.degrees_of_freedom if blocks else 0
    adjusted = holm({slug: p_value(each, freedom) for slug, each in differences.items()})
    measured = speeds(size)
    plain = measured[measured["kernels"] == "reference"]
    ratios = dict(zip(plain["variant"], plain["ratio"].astype(float), strict=True))
    usual, ladder = int(own["tokens"].max()) if len(own) else 0, Ladder.of(rows_if_any(LADDER), FAIR, size)
    found = [
        Compared(
            slug,
            float(rates[slug]),
            over_seeds(list(runs.values())),
            int(own[own["variant"] == slug]["val_loss"].isna().sum()),
            int(params[slug]),
            flops[slug],
            float(cosines.get(slug, math.nan)),
            differences.get(slug),
            adjusted.get(slug),
            strong.get(slug),
            beyond_width(blocks, params, slug),
            beyond_width(blocks, flops, slug),
            at_equal_time(differences.get(slug), ratios.get(slug), usual, ladder),
        )
        for slug, runs in by_design.items()
    ]
    base = next((each.loss.mean for each in found if each.slug == BASELINE), 0.0)

    def place(each: Compared) -> float:
        """Designs may have other seeds than the baseline, so the difference counts where it is known."""
        return each.over_baseline.mean if each.over_baseline else each.loss.mean - base

    return sorted(found, key=place)


def at_own_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each design at its own rate, see above; a rate with fewer runs than another is left out."""
    runs = rows.groupby(["variant", "learning_rate"])["seed"].transform("count")
    return at_best_rate(rows[runs == runs.groupby(rows["variant"]).transform("max")])


def tuned_rates() -> dict[str, float]:
    """Design -> the rate with the lowest loss of its half-length runs, or the shared one if that loses no more than
    `NOTICEABLE`."""
    rows, shared = rows_if_any(TUNING), load_scale(SCALE).training.learning_rate
    found = {}
    for slug, group in rows.groupby("variant", sort=False):
        tried = dict(
            zip(map(float, group["learning_rate"]), map(float, group["val_loss"].fillna(math.inf)), strict=True)
        )
        best = min(tried, key=tried.__getitem__)
        found[str(slug)] = best if tried[shared] - tried[best] > NOTICEABLE else shared
    return found


def blocks_against(blocks: Blocks | None, reference: str) -> dict[str, Estimate]:
    """Every other design minus `reference`, each interval for itself; empty if there are too few runs."""
    if not blocks or reference not in blocks.designs:
        return {}
    return {slug: blocks.difference(slug, reference) for slug in blocks.designs if slug != reference}


def beyond_width(blocks: Blocks | None, costs: Mapping[str, float], slug: str) -> Estimate | None:
    """Loss of a design minus that of a baseline that costs as much, with an MLP as wide as needed.

    The baseline is interpolated linearly between the two widths around the cost. None if the design costs more than the
    widest baseline, or one of the three was not run.
    """
    if not blocks or slug in WIDER or not {slug, BASELINE} <= set(blocks.designs) or not math.isfinite(costs[slug]):
        return None
    widths = sorted((width for width in WIDER if width in blocks.designs), key=costs.__getitem__)
    places = [costs[width] for width in widths]
    if not places[0] <= costs[slug] <= places[-1]:
        return None
    above = max(int(np.searchsorted(places, costs[slug])), 1)
    if above == len(places):
        return None
    share = (costs[slug] - places[above - 1]) / (places[above] - places[above - 1])
    return blocks.contrast({slug: 1.0, widths[above - 1]: share - 1, widths[above]: -share})


def at_equal_time(difference: Estimate | None, ratio: float | None, tokens: int, ladder: Ladder) -> Estimate | None:
    """A difference to the baseline, if the baseline had trained as long as the design and not for as many tokens.

    The baseline's loss with more tokens is that of complete runs, interpolated linearly in the logarithm of the tokens.
    None if its time, or a number of tokens as large, was not measured.

    Args:
        ratio: the baseline's time of a training step over the design's.
        tokens: of the runs that `difference` compares.
    """
    if difference is None or ratio is None or BASELINE not in ladder.losses or len(ladder.tokens) < 2:
        return None
    more = tokens / ratio
    if not ladder.tokens[0] <= min(tokens, more) <= max(tokens, more) <= ladder.tokens[-1]:
        return None
    curve = ladder.means[list(ladder.losses).index(BASELINE)]
    here, there = np.interp(np.log([tokens, more]), np.log(ladder.tokens), curve)
    gained = float(here - there)
    return Estimate(
        difference.mean + gained, difference.low + gained, difference.high + gained, difference.sd, difference.n
    )


def rivals_table(found: Mapping[str, list[Compared]]) -> pd.DataFrame:
    """Rows as for `write_table`: every design at each size, with its differences from three baselines in nats.

    Args:
        found: size -> designs, from `compared`.
    """
    variants, rows = load_variants(), []
    for size, designs in found.items():
        for each in designs:
            differences = {
                "Minus the baseline: difference": each.over_baseline,
                "Minus the baseline: at equal parameters": each.at_equal_params,
                "Minus the baseline: at equal FLOPs": each.at_equal_flops,
                "Minus the baseline: at equal time": each.at_equal_time,
                "Minus the strong baseline: difference": each.over_strong,
            }
            row = {
                "block": f"{size.capitalize()} models",
                "Design": variants[each.slug].label,
                "Rate": f"{each.rate:g}",
                "Seeds": f"{each.loss.n}" + (f" ({each.diverged} diverged)" if each.diverged else ""),
                "p": DASH if each.p is None else "<0.001" if each.p < 0.001 else f"{each.p:.2g}",
            }
            for name, estimate in differences.items():
                value, _, interval = estimate.shown("+").partition(" ± ") if estimate else (DASH, "", "")
                row |= {name: value, f"{name} ±": interval}
            rows.append(row)
    return pd.DataFrame(rows)


def said_of_rivals(size: str) -> str:
    """How the designs of other papers end at one size, in one sentence; empty if they were not run."""
    found = rivals().get(size)
    if not found:
        return ""
    label, shown, n = found["best"]
    return (
        f"Of {found['designs']} other residual designs on this bench, {len(found['better'])} {size} ones end "
        f"below the baseline and {len(found['better_than_strong'])} below the one with normalised outputs and EC; the "
        f"lowest is {label} ({shown} nats against the baseline, n = {n})."
    )


def rivals() -> dict[str, Any]:
    """The comparison at each size as JSON types, estimates as they are printed; a size without rivals is left out."""
    variants = load_variants()
    found = {}
    for size in SIZES:
        rows = [each for each in compared(size) if each.over_baseline]
        others = [each for each in rows if variants[each.slug].family == "rival"]
        if not others:
            continue
        better = [each for each in others if each.is_better]
        found[size] = {
            "designs": len(others),
            "best": [
                variants[others[0].slug].label,
                others[0].over_baseline.shown("+") if others[0].over_baseline else DASH,
                others[0].loss.n,
            ],
            "better": [variants[each.slug].label for each in better],
            "better_than_strong": [
                variants[each.slug].label for each in better if each.over_strong and each.over_strong.high < 0
            ],
            "rows": [
                {
                    "label": variants[each.slug].label,
                    "family": variants[each.slug].family,
                    "seeds": each.loss.n,
                    "diverged": each.diverged,
                    "over_baseline": each.over_baseline and each.over_baseline.shown("+"),
                    "over_strong": each.over_strong and each.over_strong.shown("+"),
                    "params": each.params,
                    "flops": finite(each.flops),
                }
                for each in rows
            ],
        }
    return found


def speeds(size: str) -> pd.DataFrame:
    """The newest measured step times, with columns variant, kernels, ms and ratio; empty if none were measured."""
    columns = ["variant", "kernels", "ms", "ratio"]
    if not SPEEDS.is_file():
        return pd.DataFrame(columns=columns)
    rows = pd.read_csv(SPEEDS)
    rows = rows[(rows["scale"] == SCALE) & (rows["size"] == size)].sort_values("utc", kind="stable")
    return rows.drop_duplicates(["variant", "kernels"], keep="last")[columns]
