"""Tables 1, 2, 7 and 8: paired differences, marks, and the noise of the published numbers."""

import json
import math
import re
import shutil

import pandas as pd
import pytest

from ddl.config import load_scale, paper_variants
from ddl.layout import BASELINE
from ddl.reporting import accuracy_tables
from ddl.reporting.accuracy_tables import (
    differences,
    downstream_table,
    published_accuracy,
    published_counts,
    published_gains,
)
from ddl.reporting.quoted_numbers import collect
from ddl.reporting.read_results import Results
from ddl.reporting.table_format import DASH
from tests.helpers import fake_results

DESIGNS = load_scale("laptop").variants


@pytest.fixture
def folder(tmp_path):
    return fake_results.write(tmp_path)


def block(table, word):
    return table[table["block"].str.startswith(word)].set_index("Model")


def answer(folder, run, shots, change):
    """Replace the answers of a run by change(correct, items)."""
    path = folder / f"evals/{run}/{shots}shot.parquet"
    items = pd.read_parquet(path)
    items["correct"] = change(items["correct"], items)
    items.to_parquet(path)


def test_differences_are_taken_item_by_item(folder):
    answer(folder, "small/ddl-cc/seed0", 1, lambda correct, items: ~correct)
    answer(folder, "small/baseline/seed0", 1, lambda correct, items: items["item"] % 2 == 0)
    answer(folder, "small/ddl-tc/seed0", 1, lambda correct, items: (items["item"] % 2 == 0) | (items["item"] < 100))
    found = differences(Results(folder), "small", 1)["ddl-tc"]
    assert list(found) == [*fake_results.TASKS, "Avg."]
    # 50 of 400 items won, none lost, so the error is that of a mean over 50 ones and 350 zeros.
    error = 1.96 * math.sqrt(0.125 * 0.875 / 400)
    assert found["WG"].value == pytest.approx(0.125)
    assert found["WG"].low == pytest.approx(0.125 - error, abs=0.004)
    assert found["Avg."].low == pytest.approx(0.125 - error / math.sqrt(8), abs=0.002)


def test_only_separated_differences_are_bold(folder):
    answer(folder, "small/baseline/seed0", 1, lambda correct, items: items["item"] < 200)
    answer(folder, "small/ddl-cc/seed0", 1, lambda correct, items: items["item"] < 203)
    # Wins and losses differ by only three, so the tasks are far from separated, except one task that is lost entirely.
    answer(
        folder, "small/ddl-tc/seed0", 1, lambda correct, items: (items["item"] >= 203) & (items["task"] != "doc_pair")
    )
    table = downstream_table(Results(folder), "small", 1)
    found = block(table, "Difference")
    assert list(found.index) == [variant.label for slug, variant in DESIGNS.items() if slug != BASELINE]
    assert found.loc["DDL-TC", "bold"].split("; ") == ["WG", "Avg."]
    assert found.loc["DDL-TC", "WG"] == "-50"
    assert found.loc["DDL-CC", "ARC-C"] == "+0.8"
    assert re.fullmatch(r"\+0\.\d to \+1\.\d", found.loc["DDL-CC", "ARC-C range"])
    ours = block(table, "Ours")
    assert set(ours["bold"]) == set(ours["underline"]) == {""}


def test_intervals_say_what_they_are_over(folder):
    results = Results(folder)
    assert "over items; one seed)" in block(downstream_table(results, "small", 1), "Difference")["block"].iloc[0]
    object.__setattr__(results.scale, "seeds", (0, 1))
    shutil.copytree(folder / "evals/small/baseline/seed0", folder / "evals/small/baseline/seed1")
    shutil.copytree(folder / "evals/small/ddl-cc/seed0", folder / "evals/small/ddl-cc/seed1")
    table = block(downstream_table(results, "small", 1), "Difference")
    assert "over 2 seeds)" in table["block"].iloc[0]
    assert table.loc["DDL-CC", "Avg."] != DASH


def test_a_run_without_items_has_dashes_and_a_reason(folder):
    (folder / "evals/small/ddl-cc/seed0/1shot.parquet").unlink()
    row = block(downstream_table(Results(folder), "small", 1), "Difference").loc["DDL-CC"]
    assert row["Avg."] == DASH
    assert row["reason"] == "no items of DDL-CC or the baseline, small, 1-shot"
    assert collect(Results(folder))["gains"]["ours"]["small"]["1shot"].keys() == {*DESIGNS} - {
        BASELINE,
        "ddl-cc",
    }


def test_published_accuracies_carry_the_error_of_their_number_of_items(folder):
    paper = published_accuracy()
    value, error = paper["small", 1, "baseline", "OpenBookQA"]
    assert (value, error) == (pytest.approx(0.302), pytest.approx(math.sqrt(0.302 * 0.698 / 500)))
    errors = [paper["small", 1, "baseline", column][1] for column in fake_results.TASKS]
    assert paper["small", 1, "baseline", "Avg."][1] == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 8)
    row = block(downstream_table(Results(folder), "small", 1), "Published").loc["Baseline"]
    assert (row["OpenBookQA"], row["OpenBookQA ±"]) == ("30.20", "2.05")


def test_published_accuracies_are_counts_of_that_many_items_but_one():
    counts = published_counts()
    assert (counts["cells"], counts["averages"]) == (192, 24)
    (found,) = counts["impossible"]
    assert (found["size"], found["shots"], found["slug"], found["column"]) == ("medium", 0, "ddl-dv1", "ARC-C")
    assert (found["percent"], found["nearest"]) == (32.07, [round(100 * right / 1172, 2) for right in (375, 376)])
    assert counts["averages_unlike_mean"] == 0


def test_an_accuracy_that_no_number_of_right_answers_gives_is_found(monkeypatch):
    """SciQ has 1,000 items, so its accuracies are multiples of 0.1 percent."""
    paper = published_accuracy()
    key = ("small", 1, "baseline", "SciQ")
    monkeypatch.setattr(accuracy_tables, "published_accuracy", lambda: paper | {key: (paper[key][0] + 0.0005, 0.0)})
    counts = published_counts()
    assert key in [tuple(found[name] for name in ("size", "shots", "slug", "column")) for found in counts["impossible"]]
    monkeypatch.setattr(accuracy_tables, "published_accuracy", lambda: paper | {key: (paper[key][0] + 0.01, 0.0)})
    assert published_counts()["averages_unlike_mean"] == 1


def test_few_published_gains_exceed_their_noise():
    gains = published_gains()
    assert gains["cells"] == {"compared": 160, "higher": 104, "higher_beyond_noise": 5, "lower_beyond_noise": 0}
    assert gains["averages"] == {"compared": 20, "higher": 18, "higher_beyond_noise": 0, "lower_beyond_noise": 0}


def test_numbers_hold_the_intervals(folder):
    numbers = json.loads(json.dumps(collect(Results(folder))))
    found = numbers["gains"]["ours"]["medium"]["0shot"]["ddl-cc"]
    assert set(found) == {"value", "low", "high", "separated"}
    assert found["low"] <= found["value"] <= found["high"]
    gains = numbers["gains"]["ours"]["medium"]["0shot"]
    separated = [gains[slug]["separated"] for slug in paper_variants() if slug != BASELINE]
    assert numbers["comparison"]["medium"]["ours"]["avg_0shot_beyond_noise"] == sum(separated)
