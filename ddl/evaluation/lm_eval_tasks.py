"""Run the tasks of a folder with lm-evaluation-harness.

The folder holds items and a manifest. `ddl tasks` makes one offline; `ddl benchmarks` makes one with the paper's eight
benchmarks. The harness makes prompts from the items by its task definitions, queries the model, and computes the
accuracies. It is imported inside the functions that need it, because its import takes seconds and reads the
environment.
"""

import io
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ddl.config import Scale
from ddl.errors import UserError
from ddl.evaluation.columns import by_column
from ddl.evaluation.paper_benchmarks import FOLDER
from ddl.files import sha256_file, write_text

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask

SEED = 1234  # seed of the demonstrations and of the global generators: the harness's default


OFFLINE_TAG = "ddl_offline"  # what the harness' command line calls the offline tasks together


class HarnessError(UserError):
    """Tasks that cannot be run; the message names what is missing or wrong."""


@dataclass(frozen=True)
class Task:
    """A task: its column in the tables, its metric, its chance level, and the task object of the harness."""

    column: str
    metric: str
    chance: float
    task: "ConfigurableTask"


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of tasks, and check that every file is the listed one.

    Raises:
        HarnessError: a file is missing or changed; the message names it and the command that makes it.
    """
    path = folder / "manifest.json"
    remedy = "run ddl tasks"
    if folder == FOLDER:
        remedy = f"on a machine with a network run ddl benchmarks, and copy {FOLDER} here"
    try:
        manifest = json.loads(path.read_text())
        entries = [task[split] for task in manifest["tasks"].values() for split in ("train", "test")]
        listed = [(folder / entry["file"], entry["sha256"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise HarnessError(f"{path}: not found or not a manifest of tasks: {remedy}") from None
    for file, checksum in listed:
        if not file.is_file():
            raise HarnessError(f"{file}: not found, expected the items listed in {path.name}: {remedy}")
        if sha256_file(file) != checksum:
            raise HarnessError(f"{file}: not the items listed in {path.name}, SHA-256 differs: {remedy}")
    return manifest


def task_folder(scale: Scale, data: Path) -> Path:
    """The folder of the tasks of a scale; `data` is results/<scale>/data."""
    return data / "tasks" if scale.evaluation.tasks == "offline" else FOLDER


def prepare_environment() -> None:
    """Make libraries quiet and keep them off the network; call this before anything imports `datasets`."""
    os.environ |= {"LMEVAL_LOG_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@contextmanager
def open_tasks(folder: Path, names: Sequence[str] = ()) -> Iterator[dict[str, Task]]:
    """Open the tasks of a folder as name -> task, in the paper's column order; the block owns their caches.

    Args:
        names: names of the tasks to open; all if empty.

    Raises:
        HarnessError: items are missing or changed, or the folder has no task of a given name.
    """
    import datasets
    from lm_eval.tasks import TaskManager

    manifest = load_manifest(folder)
    for name in names:
        if name not in manifest["tasks"]:
            raise HarnessError(f"{folder}: no task {name!r}, expected some of {', '.join(manifest['tasks'])}")
    wanted = {name: entry for name, entry in manifest["tasks"].items() if not names or name in names}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="ddl-tasks-") as temporary:
        for name, entry in wanted.items():
            # The cache is temporary: the shared one returns old items for a changed file of equal size and date.
            values = definition(folder, entry)
            values["dataset_kwargs"]["cache_dir"] = f"{temporary}/cache"
            write_definition(Path(temporary), name, values)
        # This is fast only without the thousands of definitions in the harness.
        manager = TaskManager(include_path=temporary, include_defaults=False)
        loaded = manager.load(list(wanted))["tasks"]
        yield {
            name: Task(entry["column"], entry["metric"], entry["chance"], loaded[name])
            for name, entry in wanted.items()
        }


def write_definitions(folder: Path) -> None:
    """Write `<task>.yaml` beside the items of the offline tasks, for the harness' own command line.

    The files have this machine's paths: `lm_eval --include_path FOLDER --tasks ddl_offline` works from anywhere on it.
    """
    for name, entry in load_manifest(folder)["tasks"].items():
        write_definition(folder, name, {"tag": OFFLINE_TAG} | definition(folder, entry))


def write_definition(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Write `<task>.yaml`; JSON is valid YAML and needs no quoting by hand."""
    write_text(folder / f"{name}.yaml", json.dumps({"task": name, **values}, indent=1) + "\n")


