"""Collect every number quoted in the paper and the README from the results of one scale; null marks missing numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from ddl.config import SHOTS, Scale, load_scale, paper_variants, to_mapping
from ddl.files import finite, write_json
from ddl.layout import BASELINE
from ddl.reporting.accuracy_tables import gains, published_counts, published_gains
from ddl.reporting.choices import choices, settings_of_designs
from ddl.reporting.evidence import evidence
from ddl.reporting.figures import comparable, scale_note
from ddl.reporting.judged_claims import FAIR
from ddl.reporting.read_results import Record, Results, by_key, of_designs, published
from ddl.reporting.rivals import rivals
from ddl.reporting.seed_noise import (
    Rounded,
    noise_of,
    seeds_note,
    shown_accuracy,
    shown_difference,
    shown_loss,
)
from ddl.reporting.seed_statistics import LEVEL
from ddl.reporting.statistics import Z
from ddl.reporting.table_format import MOST_DECIMALS

COST_PARTS = ("tok_per_s", "ratio")


def collect(results: Results) -> Record:
    """The contents of numbers.json."""
    ours, theirs = measured(results), published_numbers(results)
    gained = {size: {f"{shots}shot": gains(results, size, shots) for shots in SHOTS} for size in results.sizes}
    missing = [
        {"name": f"{size}/{slug}: {key}", "reason": run["reason"] or "the file does not contain this number"}
        for size, runs in ours.items()
        for slug, run in runs.items()
        for key, value in run.items()
        if value is None
    ]
    scale = results.scale
    settings = to_mapping(scale)
    return {
        "scale": {"phrase": results.scale_phrase}
        | {key: settings[key] for key in ("name", "sequence_length", "seeds", "tokenizer", "evaluation")},
        "training": to_mapping(scale.recipe)
        | {"tokens_per_step": scale.tokens_per_step, "tokens": _run_tokens(results)},
        "sizes": {size: _shape(scale, size) for size in results.sizes},
        "model": settings_of_designs(scale),
        "choices": choices(scale),
        "paper": _paper(load_scale("paper")),
        "settings": _settings(scale, load_scale("paper")),
        "level": f"{100 * LEVEL:.0f}\N{NO-BREAK SPACE}%",
        "corpus": _corpus(results),
        "variants": [{"slug": slug, "label": variant.label} for slug, variant in results.variants.items()],
        "runs": ours,
        "published": theirs,
        "comparison": {size: compare(ours[size], theirs[size], gained[size]) for size in results.sizes},
        "seeds_note": seeds_note(results),
        "noise": noises(results),
        "gains": {"ours": gained, "published": published_gains()},
        "published_counts": published_counts(),
        "evidence": evidence(),
        "rivals": rivals(),
        "repaired": scale.backbone == FAIR,
        "evaluation": _evaluation(results),
        "provenance": _provenance(results),
        "missing": missing,
    }


def measured(results: Results) -> dict[str, dict[str, Record]]:
    """Size -> slug -> our numbers, averaged over seeds; `delta` is the validation loss minus the baseline's.

    `shown` has the losses, differences and accuracies as they are printed: mean, half-width of the interval over seeds
    (null for one seed) and decimals. Accuracies are in percent there.
    """
    validation, summaries = results.validation(), results.summaries()
    columns = {
        "val_loss": of_designs(validation, "val_loss"),
        "val_loss_stderr": of_designs(validation, "val_loss_stderr"),
        "val_perplexity": of_designs(validation, "val_perplexity"),
        "params": of_designs(summaries, "params"),
        "tokens": of_designs(summaries, "tokens"),
        "seconds": of_designs(summaries, "seconds"),
    }
    for shots in SHOTS:
        frame = results.downstream(shots)
        frame = frame[frame["column"] == "Avg."]
        columns[f"avg_{shots}shot"] = of_designs(frame, "value")
        columns[f"avg_{shots}shot_stderr"] = of_designs(frame, "stderr")
    cost = by_key(results.cost(), "size", "variant")
    cost_keys = {f"{kind}_{what}": f"{kind}_{what}_median" for kind in ("train", "inference") for what in COST_PARTS}
    cost_keys |= {key: key for key in ("peak_mem_bytes", "peak_mem_factor")}
    table: dict[str, dict[str, Record]] = {size: {} for size in results.sizes}
    for size in results.sizes:
        noise, loss = noise_of(results.scale, size), columns["val_loss"]
        for slug in results.variants:
            key = (size, slug)
            row: Record = {name: finite(runs[key].mean) for name, runs in columns.items()}
            row |= {name: finite(cost[key][column]) for name, column in cost_keys.items()}
            difference = loss[key].minus(loss[size, BASELINE])
            row["delta"] = difference.mean if difference else None
            row["seeds"] = len(loss[key].by_seed)
            row["shown"] = {
                "val_loss": shown_loss(loss[key].estimate, noise).record,
                "delta": shown_difference(difference, noise).record,
            }
            for shots in SHOTS:
                name = f"avg_{shots}shot"
                accuracy = shown_accuracy(columns[name][key].estimate, columns[f"{name}_stderr"][key].mean)
                row["shown"][name] = accuracy.record
            texts = [runs[key].reason for runs in columns.values()] + [cost[key]["reason"]]
            row["reason"] = "; ".join(dict.fromkeys(text for text in texts if text))
            table[size][slug] = row
    return table


def noises(results: Results) -> dict[str, Record | None]:
    """Size -> what the noise study says about the scale's recipe; null where it says nothing."""
    found = {size: noise_of(results.scale, size) for size in results.sizes}
    return {size: dataclasses.asdict(noise) if noise else None for size, noise in found.items()}


