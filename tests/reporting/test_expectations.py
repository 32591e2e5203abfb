"""What was expected of the rival designs, judged by intervals."""

import math

import pytest

from ddl.config import load_study
from ddl.reporting.expectations import EXPECTATIONS, Expectation, outcomes
from ddl.reporting.seed_statistics import Estimate
from tests.reporting.test_rivals import rows


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.01, "holds"), (-0.05, -0.03, "missed"), (0.03, 0.05, "missed"), (-0.03, 0.0, "open")],
)
def test_an_expectation_holds_if_the_interval_is_inside_and_is_missed_if_it_is_outside(low, high, verdict):
    within = Expectation("alike", ("ihc",), "baseline", -0.02, 0.02)
    assert within.judge(Estimate((low + high) / 2, low, high, 0.01, 5)) == verdict


def test_a_range_may_be_open_on_one_side():
    at_most = Expectation("gains at most 0.03", ("ihc",), "baseline", -0.03, math.inf)
    assert at_most.judge(Estimate(0.5, 0.4, 0.6, 0.1, 5)) == "holds"
    assert at_most.judge(Estimate(-0.1, -0.12, -0.08, 0.1, 5)) == "missed"


def test_only_expectations_whose_designs_were_run_are_judged():
    (found,) = outcomes("small", rows())
    assert (found.design, found.verdict) == ("ihc", "missed")  # 0.1 below the baseline
    assert found.difference.mean == pytest.approx(-0.1, abs=0.006)
    assert outcomes("small", rows(seeds=1)) == []
    assert outcomes("medium", rows()) == []


def test_every_design_of_an_expectation_is_in_the_study():
    designs = {point.variant for point in load_study("rivals").points()}
    assert {slug for each in EXPECTATIONS for slug in (*each.designs, each.reference)} <= designs
