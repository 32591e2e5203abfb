"""Statistics over training seeds: what runs with several seeds say about a difference between designs.

Seeds are blocks: all designs of a study run with the same seeds, so they see the same data in the same order and start
from the same backbone weights. Differences between designs are therefore taken seed by seed. The inference is about
other seeds; the validation documents are a fixed set.

The headline interval is Student's t. A percentile bootstrap is too narrow with few seeds; `coverage` measures how often
each contains the truth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from ddl.reporting.table_format import decimals_for

LEVEL = 0.95  # of intervals
POWER = 0.8
DRAWS = 200_000  # of the simulated maximum of |t|
SEED = 0

Losses = Mapping[int, float]  # seed -> loss of a run, in nats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    sd: float  # standard deviation of one value
    n: int  # seeds

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def negated(self) -> "Estimate":
        """The same estimate with the opposite sign, as for a difference the other way round."""
        return Estimate(-self.mean, -self.high, -self.low, self.sd, self.n)

    def shown(self, sign: str = "") -> str:
        """Mean ± half-width, to the first or second digit of the half-width: further digits would be noise.

        A single seed has no half-width and is shown with two decimals.

        Args:
            sign: "+" shows the sign of a positive mean, for differences.
        """
        if not math.isfinite(self.half_width):
            return f"{self.mean:{sign}.2f} (one seed)"
        decimals = decimals_for(self.half_width)
        return f"{self.mean:{sign}.{decimals}f} ± {self.half_width:.{decimals}f}"

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean of one value per seed with its t-interval; the interval is infinite for a single seed.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected finite values, one per seed, found {list(values)}")
    n = array.size
    sd = float(array.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else math.inf
    mean = float(array.mean())
    return Estimate(mean, mean - half, mean + half, sd, n)


def paired_difference(losses: Losses, reference: Losses, level: float = LEVEL) -> Estimate:
    """Mean of `losses` minus `reference` over the seeds that both have, with its t-interval."""
    return over_seeds([losses[seed] - reference[seed] for seed in sorted(losses.keys() & reference.keys())], level)


def coverage(n: int, repetitions: int = 2000, resamples: int = 500) -> dict[str, float]:
    """How often intervals of nominally `LEVEL` from n normal values contain their true mean, by simulation."""
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal((repetitions, n))
    found = [over_seeds(row.tolist()) for row in values]
    picked = rng.integers(0, n, (repetitions, resamples, n))
    means = np.take_along_axis(values[:, None, :], picked, axis=2).mean(axis=2)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return {
        "Student's t": float(np.mean([each.low <= 0 <= each.high for each in found])),
        "percentile bootstrap": float(np.mean((low <= 0) & (high >= 0))),
    }


class Blocks:
    """Losses of several designs over seeds, and the noise that is left after the effects of both are removed.

    With loss = mean + design + seed + noise, fitted by least squares, the noise of all designs is pooled into one
    standard deviation. That makes intervals narrower than those of single pairs, if the noise of all designs is alike;
    `spread` shows whether it is. A design may lack seeds that others have.

    Attributes:
        designs: those with two runs or more.
        noise: pooled standard deviation of one run, the effect of its seed removed.
        degrees_of_freedom: of `noise`.
        residuals: [designs, seeds], NaN where there is no run.
    """

    def __init__(self, losses: Mapping[str, Losses]) -> None:
        """Fit the model.

        Raises:
            ValueError: fewer than two designs with two runs, or nothing left from which to estimate the noise.
        """
        self.losses = {design: runs for design, runs in losses.items() if len(runs) > 1}
        self.designs = tuple(self.losses)
        self.seeds = tuple(sorted({seed for runs in self.losses.values() for seed in runs}))
        cells = [
            (row, self.seeds.index(seed)) for row, design in enumerate(self.designs) for seed in self.losses[design]
        ]
        values = np.array([self.losses[self.designs[row]][self.seeds[column]] for row, column in cells])
        matrix = np.zeros((len(cells), len(self.designs) + len(self.seeds)))
        for number, (row, column) in enumerate(cells):
            matrix[number, [row, len(self.designs) + column]] = 1
        self.degrees_of_freedom = len(cells) - int(np.linalg.matrix_rank(matrix)) if cells else 0
        if len(self.designs) < 2 or self.degrees_of_freedom < 1:
            raise ValueError(
                f"expected two designs with two common seeds, found {len(self.designs)} designs and "
                f"{self.degrees_of_freedom} degrees of freedom"
            )
        self._inverse = np.linalg.pinv(matrix)
        self._means = self._inverse @ values
        left = values - matrix @ self._means
        self._reach = self._inverse @ matrix  # the identity on what the runs determine
        self.noise = math.sqrt(float(left @ left) / self.degrees_of_freedom)
        self.residuals = np.full((len(self.designs), len(self.seeds)), np.nan)
        self.residuals[tuple(np.array(cells).T)] = left

    @classmethod
    def if_enough(cls, losses: Mapping[str, Losses]) -> "Blocks | None":
        """The fit, or None if there are too few runs for one."""
        try:
            return cls(losses)
        except ValueError:
            return None

    @property
    def spread(self) -> dict[str, float]:
        """Design -> root mean square of its residuals, scaled so that equal noise gives `noise` for each."""
        share = self.degrees_of_freedom / int(np.isfinite(self.residuals).sum())
        return {
            design: math.sqrt(float(np.nanmean(row**2)) / share)
            for design, row in zip(self.designs, self.residuals, strict=True)
        }

    def contrast(self, weights: Mapping[str, float], critical: float | None = None) -> Estimate:
        """A weighted sum of the designs' means, with an interval from the pooled noise.

        Args:
            weights: design -> weight; they must sum to zero, so that the effects of seeds cancel.
            critical: the standard errors on each side; None takes Student's t for one contrast.

        Returns:
            The estimate; `n` is the number of seeds that all its designs have, and `sd` is sqrt(n) standard errors.

        Raises:
            ValueError: the weights do not sum to zero, or the designs share no seeds, not even through others.
        """
        if abs(sum(weights.values())) > 1e-9:
            raise ValueError(f"expected weights that sum to zero, found {dict(weights)}")
        vector = np.zeros(len(self.designs) + len(self.seeds))
        for design, weight in weights.items():
            vector[self.designs.index(design)] = weight
        if not np.allclose(vector @ self._reach, vector, atol=1e-8):
            raise ValueError(f"expected designs that share seeds, found {', '.join(weights)}")
        if critical is None:
            critical = float(stats.t.ppf((1 + LEVEL) / 2, self.degrees_of_freedom))
        mean, error = float(vector @ self._means), self.noise * float(np.linalg.norm(vector @ self._inverse))
        used = [set(self.losses[design]) for design, weight in weights.items() if weight]
        n = len(set.intersection(*used)) if used else 0
        return Estimate(mean, mean - critical * error, mean + critical * error, error * math.sqrt(max(n, 1)), n)

    def difference(self, design: str, reference: str, comparisons: int = 1) -> Estimate:
        """Mean of a design minus that of another.

        Args:
            comparisons: with the same reference, whose intervals together hold with probability `LEVEL` (Dunnett).
        """
        critical = dunnett_critical(comparisons, self.degrees_of_freedom) if comparisons > 1 else None
        return self.contrast({design: 1.0, reference: -1.0}, critical)

    def against(self, reference: str) -> dict[str, Estimate]:
        """Every other design minus `reference`; all intervals together hold with probability `LEVEL` (Dunnett)."""
        others = [design for design in self.designs if design != reference]
        return {design: self.difference(design, reference, len(others)) for design in others}


@cache
def dunnett_critical(comparisons: int, degrees_of_freedom: int, level: float = LEVEL) -> float:
    """The value that the largest |t| of several comparisons with one reference stays below with probability `level`.

    All groups have the same size, so two comparisons have correlation 1/2. The value is simulated from `DRAWS` draws.
    """
    rng = np.random.default_rng(SEED)
    largest = np.abs(rng.standard_normal(DRAWS)[:, None] + rng.standard_normal((DRAWS, comparisons))).max(axis=1)
    scale = np.sqrt(rng.chisquare(degrees_of_freedom, DRAWS) / degrees_of_freedom)
    return float(np.quantile(largest / math.sqrt(2) / scale, level))


def p_value(estimate: Estimate, degrees_of_freedom: int | None = None) -> float:
    """Two-sided p-value of the hypothesis that the mean is zero, by Student's t."""
    freedom = estimate.n - 1 if degrees_of_freedom is None else degrees_of_freedom
    if freedom < 1:
        return 1.0
    if estimate.sd == 0:
        return float(estimate.mean == 0)
    return float(2 * stats.t.sf(abs(estimate.mean) / (estimate.sd / math.sqrt(estimate.n)), freedom))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted by Holm's method: those below alpha reject with a family-wise error of at most alpha."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def detectable(sd: float, n: int, degrees_of_freedom: int | None = None, comparisons: int = 1) -> float:
    """The difference that a two-sided test finds with probability `POWER`, in the unit of `sd`.

    Args:
        sd: standard deviation of a paired difference.
        n: seeds.
        degrees_of_freedom: of the estimate of `sd`; None takes n - 1.
        comparisons: with one reference, corrected for their number (Dunnett).
    """
    freedom = n - 1 if degrees_of_freedom is None else degrees_of_freedom
    if freedom < 1:
        return math.inf
    critical = dunnett_critical(comparisons, freedom) if comparisons > 1 else stats.t.ppf((1 + LEVEL) / 2, freedom)
    low, high = 0.0, 100.0  # in standard errors; the power rises with the difference
    for _ in range(60):
        middle = (low + high) / 2
        power = stats.nct.sf(critical, freedom, middle)  # the other tail is negligible at this power
        low, high = (middle, high) if power < POWER else (low, middle)  # far out scipy returns nan: the power is 1
    return high * sd / math.sqrt(n)


