"""What a normalised embedding changes, from made-up rows."""

import pandas as pd
import pytest

from ddl.config import load_scale
from ddl.reporting.evidence import normalised
from ddl.reporting.judged_claims import FAIR
from ddl.reporting.normed_embedding import NORMED, normed
from tests.reporting.test_evidence import rows

TOKENS = load_scale("laptop").tokens


def study(baseline, convolved=None, seeds=4):
    """Rows on both backbones: the repaired baseline at 4.2 and DDL-CC at 4.1, the normalised baseline as given."""
    ours = {"baseline": baseline} | ({} if convolved is None else {"baseline-ec": convolved})
    frames = [rows(FAIR, {"baseline": 4.2, "ddl-cc": 4.1}, seeds), rows(NORMED, ours, seeds)]
    return pd.concat(frames).assign(tokens=TOKENS)


def test_the_baseline_with_a_normalised_embedding_is_compared_with_both():
    found = normed("small", study(4.16, convolved=4.06))
    assert found.baseline.mean == pytest.approx(-0.04, abs=0.01)
    assert found.lead.mean == pytest.approx(0.06, abs=0.01)
    assert found.convolved.mean == pytest.approx(-0.04, abs=0.01)
    assert found.design is None
    assert (found.tokens, found.lead.n) == (TOKENS, 4)


def test_too_few_runs_are_no_comparison():
    assert normed("small", study(4.16, seeds=1)) is None
    assert normed("medium", study(4.16)) is None
    assert normed("small", study(4.16).query("backbone == @FAIR")) is None


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (4.15, ("the baseline improves by 0.05", "then leads that baseline by 0.05")),
        (4.05, ("the baseline improves by 0.15", "then trails that baseline by 0.05")),
        (4.3, ("the baseline loses 0.1", "then leads that baseline by 0.2")),
    ],
)
def test_the_sentence_follows_the_signs(baseline, said):
    text = normalised(normed("small", study(baseline)), "DDL-CC")
    for part in said:
        assert part[:-1] in text  # the last digit depends on the interval
    assert "leads the baseline by -" not in text


def test_the_longest_runs_are_told_with_their_number():
    longer = study(4.15, seeds=2).assign(tokens=8 * TOKENS, steps=64)
    longer["val_loss"] -= 0.6
    found = normed("small", pd.concat([study(4.15), longer]))
    assert found.tokens == 8 * TOKENS
    assert {name: each.n for name, each in found.longest.items()} == {
        "normalised baseline": 2,
        "repaired baseline": 2,
        "design": 2,
    }
    assert found.longest["design"].mean == pytest.approx(3.55, abs=0.02)
    assert "tokens the normalised baseline has a loss of 3.6" in normalised(found, "DDL-CC")
