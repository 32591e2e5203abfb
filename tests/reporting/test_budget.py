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


def test_a_smaller_vocabulary_takes_less_and_other_cards_take_what_their_slower_part_takes(published_only, monkeypatch):
    workstation = load_scale("workstation")
    whole = workstation.tokens / 1_509_600 / 3600 * 4
    assert 0.75 * whole < budget.gpu_hours(workstation, "small", "baseline") < 0.85 * whole
    monkeypatch.setattr(budget, "gpu_hours", lambda *_: 1.0)
    line = budget.hours_by_card(workstation)
    assert line.startswith("hours to train the paper's twelve models on one card, ")
    assert "not measured: H200 12.0, H100 17.2, " in line
    assert "RTX 4090 71.9" in line  # 989 / 165 of the arithmetic, which lacks more than the memory's 4.8 / 1.008


def rows_of_table(part):
    rows = (line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| "))
    return {label: cells for label, *cells in rows}


def test_designs_of_the_revised_text_count_at_their_own_speed_and_not_at_that_of_another_design(published_only):
    assert budget.throughput("small").tok_per_s["ddl-tc-noec"] == 673_200 / 4
    assert budget.throughput("medium").tok_per_s["ddl-cc-noec"] == 358_500 / 4
    rows = rows_of_table(budget.budget_part())
    assert rows["DDL-TC w/o EC"][2:] == ["4.1", "11.4", "81.1", "227.8"]
    assert rows["DDL-CC w/o EC"][2:] == ["2.7", "7.6", "53.6", "152.3"]


def test_the_one_unpublished_throughput_is_estimated_from_the_other_size_and_marked(published_only):
    small, medium = budget.throughput("small"), budget.throughput("medium")
    assert (small.estimated, medium.estimated) == (set(), {"ddl-dv1"})
    assert medium.tok_per_s["ddl-dv1"] == pytest.approx(1330.8 / 1509.6 * 537_100 / 4)
    part = budget.budget_part()
    assert rows_of_table(part)["DDL (d_v = 1)"][2:] == ["2.1", "≈ 5.8", "41.0", "≈ 115.3"]
    assert "≈: neither version of the paper publishes the throughput of DDL (d_v = 1) at the medium size" in part
    assert "≤" not in part


def test_the_error_of_the_estimate_is_the_largest_where_both_sizes_are_published(published_only):
    small = {"tc": 783.5, "cc": 1158.0, "tc-noec": 673.2, "cc-noec": 1019.8}
    medium = {"tc": 282.9, "cc": 422.3, "tc-noec": 239.7, "cc-noec": 358.5}
    errors = [abs(small[name] / 1509.6 / (medium[name] / 537.1) - 1) for name in small]
    assert budget.throughput("medium").error == pytest.approx(max(errors))
    assert f"within {math.ceil(1000 * max(errors)) / 10}% of the published throughput" in budget.budget_part()


def test_the_last_row_is_the_sum_of_all_six_and_marked_where_it_contains_an_estimate(published_only):
    rows = rows_of_table(budget.budget_part())
    designs = [cells for label, cells in rows.items() if label not in ("GPU-hours", "all six")]
    hours = [sum(float(cell.strip("≈ ")) for cell in column) for column in zip(*designs, strict=True)]
    assert len(designs) == 6
    assert rows["all six"][2:] == ["16", "≈ 46", "329", "≈ 920"]
    assert [float(cell.strip("≈ ")) for cell in rows["all six"]] == pytest.approx(hours, abs=0.8)


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
    assert "≈" not in part
    rows["ddl-tc"]["train_tok_per_s_median"] = math.nan
    assert "Tables 4 and 5" in budget.throughput("small").source