@dataclass(frozen=True)
class BestRate:
    """The learning rate with the lowest loss, and the lowest point of a parabola through it and its neighbours."""

    tried: float
    loss: float
    at_edge: bool  # the lowest loss is at the smallest or largest rate, so the best rate may lie outside
    fitted_rate: float
    fitted_loss: float


def best_rate(losses: Mapping[float, float]) -> BestRate:
    """The best of several learning rates, by a parabola in the logarithm of the rate.

    At an edge, or with a loss that is not finite next to the lowest one, the fit is the lowest point itself.

    Raises:
        ValueError: no loss is finite.
    """
    rates = sorted(losses)
    finite = [rate for rate in rates if math.isfinite(losses[rate])]
    if not finite:
        raise ValueError("expected a finite loss at one learning rate or more, found none")
    tried = min(finite, key=losses.__getitem__)
    place = rates.index(tried)
    near = rates[max(place - 1, 0) : place + 2]
    at_edge = len(near) < 3
    if at_edge or not all(math.isfinite(losses[rate]) for rate in near):
        return BestRate(tried, losses[tried], at_edge, tried, losses[tried])
    logs = np.log(near) - math.log(tried)
    curvature, slope, constant = np.polyfit(logs, [losses[rate] for rate in near], 2)
    if curvature <= 0:  # three equal losses
        return BestRate(tried, losses[tried], False, tried, losses[tried])
    lowest = -slope / (2 * curvature)
    return BestRate(tried, losses[tried], False, tried * math.exp(lowest), float(constant - curvature * lowest**2))
