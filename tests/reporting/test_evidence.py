"""What the studies found, from made-up rows."""

import json

import numpy as np
import pandas as pd
import pytest

from ddl.reporting import evidence, normed_embedding
from ddl.reporting.evidence import climbs, finding, other_size, sentences
from ddl.reporting.judged_claims import FAIR, PAPER, write_verdicts
from ddl.reporting.read_results import ResultsError

COLUMNS = ("size", "backbone", "variant", "steps", "tokens", "flops_per_token", "learning_rate", "seed", "val_loss")


def rows(backbone, means, seeds):
    noise = np.random.default_rng(len(means)).normal(0, 0.004, (len(means), seeds))
    entries = [
        ("small", backbone, variant, 8, 1024, 100, 0.008, seed, mean + 0.1 * seed + noise[place, seed])
        for place, (variant, mean) in enumerate(means.items())
        for seed in range(seeds)
    ]
    return pd.DataFrame(entries, columns=COLUMNS)


@pytest.fixture
def studies(monkeypatch):
    """Replace the committed studies by made-up rows."""

    def write(designs, controls, ladder=None):
        empty = designs.iloc[:0]
        frames = {"designs": designs, "controls": controls, "ladder": empty if ladder is None else ladder}
        for module in (evidence, normed_embedding):
            monkeypatch.setattr(module, "rows_if_any", lambda study: frames.get(study, empty))

    return write


def test_the_finding_compares_gains_on_both_backbones(studies):
    paper = rows(PAPER, {"baseline": 4.9, "ddl-dv1": 4.5, "ddl-cc": 4.3}, 5)
    fair = rows(FAIR, {"baseline": 4.2, "ddl-dv1": 4.2, "ddl-cc": 4.14}, 3)
    controls = rows(FAIR, {"write-only-cc": 4.11, "normalised-branch-ec": 4.08}, 3)
    studies(pd.concat([paper, fair]), controls)
    found = finding()
    assert found.paper["ddl-cc"].mean == pytest.approx(0.6, abs=0.01)
    assert found.fair["ddl-cc"].mean == pytest.approx(0.06, abs=0.01)
    share, low, high = found.closed
    assert share == pytest.approx(0.9, abs=0.02)
    assert low < share < high
    assert found.repair.mean == pytest.approx(0.7, abs=0.01)
    assert found.against("write-only-cc").mean == pytest.approx(-0.03, abs=0.01)  # the control is better
    assert found.against("normalised-branch-ec").mean == pytest.approx(-0.06, abs=0.01)
    assert (found.paper["ddl-cc"].n, found.fair["ddl-cc"].n) == (5, 3)
    assert not found.fair["ddl-dv1"].separated
    kept = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert kept["closed"][0] == share
    assert kept["fair"]["ddl-cc"]["shown"] == found.fair["ddl-cc"].shown()
    said = " ".join(sentences(found).values())
    assert "most of DDL-CC's lead" in said
    assert f"carried {100 * share:.0f} %" in said
    assert "(n = 3) below DDL-CC" in said  # the simple baseline


def test_without_runs_nothing_is_found(studies):
    one_seed = rows(PAPER, {"baseline": 4.9, "ddl-cc": 4.3}, 1)
    studies(one_seed, one_seed.iloc[:0])
    found = finding()
    assert (found.paper, found.fair, found.repair, found.closed) == ({}, {}, None, None)
    assert found.against("write-only-cc") is None
    assert list(sentences(found).values()) == ["The runs that tell where the gain comes from have not been done."]


@pytest.mark.parametrize(
    ("after", "said", "not_said"),
    [
        (4.14, "most of DDL-CC's lead", "trails"),
        (3.4, "does not come from the initial embedding", "trails"),  # a larger lead than before
        (4.4, "DDL-CC trails the baseline by", "leads the baseline by -"),
    ],
)
def test_the_sentences_follow_the_signs(studies, after, said, not_said):
    paper = rows(PAPER, {"baseline": 4.9, "ddl-cc": 4.3}, 5)
    studies(pd.concat([paper, rows(FAIR, {"baseline": 4.2, "ddl-cc": after}, 3)]), paper.iloc[:0])
    text = " ".join(sentences(finding()).values())
    assert said in text
    assert not_said not in text