def published_numbers(results: Results) -> dict[str, dict[str, Record]]:
    """Size -> slug -> the paper's numbers, named as in `measured`; accuracies are fractions.

    `cost_version` is the version of the paper that the speeds and the memory are from: v3, revised, or None.
    """
    loss = by_key(published("validation_loss"), "size", "variant")
    accuracy = by_key(published("downstream_accuracy"), "size", "variant", "num_fewshot", "task")
    cost = by_key(published("cost"), "size", "variant")
    table: dict[str, dict[str, Record]] = {}
    for size in results.sizes:
        table[size] = {}
        for slug in results.variants:
            key = (size, slug)
            row: Record = {name: loss.get(key, {}).get(name) for name in ("val_loss", "val_perplexity")}
            for shots in SHOTS:
                percent = accuracy.get((*key, shots, "Avg."), {}).get("accuracy_percent")
                row[f"avg_{shots}shot"] = None if percent is None else round(percent / 100, 6)
            for kind in ("train", "inference"):
                speed, reference = (cost.get((size, name), {}).get(f"{kind}_ktok_per_s") for name in (slug, BASELINE))
                row[f"{kind}_ratio"] = speed / reference if speed and reference else None
            row["peak_mem_factor"] = cost.get(key, {}).get("peak_memory_factor")
            row["cost_version"] = cost.get(key, {}).get("version")
            table[size][slug] = row
        base = table[size][BASELINE]["val_loss"]
        for row in table[size].values():
            delta = None if None in (base, row["val_loss"]) else row["val_loss"] - base
            row |= {"delta": delta, "shown": {"delta": Rounded(delta, None, MOST_DECIMALS, 1).record}}
    return table


def compare(ours: dict[str, Record], theirs: dict[str, Record], gained: dict[str, dict[str, Record]]) -> Record:
    """Compare the paper's designs with the baseline at one size, in our runs and in the paper.

    Our additional designs are excluded, so that the two counts are comparable.
    """
    ours, theirs = ({slug: table[slug] for slug in paper_variants()} for table in (ours, theirs))
    both = [slug for slug in ours if slug != BASELINE and None not in (ours[slug]["delta"], theirs[slug]["delta"])]
    same = sum((ours[slug]["delta"] < 0) == (theirs[slug]["delta"] < 0) for slug in both)
    result: Record = {"same_sign": same, "both": len(both)}
    for name, table in (("ours", ours), ("published", theirs)):
        deltas = {slug: row["delta"] for slug, row in table.items() if slug != BASELINE and row["delta"] is not None}
        intervals = [table[slug]["shown"]["delta"] for slug in deltas]
        several = bool(intervals) and all(shown["half_width"] is not None for shown in intervals)
        best = min(deltas, key=deltas.__getitem__, default=None)
        result[name] = {
            "best": best if best and deltas[best] < 0 else BASELINE,
            "compared": len(deltas),
            "lower_loss": sum(delta < 0 for delta in deltas.values()),
            "lower_loss_beyond_noise": sum(shown["mean"] < -shown["half_width"] for shown in intervals)
            if several
            else None,
            "best_delta": deltas[best] if best else None,
            "best_shown": table[best]["shown"]["delta"] if best else None,
            "worst_delta": max(deltas.values(), default=None),
        }
        for shots in SHOTS:
            result[name] |= _compare_accuracy(table, f"avg_{shots}shot")
    for shots in SHOTS:
        differences = [gain for slug, gain in gained[f"{shots}shot"].items() if slug in ours]
        beyond = sum(difference["separated"] for difference in differences) if differences else None
        result["ours"][f"avg_{shots}shot_beyond_noise"] = beyond
    return result


def _compare_accuracy(table: dict[str, Record], key: str) -> Record:
    """Number of designs compared, and of those with a higher accuracy than the baseline."""
    base = table[BASELINE]
    others = [row for slug, row in table.items() if slug != BASELINE and None not in (row[key], base[key])]
    return {f"{key}_compared": len(others), f"{key}_higher": sum(row[key] > base[key] for row in others)}


def _paper(paper: Scale) -> Record:
    """The training recipe and model shapes in config/scales/paper.yaml."""
    sizes = {size: _shape(paper, size) for size in paper.sizes}
    return to_mapping(paper.training) | {
        "sequence_length": paper.sequence_length,
        "tokens": paper.tokens,
        "sizes": sizes,
        "embedding_std": paper.model("small", BASELINE).embedding_std,
    }


