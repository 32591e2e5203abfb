"""Invented results in the layout of real ones, for tests of the code that reads results."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddl.config import SHOTS, ModelConfig, load_scale
from ddl.reporting.read_results import TASK_COLUMNS

N = 400  # items per task
TASKS = dict(
    zip(
        TASK_COLUMNS,
        (
            ("doc_cloze_hard", 0.25),
            ("doc_cloze", 0.25),
            ("doc_ending", 0.25),
            ("doc_order", 0.25),
            ("doc_number", 0.5),
            ("doc_last_word", 0.25),
            ("doc_function_word", 1 / 3),
            ("doc_pair", 0.5),
        ),
        strict=True,
    )
)
PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "python": "3.12.0",
    "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
    "device": "Example CPU @ 2 GHz",
    "platform": "Linux x86_64",
    "threads": 1,
    "utc": "2026-01-02T03:04:05Z",
}


# Seed -> by how much its losses are higher than those of the first: of all designs, and of the designs in turn.
SEEDS = {0: (0.0, (0.0, 0.0)), 1: (0.06, (0.01, -0.01)), 2: (-0.03, (-0.01, 0.01))}


def write(root: Path, scale_name: str = "laptop", seeds: tuple[int, ...] | None = None) -> Path:
    """Fill `root/<scale_name>` with results of every run and return that folder; every call writes the same results.

    Args:
        seeds: some of `SEEDS`; None takes those of the scale.
    """
    scale, results = load_scale(scale_name), root / scale_name
    random = np.random.default_rng(0)
    for size_index, size in enumerate(scale.sizes):
        for index, variant in enumerate(scale.variants):
            of_design = 4.4 - 0.3 * size_index - 0.05 * min(index, 3) + 0.01 * index
            for seed in seeds or scale.seeds:
                for_all, in_turn = SEEDS[seed]
                final = of_design + for_all + in_turn[index % 2]
                run = f"{size}/{variant}/seed{seed}"
                curve = _curve(scale.training, scale.sequence_length, final, random)
                _lines(results / f"runs/{run}/metrics.jsonl", curve)
                summary = {"scale": scale_name, "size": size, "variant": variant, "seed": seed, "val_loss": final}
                summary |= {"val_perplexity": math.exp(final), "params": 620_000 * (size_index + 1) + 1000 * index}
                summary |= {"train_flops_per_token": 3_000_000 + 200_000 * index}
                _gradients(results / f"runs/{run}/gradients.csv", curve, scale.model(size, variant))
                summary |= {"params_non_embedding": 200_000, "steps": scale.training.steps, "seconds": 81.5 + index}
                _json(results / f"runs/{run}/summary.json", summary | {"tokens": 1_048_576, "peak_mem_bytes": 9e8})
                _json(results / f"runs/{run}/provenance.json", {"settings": {}, **PROVENANCE})
                validation = {"val_loss": final + 0.01, "val_loss_stderr": 0.004, "tokens": 900_000}
                validation |= {"val_perplexity": math.exp(final + 0.01), "provenance": PROVENANCE}
                _json(results / f"evals/{run}/validation.json", validation)
                for shots in SHOTS:
                    _evaluation(results / f"evals/{run}", shots, index, random)
            _json(results / f"cost/{size}/{variant}.json", _cost(size, variant, index))
    for shots in SHOTS:
        _evaluation(results / "evals/random-init", shots, -10, random)
    _json(results / "data/manifest.json", MANIFEST)
    overlap = [
        {"task": name, "item": item, "share_13": item % 10 / 10} for name, _ in TASKS.values() for item in range(N)
    ]
    pd.DataFrame(overlap).to_parquet(results / "contamination.parquet")
    return results


def _curve(training: Any, length: int, final: float, random: np.random.Generator) -> list[dict[str, Any]]:
    records = []
    for step in range(0, training.steps + 1, training.log_interval):
        loss = final + (8.3 - final) * math.exp(-6 * step / training.steps)
        validated = step % training.val_interval == 0
        record = {"step": step, "tokens": step * training.batch_sequences * length, "seconds": 0.16 * step}
        record |= {"train_loss": loss + 0.05 * random.standard_normal() if step else None}
        record |= {"val_loss": loss if validated else None, "lr": 0.001, "grad_norm": 1.0, "tok_per_s": 12000.0}
        records.append(record)
    return records


def _gradients(path: Path, curve: list[dict[str, Any]], config: ModelConfig) -> None:
    """Norms that are twice as large in the first block as in the others."""
    parts = ("attention", "mlp", "attention_rule", "mlp_rule") if config.residual == "delta" else ("attention", "mlp")
    names = ["embedding", *(f"blocks.{block}.{part}" for block in range(config.layers) for part in parts), "norm"]
    norms = [0.2 if name.startswith("blocks.0") else 0.1 for name in names]
    rows = [{"step": record["step"], **dict(zip(names, norms, strict=True))} for record in curve[1:]]
    pd.DataFrame(rows).to_csv(path, index=False)


def _evaluation(folder: Path, shots: int, index: int, random: np.random.Generator) -> None:
    """Write `<shots>shot.json` and `.parquet`; all runs give the same answers to the easier items."""
    tasks, items = {}, []
    for column, (name, chance) in TASKS.items():
        value = round(chance + 0.1 + 0.01 * index + 0.02 * random.standard_normal(), 4)
        tasks[name] = {"column": column, "metric": "acc", "value": value, "stderr": 0.0238, "n": N, "chance": chance}
        tasks[name] |= {"acc": value, "acc_norm": None}
        items += [{"task": name, "item": item, "correct": item < value * N} for item in range(N)]
    mean = sum(task["value"] for task in tasks.values()) / len(tasks)
    chance = sum(task["chance"] for task in tasks.values()) / len(tasks)
    average = {"value": mean, "stderr": 0.0084, "chance": chance}
    _json(folder / f"{shots}shot.json", {"shots": shots, "tasks": tasks, "average": average, "provenance": PROVENANCE})
    pd.DataFrame(items).to_parquet(folder / f"{shots}shot.parquet")


def _cost(size: str, variant: str, index: int) -> dict[str, Any]:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "p20": value * 0.97, "p80": value * 1.02}

    ratio = 1 - 0.08 * index
    record: dict[str, Any] = {"size": size, "variant": variant, "params": 620_000 + 1000 * index}
    record |= {"device": PROVENANCE["device"], "dtype": "float32", "batch_sequences": 16, "sequence_length": 128}
    record |= {"threads": 1, "train_tok_per_s": spread(12345.6 * ratio), "inference_tok_per_s": spread(45678.9 * ratio)}
    record |= {"train_ratio": spread(ratio), "inference_ratio": spread(ratio), "peak_mem_bytes": 9.1e8 + 1e7 * index}
    return record | {"peak_mem_kind": "maximum resident set", "peak_mem_factor": 1 + 0.01 * index}


MANIFEST = {
    "corpus": {"name": "package-docs"},
    "tokenizer": {"name": "bpe", "vocab_size": 4096},
    "splits": {
        "train": {"documents": 4800, "bytes": 30_123_456, "tokens": 9_012_345, "shards": []},
        "val": {"documents": 530, "bytes": 3_012_345, "tokens": 901_234, "shards": []},
    },
    "deduplication": {"near_definition": "share most of their lines", "exact_removed": 12, "near_removed": 34},
    "documents": None,
    "provenance": PROVENANCE,
}


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
