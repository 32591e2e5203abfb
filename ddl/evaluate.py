"""Evaluate a trained model: validation loss (Table 3) and the eight tasks (Tables 1, 2, 7, 8).

`python -m ddl.evaluate --scale laptop --run results/laptop/runs/small/ddl-cc/seed0 --data results/laptop/data --out D`
writes validation.json over the whole validation split, 0shot.json and 1shot.json. In place of `--run`,
`--random-init --size small --variant baseline` evaluates untrained weights: a control that has to come out at chance.
"""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ddl.config import SHOTS, ConfigError, Scale, load_scale
from ddl.harness import (
    HarnessError,
    Scorer,
    TaskSpec,
    benchmark_manager,
    benchmark_task_specs,
    harness_model,
    head,
    offline_manager,
    offline_task_specs,
    prepare_environment,
    run_tasks,
)
from ddl.model import LanguageModel, ModelFileError, load_model
from ddl.provenance import provenance, user_errors, write_json
from ddl.sequences import TokenSequences, load_manifest
from ddl.shards import DataError
from ddl.tasks import TaskError, load_tasks
from ddl.tokenizer import TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class EvaluationError(ValueError):
    """A model and data that do not belong together."""


@torch.inference_mode()
def validation_loss(
    model: LanguageModel, data: TokenSequences, batch_tokens: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Mean loss per token over the whole split, in nats.

    Returns:
        val_loss; val_loss_stderr, from the spread of the sequences' means, which takes sequences for independent;
        val_perplexity; tokens, the number of predictions.
    """
    device = model.embedding.weight.device
    rows = max(1, batch_tokens // data.sequence_length)
    losses = []
    for start in range(0, len(data), rows):
        inputs, targets = data.batch(range(start, min(start + rows, len(data))))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden(inputs.to(device)).flatten(0, 1)
            parts = [
                F.cross_entropy(logits, part, reduction="none")
                for logits, part in head(model, hidden, targets.to(device).flatten())
            ]
        losses.append(torch.cat(parts).view(len(inputs), -1).double().mean(1).cpu())
    means = torch.cat(losses)
    loss = float(means.mean())
    return {
        "val_loss": loss,
        "val_loss_stderr": float(means.std() / math.sqrt(len(means))) if len(means) > 1 else None,
        "val_perplexity": math.exp(loss),
        "tokens": len(means) * data.sequence_length,
    }


def evaluate_tasks(scale: Scale, model: LanguageModel, data: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shots, result of `ddl.harness.run_tasks`) for 0 and 1 shot.

    Raises:
        TaskError: offline items that are missing or changed.
        HarnessError: a benchmark that is neither cached nor reachable.
    """
    prepare_environment(offline=scale.evaluation.tasks == "offline")
    tokenizer = load_tokenizer(data / load_manifest(data / "manifest.json")["tokenizer"]["file"])
    scorer = Scorer(model, scale.evaluation.batch_tokens, getattr(torch, scale.training.dtype))
    lm = harness_model(scorer, tokenizer)
    with task_manager(scale, data / "tasks") as (manager, specs):
        for shots in SHOTS:
            yield shots, run_tasks(lm, manager, specs, shots)


@contextmanager
def task_manager(scale: Scale, directory: Path) -> Iterator[tuple["TaskManager", tuple[TaskSpec, ...]]]:
    """The tasks that the scale asks for, in the paper's column order; `directory` holds the offline ones."""
    if scale.evaluation.tasks == "benchmarks":
        yield benchmark_manager(), benchmark_task_specs()
        return
    manifest = load_tasks(directory)
    with offline_manager(directory, manifest) as manager:
        yield manager, offline_task_specs(manifest)


def evaluate_model(scale: Scale, model: LanguageModel, data: Path, out: Path) -> None:
    """Write `<n>shot.json` and validation.json to `out`, and print a line for every number.

    Tasks come first: if their data are missing, that shows at once.
    """
    vocab_size = load_manifest(data / "manifest.json")["tokenizer"]["vocab_size"]
    if (model.config.vocab_size, model.config.sequence_length) != (vocab_size, scale.sequence_length):
        raise EvaluationError(
            f"expected a model with vocabulary {vocab_size} ({data}) and sequences of {scale.sequence_length} tokens "
            f"({scale.name}), found {model.config.vocab_size} and {model.config.sequence_length}"
        )
    started = time.monotonic()
    for shots, result in evaluate_tasks(scale, model, data):
        write_json(out / f"{shots}shot.json", {"shots": shots} | result | {"provenance": provenance()})
        for name, task in result["tasks"].items():
            print(
                f"{shots}-shot {name} ({task['column']}): {task['metric']} {100 * task['value']:.1f} "
                f"+- {100 * task['stderr']:.1f} %, chance {100 * task['chance']:.1f} %, n {task['n']}"
            )
        mean = result["average"]
        print(
            f"{shots}-shot average: {100 * mean['value']:.1f} +- {100 * mean['stderr']:.1f} %, "
            f"chance {100 * mean['chance']:.1f} %, {time.monotonic() - started:.1f} s",
            flush=True,
        )
        started = time.monotonic()
    sequences = TokenSequences(data / "manifest.json", "val", scale.sequence_length)
    loss = validation_loss(model, sequences, scale.evaluation.batch_tokens, getattr(torch, scale.training.dtype))
    write_json(out / "validation.json", loss | {"provenance": provenance()})
    print(
        f"validation: loss {loss['val_loss']:.4f} nats, perplexity {loss['val_perplexity']:.2f}, "
        f"{loss['tokens']} tokens, {time.monotonic() - started:.1f} s",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    """Command line: evaluate one model."""
    parser = argparse.ArgumentParser(prog="python -m ddl.evaluate", description="Evaluate one model.")
    parser.add_argument("--scale", required=True, help="a name in config/scales")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a trained model")
    source.add_argument("--random-init", action="store_true", help="untrained weights of --size and --variant")
    parser.add_argument("--size", help="with --random-init: small or medium")
    parser.add_argument("--variant", help="with --random-init: a name in config/variants.yaml")
    parser.add_argument("--data", type=Path, required=True, help="results/<scale>/data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.random_init != (arguments.size is not None and arguments.variant is not None):
        parser.error("--random-init needs --size and --variant, which --run reads from its folder")
    with user_errors(ConfigError, DataError, TaskError, TokenizerError, ModelFileError, HarnessError, EvaluationError):
        scale = load_scale(arguments.scale)
        torch.set_num_threads(scale.training.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if arguments.random_init:
            model = LanguageModel(scale.model(arguments.size, arguments.variant)).to(device).eval()
        else:
            model = load_model(arguments.run, device)
        evaluate_model(scale, model, arguments.data, arguments.out)


if __name__ == "__main__":
    main()
