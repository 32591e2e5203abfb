"""The harness' own command line, and registration with it and with transformers in any order of imports."""

import os
import subprocess
import sys
import tomllib

import lm_eval
import pytest
from test_benchmarks import _offline, folder, rows, run, sources  # noqa: F401 (fixtures)

from ddl.layout import ROOT

CHECK = """
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from lm_eval.api.registry import get_model
assert "ddl" in CONFIG_MAPPING
assert [config.__name__ for config in AutoModelForCausalLM._model_mapping._extra_content] == ["DDLConfig"]
assert get_model("ddl").__name__ == "DDL"
assert get_model("dummy").__name__ == "DummyLM"  # the harness' own models are still there
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment in which the package's entry points are installed, whatever the state of the real one."""
    path = tmp_path_factory.mktemp("site")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = path / "announced-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: announced\nVersion: 1\n")
    lines = [
        line for group, names in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "imports",
    [
        "import ddl; from transformers import pipeline",  # which imports a registry before it is whole itself
        "import lm_eval.models; import ddl",
        "import transformers.modeling_utils",  # imports torch on its way, which announces the package
    ],
)
def test_models_are_registered_in_any_order_of_imports(installed, imports):
    done = subprocess.run(
        [sys.executable, "-c", imports + CHECK], env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_of_the_harness_knows_the_model(installed, folder, run, tmp_path):  # noqa: F811
    shipped = os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "piqa", "piqa.yaml")
    files = {"train": str(folder / "piqa.train.parquet"), "validation": str(folder / "piqa.test.parquet")}
    task = f"include: {shipped}\ntask: piqa_local\ndataset_path: parquet\ndataset_kwargs: {{data_files: {files}}}\n"
    (tmp_path / "piqa_local.yaml").write_text(task)
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "ddl",
        "--model_args",
        f"pretrained={run}",
        "--device",
        "cpu",
    ]
    command += ["--tasks", "piqa_local", "--include_path", str(tmp_path), "--num_fewshot", "1"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|piqa_local|" in done.stdout.replace(" ", "")
    assert done.stdout.lstrip().startswith("ddl (")
