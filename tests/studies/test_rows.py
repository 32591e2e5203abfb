"""The rows of a study: complete, in order, and committed ones only for the same settings."""

import csv
import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddl.config import Grid, Study, load_scale, load_study, study_names
from ddl.files import write_json
from ddl.layout import Point
from ddl.studies import rows as rows_module
from ddl.studies.rows import COLUMNS, StudyError, collect, committed

GRID = Grid(("small",), ("paper",), ("baseline", "ddl-cc"), (8,), (4e-3, 8e-3), (0, 1))


@pytest.fixture
def study():
    return Study("mine", "A title", "About it.", "smoke", (GRID,))


def write_points(study, results, points):
    """Write made-up results of runs: the loss of point i is i, that of its three documents 10 i + 0, 1, 2."""
    scale = load_scale(study.scale)
    for number, point in enumerate(study.points()):
        if point in points:
            row = dict.fromkeys(COLUMNS, "") | dataclasses.asdict(point)
            row["learning_rate"] = row.pop("rate")
            settings = scale.at(point).fingerprint(point.size, point.variant)
            row |= {"scale": scale.name, "val_loss": float(number), "settings": settings}
            folder = results / point.folder
            write_json(folder / "point.json", row)
            losses = np.float32([10 * number, 10 * number + 1, 10 * number + 2])
            save_file({"losses": losses, "tokens": np.int32([4, 5, 6])}, folder / "documents.safetensors")


def point_of(row):
    rate = float(row["learning_rate"])
    return Point(row["size"], row["backbone"], row["variant"], int(row["steps"]), rate, int(row["seed"]))


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_shipped_study_can_be_trained_and_lists_each_run_once():
    assert {"learning-rate", "noise", "repairs"} <= set(study_names())
    for name in study_names():
        points = load_study(name).points()
        assert len({point.folder for point in points}) == len(points)


def test_every_learning_rate_study_scans_around_the_shared_rate_for_both_sides():
    for name in ("learning-rate", "learning-rate-smoke", "learning-rate-h200", "learning-rate-paper"):
        study = load_study(name)
        shared, rates = load_scale(study.scale).training.learning_rate, {point.rate for point in study.points()}
        assert {"baseline", "ddl-cc"} <= {point.variant for point in study.points()}
        assert min(rates) < shared < max(rates)
        assert shared in rates


def test_rows_and_documents_are_in_the_order_of_the_study(study, tmp_path):
    write_points(study, tmp_path, study.points())
    assert collect(study, tmp_path) == 8
    rows = read(tmp_path / "studies/mine.csv")
    assert [float(row["val_loss"]) for row in rows] == list(range(8))
    assert [point_of(row) for row in rows] == study.points()
    documents = load_file(tmp_path / "studies/mine.documents.safetensors")
    assert documents["losses"][:, 1].tolist() == [10 * number + 1 for number in range(8)]
    assert documents["tokens"].tolist() == [4, 5, 6]


def test_a_diverged_run_has_no_losses_by_document(study, tmp_path):
    write_points(study, tmp_path, study.points())
    folder = tmp_path / study.points()[2].folder
    row = dict.fromkeys(COLUMNS, "") | {"val_loss": None, "reason": "diverged: step 3"}
    write_json(folder / "point.json", row)
    (folder / "documents.safetensors").unlink()
    collect(study, tmp_path)
    rows = read(tmp_path / "studies/mine.csv")
    assert (rows[2]["val_loss"], rows[2]["reason"]) == ("", "diverged: step 3")
    losses = load_file(tmp_path / "studies/mine.documents.safetensors")["losses"]
    assert np.isnan(losses).any(1).tolist() == [number == 2 for number in range(8)]


def test_a_missing_run_is_named_unless_the_study_is_collected_in_part(study, tmp_path):
    write_points(study, tmp_path, study.points()[1:])
    with pytest.raises(StudyError, match=r"points/small/paper/baseline/steps8/lr0\.004/seed0/point\.json: not found"):
        collect(study, tmp_path)
    assert collect(study, tmp_path, partial=True) == 7


def test_committed_rows_stand_in_for_runs_of_the_same_settings_only(study, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "REFERENCE", tmp_path / "reference")
    write_points(study, tmp_path / "reference", study.points()[:4])
    collect(study, tmp_path / "reference", partial=True)
    assert list(committed(study)) == study.points()[:4]
    write_points(study, tmp_path / "results", study.points()[4:])
    assert collect(study, tmp_path / "results", reuse=True) == 8
    rows = read(tmp_path / "results/studies/mine.csv")
    assert [float(row["val_loss"]) for row in rows] == list(range(8))
    documents = load_file(tmp_path / "results/studies/mine.documents.safetensors")
    assert documents["losses"][:, 0].tolist() == [10 * number for number in range(8)]
    path = tmp_path / "reference/studies/mine.csv"
    path.write_text(path.read_text().replace(rows[0]["settings"], "0" * 16))
    still = [point for point, row in zip(study.points(), rows, strict=True) if row["settings"] != rows[0]["settings"]]
    assert list(committed(study)) == still[: len(committed(study))]
    assert study.points()[0] not in committed(study)


def test_a_run_with_another_name_elsewhere_stands_in_under_the_name_that_it_has_here(tmp_path, monkeypatch):
    """A normalised embedding is a change of the backbone in one study, and of the design in the other."""
    monkeypatch.setattr(rows_module, "REFERENCE", tmp_path / "reference")
    there = dataclasses.replace(GRID, backbones=("normed-embedding",), variants=("baseline",))
    here = dataclasses.replace(GRID, variants=("baseline-embedding-norm", "baseline"))
    other, mine = (Study(name, "A title", "About it.", "smoke", (grid,)) for name, grid in (("a", there), ("b", here)))
    write_points(other, tmp_path / "reference", other.points())
    collect(other, tmp_path / "reference")
    expected = [point for point in mine.points() if point.variant == "baseline-embedding-norm"]
    assert list(committed(mine)) == expected
    assert collect(mine, tmp_path, reuse=True, partial=True) == len(expected)
    assert [point_of(row) for row in read(tmp_path / "studies/b.csv")] == expected
