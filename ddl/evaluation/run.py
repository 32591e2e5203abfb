"""Evaluate a model on the eight tasks (Tables 1, 2, 7, 8).

To evaluate any folder with a model of this package or of transformers, on the paper's benchmarks or on the offline
tasks of a scale:

    ddl evaluate --run DIR
    ddl evaluate --run DIR --items results/laptop/data/tasks --tasks doc_order,doc_pair --shots 0 --out D

To evaluate with the settings, tasks and tokenizer of a scale, as the workflow does:

    ddl evaluate --scale laptop --data results/laptop/data --run results/laptop/runs/small/ddl-cc/seed0 \\
        --out D

In the second form, `--random-init --size small --variant baseline` in place of `--run` evaluates untrained weights, a
control that must score at chance. The folder `--out` receives `<n>shot.json` and `<n>shot.parquet` with one row per
item.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddl.config import SHOTS, Scale
from ddl.data.sequences import load_manifest
from ddl.evaluation.lm_eval_tasks import open_tasks, prepare_environment, run_tasks, task_folder
from ddl.evaluation.loglikelihood import BATCH_TOKENS
from ddl.evaluation.model_check import check_model
from ddl.evaluation.paper_benchmarks import FOLDER
from ddl.files import atomic, write_json
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model
from ddl.provenance import provenance

if TYPE_CHECKING:
    import pandas as pd
    from lm_eval.api.model import TemplateLM


def evaluate_tasks(
    lm: "TemplateLM", folder: Path, out: Path | None, names: Sequence[str] = (), shots: Iterable[int] = SHOTS
) -> dict[int, dict[str, Any]]:
    """Run the tasks of a folder, print one line per task, and write the result files if `out` is given.

    Returns:
        Number of demonstrations -> result of `ddl.evaluation.lm_eval_tasks.run_tasks`.

    Raises:
        HarnessError: items are missing or changed.
    """
    results = {}
    with open_tasks(folder, names) as tasks:
        for count in shots:
            started = time.monotonic()
            results[count], items = run_tasks(lm, tasks, count)
            report(count, results[count], time.monotonic() - started)
            if out:
                write_json(out / f"{count}shot.json", {"shots": count} | results[count] | {"provenance": provenance()})
                write_items(out / f"{count}shot.parquet", items)
    return results


def write_items(path: Path, items: "pd.DataFrame") -> None:
    """Write the items of `run_tasks` as compressed Parquet, one row per item; equal items give equal bytes."""
    with atomic(path) as temporary:
        items.to_parquet(temporary, engine="pyarrow", compression="zstd", index=False)


def report(shots: int, result: dict[str, Any], seconds: float) -> None:
    """Print one line per task and one for the average."""
    for name, task in result["tasks"].items():
        print(
            f"{shots}-shot {name} ({task['column']}): {task['metric']} {100 * task['value']:.1f} "
            f"+- {100 * task['stderr']:.1f} %, chance {100 * task['chance']:.1f} %, n {task['n']}"
        )
    mean = result["average"]
    print(
        f"{shots}-shot average: {100 * mean['value']:.1f} +- {100 * mean['stderr']:.1f} %, "
        f"chance {100 * mean['chance']:.1f} %, {seconds:.1f} s",
        flush=True,
    )


def evaluate_model(scale: Scale, model: LanguageModel, data: Path, items: Path, out: Path) -> None:
    """Evaluate a model on the tasks of a scale, and write the result files.

    Raises:
        EvaluationError: the vocabulary or sequence length of the model is not that of the scale.
    """
    from ddl.evaluation.lm_eval_model import DDL

    tokenizer = load_manifest(data / "manifest.json")["tokenizer"]
    check_model(scale, model, tokenizer["vocab_size"], data)
    evaluate_tasks(DDL(model, data / tokenizer["file"], scale.evaluation.batch_tokens), items, out)


def evaluate_run(run: Path, items: Path | None, out: Path | None, names: Sequence[str], shots: Iterable[int]) -> None:
    """Run the tasks in the folder `items`, by default the paper's benchmarks, on the model in the folder `run`.

    Raises:
        ModelFileError, TokenizerError: the model or its tokenizer cannot be read.
        HarnessError, ScoringError: the items are missing, changed or too long for the model.
    """
    prepare_environment()
    from ddl.evaluation.lm_eval_model import DDL

    evaluate_tasks(DDL(run, batch_tokens=BATCH_TOKENS), items or FOLDER, out, names, shots)


def evaluate_in_scale(scale: Scale, source: Path | tuple[str, str], data: Path, items: Path | None, out: Path) -> None:
    """Evaluate a model with the settings and tasks of a scale.

    Args:
        source: folder of a trained model, or size and variant of an untrained one.
        data: results/<scale>/data.
        items: folder of tasks; None for the tasks of the scale.
        out: folder of the result files.

    Raises:
        ConfigError, DataError, ModelFileError, TokenizerError, HarnessError, ScoringError, EvaluationError:
            the settings, data, model, tokenizer or items are missing, invalid or do not match.
    """
    prepare_environment()
    torch.set_num_threads(scale.training.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(source, Path):
        model = load_model(source, device)
    else:
        model = LanguageModel(scale.model(*source)).to(device).eval()
    evaluate_model(scale, model, data, items or task_folder(scale, data), out)
