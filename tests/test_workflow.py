"""The workflow: which change reruns which rules, and the whole DAG at the smoke scale from an empty results folder."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddl.config import Scale, load_scale, load_study, load_variants
from ddl.layout import CURVES, DRAWN, ROOT, STUDY, drawn_files
from ddl.reporting import progress
from ddl.training.run import Run
from tests.helpers import golden, without_network
from tests.helpers.project import copy_project

SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
DESIGNS = load_scale("smoke").variants
RUNS = 2 * len(DESIGNS)  # two sizes


CUT = without_network.PREFIX if without_network.possible() else []


def snakemake(folder: Path, *arguments: str, config: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run the workflow at the smoke scale, in a copy of the project; without a network, if this system can cut it."""
    command = [*CUT, SNAKEMAKE, *arguments, "--cores", "2", "--config", "scale=smoke", *config]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SOURCE_DATE_EPOCH": "0"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def planned(folder: Path, *targets: str, config: tuple[str, ...] = ()) -> dict[str, int]:
    """Jobs that a dry run plans: rule -> count; empty if there is nothing to do."""
    done = snakemake(folder, *targets, "-n", config=config)
    assert done.returncode == 0, done.stderr + done.stdout
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", done.stdout + done.stderr, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in done.stdout + done.stderr
        return {}
    jobs = {name: int(number) for name, number in (line.split() for line in table[1].splitlines())}
    jobs.pop("all", None)
    return jobs


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project without results."""
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def printed(project) -> list[str]:
    """Build the smoke scale in the copy; return the lines printed."""
    done = snakemake(project)
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-2000:]
    return (done.stdout + done.stderr).splitlines()


@pytest.fixture(scope="module")
def finished(project, printed) -> Path:
    """The same copy after the smoke scale has been built."""
    return project


@pytest.fixture
def edited(finished):
    """Edit a file of the finished copy, and restore it after the test."""
    originals = {}

    def edit(name: str, change) -> None:
        path = finished / name
        originals.setdefault(path, path.read_bytes())
        path.write_text(change(path.read_text()))

    yield edit
    for path, content in originals.items():
        path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------------
# Dry runs


def test_the_smoke_scale_plans_a_training_and_an_evaluation_of_every_design_and_size(project):
    jobs = planned(project)
    assert jobs["train"] == jobs["validate"] == jobs["evaluate"] == RUNS
    assert jobs["paper"] == 1


@pytest.mark.parametrize("scale", ["laptop", "workstation", "h200", "paper"])
def test_a_file_of_any_scale_is_a_target_without_a_flag(project, scale):
    jobs = planned(project, f"results/{scale}/figures/figure2.pdf", f"results/{scale}/tables/table1.csv")
    assert jobs["train"] == RUNS
    assert ("tasks" in jobs) == (load_scale(scale).evaluation.tasks == "offline")


def test_after_a_kill_the_same_command_continues_and_a_living_one_keeps_its_lock(tmp_path):
    """Kill Snakemake and its job at once, then build; and while one builds, another may not build the same files."""
    folder = copy_project(tmp_path)
    command = [SNAKEMAKE, "results/smoke/data/manifest.json", "--cores", "1", "--config", "scale=smoke"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    locks, log = folder / ".snakemake/locks", folder / "results/smoke/logs/data.log"

    def start() -> subprocess.Popen:
        log.unlink(missing_ok=True)
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not log.is_file():
            assert started.poll() is None, started.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return started

    killed = start()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert any(locks.iterdir())
    living = start()
    os.killpg(living.pid, signal.SIGSTOP)  # so that it cannot end before the other one asks
    refused = snakemake(folder, "results/smoke/data/manifest.json")
    os.killpg(living.pid, signal.SIGCONT)
    assert refused.returncode != 0
    assert "Directory cannot be locked" in refused.stdout + refused.stderr
    _, said = living.communicate(timeout=300)
    assert living.returncode == 0, said
    assert said.count("removed the lock of a Snakemake that no longer runs") == 1
    assert not locks.exists()


@pytest.mark.skipif(not CUT, reason="this system has no network namespaces")
def test_the_workflow_of_these_tests_has_no_network():
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=30)"
    done = subprocess.run([*CUT, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in done.stderr


def test_every_figure_and_table_has_a_short_name(project):
    done = snakemake(project, "--list-rules")
    listed = set((done.stdout + done.stderr).split())
    assert {*(f"figure{n}" for n in range(1, 5)), *(f"table{n}" for n in range(1, 9))} <= listed
    assert planned(project, "figure1") == {"notebook_03_architecture": 1, "figure1": 1}


def train_command(folder: Path, target: str, *arguments: str, **kwargs) -> str:
    """The shell command of the one training run that a target needs, from a dry run."""
    done = snakemake(folder, target, "-n", "-p", *arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in (done.stdout + done.stderr).splitlines() if "ddl train" in line]
    return command


@pytest.mark.parametrize(("granted", "processes"), [(1, 1), (8, 4)])
def test_a_training_gets_the_processes_that_its_resources_grant(project, granted, processes):
    target = "results/paper/runs/small/baseline/seed0/summary.json"
    assert f"--processes $(({processes} ? {processes} : 1)) " in train_command(
        project, target, "--resources", f"gpu={granted}"
    )


@pytest.mark.parametrize(
    ("scale", "config", "flag"),
    [
        ("smoke", (), "--restart"),
        ("paper", (), None),
        ("paper", ("stale=restart",), "--restart"),
        ("paper", ("stale=continue",), "--continue-anyway"),
        ("smoke", ("stale=continue",), "--continue-anyway"),
    ],
)
def test_checkpoints_of_other_code_stop_an_expensive_training_unless_the_config_says_how_to_go_on(
    project, scale, config, flag
):
    command = train_command(project, f"results/{scale}/runs/small/baseline/seed0/summary.json", config=config)
    assert re.findall("--restart|--continue-anyway", command) == ([flag] if flag else [])


def test_another_way_to_go_on_is_refused(project):
    done = snakemake(project, "-n", config=("stale=ignore",))
    assert done.returncode != 0
    assert "stale: expected one of refuse, restart, continue, found 'ignore'" in done.stdout + done.stderr


def test_a_wrong_config_key_stops_the_workflow_with_one_clear_line(project):
    path = project / "config/scales/smoke.yaml"
    original = path.read_text()
    try:
        path.write_text(original.replace("  steps:", "  stepz:"))
        done = snakemake(project, "-n")
    finally:
        path.write_text(original)
    assert done.returncode != 0
    printed = done.stdout + done.stderr
    lines = [line for line in printed.splitlines() if "stepz" in line]
    assert len(lines) == 1
    assert lines[0].startswith("config/scales/smoke.yaml: unknown key training.stepz, expected one of steps, ")
    assert "Traceback" not in printed


def test_an_unknown_scale_is_named(project):
    command = [SNAKEMAKE, "-n", "--cores", "1", "--config", "scale=lapdog"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "scale: expected one of h200, laptop, paper, smoke, workstation, found 'lapdog'" in done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The whole DAG


@pytest.mark.dag
def test_one_call_builds_everything(finished):
    results = finished / "results/smoke"
    expected = [file for names in DRAWN.values() for name in names for file in drawn_files(name)]
    missing = [name for name in expected if not (results / name).stat().st_size]
    assert missing == []
    assert {f"{path.parent.name}/{path.name}" for path in results.glob("[ft]*s/*")} == set(expected)
    assert (results / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert "Deep Delta Learning" in (results / "site/index.html").read_text()
    pages = sorted(path.name for path in (results / "notebooks").glob("*.html"))
    notebooks = {path.stem for path in (finished / "notebooks").glob("*.py")} - {STUDY}
    assert pages == sorted(f"{name}.html" for name in notebooks)
    for variant in DESIGNS:
        for size in ("small", "medium"):
            summary = json.loads((results / f"runs/{size}/{variant}/seed0/summary.json").read_text())
            assert 4.0 < summary["val_loss"] < 7.0  # below the initial ln(1024) = 6.93, so it has learned
            scores = json.loads((results / f"evals/{size}/{variant}/seed0/0shot.json").read_text())
            assert len(scores["tasks"]) == 8


@pytest.mark.dag
def test_one_line_per_job_is_printed_and_the_last_seven_lines_say_where_everything_is(finished, printed):
    jobs = int(re.fullmatch(r"(\d+) jobs to run\..*", next(line for line in printed if "jobs to run" in line))[1])
    lines = [re.fullmatch(rf"\d\d:\d\d:\d\d  +(\d+) of {jobs} done  .+", line) for line in printed[-7 - jobs : -7]]
    assert all(lines)
    counts = [int(line[1]) for line in lines]
    assert counts == sorted(counts)
    assert 0 == counts[0] < counts[-1] < jobs
    assert re.fullmatch(rf"The smoke scale is built: {jobs} jobs in .*\d s\.", printed[-7])
    assert all((finished / line.split()[1]).exists() for line in printed[-6:])


@pytest.mark.dag
@pytest.mark.parametrize("run", golden.RUNS)
def test_the_runs_follow_the_curves_that_are_kept(finished, run):
    found, kept = golden.collect(finished / "results/smoke"), json.loads(golden.KEPT.read_text())
    assert found["shards"] == kept["shards"], "trained on other data than the kept curves"
    distance = golden.distance(found["curves"][run], kept["curves"][run])
    print(f"{run}: at most {distance:.1e} nats from {golden.KEPT.relative_to(ROOT)}")
    assert distance <= golden.TOLERANCE


@pytest.mark.dag
@pytest.mark.parametrize("changed", ["learning rate", "first gate"])
def test_the_kept_curves_notice_a_change_of_one_per_cent(finished, tmp_path, monkeypatch, changed):
    scale = load_scale("smoke")
    if changed == "learning rate":
        recipe = dataclasses.replace(scale.training, learning_rate=1.01 * scale.training.learning_rate)
        scale = dataclasses.replace(scale, training=recipe)
    else:
        model = dataclasses.replace(scale.model("small", "ddl-cc"), gate_init=1.01)
        monkeypatch.setattr(Scale, "model", lambda *_: model)
    assert Run(scale, "small", "ddl-cc", 0, finished / "results/smoke/data/manifest.json", tmp_path).train()
    kept = json.loads(golden.KEPT.read_text())["curves"]["small/ddl-cc"]
    assert golden.distance(golden.curve(tmp_path), kept) > golden.TOLERANCE


def test_a_control_is_trained_and_evaluated_if_its_files_are_targets(project):
    (slug, *_) = (slug for slug in load_variants() if slug not in DESIGNS)
    run, evaluation = f"runs/small/{slug}/seed0/summary.json", f"evals/small/{slug}/seed0/validation.json"
    made = {"data": 1, "tasks": 1}  # unless another test has built them
    assert made | planned(project, f"results/smoke/{run}") == made | {"train": 1}
    assert made | planned(project, f"results/smoke/{evaluation}") == made | {"train": 1, "validate": 1}


def test_progress_counts_the_jobs_that_the_workflow_plans(project):
    jobs, stages = planned(project, "--forceall"), progress.stages(load_scale("smoke"))
    assert jobs["train"] == stages["train/*"]
    assert jobs["mechanism"] == stages["mechanism/*"]
    assert jobs["validate"] == stages["validate/*"]
    assert jobs["evaluate"] + jobs["evaluate_random_init"] == stages["evaluate/*"]
    assert jobs["cost"] == stages["cost/*"]
    pages = sum(count for rule, count in jobs.items() if rule.startswith(("notebook_", "draw_")))
    assert pages + jobs["derivation_page"] == stages["notebooks/*"]


def test_a_figure_of_the_trainings_needs_the_runs_that_it_shows_and_no_evaluation(project):
    made = {"data": 1}  # unless another test has built them
    for figure, sizes in CURVES.items():
        jobs = planned(project, figure, "--forceall")
        expected = {"train": len(sizes) * len(DESIGNS), f"draw_{figure}": 1, figure: 1}
        assert made | jobs == made | expected
    jobs = planned(project, "table3", "--forceall")
    assert {"evaluate", "tasks", "cost", "mechanism"}.isdisjoint(jobs)


def test_a_study_is_a_target_of_its_own(project):
    jobs = planned(project, "study", config=("study=learning-rate-smoke",))
    points = len(load_study("learning-rate-smoke").points())
    assert (jobs["study_point"], jobs["study_rows"], jobs["notebook_study"]) == (points, 1, 1)
    assert "train" not in jobs


@pytest.mark.dag
def test_a_study_trains_its_runs_and_shows_them(finished):
    points = len(load_study("learning-rate-smoke").points())
    done = snakemake(finished, "study", config=("study=learning-rate-smoke",))
    assert done.returncode == 0, done.stderr[-6000:]
    studies = finished / "results/smoke/studies"
    assert len((studies / "learning-rate-smoke.csv").read_text().splitlines()) == 1 + points
    assert load_study("learning-rate-smoke").title in (studies / "learning-rate-smoke.html").read_text()


@pytest.mark.dag
def test_a_second_call_has_nothing_to_do(finished):
    assert planned(finished) == {}
    for path in (finished / "ddl").rglob("*.py"):
        path.touch()
    assert planned(finished) == {}


@pytest.mark.dag
def test_a_changed_plot_reruns_its_notebook_the_paper_and_the_site_only(finished, edited):
    edited("notebooks/10_loss_curves.py", lambda text: text + "\n# A remark.\n")
    assert planned(finished) == {"notebook_10_loss_curves": 1, "paper": 1, "site": 1}


@pytest.mark.dag
def test_a_changed_constant_of_the_model_retrains_and_what_it_does_not_touch_stays(finished, edited):
    edited("ddl/model/residual.py", lambda text: text.replace("GATE_LOGIT_LIMIT = ", "GATE_LOGIT_LIMIT = 0.5 * "))
    jobs = planned(finished)
    assert jobs["train"] == jobs["validate"] == jobs["evaluate"] == RUNS
    assert jobs["cost"] == 2
    assert {"data", "tasks", "contamination"}.isdisjoint(jobs)


def add_option(text: str) -> str:
    """Add a training option with a default."""
    return text.replace(
        "    grad_clip: AboveZero = 1.0\n", "    grad_clip: AboveZero = 1.0\n    ema: NotNegative = 0.0\n"
    )


@pytest.mark.dag
def test_a_comment_a_docstring_help_or_a_new_option_reruns_nothing(finished, edited):
    changes = {
        "ddl/model/language_model.py": lambda text: text.replace("class Attention", "# A remark.\nclass Attention"),
        "ddl/model/residual.py": lambda text: re.sub('^"""', '"""Another docstring. ', text),
        "ddl/cli.py": lambda text: text.replace("Start from step 0", "Start from the first step"),
        "ddl/config.py": add_option,
        "config/scales/smoke.yaml": lambda text: text.replace("checkpoint_interval: 8", "checkpoint_interval: 12"),
    }
    for name, change in changes.items():
        original = (finished / name).read_text()
        edited(name, change)
        assert (finished / name).read_text() != original
    assert planned(finished) == {}


@pytest.mark.dag
def test_a_derivation_reruns_with_what_it_runs_or_shows_once_for_all_scales(finished, edited):
    edited(
        "ddl/ops/rewrite.py", lambda text: text.replace("def rewrite_reference(", "def rewrite_reference(  # shown\n")
    )
    assert planned(finished) == {"derivation": 3, "derivation_page": 3, "site": 1}


@pytest.mark.dag
def test_a_changed_variant_retrains_its_own_runs_only(finished, edited):
    edited("config/variants.yaml", lambda text: text.replace("residual: delta}", "residual: delta, gate_init: 0.5}", 1))
    jobs = planned(finished)
    assert jobs["train"] == jobs["validate"] == jobs["evaluate"] == 2
    assert jobs["cost"] == 2  # both sizes: variants are measured relative to each other


@pytest.mark.dag
def test_a_changed_label_changes_tables_and_figures_only(finished, edited):
    edited("config/variants.yaml", lambda text: text.replace("label: DDL-TC w/o EC", "label: DDL-TC without EC"))
    jobs = planned(finished)
    notebooks = {f"notebook_{name}" for name in DRAWN} | {f"draw_{name}" for name in CURVES}
    assert set(jobs) == notebooks | {"derivation", "derivation_page"} | {"numbers", "paper", "site"}


@pytest.mark.dag
def test_a_deleted_metrics_file_rebuilds_its_descendants_only(finished):
    run = finished / "results/smoke/runs/small/ddl-cc/seed0"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    (run / "metrics.jsonl").unlink()
    jobs = planned(finished)
    assert jobs["train"] == jobs["validate"] == jobs["evaluate"] == 1
    assert {"data", "tasks", "cost", "notebook_03_architecture", "derivation"}.isdisjoint(jobs)
    done = snakemake(finished, "results/smoke/runs/small/ddl-cc/seed0/metrics.jsonl")
    assert done.returncode == 0, done.stderr
    # The final checkpoint was reused: the same curve and weights, without a training step.
    for name in ("metrics.jsonl", "model.safetensors", "config.json"):
        assert (run / name).read_bytes() == before[name]


@pytest.mark.dag
def test_a_corrupt_shard_is_named_and_nothing_is_trained_on_it(finished, tmp_path):
    shard = finished / "results/smoke/data/train_000000.bin"
    original = shard.read_bytes()
    weights = finished / "results/smoke/runs/small/baseline/seed0/model.safetensors"
    kept = weights.read_bytes()
    try:
        shard.write_bytes(original[:5000] + b"\xff\xff" + original[5002:])
        done = snakemake(finished, "--force", "results/smoke/runs/small/baseline/seed0/summary.json")
    finally:
        shard.write_bytes(original)
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line and shard.name in line]
    assert lines
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    assert "completed successfully" not in printed  # would be printed if redirecting to the log hid the failure
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(kept)


@pytest.mark.dag
def test_a_missing_corpus_package_is_named(finished, edited):
    edited("config/scales/smoke.yaml", lambda text: text.replace("networkx, nltk]", "networkx, nosuchpackage]"))
    done = snakemake(finished, "results/smoke/data/manifest.json")
    assert done.returncode != 0
    assert "error: corpus package 'nosuchpackage' is not installed: run `make setup`" in done.stdout + done.stderr


@pytest.mark.dag
def test_a_finished_run_of_a_small_scale_simply_reruns_with_other_code(finished, edited):
    folder = "results/smoke/runs/small/ddl-dv1/seed0"
    before = (finished / folder / "model.safetensors").read_bytes()
    edited("ddl/model/residual.py", lambda text: text.replace("GATE_LOGIT_LIMIT = ", "GATE_LOGIT_LIMIT = 0.5 * "))
    done = snakemake(finished, f"{folder}/summary.json")
    assert done.returncode == 0, done.stderr
    assert (
        "from a different run: code ddl/model/residual.py has changed"
        in (finished / "results/smoke/logs/train/small-ddl-dv1-seed0.log").read_text()
    )
    assert "continued" in json.loads((finished / folder / "provenance.json").read_text())
    edited("ddl/model/residual.py", lambda text: text.replace("0.5 * ", ""))
    assert snakemake(finished, f"{folder}/summary.json").returncode == 0  # from the earlier checkpoint
    assert (finished / folder / "model.safetensors").read_bytes() == before
