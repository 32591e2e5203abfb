"""The command line of the harness, with our model registered."""

import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch

from ddl.layout import ROOT
from tests.helpers.command import ddl


def lm_eval_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run `ddl lm-eval *arguments` in a new process, because the harness reads the environment when imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ddl", "lm-eval", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def task(folder, tmp_path):
    """Options that select a task with the harness's definition and local files."""
    shipped = os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "piqa", "piqa.yaml")
    files = {"train": str(folder / "piqa.train.parquet"), "validation": str(folder / "piqa.test.parquet")}
    text = f"include: {shipped}\ntask: piqa_local\ndataset_path: parquet\ndataset_kwargs: {{data_files: {files}}}\n"
    (tmp_path / "piqa_local.yaml").write_text(text)
    return ["--tasks", "piqa_local", "--include_path", str(tmp_path), "--num_fewshot", "1"]


def test_the_harness_evaluates_a_run_through_our_model(run, task, tmp_path):
    done = lm_eval_command("--model", "ddl", "--model_args", f"pretrained={run}", *task, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|piqa_local|" in done.stdout.replace(" ", "")
    assert done.stdout.lstrip().startswith("ddl (")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: device ")]
    assert len(warnings) == (0 if torch.cuda.is_available() else 1)  # the harness asks for a GPU unless told otherwise


@pytest.mark.full
def test_the_harness_evaluates_a_run_through_transformers(run, task, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])  # which the command overwrites
    ddl("lm-eval", "--model", "hf", "--model_args", f"pretrained={run}", *task)
    printed = capsys.readouterr().out
    assert "|piqa_local|" in printed.replace(" ", "")
    assert printed.lstrip().startswith("hf (")


@pytest.mark.parametrize(
    ("model", "given", "code", "said"),
    [
        ("ddl", [], 2, "expected --model_args pretrained=FOLDER, the folder of a trained model"),
        ("ddl", ["pretrained=nowhere"], 2, "nowhere/config.json: not found or not a model config, expected a model"),
        ("hf", ["pretrained=."], 2, "It looks like the config file at './config.json' is not a valid JSON file."),
    ],
)
def test_a_model_that_cannot_be_read_is_one_line(model, given, code, said, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    ddl("lm-eval", "--model", model, *(["--model_args", *given] if given else []), *task, code=code)
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1] == f"error: {said}"
    assert "Traceback" not in printed


def test_help_is_that_of_the_harness(tmp_path):
    done = lm_eval_command("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--model_args" in done.stdout
    assert "--num_fewshot" in done.stdout
