"""The budget of a scale: checked by hand, and from measured throughput if available."""

import math

import pytest

from ddl.config import load_scale, load_variants
from ddl.reporting import budget


@pytest.fixture
def published_only(monkeypatch):
    monkeypatch.setattr(budget, "gpu_cost", lambda size: {})


def test_hours_of_the_paper_by_hand(published_only):
    paper = load_scale("paper")
    # 100,000 steps x 480 x 1,024 tokens, at 1,509.6 and 282.9 thousand tokens per second on four GPUs.
    assert budget.gpu_hours(paper, "small", "baseline") == pytest.approx(49_152_000_000 / 1_509_600 / 3600 * 4)
    assert budget.gpu_hours(paper, "medium", "ddl-tc") == pytest.approx(193.05, abs=0.01)
    assert budget.gpu_hours(load_scale("h200"), "small", "baseline") * 20 == pytest.approx(36.18, abs=0.01)


def test_unpublished_designs_are_marked_and_counted_at_a_slower_one(published_only):
    small, medium = budget.throughput("small"), budget.throughput("medium")
    assert small.bounds == {"ddl-tc-noec", "ddl-cc-noec"}
    assert medium.bounds == {"ddl-dv1", "ddl-tc-noec", "ddl-cc-noec"}
    assert medium.tok_per_s["ddl-dv1"] == medium.tok_per_s["ddl-cc"] == 422_300 / 4
    row = next(line for line in budget.budget_part().splitlines() if line.startswith("| DDL (d_v = 1)"))
    assert row == "| DDL (d_v = 1) | 2.1 | ≤ 6.5 | 41.0 | ≤ 129.3 |"


def test_disk_by_hand():
    # Parameter counts of Table 6; two kept checkpoints with three fp32 numbers per parameter, weights with one.
    disk = budget.disk_bytes(load_scale("paper"))
    assert disk["token shards"] == 2 * 50_050_000_000
    assert disk["weights"] == pytest.approx(4 * 6 * (123.6e6 + 353.9e6), rel=1e-3)
    assert disk["checkpoints"] == 6 * disk["weights"]


def test_measured_numbers_are_preferred_if_they_are_all_there(monkeypatch):
    rows = {slug: {"train_tok_per_s_median": 1e5, "device": "NVIDIA X"} for slug in load_variants()}
    monkeypatch.setattr(budget, "gpu_cost", lambda size: rows)
    assert budget.gpu_hours(load_scale("paper"), "medium", "ddl-cc") == pytest.approx(49_152_000_000 / 1e5 / 3600)
    part = budget.budget_part()
    source = "the throughput measured on one NVIDIA X"
    assert f"Not run: the hours of the small and medium models are computed from {source}" in part
    assert "≤" not in part
    rows["ddl-tc"]["train_tok_per_s_median"] = math.nan
    assert "Tables 4 and 5" in budget.throughput("small").source
