"""The examples of CONTRIBUTING.md: adding them to a copy of the project breaks nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddl.config import load_scale
from ddl.layout import ROOT
from tests.helpers.project import copy_project

pytestmark = pytest.mark.dag
# Tests of what a further design could break: settings, tables, numbers, README, costs. The slowest tests are excluded,
# and the test of the table of defaults, to which a new corpus adds entries.
FAST_TESTS = (
    "tests/test_config.py",
    "tests/model/test_language_model.py",
    "tests/reporting/test_accuracy_tables.py",
    "tests/reporting/test_budget.py",
    "tests/reporting/test_figures_and_tables.py",
    "tests/reporting/test_progress.py",
    "tests/reporting/test_typeset_paper.py::test_every_table_and_figure_of_the_paper_is_included",
    "tests/training/test_cost.py",
)
LEFT_OUT = "not notebooks and not no_results and not describe_prints and not larger_batch and not test_defaults"


def examples(section: str, language: str) -> list[str]:
    """The code blocks of a section of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def insert(path: Path, before: str, code: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, f"{code}{before}"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with the rule, the two designs and the corpus of the examples."""
    folder = copy_project(tmp_path_factory.mktemp("extended"))
    with open(folder / "config/variants.yaml", "a") as file:
        file.writelines(f"\n{entry}" for entry in examples("A variant", "yaml"))
    (rule,) = examples("A variant", "python")
    (folder / "my_rules.py").write_text(rule)
    settings, reader = examples("A corpus", "python")
    insert(folder / "ddl/config.py", "AnyCorpus = ", f"{settings}\n\n")
    insert(folder / "ddl/config.py", "\nFORMER_NAMES", " | LineFile")
    insert(folder / "ddl/data/documents.py", "DocumentCorpus, PackageDocs, ", "LineFile, ")
    with open(folder / "ddl/data/documents.py", "a") as file:
        file.write(f"\n\n{reader}")
    return folder


def run(folder: Path, *command: object) -> str:
    """Run a Python module in the copy; return what it prints to stdout."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    arguments = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_fast_tests_pass_with_them(extended):
    run(extended, "pytest", "-x", "-p", "no:cacheprovider", "-m", "not dag", "-k", LEFT_OUT, *FAST_TESTS)


def test_the_generated_pages_are_about_the_papers_designs_as_before(extended):
    pages = [extended / "README.md", *sorted((extended / "docs").glob("*.md"))]
    before = [page.read_text() for page in pages]
    run(extended, "ddl", "readme", "--name", "laptop-epyc")
    assert [page.read_text() for page in pages] == before


def test_their_runs_are_planned_and_a_model_is_trained_on_the_corpus(extended, tmp_path):
    lines = [f"document {number} says {number * number} and {number % 7} more" for number in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    scale = yaml.safe_load((extended / "config/scales/smoke.yaml").read_text())
    scale["corpus"] = {"name": "line-file", "path": str(tmp_path / "lines.txt"), "val_fraction": 0.3}
    scale["tokenizer"]["vocab_size"] = 300
    scale["training"] |= {"steps": 4, "warmup_steps": 1, "val_sequences": 4}
    (extended / "config/scales/mine.yaml").write_text(yaml.safe_dump(scale, sort_keys=False))

    described = run(extended, "ddl", "describe", "--scale", "mine")
    rows = {tuple(line.split()[:2]): line for line in described.splitlines() if line.startswith(("small", "medium"))}
    assert len(rows) == 2 * (len(load_scale("smoke").variants) + 2)
    assert [key for key, line in rows.items() if "–" in line] == [("small", "gated"), ("medium", "gated")]
    assert "–: the rule 'my_rules:Gated' does not count its FLOPs" in described

    planned = run(extended, "snakemake", "-n", "--cores", 1, "results/mine/paper.pdf")
    runs = 2 * (len(load_scale("smoke").variants) + 2)  # controls are trained only if they are named
    assert re.search(rf"^train +{runs}$", planned, re.MULTILINE)

    run(extended, "ddl", "data", "--scale", "mine", "--out", "results/mine/data")
    place = "results/mine/runs/small/gated/seed0"
    options = ["--scale", "mine", "--size", "small", "--variant", "gated", "--seed", 0]
    run(extended, "ddl", "train", *options, "--data", "results/mine/data", "--out", place)
    assert (extended / place / "model.safetensors").is_file()
    assert "small/gated/seed0" in run(extended, "ddl", "progress", "results/mine")
