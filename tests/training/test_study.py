"""The sweep: its runs differ only in the learning rate, and a diverging rate becomes a row."""

import csv
import dataclasses
import json

import pytest

from ddl.config import SweepConfig, load_scale, scale_names
from ddl.files import write_json
from ddl.training.errors import TrainingError
from ddl.training.study import Point, collect, points, recipe, train
from tests.helpers.tiny_run import tiny_scale, write_data


@pytest.fixture
def scale():
    sweep = SweepConfig(sizes=("small",), variants=("baseline", "ddl-cc"), learning_rates=(1e-3, 1e38), steps=6)
    return dataclasses.replace(tiny_scale(), sweep=sweep)


def test_every_shipped_sweep_scans_around_the_shared_rate_for_both_sides():
    for name in scale_names():
        scale = load_scale(name)
        assert {"baseline", "ddl-cc"} <= {point.variant for point in points(scale)}
        rates = scale.sweep.learning_rates
        assert min(rates) < scale.training.learning_rate < max(rates)
        assert scale.training.learning_rate in rates


def test_a_point_differs_from_a_run_in_rate_floor_and_length_only():
    scale = load_scale("laptop")
    changed = recipe(scale, 1.6e-2)
    assert changed.min_learning_rate == pytest.approx(2 * scale.training.min_learning_rate)
    assert (changed.steps, changed.warmup_steps) == (256, 16)
    back = {
        name: getattr(scale.training, name) for name in ("learning_rate", "min_learning_rate", "steps", "warmup_steps")
    }
    assert dataclasses.replace(changed, **back) == scale.training


def test_points_become_rows_and_divergence_one_without_a_loss(scale, tmp_path):
    data = write_data(tmp_path / "data")
    for point in points(scale):
        assert train(scale, point, data, tmp_path / point.folder)
    collect(scale, tmp_path)
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], float(row["learning_rate"])) for row in rows] == [
        (variant, rate) for variant in ("baseline", "ddl-cc") for rate in (1e-3, 1e38)
    ]
    for good, diverged in zip(rows[::2], rows[1::2], strict=True):
        folder = tmp_path / f"sweep/small/{good['variant']}/lr0.001/seed0"
        assert float(good["val_loss"]) == json.loads((folder / "summary.json").read_text())["val_loss"]
        assert (good["steps"], good["tokens"], good["reason"]) == ("6", "384", "")
        assert diverged["val_loss"] == ""
        assert diverged["reason"].startswith("diverged: step ")


def test_a_missing_point_is_named(scale, tmp_path):
    first = next(points(scale))
    write_json(tmp_path / first.folder / "point.json", {})
    with pytest.raises(TrainingError, match=r"sweep/small/baseline/lr1e\+38/seed0/point\.json: not found: `snakemake"):
        collect(scale, tmp_path)


def test_a_point_has_a_folder_of_its_own():
    assert Point("small", "ddl-cc", 8.0e-3, 0).folder == "sweep/small/ddl-cc/lr0.008/seed0"
