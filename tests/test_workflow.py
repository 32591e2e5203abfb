"""The workflow: what reruns what, and the whole DAG at the smoke scale from an empty results folder."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddl.config import Scale, load_scale, load_variants
from ddl.layout import ROOT
from ddl.training.run import Run
from tests.helpers import golden
from tests.helpers.project import copy_project

SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
RUNS = 12


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the workflow of a copy of the project at the smoke scale."""
    command = [SNAKEMAKE, *arguments, "--cores", "2", "--config", "scale=smoke"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SOURCE_DATE_EPOCH": "0"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def planned(folder: Path, *targets: str) -> dict[str, int]:
    """Jobs of a dry run, rule -> count; empty if there is nothing to do."""
    done = snakemake(folder, *targets, "-n")
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
    """A copy without results."""
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def printed(project) -> list[str]:
    """Lines that the call prints which builds the smoke scale of the copy."""
    done = snakemake(project)
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-2000:]
    return (done.stdout + done.stderr).splitlines()


@pytest.fixture(scope="module")
def finished(project, printed) -> Path:
    """The same copy, its smoke scale built."""
    return project


@pytest.fixture
def edited(finished):
    """Change a file of the finished copy for one test."""
    originals = {}

    def edit(name: str, change) -> None:
        path = finished / name
        originals[path] = path.read_bytes()
        path.write_text(change(path.read_text()))

    yield edit
    for path, content in originals.items():
        path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------------
# Without running anything


