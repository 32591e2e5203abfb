"""The command line of the harness, with our model registered."""

import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest

from ddl.layout import ROOT


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
    return ["--tasks", "piqa_local", "--include_path", str(tmp_path), "--num_fewshot", "1", "--device", "cpu"]


@pytest.mark.parametrize("model", ["ddl", "hf"])
def test_the_harness_evaluates_a_run_through_our_model_and_through_transformers(run, task, tmp_path, model):
    done = lm_eval_command("--model", model, "--model_args", f"pretrained={run}", *task, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|piqa_local|" in done.stdout.replace(" ", "")
    assert done.stdout.lstrip().startswith(f"{model} (")


def test_a_folder_without_a_model_is_one_line(task, tmp_path):
    done = lm_eval_command("--model", "ddl", "--model_args", "pretrained=nowhere", *task, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nowhere/config.json: not found or not a model config")
    assert "Traceback" not in done.stderr


def test_help_is_that_of_the_harness(tmp_path):
    done = lm_eval_command("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--model_args" in done.stdout
    assert "--num_fewshot" in done.stdout
