"""The benchmark behind the GPU rows of Tables 4 and 5 measures as `ddl cost` does; tested on a CPU with tiny models."""

import csv
import dataclasses

import pytest
import torch

from benchmarks import end_to_end
from benchmarks.end_to_end import Candidate
from benchmarks.gpu import quick_scale
from benchmarks.measure import ORIGIN, Budget, Rows
from ddl.config import load_scale, load_variants
from ddl.model.language_model import LanguageModel
from ddl.training import cost

VARIANTS = ("baseline", "ddl-cc")


@pytest.fixture
def scale(monkeypatch):
    two = {slug: load_variants()[slug] for slug in VARIANTS}
    monkeypatch.setattr("ddl.config.load_variants", lambda: two)
    found = quick_scale(on_gpu=False)
    few = dataclasses.replace(found.cost, batch_sequences=1, warmup_rounds=1, rounds=4)
    return dataclasses.replace(found, cost=few)


def measured(scale, path, seconds):
    rows = Rows(path, end_to_end.COLUMNS, dict.fromkeys(ORIGIN, "test"))
    assert end_to_end.measure(rows, scale, Budget(seconds)) == 0
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_step_is_that_of_the_cost_rule(scale):
    """The weights after a step are equal to the bit, so clipping, decay groups and precision are the same."""
    ours = Candidate(scale, scale.model("small", "ddl-cc"))
    theirs = cost.Subject(scale, LanguageModel(scale.model("small", "ddl-cc")))
    theirs.train_step()
    for (name, weight), expected in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(weight, expected), name


def test_the_execution_that_tables_show_comes_first():
    paper = load_scale("paper")
    chosen, *others = end_to_end.executions(paper)
    assert chosen == paper.execution
    assert [(each.kernels, each.state_memory) for each in others] == [("auto", "rebuilt"), ("reference", "stored")]


def test_without_time_all_rounds_but_three_are_dropped(scale, capsys):
    subjects = {"baseline": Candidate(scale, scale.model("small", "baseline"))}
    rates = end_to_end.take_turns(scale, subjects, Budget(0))
    assert [len(values) for values in rates["baseline"].values()] == [3, 3]
    assert "3 rounds instead of 4: no time left" in capsys.readouterr().out


def test_without_time_for_a_model_its_row_says_so(scale, tmp_path):
    rows = measured(scale, tmp_path / "rows.csv", seconds=0)
    assert len(rows) == 3 * 2 * len(VARIANTS)
    assert {(row["reason"], row["tok_per_s"]) for row in rows} == {("dropped: no time left", "")}


def test_every_group_has_rows_of_training_and_inference(scale, tmp_path):
    rows = measured(scale, tmp_path / "rows.csv", seconds=600)
    found = [(row["kernels"], row["state_memory"], row["size"], row["variant"], row["mode"]) for row in rows]
    assert found == [
        (each.kernels, each.state_memory, size, variant, mode)
        for each in end_to_end.executions(scale)
        for size in scale.sizes
        for variant in VARIANTS
        for mode in ("train", "inference")
    ]
    assert all(float(row["tok_per_s"]) > 0 and row["rounds"] == "4" for row in rows)
    assert {row["ratio"] for row in rows if row["variant"] == "baseline"} == {"1.0"}
