"""Reference results: which files of a run are kept, and which runs are refused."""

import json
import os

import pytest

from ddl.files import write_json, write_text
from ddl.reporting import keep_reference as reference
from ddl.reporting.keep_reference import KeepError, keep, times


@pytest.fixture
def run(tmp_path):
    """A minimal finished run that `keep` accepts."""
    results = tmp_path / "results"
    for name, seconds in (("data", 10), ("train/small-a", 100), ("train/small-b", 60), ("paper", 1)):
        write_text(results / "benchmarks" / f"{name}.tsv", f"s\th:m:s\n{seconds}\t0:00:01\n")
    write_json(results / "runs/small/a/seed0/provenance.json", {"dirty": False})
    write_json(results / "numbers.json", {})
    write_text(results / "data/train_000000.bin", "large")
    write_text(results / "paper.pdf", "%PDF")
    return results


def test_kept_results_are_the_small_files_and_their_times(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference")
    keep(run, "mine")
    kept = {str(path.relative_to(tmp_path / "reference/mine")) for path in (tmp_path / "reference/mine").rglob("*.*")}
    assert kept == {"numbers.json", "times.json", "runs/small/a/seed0/provenance.json", "notebooks/README.md"}
    stages = {row["stage"]: row for row in json.loads((tmp_path / "reference/mine/times.json").read_text())["stages"]}
    assert stages["trainings"] == {"stage": "trainings", "jobs": 2, "seconds": 160.0, "longest": 100.0}


def test_wall_time_runs_from_the_start_of_the_first_job_to_the_end_of_the_last(run):
    os.utime(run / "benchmarks/data.tsv", (1010, 1010))
    os.utime(run / "benchmarks/train/small-a.tsv", (1110, 1110))
    os.utime(run / "benchmarks/train/small-b.tsv", (1110, 1110))
    os.utime(run / "benchmarks/paper.tsv", (1200, 1200))
    found = times(run)
    assert found["wall_seconds"] == 200
    assert found["job_seconds"] == {"data": 10.0, "paper": 1.0, "train/small-a": 100.0, "train/small-b": 60.0}


def test_an_unfinished_run_and_one_of_uncommitted_code_are_refused_and_nothing_is_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference")
    write_json(run / "runs/small/a/seed0/provenance.json", {"dirty": True})
    with pytest.raises(KeepError, match="trained from uncommitted changes"):
        keep(run, "mine")
    (run / "paper.pdf").unlink()
    with pytest.raises(KeepError, match=r"paper\.pdf: not found"):
        keep(run, "mine")
    assert not (tmp_path / "reference").exists()
