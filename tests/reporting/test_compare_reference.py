"""A run is compared with committed results by the noise of seeds."""

import json
import shutil

import pytest

from ddl.layout import REFERENCE
from ddl.reporting.compare_reference import compare, report
from ddl.reporting.keep_reference import KeepError
from tests.helpers.command import ddl

KEPT = REFERENCE / "laptop-epyc"


@pytest.fixture
def results(tmp_path):
    """The committed results as those of a run of the same scale."""
    shutil.copytree(KEPT, tmp_path / "laptop")
    return tmp_path / "laptop"


def shift(results, variant, amount):
    path = results / f"evals/small/{variant}/seed0/validation.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"val_loss": found["val_loss"] + amount}))


def test_equal_results_are_within_the_band(results):
    found = compare(results)
    assert {each.verdict for each in found} == {"within"}
    assert {each.here - each.reference for each in found} == {0.0}
    assert all(0.01 < each.band < 0.1 for each in found)


@pytest.mark.parametrize(("amount", "verdict"), [(0.01, "within"), (-0.01, "within"), (0.2, "outside")])
def test_a_loss_is_judged_by_its_distance_and_so_is_its_difference_from_the_baseline(results, amount, verdict):
    shift(results, "ddl-cc", amount)
    changed = [each for each in compare(results) if each.size == "small" and each.what.startswith("ddl-cc ")]
    assert [each.what for each in changed] == ["ddl-cc loss", "ddl-cc minus the baseline"]
    assert [each.verdict for each in changed] == [verdict] * 2
    assert [each.here - each.reference for each in changed] == pytest.approx([amount] * 2)


def test_a_shifted_baseline_moves_all_differences_of_its_size(results):
    shift(results, "baseline", 0.2)
    small = [each for each in compare(results) if each.size == "small" and "minus" in each.what]
    assert {each.verdict for each in small} == {"outside"}
    assert "of 22 numbers are outside the band" in report(results)


def test_runs_that_are_missing_are_left_out(results):
    shutil.rmtree(results / "evals/medium")
    assert {each.size for each in compare(results)} == {"small"}
    shutil.rmtree(results / "evals/small")
    assert report(results).endswith("has no run with a loss that the reference results have too")


def test_other_scales_and_unknown_names_are_one_line(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "smoke")
    with pytest.raises(KeepError, match=r"of the scale smoke \(–\), found none"):
        compare(tmp_path / "smoke")
    ddl("compare", "--results", results, "--name", "nope", code=2)
    assert "of the scale laptop (laptop-epyc), found nope, which is not one" in capsys.readouterr().err
