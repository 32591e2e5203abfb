"""What a study keeps of the insides of its models."""

import csv
import json

import pytest

from ddl.config import Grid, Study, load_scale, load_study, study_names
from ddl.files import write_json
from ddl.layout import POINT_MECHANISM
from ddl.reporting.read_studies import read_inside
from ddl.studies import inside as module
from ddl.studies import rows as rows_module
from ddl.studies.inside import collect_inside, look_inside
from ddl.studies.rows import StudyError, collect
from tests.studies.test_rows import write_points

GRID = Grid(("small",), ("paper",), ("baseline", "ddl-cc"), (8,), (8e-3,), (0,))


@pytest.fixture
def study():
    return Study("mine", "A title", "About it.", "smoke", (GRID,), inside=True)


def write_insides(study, results):
    """Rows of made-up runs and what was measured inside: gradient norms of 3 and 4, and a rise of 0.5 nats."""
    write_points(study, results, study.points())
    for point in study.points():
        folder = results / point.folder
        lines = ["step,embedding,blocks.0.mlp,blocks.0.attention,norm", *(f"{step},1,3,4,2" for step in range(1, 9))]
        (folder / "gradients.csv").write_text("\n".join(lines))
        changes = [{"change": "closed", "sublayers": "all", "loss": [8.0, 7.0]}]
        write_json(
            folder / POINT_MECHANISM / "interventions.json", {"tokens": [6, 4], "loss": [5, 5], "changes": changes}
        )
        sublayers = [{"tokens": tokens, "sublayer": 1, "gate": 1.25} for tokens in ("all", "rare target")]
        write_json(folder / POINT_MECHANISM / "mechanism.json", {"sublayers": sublayers})


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_has_its_gradients_gates_and_rises(study, tmp_path):
    write_insides(study, tmp_path)
    assert collect_inside(study, tmp_path) == 2
    found = [tuple(row.values()) for row in read(tmp_path / "studies/mine.inside.csv") if row["run"] == "1"]
    assert ("1", "gradient", "blocks.0", "1", "5") in found
    assert ("1", "gradient", "rest", "5", "2") in found
    assert ("1", "intervention", "closed", "all", "0.5") in found
    assert ("1", "sublayer", "gate", "1", "1.25") in found
    assert len(found) == 2 * 3 + 2  # every fourth of eight records


def test_a_missing_measurement_is_named_unless_the_study_is_collected_in_part(study, tmp_path):
    write_insides(study, tmp_path)
    (tmp_path / study.points()[1].folder / POINT_MECHANISM / "interventions.json").unlink()
    with pytest.raises(StudyError, match=r"ddl-cc/.*/mechanism/interventions\.json: not found"):
        collect_inside(study, tmp_path)
    assert collect_inside(study, tmp_path, partial=True) == 1


def test_a_run_that_diverged_has_no_numbers_and_stops_nothing(study, tmp_path, monkeypatch):
    write_insides(study, tmp_path)
    folder = tmp_path / study.points()[0].folder
    row = json.loads((folder / "point.json").read_text())
    write_json(
        folder / "point.json", row | {"val_loss": None, "val_loss_stderr": None, "reason": "diverged: loss is nan"}
    )
    (folder / "documents.safetensors").unlink()
    look_inside(load_scale("smoke"), folder, tmp_path / "no data", folder / POINT_MECHANISM)
    collect(study, tmp_path)
    assert collect_inside(study, tmp_path) == 2
    assert {row["run"] for row in read(tmp_path / "studies/mine.inside.csv")} == {"1"}
    for each in (module, rows_module):
        monkeypatch.setattr(each, "REFERENCE", tmp_path)
    (tmp_path / "results/studies").mkdir(parents=True)
    assert collect_inside(study, tmp_path / "results", reuse=True) == 2


def test_a_study_that_does_not_look_inside_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"noise\.yaml: inside: expected true, found false"):
        collect_inside(load_study("noise"), tmp_path)


def test_committed_insides_stand_in_for_runs(study, tmp_path, monkeypatch):
    reference = tmp_path / "reference"
    for each in (module, rows_module):
        monkeypatch.setattr(each, "REFERENCE", reference)
    write_insides(study, reference)
    collect(study, reference)
    collect_inside(study, reference)
    results = tmp_path / "results"
    (results / "studies").mkdir(parents=True)
    assert collect_inside(study, results, reuse=True) == 2
    kept, found = (read(folder / "studies/mine.inside.csv") for folder in (reference, results))
    assert found == kept


def test_the_table_is_read_with_the_columns_of_its_runs(study, tmp_path, monkeypatch):
    write_insides(study, tmp_path)
    collect(study, tmp_path)
    collect_inside(study, tmp_path)
    monkeypatch.setattr("ddl.reporting.read_studies.load_study", lambda name: study)
    found = read_inside("mine", tmp_path)
    rises = found[found["kind"] == "intervention"].set_index("variant")
    assert rises.loc["ddl-cc", "value"] == 0.5
    assert rises.loc["baseline", "seed"] == 0


def test_studies_that_look_inside_are_shipped():
    assert any(load_study(name).inside for name in study_names())
