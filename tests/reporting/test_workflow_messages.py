"""The messages of Snakemake, for a workflow with four short jobs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddl.files import write_json
from ddl.layout import ROOT
from ddl.reporting.workflow_messages import duration, forecast

SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ddl.reporting.workflow_messages import Messages

messages = Messages("tiny")

onstart:
    measured = [(job.benchmark, job.threads) for job in workflow.dag.needrun_jobs() if job.benchmark]
    whole = "all" in {{rule.name for rule in workflow.dag.targetrules}}
    messages.start(len(workflow.dag), measured, workflow.resource_settings.cores, whole)

onsuccess:
    messages.finish(whole="all" in {{rule.name for rule in workflow.dag.targetrules}})

rule all:
    default_target: True
    input: expand("out{{n}}", n=range(4))

rule write:
    output: "out{{n}}"
    log: "log{{n}}"
    message: "write number {{wildcards.n}}"
    shell: "(echo words; test {{wildcards.n}} != {{config[bad]}}) > {{log}} 2>&1; echo > {{output}}"
"""


@pytest.fixture
def build(tmp_path):
    """Run the workflow; return the exit code and the printed lines."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    write_json(tmp_path / "results/reference/tiny-machine/times.json", {"wall_seconds": 1560, "cores": 2})

    def run(*arguments: str, bad: int = 9) -> tuple[int, list[str]]:
        command = [str(Path(sys.executable).parent / "snakemake"), *arguments, "--cores", "1", "--config", f"bad={bad}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


def test_a_run_says_how_long_it_will_take_then_one_line_per_job_then_where_the_results_are(build):
    code, lines = build("--show-failed-logs")
    assert code == 0
    begin = lines.index("5 jobs to run. Their logs are in results/tiny/logs/.")
    assert lines[begin + 1] == (
        "The whole tiny scale took 26 min 00 s with 2 cores in the run kept in results/reference/tiny-machine."
    )
    jobs = [re.fullmatch(r"\d\d:\d\d:\d\d  (\d of 5 done)  write number \d", line) for line in lines[begin + 3 : -7]]
    assert [job[1] for job in jobs] == [f"{done} of 5 done" for done in range(4)]
    assert re.fullmatch(r"The tiny scale is built: 5 jobs in \d+ s\.", lines[-7])
    assert [line.split()[0] for line in lines[-6:]] == ["site", "paper", "notebooks", "figures", "tables", "models"]


def test_a_single_target_is_no_whole_scale(build):
    code, lines = build("out1")
    assert code == 0
    assert "1 job to run." in lines
    assert not any("tiny" in line for line in lines)
    assert re.fullmatch(r"Done: 1 job in \d+ s\.", lines[-1])
    assert not any("is built" in line for line in lines)


def test_a_part_says_what_it_runs_and_how_long_that_takes_by_the_times_of_a_kept_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = ["data", "train/small-a-seed0", "train/small-b-seed1"]
    measured = [(f"results/tiny/benchmarks/{job}.tsv", 1) for job in jobs]
    said = ["4 jobs to run. Their logs are in results/tiny/logs/.", "corpus, tokenizer, shards: 1, trainings: 2."]
    assert forecast(4, measured, 2) == said
    kept = {
        "stages": [
            {"stage": "corpus, tokenizer, shards", "jobs": 1, "seconds": 10.0},
            {"stage": "trainings", "jobs": 12, "seconds": 1200.0},
            {"stage": "cost measurements", "jobs": 2, "seconds": 60.0},
        ],
        "job_seconds": {"train/small-a-seed0": 30.0},
    }
    write_json(tmp_path / "results/reference/tiny-machine/times.json", kept)
    about, where = "About {} on {} cores, by the run kept in results/reference/tiny-machine", "results/tiny/benchmarks"
    # 10 s, 30 s of the same run, and the mean of 100 s for another.
    assert forecast(4, measured, 1)[2] == f"{about.format('2 min 20 s', 1)}."
    assert forecast(4, measured, 8)[2] == f"{about.format('1 min 40 s', 8)}."  # the longest job
    assert forecast(2, [(f"{where}/cost/small.tsv", 8)], 8)[2] == f"{about.format('30 s', 8)}."  # takes all cores
    new = forecast(5, [*measured, (f"{where}/site.tsv", 1)], 1)[2]
    assert new == f"{about.format('2 min 20 s', 1)}, without these, which it did not measure: site."
    assert forecast(4, measured, None) == said  # a cluster
    assert forecast(5, [*measured, ("results/tiny/points/small/a/train.tsv", 1)], 1) == ["5" + said[0][1:], said[1]]
    shared = forecast(2, [("results/notebooks/benchmarks/05_gradient.tsv", 1), *measured[:1]], 1)
    assert shared[1] == "corpus, tokenizer, shards: 1, notebooks, figures, tables: 1."


def test_the_log_of_a_failed_job_is_shown(build):
    code, lines = build("--show-failed-logs", bad=2)
    assert code != 0
    assert "Logfile log2:" in lines
    assert "words" in lines
    assert not any("is built" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (59.7, "1 min 00 s"), (119.7, "2 min 00 s"), (3599.9, "1 h 00 min")]
)
def test_a_duration_is_rounded_before_it_is_split_into_units(seconds, text):
    assert duration(seconds) == text
