"""Results are written whole and say where they came from."""

import json

import pytest

from ddl.code_identity import package_code
from ddl.files import atomic, sha256_file, write_json, write_text
from ddl.layout import ROOT
from ddl.provenance import provenance


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "result.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_code_of_a_module_is_all_that_it_imports_wherever_the_import_stands():
    assert set(package_code(ROOT / "ddl/config.py")) == {"__init__.py", "config.py"}
    found = package_code(ROOT / "ddl/training/run.py")
    assert {"train.py", "model.py", "ops/__init__.py", "ops/rewrite.py", "provenance.py"} <= set(found)
    assert "tables.py" not in found
    assert found["model.py"] == sha256_file(ROOT / "ddl/model/language_model.py")
    assert "results.py" in package_code(ROOT / "ddl/reporting/figures.py")


def test_provenance_names_code_versions_and_device():
    record = provenance()
    assert set(record) == {"commit", "dirty", "python", "versions", "device", "platform", "threads", "utc"}
    assert record["versions"]["torch"]
    assert record["device"]
    json.dumps(record)
