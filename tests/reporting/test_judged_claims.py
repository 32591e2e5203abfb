"""The claims of the paper, judged on made-up runs."""

import json

import numpy as np
import pandas as pd
import pytest

from ddl.config import load_scale, load_variants, paper_variants
from ddl.reporting.judged_claims import CAUSES, ELSEWHERE, FAIR, GAINS, judged_claims, published_gains
from ddl.reporting.verdict import Outcome

MEANS = {"baseline": 4.9, "ddl-dv1": 4.5, "ddl-tc-noec": 4.4, "ddl-cc-noec": 4.4, "ddl-tc": 4.2, "ddl-cc": 4.2}
TOKENS = 1_048_576
FLOPS = {"ddl-cc": 110, "ddl-tc": 130}


def runs(means, backbone, size="small", seeds=5, noise=0.005):
    """Rows with these means, an effect of the seed that all designs share, and independent noise."""
    rng, shared = np.random.default_rng(len(means)), np.random.default_rng(0).normal(0, 0.1, 10)
    entries = [
        {
            "size": size,
            "backbone": backbone,
            "variant": variant,
            "steps": 8,
            "tokens": TOKENS,
            "flops_per_token": FLOPS.get(variant, 100),
            "learning_rate": load_scale("laptop").training.learning_rate,
            "seed": seed,
            "val_loss": mean + shared[seed] + rng.normal(0, noise),
        }
        for variant, mean in means.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(entries)


def verdicts(designs, controls=None, ladder=None):
    empty = designs.iloc[:0]
    controls, ladder = (empty if rows is None else rows for rows in (controls, ladder))
    found = judged_claims(designs, controls, ladder)
    return {(row.claim, row.size, row.backbone): row for row in found}


def test_every_claim_is_judged_for_both_sizes_and_backbones_or_says_why_not():
    rows = runs(MEANS, "paper")
    found = judged_claims(rows, rows.iloc[:0], rows.iloc[:0])
    assert len(found) == 2 * (2 * (len(GAINS) + len(CAUSES)) + 1) + len(ELSEWHERE)
    assert all(row.why for row in found)
    assert {row.verdict for row in found if row.size == "medium"} == {Outcome.NOT_TESTABLE}  # nothing was run


def test_a_gain_is_positive_if_the_design_of_the_claim_is_better():
    found = verdicts(runs(MEANS, "paper"))["DDL-CC lowers the loss", "small", "paper"]
    assert found.gain == pytest.approx(0.7, abs=0.01)
    assert found.low < found.gain < found.high
    assert (found.seeds, found.verdict) == (5, Outcome.DIRECTION_ONLY)
    assert found.published == pytest.approx(2.8543 - 2.8329)


def test_a_gain_that_a_fair_backbone_removes_is_not_supported_there():
    fair = runs(dict.fromkeys(MEANS, 4.2), FAIR, noise=0.001)
    found = verdicts(pd.concat([runs(MEANS, "paper"), fair]))
    assert found["DDL-CC lowers the loss", "small", "paper"].verdict is Outcome.DIRECTION_ONLY
    assert found["DDL-CC lowers the loss", "small", FAIR].verdict is Outcome.NOT_SUPPORTED


def test_the_rule_is_no_cause_if_the_same_design_without_its_erase_term_does_as_well():
    means = MEANS | dict.fromkeys(CAUSES["ddl-cc"], 4.6)
    claim = "The delta rule causes the gain of DDL-CC"
    assert verdicts(runs(MEANS, FAIR), runs(means, FAIR))[claim, "small", FAIR].verdict is Outcome.SUPPORTED
    means["write-only-cc"] = MEANS["ddl-cc"] - 0.02
    found = verdicts(runs(MEANS, FAIR), runs(means, FAIR))[claim, "small", FAIR]
    assert found.verdict is Outcome.NOT_SUPPORTED
    assert load_variants()["write-only-cc"].label in found.why


def test_a_gain_worth_half_of_the_published_tokens_is_supported():
    """The paper's 0.0214 nats are 18 % of an e-fold of tokens by the published scaling law."""
    steep, flat = (
        pd.concat(
            runs({"baseline": 4.9 - slope * np.log(factor)}, "paper", noise=0).assign(tokens=int(factor * TOKENS))
            for factor in (0.5, 1, 2)
        )
        for slope in (20.0, 0.5)
    )
    claim = "DDL-CC lowers the loss", "small", "paper"
    small = MEANS | {"ddl-cc": 4.7}
    found = verdicts(runs(small, "paper"), ladder=flat)[claim]
    assert found.verdict is Outcome.SUPPORTED
    assert found.worth == pytest.approx(np.exp(0.2 / 0.5), rel=0.05)
    assert found.published_worth == pytest.approx(1.20, abs=0.01)
    assert verdicts(runs(small, "paper"), ladder=steep)[claim].verdict is Outcome.DIRECTION_ONLY


def test_a_rule_that_beats_only_some_rivals_is_not_the_cause_yet():
    claim = "The delta rule causes the gain of DDL-CC", "small", FAIR
    some = {"write-only-cc": 4.6, "baseline-ec": 4.6}
    found = verdicts(runs(MEANS, FAIR), runs(some, FAIR))[claim]
    assert (found.verdict, found.gain) == (Outcome.INCONCLUSIVE, pytest.approx(0.4, abs=0.02))
    assert "no runs of" in found.why
    few = runs({slug: 4.6 for slug in CAUSES["ddl-cc"] if slug not in some}, FAIR, seeds=3)  # rivals may have fewer
    found = verdicts(runs(MEANS, FAIR), pd.concat([runs(some, FAIR), few]))[claim]
    assert found.verdict is Outcome.SUPPORTED


def test_a_gain_that_the_paper_does_not_report_is_not_judged():
    found = verdicts(runs(MEANS | {"ddl-cc": 4.2}, FAIR))["EC lowers the loss of DDL-CC", "small", FAIR]
    assert found.published < 0
    assert (found.verdict, found.why) == (Outcome.NOT_TESTABLE, "the paper does not report this gain at this size")
    assert found.gain == pytest.approx(0.2, abs=0.02)


def test_a_design_with_a_lower_loss_for_fewer_flops_has_the_better_trade_off():
    claim = "DDL-CC has the best trade-off of loss and FLOPs", "small", FAIR
    costly = verdicts(runs(MEANS, FAIR), runs({"normalised-branch-ec": 4.5}, FAIR))[claim]
    assert costly.verdict is Outcome.DIRECTION_ONLY  # all designs that cost less are worse
    better = verdicts(runs(MEANS, FAIR), runs({"normalised-branch-ec": 4.0}, FAIR))[claim]
    assert better.verdict is Outcome.NOT_SUPPORTED
    assert load_variants()["normalised-branch-ec"].label in better.why


def test_a_diverged_run_is_left_out():
    rows = runs(MEANS, "paper")
    rows.loc[(rows["variant"] == "ddl-tc") & (rows["seed"] == 2), "val_loss"] = float("nan")
    assert verdicts(rows)["DDL-TC lowers the loss", "small", "paper"].seeds == 4
    assert verdicts(rows)["DDL-CC lowers the loss", "small", "paper"].seeds == 5


def test_a_single_seed_decides_nothing():
    found = verdicts(
        runs(MEANS, "paper", seeds=1), runs(dict.fromkeys(CAUSES["ddl-cc"], 4.6) | MEANS, "paper", seeds=1)
    )
    judged = {row.verdict for row in found.values()}
    assert judged == {Outcome.NOT_TESTABLE}
    assert found["DDL-CC lowers the loss", "small", "paper"].why == "fewer than two seeds of DDL-CC and Baseline"


def test_rows_are_json():
    rows = runs(MEANS, "paper", seeds=2)
    found = judged_claims(rows, rows.iloc[:0], rows.iloc[:0])
    assert json.loads(json.dumps([row.as_json() for row in found], allow_nan=False))[0]["seeds"] == 2


def test_the_published_gains_are_those_of_the_table():
    assert published_gains("medium")["ddl-dv1", "baseline"] == pytest.approx(0.0014)
    assert {gain.better for gain in GAINS} | {gain.worse for gain in GAINS} == set(paper_variants())
