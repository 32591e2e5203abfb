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
    assert "no erase" in contradicted.why


def test_a_trade_off_is_judged_on_the_front():
    cheap, dear = Priced(between(4.4, 4.5), 1.0), Priced(between(4.2, 4.3), 2.0)
    assert judge_trade_off("dear", {"cheap": cheap, "dear": dear}).outcome is Outcome.DIRECTION_ONLY
    worse = Priced(between(4.6, 4.7), 2.0)
    assert judge_trade_off("worse", {"cheap": cheap, "worse": worse}).outcome is Outcome.NOT_SUPPORTED
    assert judge_trade_off("cheap", {"cheap": cheap, "worse": worse}).outcome is Outcome.SUPPORTED


def test_overlapping_losses_do_not_dominate():
    one, other = Priced(between(4.2, 4.4), 1.0), Priced(between(4.3, 4.5), 1.0)
    assert judge_trade_off("other", {"one": one, "other": other}).outcome is Outcome.DIRECTION_ONLY
