"""Uncertainties of accuracies and of differences between two accuracies; `seed_statistics` has those of losses.

Two models that answer the same items are compared item by item, so the difficulty of items cancels in the difference.
The interval of a difference comes from a bootstrap over items. It is for one seed; with several, the interval is that
of their differences (`seed_statistics`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddl.reporting.seed_statistics import LEVEL

RESAMPLES = 10_000
Z = 1.96  # a normal distribution has 95 % of its mass within this many standard errors
SEED = 0


def binomial_stderr(accuracy: float, n: float) -> float:
    """Standard error of an accuracy, in [0, 1], over n independent items."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


@dataclass(frozen=True)
class Difference:
    """A difference between two accuracies, with the ends of its 95 % interval; all in [-1, 1]."""

    value: float
    low: float
    high: float

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_differences(outcomes: Sequence[np.ndarray]) -> tuple[list[Difference], Difference]:
    """Differences between two models on several tasks, and between their unweighted means over the tasks.

    The bootstrap draws the items of each task with replacement. The intervals cover the choice of items and do not
    predict other seeds.

    Args:
        outcomes: for each task, the correctness (0 or 1) of one model on each item minus that of the other, (items,).

    Returns:
        The difference on each task, and the difference between the means.
    """
    rng = np.random.default_rng(SEED)
    values, resampled = [], []
    for outcome in outcomes:
        n = len(outcome)
        # Items with the same outcome are interchangeable, so only the count of each kind is drawn.
        kinds, counts = np.unique(outcome, return_counts=True)
        values.append(float(outcome.mean()))
        resampled.append(rng.multinomial(n, counts / n, size=RESAMPLES) @ kinds / n)
    average = interval(float(np.mean(values)), np.mean(resampled, axis=0))
    return [interval(value, sample) for value, sample in zip(values, resampled, strict=True)], average


def interval(value: float, resampled: np.ndarray) -> Difference:
    """Combine a value with the percentile interval of its resamples."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high))


def beyond_noise(accuracy: float, stderr: float, other: float, other_stderr: float, correlation: float = 0.0) -> bool:
    """Whether two accuracies differ by more than `Z` standard errors of their difference.

    Args:
        correlation: between the two models' answers over items; 0 treats them as independent.
    """
    variance = stderr**2 + other_stderr**2 - 2 * correlation * stderr * other_stderr
    return abs(accuracy - other) > Z * math.sqrt(variance)
