"""Verdicts on synthetic results, one for every outcome, and at the borders between them."""

import math

import pytest

from ddl.reporting.seed_statistics import Estimate
from ddl.reporting.verdict import MARGIN, Outcome, Priced, judge, judge_cause, judge_trade_off


def between(low, high):
    return Estimate((low + high) / 2, low, high, (high - low) / 2, 5)


@pytest.mark.parametrize(
    ("gain", "published", "detectable", "outcome"),
    [
        (between(0.01, 0.05), 0.02, 0.03, Outcome.DIRECTION_ONLY),
        (between(-0.05, -0.01), 0.02, 0.03, Outcome.NOT_SUPPORTED),
        (between(-0.02, 0.005), 0.02, 0.015, Outcome.NOT_SUPPORTED),
        (between(-0.02, 0.05), 0.02, 0.03, Outcome.NOT_TESTABLE),
        (between(-0.02, 0.05), 0.04, 0.03, Outcome.INCONCLUSIVE),
    ],
)
def test_outcome_follows_from_the_interval(gain, published, detectable, outcome):
    assert judge(gain, published, detectable).outcome is outcome


def test_a_gain_smaller_than_the_margin_is_not_ruled_out_by_the_margin():
    """The paper's smallest gain is 0.0014 nats; an interval that contains it does not refute it."""
    assert judge(between(-0.003, 0.005), published=0.0014, detectable=0.02).outcome is Outcome.NOT_TESTABLE
    assert judge(between(-0.003, 0.001), published=0.0014, detectable=0.02).outcome is Outcome.NOT_SUPPORTED


def test_the_size_counts_only_in_a_unit_that_both_scales_share():
    gain = between(0.3, 0.5)
    assert judge(gain, 0.02, 0.03, between(1.1, 1.4), 1.25).outcome is Outcome.SUPPORTED
    assert judge(gain, 0.02, 0.03, between(0.1, 0.5), 1.25).outcome is Outcome.DIRECTION_ONLY
    with pytest.raises(ValueError, match="together"):
        judge(gain, 0.02, 0.03, size=between(1.1, 1.4))


def test_a_single_seed_decides_nothing():
    assert judge(Estimate(0.6, -math.inf, math.inf, math.nan, 1), 0.02, math.inf).outcome is Outcome.NOT_TESTABLE


def test_a_cause_must_beat_every_alternative():
    wide = {"no erase": between(0.02, 0.05), "wider baseline": between(0.03, 0.06)}
    assert judge_cause(wide).outcome is Outcome.SUPPORTED
    assert judge_cause(wide | {"no erase": between(-0.02, 0.05)}).outcome is Outcome.INCONCLUSIVE
    contradicted = judge_cause(wide | {"no erase": between(-0.03, MARGIN / 2)})
    assert contradicted.outcome is Outcome.NOT_SUPPORTED
    assert contradicted.why == "as good without it, within 0.01 nats: no erase"
    beaten = judge_cause(wide | {"no erase": between(-0.03, -0.01)})
    assert (beaten.outcome, beaten.why) == (Outcome.NOT_SUPPORTED, "better without it: no erase")


def test_a_trade_off_is_lost_to_a_better_design_that_costs_no_more():
    better, worse = between(-0.2, -0.1), between(0.1, 0.2)
    lost = judge_trade_off(2.0, {"cheap": Priced(better, 1.0), "cheaper": Priced(between(-0.4, -0.3), 0.5)})
    assert (lost.outcome, lost.why) == (Outcome.NOT_SUPPORTED, "better for no more FLOPs: cheaper and 1 more")
    assert judge_trade_off(2.0, {"dear": Priced(better, 3.0)}).outcome is Outcome.DIRECTION_ONLY
    assert judge_trade_off(2.0, {"cheap": Priced(worse, 1.0)}).outcome is Outcome.DIRECTION_ONLY
    assert judge_trade_off(2.0, {"dear": Priced(worse, 3.0)}).outcome is Outcome.SUPPORTED


def test_designs_within_the_noise_do_not_decide_a_trade_off():
    assert judge_trade_off(2.0, {"cheap": Priced(between(-0.1, 0.01), 1.0)}).outcome is Outcome.DIRECTION_ONLY
    assert judge_trade_off(2.0, {"dear": Priced(between(-0.01, 0.1), 3.0)}).outcome is Outcome.DIRECTION_ONLY
