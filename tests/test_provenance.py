"""Results are written whole and say where they came from."""

import json

import pytest

from ddl.provenance import atomic, fingerprint, provenance, user_errors, write_json, write_text


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


def test_fingerprint_depends_on_settings_contents_and_names_not_on_order_or_place(tmp_path):
    for folder in ("a", "b"):
        for name, text in (("x.py", "one"), ("y.py", "two")):
            write_text(tmp_path / folder / name, text)
    x, y = tmp_path / "a/x.py", tmp_path / "a/y.py"
    base = fingerprint({"lr": 1}, [x, y])
    assert fingerprint({"lr": 1}, [tmp_path / "b/y.py", tmp_path / "b/x.py"]) == base
    assert fingerprint({"lr": 2}, [x, y]) != base
    assert fingerprint({"lr": 1}, [x]) != base
    y.write_text("three")
    assert fingerprint({"lr": 1}, [x, y]) != base


def test_provenance_names_code_versions_and_device():
    record = provenance()
    assert set(record) == {"commit", "dirty", "python", "versions", "device", "platform", "threads", "utc"}
    assert record["versions"]["torch"]
    assert record["device"]
    json.dumps(record)


def test_a_users_mistake_is_one_line_and_exit_code_2_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as stopped, user_errors(KeyError):
        raise KeyError("steps")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: 'steps'\n"
    with pytest.raises(ZeroDivisionError), user_errors(KeyError):
        1 / 0  # noqa: B018
