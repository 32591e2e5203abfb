"""The progress of runs, read from the files that they write."""

import json
import os
import time

import pytest

from ddl.config import load_scale
from ddl.files import write_json, write_text
from ddl.layout import ROOT
from ddl.reporting import progress
from ddl.reporting.stage_times import STAGES
from tests.helpers.command import ddl


@pytest.fixture
def scale():
    return load_scale("smoke")


@pytest.fixture
def run(tmp_path):
    """Write the records of a run up to a step, with 1,024 tokens per step and 512 tokens per second."""

    def write(name, steps, done=False, age=0.0, half_line=""):
        record = {"train_loss": 6.5, "val_loss": None, "lr": 1e-3, "grad_norm": 1.0, "tok_per_s": 512.0}
        records = [{"step": 0, "tokens": 0, **record, "val_loss": 6.9, "train_loss": None, "tok_per_s": None}]
        records += [{"step": step, "tokens": 1024 * step, **record} for step in range(4, steps + 1, 4)]
        path = tmp_path / "runs" / name / "metrics.jsonl"
        write_text(path, "".join(json.dumps(record) + "\n" for record in records) + half_line)
        os.utime(path, (time.time() - age,) * 2)
        if done:
            write_json(path.with_name("summary.json"), {})

    return write


def test_runs_are_done_running_stopped_or_waiting(scale, run, tmp_path):
    run("small/baseline/seed0", 24, done=True)
    run("small/ddl-dv1/seed0", 8, half_line='{"step": 12, "to')
    run("small/ddl-tc/seed0", 8, age=3600)
    found = {status.name: status for status in progress.runs(scale, tmp_path)}
    assert list(found) == [f"{size}/{variant}/seed0" for size in scale.sizes for variant in scale.variants]
    states = {name: status.state for name, status in found.items() if status.state != "waiting"}
    assert states == {
        "small/baseline/seed0": "done",
        "small/ddl-dv1/seed0": "running",
        "small/ddl-tc/seed0": "stopped",
    }
    running = found["small/ddl-dv1/seed0"]
    assert (running.step, running.steps, running.train_loss, running.val_loss) == (8, 24, 6.5, 6.9)
    assert running.seconds_left == pytest.approx(16 * 1024 / 512)


def test_a_slow_run_is_not_taken_for_a_stopped_one(scale, run, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LEAST_PATIENCE", 1.0)
    run("small/baseline/seed0", 8, age=20)  # one record every 8 seconds
    assert next(progress.runs(scale, tmp_path)).state == "running"
    run("small/baseline/seed0", 8, age=50)
    assert next(progress.runs(scale, tmp_path)).state == "stopped"


def test_the_estimate_counts_every_stage_once(scale, run, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "kept_times", lambda scale: None)
    assert set(progress.stages(scale)) == set(STAGES)
    for pattern, jobs in progress.stages(scale).items():
        for number in range(jobs):
            write_text(
                tmp_path / "benchmarks" / f"{pattern.replace('*', str(number))}.tsv", "s\th:m:s\n10.0\t0:00:10\n"
            )
    assert progress.work_left(scale, tmp_path, []) == (0.0, [])
    (tmp_path / "benchmarks/train/3.tsv").unlink()
    (tmp_path / "benchmarks/evaluate/3.tsv").unlink()
    (tmp_path / "benchmarks/paper.tsv").unlink()
    assert progress.work_left(scale, tmp_path, []) == (20.0, ["paper"])
    run("small/baseline/seed0", 8)  # the missing run: its own estimate replaces the mean
    assert progress.work_left(scale, tmp_path, list(progress.runs(scale, tmp_path))) == (10.0 + 32.0, ["paper"])
    kept = {"stages": [{"stage": STAGES["paper"], "jobs": 2, "seconds": 6.0}]}
    monkeypatch.setattr(progress, "kept_times", lambda scale: (tmp_path, kept))
    assert progress.work_left(scale, tmp_path, []) == (23.0, [])


def test_times_of_the_kept_run_stand_in_for_unknown_ones(tmp_path):
    kept = json.loads((ROOT / "results/reference/laptop-epyc/times.json").read_text())["stages"]
    known = sum(stage["seconds"] for stage in kept if stage["stage"] in STAGES.values())
    left, _ = progress.work_left(load_scale("laptop"), tmp_path, [])
    assert left >= 0.99 * known


def test_without_a_terminal_one_table_is_printed(scale, run, tmp_path, capsys):
    run("small/ddl-cc/seed0", 12)
    results = tmp_path.rename(tmp_path.with_name("smoke"))
    ddl("progress", results)
    printed = capsys.readouterr().out
    assert "small/ddl-cc/seed0" in printed
    assert "12/24" in printed
    runs = len(scale.sizes) * len(scale.variants)
    assert f"0 of {runs} runs done, 1 running. The whole workflow needs about" in printed
    assert printed.count("\n") < runs + 18


def test_before_the_first_job_the_time_is_unknown_unless_a_run_of_the_scale_is_kept(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "kept_times", lambda scale: None)
    assert "The time left is not known yet for: data, tasks," in progress.summary(scale, tmp_path, [])
    kept = {"stages": [{"stage": STAGES["paper"], "jobs": 2, "seconds": 6.0}]}
    monkeypatch.setattr(progress, "kept_times", lambda scale: (tmp_path, kept))
    assert "needs about 3 s more" in progress.summary(scale, tmp_path, [])


def test_a_folder_that_is_no_scale_is_one_line(tmp_path, capsys):
    ddl("progress", tmp_path / "lapdog", code=2)
    assert (
        "error: scale: expected one of h200, laptop, paper, smoke, workstation, found 'lapdog'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (183600, "2 d 03 h")]
)
def test_durations_read_well(seconds, text):
    assert progress.duration(seconds) == text
