"""Statistics over seeds: agreement with scipy and published tables, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from ddl.reporting.seed_statistics import (
    Blocks,
    best_rate,
    coverage,
    detectable,
    dunnett_critical,
    holm,
    over_seeds,
    p_value,
    paired_difference,
)


def runs(losses):
    return dict(enumerate(losses))


def drawn(rng, designs=5, seeds=5, noise=0.02):
    """Losses of designs without an effect, with large effects of seeds."""
    seed = rng.normal(0, 0.2, seeds)
    return {f"d{i}": runs(4 + seed + rng.normal(0, noise, seeds)) for i in range(designs)}


def test_interval_of_a_mean_is_that_of_scipy():
    values = [4.1, 4.3, 4.2, 4.6]
    found = over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert p_value(found) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_one_seed_says_nothing_about_other_seeds():
    found = over_seeds([4.2])
    assert found.mean == 4.2
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert p_value(found) == 1.0
    assert detectable(0.02, 1) == math.inf


@pytest.mark.parametrize("values", [[], [4.0, math.nan], [4.0, math.inf]])
def test_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        over_seeds(values)


def test_pairing_removes_the_effect_of_seeds_and_uses_common_seeds_only():
    found = paired_difference({0: 4.0, 1: 5.0, 2: 9.0}, {0: 4.1, 1: 5.1, 3: 7.0})
    assert found.n == 2
    assert found.mean == pytest.approx(-0.1)
    assert found.sd == pytest.approx(0, abs=1e-12)


def test_interval_of_t_covers_as_often_as_it_says_and_the_bootstrap_does_not():
    found = {n: coverage(n) for n in (3, 5, 10)}
    assert [each["Student's t"] for each in found.values()] == pytest.approx([0.95] * 3, abs=0.015)
    assert found[3]["percentile bootstrap"] < 0.85
    assert found[5]["percentile bootstrap"] < 0.90


def test_pooled_noise_does_not_contain_the_effect_of_seeds():
    rng = np.random.default_rng(1)
    noises = [Blocks(drawn(rng)).noise ** 2 for _ in range(400)]
    assert math.sqrt(float(np.mean(noises))) == pytest.approx(0.02, rel=0.05)


def test_noise_of_two_designs_is_that_of_their_difference():
    first, second = runs([4.1, 4.3, 4.2]), runs([4.0, 4.1, 4.25])
    pair = paired_difference(first, second)
    blocks = Blocks({"first": first, "second": second})
    found = blocks.contrast({"first": 1, "second": -1})
    assert blocks.noise * math.sqrt(2) == pytest.approx(pair.sd)
    assert (found.mean, found.low, found.high) == pytest.approx((pair.mean, pair.low, pair.high))
    assert p_value(found, blocks.degrees_of_freedom) == pytest.approx(p_value(pair))


def test_intervals_against_one_reference_hold_together():
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(600):
        wrong += any(found.separated for found in Blocks(drawn(rng)).against("d0").values())
    assert wrong / 600 == pytest.approx(0.05, abs=0.025)


def test_a_contrast_keeps_its_sign_and_its_size():
    losses = {"a": runs([4.0, 4.2, 4.1]), "b": runs([4.5, 4.7, 4.6]), "c": runs([4.4, 4.6, 4.5])}
    found = Blocks(losses).contrast({"a": -1, "b": 0.5, "c": 0.5})
    assert found.mean == pytest.approx(0.45)
    with pytest.raises(ValueError, match="sum to zero"):
        Blocks(losses).contrast({"a": 1})


def test_designs_may_lack_seeds_that_others_have():
    """The effect of a seed that one design lacks is known from the others, so it does not enter the difference."""
    losses = {"a": {0: 1.0, 1: 2.0, 2: 7.0}, "b": {0: 1.5, 1: 2.5}, "c": {0: 3.0, 1: 4.0, 2: 9.0}}
    blocks = Blocks(losses)
    found = blocks.difference("b", "a")
    assert (found.mean, found.n) == (pytest.approx(0.5), 2)
    assert blocks.noise == pytest.approx(0, abs=1e-12)
    assert blocks.degrees_of_freedom == 8 - 5
    assert np.isnan(blocks.residuals[1, 2])
    alone = Blocks({"a": losses["a"], "b": losses["b"], "once": {0: 5.0}})
    assert alone.designs == ("a", "b")


def test_more_common_seeds_narrow_a_difference():
    rng = np.random.default_rng(6)
    losses = drawn(rng, designs=6, seeds=10)
    few = losses | {"d1": {seed: losses["d1"][seed] for seed in range(3)}}
    assert Blocks(losses).difference("d1", "d0").half_width < 0.7 * Blocks(few).difference("d1", "d0").half_width


def test_intervals_cover_as_often_as_they_say_if_seeds_are_missing():
    rng, covered = np.random.default_rng(7), 0
    for _ in range(800):
        losses = drawn(rng)
        losses["d1"] = {seed: losses["d1"][seed] for seed in range(3)}
        covered += not Blocks(losses).difference("d1", "d0").separated
    assert covered / 800 == pytest.approx(0.95, abs=0.025)


def test_too_few_runs_are_refused():
    for losses in ({}, {"a": {0: 1.0, 1: 2.0}}, {"a": {0: 1.0}, "b": {0: 1.0}}, {"a": {0: 1, 1: 2}, "b": {2: 1, 3: 2}}):
        with pytest.raises(ValueError, match="two common seeds"):
            Blocks(losses)
        assert Blocks.if_enough(losses) is None
    apart = Blocks({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.1, 1: 2.2}, "c": {2: 1.0, 3: 2.0}})
    with pytest.raises(ValueError, match="share seeds"):
        apart.difference("a", "c")


def test_a_design_with_more_noise_stands_out():
    rng = np.random.default_rng(3)
    losses = drawn(rng, designs=6, seeds=8) | {"wild": runs(4 + rng.normal(0, 0.3, 8))}
    spread = Blocks(losses).spread
    assert max(spread, key=spread.__getitem__) == "wild"
    assert spread["wild"] > 2 * sorted(spread.values())[-2]


# Dunnett, New tables for multiple comparisons with a control (1964), two-sided, 5 %.
@pytest.mark.parametrize(
    ("comparisons", "freedom", "critical"), [(1, 10, 2.23), (2, 10, 2.57), (3, 20, 2.54), (9, 60, 2.75)]
)
def test_critical_values_are_those_of_the_published_tables(comparisons, freedom, critical):
    assert dunnett_critical(comparisons, freedom) == pytest.approx(critical, abs=0.025)


def test_critical_values_agree_with_the_test_of_scipy():
    rng = np.random.default_rng(4)
    groups = [rng.normal(0, 1, 6) for _ in range(4)]
    result = stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0))
    interval = result.confidence_interval(0.95)
    pooled = math.sqrt(np.mean([group.var(ddof=1) for group in groups]))
    half = dunnett_critical(3, 20) * pooled * math.sqrt(2 / 6)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.02)


def test_holm_is_stepwise_and_monotone():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(("n", "expected"), [(3, 3.26), (5, 1.68), (10, 1.0), (20, 0.66)])
def test_detectable_difference_is_the_one_with_the_stated_power(n, expected):
    found = detectable(1.0, n)
    assert found == pytest.approx(expected, rel=0.02)
    rng = np.random.default_rng(5)
    hits = np.mean([over_seeds(rng.normal(found, 1, n)).separated for _ in range(3000)])
    assert hits == pytest.approx(0.8, abs=0.03)


def test_best_rate_of_a_parabola_is_its_lowest_point():
    rates = [0.001 * 2**k for k in range(5)]
    found = best_rate({rate: 4 + 0.1 * (math.log(rate) - math.log(0.005)) ** 2 for rate in rates})
    assert found.fitted_rate == pytest.approx(0.005)
    assert found.fitted_loss == pytest.approx(4)
    assert not found.at_edge


def test_best_rate_at_an_edge_says_so_and_a_diverged_run_is_not_the_best():
    found = best_rate({0.001: math.nan, 0.002: 4.5, 0.004: 4.2})
    assert (found.tried, found.at_edge, found.fitted_rate) == (0.004, True, 0.004)
    with pytest.raises(ValueError, match="finite"):
        best_rate({0.001: math.nan})
