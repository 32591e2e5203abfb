"""Evaluate a model: the eight tasks (Tables 1, 2, 7, 8) and, with the data of a scale, the validation loss (Table 3).

To evaluate any folder with a model of this package or of transformers, on the paper's benchmarks or on the offline
tasks of a scale:

    ddl evaluate --run DIR
    ddl evaluate --run DIR --items results/laptop/data/tasks --tasks doc_order,doc_pair --shots 0 --out D

To evaluate with the settings, data and tokenizer of a scale, validation loss included, as the workflow does:

    ddl evaluate --scale laptop --data results/laptop/data --run results/laptop/runs/small/ddl-cc/seed0 \\
        --out D

In the second form, `--random-init --size small --variant baseline` in place of `--run` evaluates untrained weights, a
control that must score at chance. The folder `--out` receives `<n>shot.json`, `<n>shot.parquet` with one row per item,
documents.safetensors with the loss of each validation document, and validation.json.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ddl.config import SHOTS, Scale
from ddl.data.sequences import TokenSequences, load_manifest
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.document_losses import DocumentLosses, per_document
from ddl.evaluation.lm_eval_tasks import open_tasks, prepare_environment, run_tasks, task_folder
from ddl.evaluation.loglikelihood import BATCH_TOKENS, head
from ddl.evaluation.model_check import check_model
from ddl.evaluation.paper_benchmarks import FOLDER
from ddl.evaluation.repeated_pairs import repeats_a_pair
from ddl.files import atomic, write_json
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model
from ddl.provenance import provenance

if TYPE_CHECKING:
    import pandas as pd
    from lm_eval.api.model import TemplateLM


@torch.inference_mode()
def validation_loss(
    model: LanguageModel, data: TokenSequences, batch_tokens: int, dtype: torch.dtype, end_of_text: int
) -> tuple[dict[str, Any], DocumentLosses]:
    """Mean loss per token over the whole split, in nats, and the loss of each document.

    Returns:
        val_loss; val_loss_stderr, from the spread of the means of the sequences, assuming independent sequences;
        val_perplexity; repeated_loss and new_loss, for targets that repeat a pair of tokens of their sequence and for
        the others, None if there are none; tokens, the number of predictions. And the documents, which the token
        `end_of_text` starts.
    """
    device = model.embedding.weight.device
    rows = max(1, batch_tokens // data.sequence_length)
    losses, starts, repeats = [], [], []
    for start in range(0, len(data), rows):
        inputs, targets = data.batch(range(start, min(start + rows, len(data))))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden(inputs.to(device)).flatten(0, 1)
            parts = [
                F.cross_entropy(logits, part, reduction="none")
                for logits, part in head(model.logits, hidden, targets.to(device).flatten())
            ]
        losses.append(torch.cat(parts).view(len(inputs), -1).double().cpu())
        starts.append(targets == end_of_text)
        repeats.append(repeats_a_pair(inputs, targets))
    by_token = torch.cat(losses)
    repeated = torch.cat(repeats)
    means = by_token.mean(1)
    loss = float(means.mean())
    summary = {
        "val_loss": loss,
        "val_loss_stderr": float(means.std() / math.sqrt(len(means))) if len(means) > 1 else None,
        "val_perplexity": math.exp(loss),
        "repeated_loss": float(by_token[repeated].mean()) if repeated.any() else None,
        "new_loss": float(by_token[~repeated].mean()) if not repeated.all() else None,
        "tokens": len(means) * data.sequence_length,
    }
    return summary, per_document(by_token.flatten(), torch.cat(starts).flatten())


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
    """Evaluate a model on the tasks of a scale and on its whole validation split, and write the result files.

    Tasks come first, so that missing items are reported at once.

    Raises:
        EvaluationError: the vocabulary or sequence length of the model is not that of the scale.
    """
    from ddl.evaluation.lm_eval_model import DDL

    tokenizer = load_manifest(data / "manifest.json")["tokenizer"]
    check_model(scale, model, tokenizer["vocab_size"], data)
    batch_tokens = scale.evaluation.batch_tokens
    evaluate_tasks(DDL(model, data / tokenizer["file"], batch_tokens), items, out)
    started = time.monotonic()
    sequences = TokenSequences(data / "manifest.json", "val", scale.sequence_length)
    end_of_text = end_of_text_id(load_tokenizer(data / tokenizer["file"]))
    dtype = getattr(torch, scale.training.dtype)
    loss, documents = validation_loss(model, sequences, batch_tokens, dtype, end_of_text)
    documents.save(out / "documents.safetensors")
    write_json(out / "validation.json", loss | {"provenance": provenance()})
    print(
        f"validation: loss {loss['val_loss']:.4f} nats, perplexity {loss['val_perplexity']:.2f}, "
        f"{loss['tokens']} tokens, {time.monotonic() - started:.1f} s",
        flush=True,
    )


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
    """Evaluate a model with the settings, data and tasks of a scale.

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
