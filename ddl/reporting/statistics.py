"""How sure an accuracy, or a difference of two, is.

Two models that answer the same items are compared item by item: what is hard for both drops out of the difference. The
interval of a difference comes from a bootstrap over the items, and over the seeds where there are several.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
Z = 1.96  # standard errors on either side that hold 95 % of a normal distribution
SEED = 0


def binomial_stderr(accuracy: float, n: float) -> float:
    """Standard error of an accuracy, in [0, 1], over n independent items."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, and the ends of its 95 % interval; all in [-1, 1]."""

    value: float
    low: float
    high: float

    @property
    def separated(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_differences(outcomes: Sequence[np.ndarray]) -> tuple[list[Difference], Difference]:
    """Differences of two models on each of several tasks, and of the unweighted means over the tasks.

    A hierarchical bootstrap: seeds are drawn with replacement, the same for all tasks, since a seed is one pair of
    models; then items of each task, the same for all seeds drawn, since all answer the same items. With one seed
    the interval is over items alone and says nothing about another seed; with a few it is narrower than it should be.

    Args:
        outcomes: a task each, [seeds, items]: correct (1) or not (0) of one model minus the other's, by item and seed.

    Returns:
        A difference a task, and that of the means.
    """
    rng = np.random.default_rng(SEED)
    seeds = len(outcomes[0])
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds  # [resamples, seeds]
    values, resampled = [], []
    for outcome in outcomes:
        n = outcome.shape[1]
        # Items with the same outcome in all seeds are interchangeable, so it is enough to draw how many of each kind.
        kinds, counts = np.unique(outcome.T, axis=0, return_counts=True)  # [kinds, seeds], [kinds]
        means = rng.multinomial(n, counts / n, size=RESAMPLES) @ kinds / n  # [resamples, seeds]
        values.append(float(outcome.mean()))
        resampled.append((drawn * means).sum(axis=1))
    average = interval(float(np.mean(values)), np.mean(resampled, axis=0))
    return [interval(value, sample) for value, sample in zip(values, resampled, strict=True)], average


def interval(value: float, resampled: np.ndarray) -> Difference:
    """A value with the percentile interval of its resamples."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high))


def beyond_noise(accuracy: float, stderr: float, other: float, other_stderr: float, correlation: float = 0.0) -> bool:
    """Whether two accuracies differ by more than `Z` standard errors of their difference.

    Args:
        correlation: of the two models' answers over the items; 0 takes them for independent.
    """
    variance = stderr**2 + other_stderr**2 - 2 * correlation * stderr * other_stderr
    return abs(accuracy - other) > Z * math.sqrt(variance)
