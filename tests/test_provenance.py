"""Results are written atomically and record their provenance."""

import json

import pytest

from ddl.files import atomic, write_json, write_text
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


def test_provenance_names_code_versions_and_device():
    record = provenance()
    assert set(record) == {"commit", "dirty", "python", "versions", "device", "platform", "threads", "utc"}
    assert record["versions"]["torch"]
    assert record["device"]
    json.dumps(record)
