"""How far a seed decides a number, and to which digit the number is therefore printed.

With several seeds a number comes with its t-interval over them. One seed has no interval. Then the standard deviations
of a run and of a paired difference between two designs come from the noise study, which trained some designs with
several seeds. Without its rows a loss is printed with two decimals and no more.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddl.config import Scale
from ddl.layout import BASELINE, STUDY_ROWS
from ddl.reporting.read_results import Record, Results
from ddl.reporting.read_studies import StudyRowsError, by_design, read_study
from ddl.reporting.rounding import rounding_spread
from ddl.reporting.seed_statistics import Estimate, over_seeds
from ddl.reporting.table_format import DASH, cell, decimals_for

NOISE_STUDY = "noise"
UNMEASURED = 0.05  # nats: rounds to two decimals where the noise is not known


@dataclass(frozen=True)
class Noise:
    """Standard deviations over seeds at one scale and size, in nats."""

    run: float
    difference: float  # of a design and the baseline with the same seed
    designs: tuple[str, ...]
    seeds: int


def noise_of(scale: Scale, size: str) -> Noise | None:
    """The noise of the scale's recipe at one size, from the committed noise study; None if it was not measured.

    Variances are pooled over the designs of the study, weighted by their degrees of freedom.
    """
    try:
        rows = read_study(NOISE_STUDY)
    except StudyRowsError:
        return None
    wanted = {"scale": scale.name, "size": size, "backbone": scale.backbone, "steps": scale.recipe.steps}
    wanted |= {"learning_rate": scale.recipe.learning_rate}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    runs = {variant: losses for (variant,), losses in by_design(rows, ["variant"]).items()}
    base = runs.get(BASELINE, {})
    pairs = [
        [losses[seed] - base[seed] for seed in losses.keys() & base.keys()]
        for variant, losses in runs.items()
        if variant != BASELINE
    ]
    run, difference = pooled_deviation([[*losses.values()] for losses in runs.values()]), pooled_deviation(pairs)
    if math.isnan(run) or math.isnan(difference):
        return None
    return Noise(run, difference, tuple(runs), len(set().union(*runs.values())))


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation within groups, pooled over them; NaN if no group has two values."""
    several = [over_seeds(group) for group in groups if len(group) > 1]
    freedom = sum(group.n - 1 for group in several)
    return math.sqrt(sum(group.sd**2 * (group.n - 1) for group in several) / freedom) if freedom else math.nan


@dataclass(frozen=True)
class Rounded:
    """A number as it is printed; its mean is None if it is missing, its half width if there is one seed."""

    mean: float | None
    half_width: float | None  # of the 95 % interval over seeds
    decimals: int
    n: int  # seeds

    @property
    def number(self) -> str:
        """The mean without its interval; a dash if it is missing."""
        return cell(self.mean, self.decimals)

    @property
    def signed(self) -> str:
        """The mean with its sign and without its interval."""
        return DASH if self.mean is None else f"{self.mean:+.{self.decimals}f}"

    @property
    def interval(self) -> str:
        """The half width; empty if there is none."""
        return "" if self.half_width is None else f"{self.half_width:.{self.decimals}f}"

    @property
    def text(self) -> str:
        """The mean, and ± the half width if there is one."""
        return f"{self.number} ± {self.interval}" if self.interval else self.number

    @property
    def difference(self) -> str:
        """The mean with its sign, and ± the half width if there is one."""
        return f"{self.signed} ± {self.interval}" if self.interval else self.signed

    @property
    def record(self) -> Record:
        """The fields that numbers.json keeps."""
        return {"mean": self.mean, "half_width": self.half_width, "decimals": self.decimals, "n": self.n}


def rounded(estimate: Estimate | None, uncertainty: float) -> Rounded:
    """Round a mean to the digit that its noise allows.

    Args:
        uncertainty: of a single seed, in the unit of the estimate. The interval of several seeds takes its place.
    """
    if estimate is None:
        return Rounded(None, None, 0, 0)
    if estimate.n > 1:
        return Rounded(estimate.mean, estimate.half_width, decimals_for(estimate.half_width), estimate.n)
    return Rounded(estimate.mean, None, decimals_for(uncertainty), estimate.n)


def shown_loss(estimate: Estimate | None, noise: Noise | None) -> Rounded:
    """A loss in nats."""
    return rounded(estimate, noise.run if noise else UNMEASURED)


def shown_difference(estimate: Estimate | None, noise: Noise | None) -> Rounded:
    """A paired difference of two losses, in nats."""
    return rounded(estimate, noise.difference if noise else UNMEASURED)


def shown_perplexity(estimate: Estimate | None, noise: Noise | None) -> Rounded:
    """A perplexity, whose relative error is the absolute error of the loss."""
    return rounded(estimate, estimate.mean * (noise.run if noise else UNMEASURED) if estimate else math.nan)


def shown_accuracy(estimate: Estimate | None, stderr: float) -> Rounded:
    """An accuracy in percent.

    Args:
        estimate: of the fraction of right answers.
        stderr: its standard error over items, which rounds a single seed.
    """
    if estimate is None:
        return rounded(None, math.nan)
    low, high = 100 * estimate.low, 100 * estimate.high
    return rounded(Estimate(100 * estimate.mean, low, high, 100 * estimate.sd, estimate.n), 100 * stderr)


def seeds_note(results: Results) -> str:
    """What the seeds of a scale, and rounding at a fixed seed, say about the noise of its losses."""
    return " ".join([_noise_of_seeds(results), *_noise_of_rounding(results)])


def _noise_of_rounding(results: Results) -> list[str]:
    """One sentence per size at which it was measured."""
    sentences = []
    for size in results.sizes:
        if found := rounding_spread(results.scale, size):
            run, difference = (f"{spread:.{decimals_for(spread)}f}" for spread in (found.run, found.difference))
            sentences.append(
                f"With the seed fixed, {size} models trained with other threads or instructions "
                f"({', '.join(found.machines)}) differ by up to {run} nats, and paired differences by up to "
                f"{difference}."
            )
    return sentences


def _noise_of_seeds(results: Results) -> str:
    seeds = len(results.scale.seeds)
    if seeds > 1:
        return (
            f"{seeds} seeds per design; ± is the half-width of the 95 % t-interval over seeds. Differences between "
            "designs are taken seed by seed."
        )
    known = {size: noise for size in results.sizes if (noise := noise_of(results.scale, size))}
    if not known:
        return (
            f"One seed per design. Its noise has not been measured, so losses have {decimals_for(UNMEASURED)} decimals."
        )
    parts = []
    for size, noise in known.items():
        labels = " and ".join(results.scale.variants[name].label for name in noise.designs)
        run, difference = (f"{sd:.{decimals_for(sd)}f}" for sd in (noise.run, noise.difference))
        parts.append(f"{run} nats for a run and {difference} nats for a paired difference ({size}, {labels})")
    lacking = [size for size in results.sizes if size not in known]
    unknown = f" The noise of {' and '.join(lacking)} models has not been measured." if lacking else ""
    count = " and ".join(sorted({str(noise.seeds) for noise in known.values()}))
    return (
        f"One seed per design, and losses are rounded by the noise study, {STUDY_ROWS.format(study=NOISE_STUDY)}: over "
        f"{count} seeds the standard deviation is {'; '.join(parts)}.{unknown}"
    )