def test_the_gains_at_the_most_tokens_are_said(studies):
    designs = pd.concat(
        [rows(PAPER, {"baseline": 4.9, "ddl-cc": 4.3}, 5), rows(FAIR, {"baseline": 4.2, "ddl-cc": 4.14}, 3)]
    )
    rungs = [
        rows(backbone, {"baseline": 4.5 - tokens / 4096, "ddl-cc": 4.5 - tokens / 4096 - gain}, 2).assign(tokens=tokens)
        for backbone, gains in ((PAPER, (0.6, 0.32)), (FAIR, (0.1, 0.3)))
        for tokens, gain in zip((1024, 4096), gains, strict=True)
    ]
    studies(designs, designs.iloc[:0], pd.concat(rungs))
    found = finding()
    assert (found.longest.tokens, list(found.longest.fair), found.longest.fair["ddl-cc"].n) == (4096, ["ddl-cc"], 2)
    assert found.longest.fair["ddl-cc"].mean == pytest.approx(0.3, abs=0.01)
    share, low, high = found.longest.closed
    assert share == pytest.approx(1 - 0.30 / 0.32, abs=0.05)
    assert low < share < high < 0.5
    first, *_, last = sentences(found).values()
    assert "most of DDL-CC's lead" in first
    assert "and less than half of it after 4.10 K" in first
    assert last.startswith("After 4.10 K tokens DDL-CC leads the baseline by 0.3")
    assert "ends" not in last  # no rival was run
    assert found.longest.split == []
    json.dumps(found.as_json(), allow_nan=False)
    studies(designs, designs.iloc[:0], pd.concat(rungs[2:]))
    assert finding().longest.closed is None
    split = [rung.assign(new_loss=rung["val_loss"] + 0.1, repeated_loss=rung["val_loss"] - 0.4) for rung in rungs[2:]]
    expanded = split[1]["variant"] == "ddl-cc"  # a fifth of the tokens; all of the gap is there
    split[1].loc[expanded, "repeated_loss"] -= 1.2
    split[1].loc[expanded, "new_loss"] += 0.3
    studies(designs, designs.iloc[:0], pd.concat(split))
    found = finding()
    assert found.longest.copies.share == pytest.approx(0.2)
    assert found.longest.copies.own.new == pytest.approx(found.longest.copies.baseline.new, abs=0.02)
    assert found.as_json()["longest"]["copied"][0]["label"] == "DDL-CC"
    first, *_, last = sentences(found).values()
    assert "in the 20 % of tokens that repeat a pair of tokens of their context" in last
    assert "98 % to 99 % of the lead after 4.10 K is in tokens that can be copied from the context" in first
    rival = [rung.assign(variant="write-only-cc", val_loss=rung["val_loss"] + 0.05) for rung in rungs[2:]]
    rival = [rung[rung["seed"].duplicated()] for rung in rival]  # DDL-CC's rows, 0.05 above
    studies(designs, designs.iloc[:0], pd.concat([*rungs, *rival]))
    assert finding().longest.rivals["write-only-cc"].mean == pytest.approx(0.05, abs=1e-6)
    assert "without the erase term it ends 0.05" in " ".join(sentences(finding()).values())


def test_a_ladder_is_read_only_with_enough_rungs(monkeypatch):
    rungs = [
        rows(FAIR, {"baseline": 5 - 0.3 * rung, "ddl-cc": 4.9 - 0.3 * rung}, 3).assign(tokens=2**rung * 1024)
        for rung in range(4)
    ]
    monkeypatch.setattr(evidence, "rows_if_any", lambda study: pd.concat(rungs[:3]))
    assert climbs() == []
    monkeypatch.setattr(evidence, "rows_if_any", lambda study: pd.concat(rungs))
    (climb,) = climbs()
    assert (climb.backbone, climb.design, len(climb.rungs)) == (FAIR, "ddl-cc", 4)
    assert climb.rungs[0].gap.mean == pytest.approx(0.1, abs=0.01)
    assert np.exp(climb.rungs[0].worth.mean) == pytest.approx(2 ** (0.1 / 0.3), rel=0.1)
    assert climb.top["all"].low < 0.1 < climb.top["all"].high
    assert climb.published_gain == pytest.approx(0.0214)
    assert climb.holds
    assert "all" in climb.as_json()["published_tokens"]
    json.dumps(climb.as_json(), allow_nan=False)


def test_a_ladder_whose_top_is_missed_predicts_nothing(monkeypatch):
    gaps = (0.1, 0.08, 0.07, 0.4)  # it falls, then grows
    rungs = [
        rows(FAIR, {"baseline": 5 - 0.3 * rung, "ddl-cc": 5 - 0.3 * rung - gap}, 3).assign(tokens=2**rung * 1024)
        for rung, gap in enumerate(gaps)
    ]
    monkeypatch.setattr(evidence, "rows_if_any", lambda study: pd.concat(rungs))
    (climb,) = climbs()
    assert not climb.holds
    assert climb.as_json()["published_tokens"] == {}


def test_verdicts_are_written_for_a_scale_even_if_it_has_no_studies(tmp_path):
    folder = tmp_path / "smoke"
    folder.mkdir()
    write_verdicts(folder)
    written = json.loads((folder / "verdict.json").read_text())
    assert written["rows"] == {"designs": 0, "controls": 0, "ladder": 0}
    assert {claim["verdict"] for claim in written["claims"]} == {"not testable here"}
    with pytest.raises(ResultsError):
        write_verdicts(tmp_path / "nowhere")


def test_another_size_is_said_in_one_sentence(studies):
    means = {"baseline": 4.06, "ddl-cc": 3.97, "write-only-cc": 3.97, "normalised-branch-ec": 3.92}
    fair = rows(FAIR, means, 3).assign(size="medium")
    studies(fair.iloc[:0], fair)
    said = other_size(finding("medium"))
    assert said.startswith("The medium DDL-CC leads the baseline by 0.09")
    assert "the baseline with normalised outputs and EC ends 0.04" in said
    assert "(n = 3) below that" in said
    studies(fair.iloc[:0], fair.iloc[:0])
    assert other_size(finding("medium")) == ""