def _settings(scale: Scale, paper: Scale) -> list[dict[str, str]]:
    """Settings of the runs here and in the paper, as they are printed."""

    def of(scale: Scale) -> dict[str, str]:
        recipe, model = scale.recipe, scale.model("small", BASELINE)
        return {
            "Steps": f"{recipe.steps:,}",
            "Sequences per step": f"{recipe.batch_sequences:,}",
            "Tokens per sequence": f"{scale.sequence_length:,}",
            "Tokens per run": f"{scale.tokens:,}",
            "Vocabulary": f"{scale.tokenizer.vocab_size:,}",
            "Peak learning rate": f"{recipe.learning_rate:g}",
            "Last learning rate": f"{recipe.min_learning_rate:g}",
            "Warm-up steps": f"{recipe.warmup_steps:,}",
            "AdamW: β₁, β₂": f"{recipe.beta1:g}, {recipe.beta2:g}",
            "Weight decay of matrices": f"{recipe.weight_decay:g}",
            "Norm at which gradients are clipped": f"{recipe.grad_clip:g}",
            "Embedding: initial standard deviation": f"{model.embedding_std:g}",
            "Embedding: learning rate relative to the others": f"{recipe.embedding_rate_factor:g}",
            "Number format of matrix products": recipe.dtype,
        }

    theirs = of(paper)
    return [{"name": name, "here": here, "paper": theirs[name]} for name, here in of(scale).items()]


def _shape(scale: Scale, size: str) -> Record:
    model = scale.model(size, BASELINE)
    shape = {"layers": model.layers, "heads": model.heads, "head_dim": model.head_dim, "width": model.width}
    return shape | {"mlp_hidden": model.mlp_hidden}


def _run_tokens(results: Results) -> int | None:
    """Tokens per run as recorded in the summaries; None unless all runs agree."""
    values = results.summaries()["tokens"].dropna().unique()
    return int(values[0]) if len(values) == 1 else None


def _corpus(results: Results) -> Record:
    manifest = results.manifest()
    splits, removed = manifest.get("splits", {}), manifest.get("deduplication") or {}
    corpus, paper = results.scale.corpus, load_scale("paper").corpus
    record: Record = {"name": corpus.name, "description": corpus.description}
    record["of_paper"] = (corpus.name, corpus.source) == (paper.name, paper.source)
    for split in ("train", "val"):
        record |= {f"{split}_{key}": splits.get(split, {}).get(key) for key in ("documents", "bytes", "tokens")}
    record |= {key: removed.get(key) for key in ("exact_removed", "near_removed", "near_definition")}
    trained = _run_tokens(results)
    record["passes"] = trained / record["train_tokens"] if trained and record["train_tokens"] else None
    return record


def _evaluation(results: Results) -> Record:
    """Tasks in the paper's column order, items per task and chance level, from the evaluations that exist."""
    record: Record = {"noise_stderrs": Z}
    for shots in SHOTS:
        frame = results.downstream(shots)
        found = frame.dropna(subset=["value"]).drop_duplicates("column")
        tasks = found[found["column"] != "Avg."]
        record[f"{shots}shot"] = {
            "tasks": [{"column": row.column, "task": row.task, "metric": row.metric} for row in tasks.itertuples()],
            "items_min": _integer(tasks["n"].min()),
            "items_max": _integer(tasks["n"].max()),
            "average_untrained": finite(by_key(results.untrained(shots), "column")["Avg.",]["value"]),
            "average_chance": finite(found[found["column"] == "Avg."]["chance"].mean()),
        }
    return record


def _provenance(results: Results) -> Record:
    """Provenance common to all training runs (null where they differ), their total time, and the latest date."""
    found = results.provenances()
    record = {key: _agreed(found, key) for key in ("commit", "dirty", "python", "device", "platform", "threads")}
    seconds = results.summaries()["seconds"].dropna()
    return record | {
        "versions": _agreed(found, "versions") or {},
        "utc": max((record["utc"] for record in found if record.get("utc")), default=None),
        "runs": len(seconds),
        "runs_expected": len(list(results.runs())),
        "train_seconds": float(seconds.sum()) if len(seconds) else None,
    }


def _agreed(records: list[Record], key: str) -> Any:
    values = [record.get(key) for record in records]
    return values[0] if values and all(value == values[0] for value in values) else None


def _integer(value: float) -> int | None:
    return None if pd.isna(value) else int(value)


def write_numbers(results: Results) -> pd.DataFrame:
    """Write numbers.json.

    Returns:
        The missing numbers, a frame with columns name and reason.
    """
    numbers = collect(results) | {"scale_note": scale_note(results)}
    whole = numbers["training"]["tokens"] == numbers["paper"]["tokens"]
    numbers["comparable"] = whole and comparable(results.scale)
    write_json(results.path / "numbers.json", numbers)
    return pd.DataFrame(numbers["missing"], columns=["name", "reason"])


def report(results: Path) -> None:
    """Write numbers.json to a results folder, and print which numbers are missing and why."""
    missing = write_numbers(Results(results))
    for name, reason in missing.itertuples(index=False):
        print(f"{name}: {reason}")
    print(f"{results / 'numbers.json'}: {len(missing)} missing")
