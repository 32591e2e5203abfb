"""Intervals of paired differences over items: agreement with formulas, and coverage."""

import math

import numpy as np
import pytest

from ddl.reporting.statistics import Difference, beyond_noise, binomial_stderr, paired_differences


def outcomes(rng, items, shift=0.0):
    """Difference in correctness of two models that agree on most items."""
    common = rng.random(items) < 0.5
    pair = [np.where(rng.random(items) < 0.7, common, rng.random(items) < p) for p in (0.5 + shift, 0.5)]
    return pair[0].astype(np.int8) - pair[1].astype(np.int8)


def test_binomial_standard_error():
    assert binomial_stderr(0.3, 500) == pytest.approx(0.0204939, abs=1e-7)
    assert binomial_stderr(1.0, 500) == 0.0


def test_interval_of_one_seed_is_that_of_a_mean_of_items():
    outcome = outcomes(np.random.default_rng(0), 2000, 0.1)
    (found,), average = paired_differences([outcome])
    error = 1.96 * outcome.std(ddof=1) / math.sqrt(2000)
    assert found.value == pytest.approx(outcome.mean())
    assert found.low == pytest.approx(outcome.mean() - error, abs=0.002)
    assert found.high == pytest.approx(outcome.mean() + error, abs=0.002)
    assert average == found or average.value == found.value


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    outcome = outcomes(rng, 1000)
    (found,), _ = paired_differences([outcome])
    unpaired = 2 * 1.96 * math.hypot(binomial_stderr(0.5, 1000), binomial_stderr(0.5, 1000))
    assert found.high - found.low < 0.8 * unpaired


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        (found,), _ = paired_differences([outcomes(rng, 200)])
        inside += found.low <= 0 <= found.high
    assert 0.92 <= inside / 300 <= 0.98


def test_the_average_is_unweighted():
    _, average = paired_differences([np.ones(10, dtype=np.int8), np.zeros(1000, dtype=np.int8)])
    assert average == Difference(0.5, 0.5, 0.5)


def test_repeated_calls_are_identical():
    tasks = [outcomes(np.random.default_rng(n), 100) for n in range(3)]
    assert paired_differences(tasks) == paired_differences(tasks)


def test_separated_means_without_zero():
    found = [
        Difference(0.1, low, high).separated for low, high in ((0.01, 0.2), (-0.2, -0.01), (-0.01, 0.2), (0.0, 0.2))
    ]
    assert found == [True, True, False, False]


def test_beyond_noise_is_beyond_1_96_standard_errors():
    assert beyond_noise(0.5 + 0.0198, 0.006, 0.5, 0.008)
    assert not beyond_noise(0.5 + 0.0195, 0.006, 0.5, 0.008)
    assert beyond_noise(0.515, 0.006, 0.5, 0.008, correlation=0.5)
    assert not beyond_noise(0.512, 0.006, 0.5, 0.008, correlation=0.5)