def imported(file: Path) -> set[Path]:
    """Files of the package that a Python file imports, directly or not, wherever the import stands."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        for node in ast.walk(ast.parse(todo.pop().read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.split(".")[0] != "ddl":
                    continue
                path = ROOT.joinpath(*name.split("."))
                for candidate in (path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"):
                    if candidate.is_file() and ROOT in candidate.parents and candidate not in found:
                        found.add(candidate)
                        todo.append(candidate)
    return found


def rules_with_code() -> dict[str, tuple[set[str], str]]:
    """Rule -> (files its `code` lists, its shell command), from the text of the Snakefile."""
    text = (ROOT / "Snakefile").read_text()
    names = dict(re.findall(r"^(MODEL|TASKS|REPORT|TRAINING) = (\(.*?\))$", text, re.MULTILINE | re.DOTALL))
    tuples = {name: ast.literal_eval(value) for name, value in names.items()}
    rules = {}
    for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
        listed = re.search(r"code=source\((.*?)\)", body, re.DOTALL)
        if listed:
            items = re.findall(r'\*(\w+)|"([\w/]+)"', listed[1])
            modules = [module for group, name in items for module in (tuples[group] if group else [name])]
            files = {f"ddl/{module}.py" for module in ("__init__", "config", "provenance", *modules)}
            rules[name] = (files, body)
    return rules


def test_every_rule_lists_the_code_that_it_runs():
    rules = rules_with_code()
    assert {"data", "tasks", "train", "evaluate", "cost", "derivation", "numbers", "paper"} <= set(rules)
    for name, (listed, body) in rules.items():
        module = re.search(r"python -m ddl\.(\w+)", body)[1]
        roots = [ROOT / "ddl" / f"{module}.py"]
        notebook = re.search(r'notebook="(notebooks/[^"]+)"', body)
        if notebook:
            pattern = notebook[1].replace("{name}", "0[124567]_*")
            roots += sorted(ROOT.glob(pattern))
        needed = set(roots[:1]) | set().union(*(imported(root) for root in roots)) | {ROOT / "ddl/__init__.py"}
        assert listed == {str(path.relative_to(ROOT)) for path in needed}, name


def test_the_smoke_scale_plans_twelve_trainings(project):
    jobs = planned(project)
    assert jobs["train"] == jobs["evaluate"] == RUNS
    assert jobs["paper"] == 1


@pytest.mark.parametrize("scale", ["laptop", "h200", "paper"])
def test_a_file_of_any_scale_is_a_target_without_a_flag(project, scale):
    jobs = planned(project, f"results/{scale}/figures/figure2.pdf")
    assert jobs["train"] == RUNS
    assert ("tasks" in jobs) == (load_scale(scale).evaluation.tasks == "offline")


@pytest.mark.parametrize("name", [*(f"figure{n}" for n in range(1, 5)), *(f"table{n}" for n in range(1, 9))])
def test_every_figure_and_table_has_a_short_name(project, name):
    text = (project / "Snakefile").read_text()
    assert re.search(r'f"figure\{number\}"' if name.startswith("figure") else r'f"table\{number\}"', text)
    if name in ("figure1", "table5"):  # a dry run takes seconds
        assert name in planned(project, name)


@pytest.mark.parametrize(("granted", "processes"), [(1, 1), (4, 4), (8, 4)])
def test_a_training_gets_the_processes_that_its_resources_grant(project, granted, processes):
    target = "results/paper/runs/small/baseline/seed0/summary.json"
    done = snakemake(project, target, "-n", "-p", "--resources", f"gpu={granted}")
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in (done.stdout + done.stderr).splitlines() if "ddl train " in line]
    assert f"--processes {processes} " in command


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
    assert "scale: expected one of h200, laptop, paper, smoke, found 'lapdog'" in done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The whole DAG


@pytest.mark.dag
def test_one_call_builds_everything(finished):
    results = finished / "results/smoke"
    expected = [f"figures/figure{n}.{kind}" for n in range(1, 5) for kind in ("pdf", "svg", "png")]
    expected += [f"tables/table{n}.{kind}" for n in range(1, 9) for kind in ("csv", "tex")]
    missing = [name for name in expected if not (results / name).stat().st_size]
    assert missing == []
    assert (results / "paper.pdf").read_bytes().startswith(b"%PDF")
    pages = sorted(path.name for path in (results / "notebooks").glob("*.html"))
    notebooks = {path.stem for path in (finished / "notebooks").glob("*.py")} - {"09_learning_rate"}
    assert pages == sorted(f"{name}.html" for name in notebooks)
    for variant in load_variants():
        for size in ("small", "medium"):
            summary = json.loads((results / f"runs/{size}/{variant}/seed0/summary.json").read_text())
            assert 4.0 < summary["val_loss"] < 7.0  # learned something, from ln(1024) = 6.93 at the start
            scores = json.loads((results / f"evals/{size}/{variant}/seed0/0shot.json").read_text())
            assert len(scores["tasks"]) == 8


@pytest.mark.dag
def test_one_line_per_job_is_printed_and_the_last_six_lines_say_where_everything_is(finished, printed):
    jobs = int(re.fullmatch(r"(\d+) jobs to run\..*", next(line for line in printed if "jobs to run" in line))[1])
    lines = [re.fullmatch(rf"\d\d:\d\d:\d\d  +(\d+) of {jobs} done  .+", line) for line in printed[-6 - jobs : -6]]
    assert all(lines)
    counts = [int(line[1]) for line in lines]
    assert counts == sorted(counts)
    assert 0 == counts[0] < counts[-1] < jobs
    assert re.fullmatch(rf"The smoke scale is built: {jobs} jobs in .*\d s\.", printed[-6])
    assert all((finished / line.split()[1]).exists() for line in printed[-5:])


@pytest.mark.dag
@pytest.mark.parametrize("run", golden.RUNS)
def test_the_runs_follow_the_curves_that_are_kept(finished, run):
    found, kept = golden.collect(finished / "results/smoke"), json.loads(golden.KEPT.read_text())
    assert found["shards"] == kept["shards"], "trained on other data than the curves that are kept"
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


@pytest.mark.dag
def test_the_sweep_is_a_target_of_its_own_and_draws_every_point(finished):
    sweep = load_scale("smoke").sweep
    points = len(sweep.sizes) * len(sweep.variants) * len(sweep.learning_rates)
    assert planned(finished, "sweep") == {"sweep_point": points, "sweep_rows": 1, "learning_rate": 1, "sweep": 1}
    done = snakemake(finished, "sweep")
    assert done.returncode == 0, done.stderr[-6000:]
    results = finished / "results/smoke"
    assert len((results / "sweep.csv").read_text().splitlines()) == 1 + points
    assert "Which rate each design prefers" in (results / "notebooks/09_learning_rate.html").read_text()
    assert (results / "figures/learning_rate.pdf").stat().st_size


@pytest.mark.dag
def test_a_second_call_has_nothing_to_do(finished):
    assert planned(finished) == {}
    for path in (finished / "ddl").rglob("*.py"):
        path.touch()
    assert planned(finished) == {}


@pytest.mark.dag
def test_a_changed_plot_reruns_its_notebook_and_the_paper_only(finished, edited):
    edited("notebooks/10_loss_curves.py", lambda text: text + "\n# A remark.\n")
    assert planned(finished) == {"loss_curves": 1, "paper": 1}


@pytest.mark.dag
def test_a_changed_model_retrains_and_what_it_does_not_touch_stays(finished, edited):
    edited("ddl/model/language_model.py", lambda text: text + "\n# A remark.\n")
    jobs = planned(finished)
    assert jobs["train"] == jobs["evaluate"] == RUNS
    assert {"data", "tasks"}.isdisjoint(jobs)


@pytest.mark.dag
def test_a_changed_variant_retrains_its_own_runs_only(finished, edited):
    edited("config/variants.yaml", lambda text: text.replace("residual: delta}", "residual: delta, gate_init: 0.5}"))
    jobs = planned(finished)
    assert jobs["train"] == jobs["evaluate"] == 2
    assert jobs["cost"] == 2  # of both sizes: variants are measured against each other


@pytest.mark.dag
def test_a_changed_label_changes_tables_and_figures_only(finished, edited):
    edited("config/variants.yaml", lambda text: text.replace("label: DDL-TC w/o EC", "label: DDL-TC without EC"))
    jobs = planned(finished)
    assert {"loss_curves", "downstream", "cost_tables", "numbers", "paper"} <= set(jobs)
    assert {"train", "evaluate", "cost", "data", "tasks"}.isdisjoint(jobs)


@pytest.mark.dag
def test_a_deleted_metrics_file_rebuilds_its_descendants_only(finished):
    run = finished / "results/smoke/runs/small/ddl-cc/seed0"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    (run / "metrics.jsonl").unlink()
    jobs = planned(finished)
    assert jobs["train"] == jobs["evaluate"] == 1
    assert {"data", "tasks", "cost", "architecture", "derivation"}.isdisjoint(jobs)
    done = snakemake(finished, "results/smoke/runs/small/ddl-cc/seed0/metrics.jsonl")
    assert done.returncode == 0, done.stderr
    # The finished checkpoint served: the same curve and weights, without a step.
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
    assert "completed successfully" not in printed  # as it would say if the pipe to the log hid the failure
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(kept)


@pytest.mark.dag
def test_a_missing_corpus_package_is_named(finished, edited):
    edited("config/scales/smoke.yaml", lambda text: text.replace("networkx, nltk]", "networkx, nosuchpackage]"))
    done = snakemake(finished, "results/smoke/data/manifest.json")
    assert done.returncode != 0
    assert "error: corpus package 'nosuchpackage' is not installed: run `make setup`" in done.stdout + done.stderr