def definition(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The harness's configuration for a task of a manifest; a benchmark keeps its definition but reads our files."""
    import lm_eval

    shipped = Path(lm_eval.__file__).parent / "tasks"
    scored = entry.get("split", "test")
    files = {"train": folder / entry["train"]["file"], scored: folder / entry["test"]["file"]}
    data: dict[str, Any] = {
        "dataset_path": "parquet" if "definition" in entry else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {k: str(v.resolve()) for k, v in files.items()}},
    }
    if "definition" in entry:
        return {"include": str(shipped / entry["definition"]), **data}
    data |= {"training_split": "train", "fewshot_split": "train", "validation_split": None, "test_split": "test"}
    if entry["winogrande"]:
        return {"include": str(shipped / "winogrande" / "default.yaml"), **data}
    return data | {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in dict.fromkeys(("acc", "acc_norm", entry["metric"]))
        ],
    }


def run_tasks(lm: "TemplateLM", tasks: dict[str, Task], shots: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """Evaluate every task with `shots` demonstrations.

    Returns:
        Results, and a table of the items. The results are "tasks": task -> column, metric, value, stderr, n, chance,
        acc, acc_norm; and "average": value, stderr, chance. Scores are fractions; standard errors are the harness's
        standard errors of the mean over items. The table has one row per item: task, item (its index in the split),
        gold, correct (by the task's metric), log_likelihoods of the choices in nats.

    Raises:
        HarnessError: a task has fewer items for demonstrations than `shots`.
    """
    from lm_eval import evaluate

    for name, task in tasks.items():
        task.task.set_config(key="num_fewshot", value=shots)
        if shots > (most := len(task.task.fewshot_docs())):
            raise HarnessError(f"shots: task {name} has demonstrations for at most {most}, found {shots}")
        task.task.set_fewshot_seed(seed=SEED)  # reset the sampler, so that every model sees the same prompts
    random.seed(0)  # the seeds of the harness's command line, for tasks that draw from the global generators
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    # `simple_evaluate` would do the same, but first spends a second on the versions of all installed packages.
    with redirect_stderr(io.StringIO()):  # hides progress bars that have no switch; errors are exceptions
        output = evaluate(
            lm=lm,
            task_dict={"tasks": {name: task.task for name, task in tasks.items()}, "groups": {}, "group_map": {}},
            log_samples=True,
            bootstrap_iters=1,  # 0 would disable standard errors, although those of means need no bootstrap
        )
    results = {}
    for name, task in tasks.items():
        found = output["results"][name]
        results[name] = {
            "column": task.column,
            "metric": task.metric,
            "value": found[f"{task.metric},none"],
            "stderr": found[f"{task.metric}_stderr,none"],
            "n": output["n-samples"][name]["effective"],
            "chance": task.chance,
            "acc": found["acc,none"],
            "acc_norm": found.get("acc_norm,none"),  # WinoGrande, tasks in its form, and Social IQA have none
        }
    rows = [
        {
            "task": name,
            "item": sample["doc_id"],
            "gold": gold_index(task.task, sample["doc"]),
            "correct": bool(sample[task.metric]),
            "log_likelihoods": [float(score) for score, _ in sample["filtered_resps"]],
        }
        for name, task in tasks.items()
        for sample in output["samples"][name]
    ]
    return {"tasks": results, "average": average(list(results.values()))}, pd.DataFrame(rows)


def gold_index(task: "ConfigurableTask", doc: dict[str, Any]) -> int:
    """Index of the correct choice of an item, determined as the harness does."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return gold if isinstance(gold, int) else task.doc_to_choice(doc).index(gold)


def solved(task: "ConfigurableTask", doc: dict[str, Any]) -> str:
    """The text of an item with its correct answer, as a model without demonstrations sees it."""
    choice = task.doc_to_choice(doc)[gold_index(task, doc)]
    before, after = (choice, task.doc_to_target(doc)) if task.multiple_input else (task.doc_to_text(doc), choice)
    return f"{before}{task.config.target_delimiter}{after}"


def average(results: list[dict[str, Any]]) -> dict[str, float]:
    """The unweighted mean over columns, as in the tables of the paper; a column may have several tasks (`by_column`).

    The standard error assumes that the errors of the columns are independent, which holds if no item serves two tasks.
    It does not bound the difference between two models, whose errors on the same items are correlated; see
    `ddl.reporting.statistics`.
    """
    columns = by_column(results).values()
    n = len(columns)
    return {
        "value": math.fsum(column["value"] for column in columns) / n,
        "stderr": math.sqrt(math.fsum(column["stderr"] ** 2 for column in columns)) / n,
        "chance": math.fsum(column["chance"] for column in columns) / n,
    }
