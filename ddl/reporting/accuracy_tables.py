"""Tables 1, 2, 7 and 8: our and the paper's accuracies, differences from the baseline, and their uncertainties."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from ddl.config import paper_variants
from ddl.evaluation.paper_benchmarks import BENCHMARKS
from ddl.layout import BASELINE
from ddl.reporting.read_results import TASK_COLUMNS, Measured, Record, Results, by_key, published
from ddl.reporting.seed_noise import shown_accuracy
from ddl.reporting.seed_statistics import over_seeds
from ddl.reporting.statistics import Difference, beyond_noise, binomial_stderr, paired_differences
from ddl.reporting.table_format import DASH, cell, decimals_for, mark_best


def differences(results: Results, size: str, shots: int) -> dict[str, dict[str, Difference]]:
    """Slug -> column (including "Avg.") -> accuracy minus the baseline's on the same items, with a 95 % interval.

    With several seeds the differences are taken seed by seed, and the interval is Student's t over them; the items are
    a fixed set. With one seed it is a bootstrap over items. Covers the seeds for which both models have items; a design
    without such seeds is omitted.
    """
    answers = {
        (slug, seed): results.outcomes(size, slug, seed, shots)
        for slug in results.variants
        for seed in results.scale.seeds
    }
    found: dict[str, dict[str, Difference]] = {}
    for slug in results.variants:
        pairs = [(answers[slug, seed], answers[BASELINE, seed]) for seed in results.scale.seeds]
        pairs = [(ours, base) for ours, base in pairs if ours and list(ours) == list(base)]
        if slug == BASELINE or not pairs:
            continue
        columns = list(pairs[0][0])
        outcomes = [{name: ours[name] - base[name] for name in columns} for ours, base in pairs]
        if len(pairs) > 1:
            by_seed = {name: [float(outcome[name].mean()) for outcome in outcomes] for name in columns}
            by_seed["Avg."] = [float(np.mean(values)) for values in zip(*by_seed.values(), strict=True)]
            estimates = {name: over_seeds(values) for name, values in by_seed.items()}
            found[slug] = {name: Difference(each.mean, each.low, each.high) for name, each in estimates.items()}
        else:
            tasks, average = paired_differences([outcomes[0][name] for name in columns])
            found[slug] = dict(zip(columns, tasks, strict=True)) | {"Avg.": average}
    return found


def published_accuracy() -> dict[tuple[str, int, str, str], tuple[float, float]]:
    """(size, shots, slug, column) -> the paper's accuracy and its standard error, as fractions.

    The paper gives no standard errors. Here they are binomial, from the number of items; for averages the eight tasks
    are assumed to be independent.
    """
    items = {benchmark.column: benchmark.items for benchmark in BENCHMARKS}
    rows = by_key(published("downstream_accuracy"), "size", "num_fewshot", "variant", "task")
    found: dict[tuple[str, int, str, str], tuple[float, float]] = {}
    for (*key, column), row in rows.items():
        value = row["accuracy_percent"] / 100
        if column != "Avg.":
            found[*key, column] = value, binomial_stderr(value, items[column])
    for (*key, column), row in rows.items():
        if column == "Avg.":
            errors = [found[*key, name][1] for name in items]
            found[*key, column] = row["accuracy_percent"] / 100, math.hypot(*errors) / len(errors)
    return found


def downstream_table(results: Results, size: str, shots: int) -> pd.DataFrame:
    """Tables 1 and 2 (one shot), 7 and 8 (zero shots): accuracies in percent with their uncertainties.

    Three blocks: our accuracies, our differences from the baseline, and the published accuracies. A difference is bold
    if its 95 % interval excludes zero. Among the published values, bold and underlined are the best and second best.
    """
    offline = results.scale.evaluation.tasks == "offline"
    ours = results.downstream(shots)
    ours = ours[ours["size"] == size]
    columns = (*TASK_COLUMNS, "Avg.")
    block = f"Ours ({results.scale_phrase}, {'offline stand-in tasks' if offline else 'benchmarks'})"
    heads = [_task_row(ours, columns, offline), _chance_row(ours, columns)]
    heads.append(_accuracy_row("Untrained (small)", results.untrained(shots), columns))
    rows = [
        _accuracy_row(variant.label, ours[ours["variant"] == slug], columns)
        for slug, variant in results.variants.items()
    ]
    frame = pd.concat(
        [
            pd.DataFrame(heads + rows).assign(block=block),
            _difference_rows(results, size, shots, columns),
            _published_downstream(size, shots, columns),
        ]
    )
    return frame.fillna("").reset_index(drop=True)[["block", *frame.columns.drop("block")]]


def _difference_rows(results: Results, size: str, shots: int, columns: Iterable[str]) -> pd.DataFrame:
    """Differences from the baseline on the same items, in percentage points."""
    found, rows = differences(results, size, shots), []
    for slug, variant in results.variants.items():
        if slug == BASELINE:
            continue
        row, bold = {"Model": variant.label, "reason": ""}, []
        for name in columns:
            difference = found.get(slug, {}).get(name)
            row[name], row[f"{name} range"] = in_points(difference)
            bold += [name] if difference and difference.separated else []
        if slug not in found:
            row["reason"] = f"no items of {variant.label} or the baseline, {size}, {shots}-shot"
        rows.append(row | {"bold": "; ".join(bold)})
    seeds = len(results.scale.seeds)
    over = "items; one seed" if seeds == 1 else f"{seeds} seeds"
    return pd.DataFrame(rows).assign(block=f"Difference to the baseline on the same items (95 % interval over {over})")


def in_points(difference: Difference | None) -> tuple[str, str]:
    """A difference and its interval in percentage points, to the digit that the interval allows."""
    if difference is None:
        return DASH, ""
    value, low, high = (100 * end for end in (difference.value, difference.low, difference.high))
    decimals = decimals_for((high - low) / 2) if high > low else 0  # without noise all answers agree
    return f"{value:+.{decimals}f}", f"{low:+.{decimals}f} to {high:+.{decimals}f}"


def _task_row(ours: pd.DataFrame, columns: Iterable[str], offline: bool) -> dict[str, str]:
    found = by_key(ours.dropna(subset=["task"]), "column")
    names = {name: f"{row['task']}, {row['metric']}" for (name,), row in found.items()}
    row = {name: names.get(name, "mean" if name == "Avg." else DASH) for name in columns}
    return {"Model": "Stand-in task, metric" if offline else "Task, metric", **row, "reason": ""}


def _chance_row(ours: pd.DataFrame, columns: Iterable[str]) -> dict[str, str]:
    chance = ours.groupby("column", sort=False)["chance"].mean()
    return {"Model": "Chance", **{name: cell(100 * chance[name], 2) for name in columns}, "reason": ""}


def _accuracy_row(label: str, found: pd.DataFrame, columns: Iterable[str]) -> dict[str, str]:
    """Accuracies in percent: mean over the seeds and half-width of its interval; for one seed the error over items."""
    row = {"Model": label}
    for column in columns:
        part = found[found["column"] == column].dropna(subset=["value"])
        values = Measured(dict(enumerate(part["value"])), "")
        stderr = part["stderr"].mean()
        shown = shown_accuracy(values.estimate, stderr)
        row |= {column: shown.number, f"{column} ±": shown.interval or cell(100 * stderr, shown.decimals)}
    return {**row, "reason": "; ".join(dict.fromkeys(text for text in found["reason"] if text))}


def _published_downstream(size: str, shots: int, columns: Iterable[str]) -> pd.DataFrame:
    paper = published_accuracy()
    rows = []
    for slug, variant in paper_variants().items():
        row = {"Model": variant.label}
        for name in columns:
            value, error = paper.get((size, shots, slug, name), (float("nan"), float("nan")))
            row |= {name: cell(100 * value, 2), f"{name} ±": cell(100 * error, 2)}
        rows.append({**row, "reason": "not in the paper" if DASH in row.values() else ""})
    frame = mark_best(pd.DataFrame(rows), columns, lower=False, second=True)
    return frame.assign(block="Published (paper scale, benchmarks; ± binomial, from the number of items)")


def gains(results: Results, size: str, shots: int) -> dict[str, Record]:
    """Slug -> eight-task average minus the baseline's on the same items, with its 95 % interval."""
    return {
        slug: dataclasses.asdict(found["Avg."]) | {"separated": found["Avg."].separated}
        for slug, found in differences(results, size, shots).items()
    }


def published_counts() -> Record:
    """Check the published accuracies against the numbers of items, as far as two decimals allow.

    An accuracy in a single task is the share of right answers among a known number of items, and an average is the mean
    of its eight tasks. The two nearest possible accuracies are given for each accuracy that no number of right answers
    yields, in percent.
    """
    items = {benchmark.column: benchmark.items for benchmark in BENCHMARKS}
    paper = {
        key: round(10_000 * value) for key, (value, _) in published_accuracy().items()
    }  # in hundredths of a percent
    cells = {key: printed for key, printed in paper.items() if key[-1] != "Avg."}
    averages = {key[:-1]: printed for key, printed in paper.items() if key[-1] == "Avg."}
    impossible = []
    for (size, shots, slug, column), printed in cells.items():
        n = items[column]
        below = printed * n // 10_000
        shares = [10_000 * right / n for right in (below, below + 1)]
        if min(abs(share - printed) for share in shares) > 1 / 2:
            near = [round(share) / 100 for share in shares]
            entry = {"size": size, "shots": shots, "slug": slug, "column": column, "items": n}
            impossible.append(entry | {"percent": printed / 100, "nearest": near})
    unlike_mean = [
        key
        for key, printed in averages.items()
        if abs(sum(cells[*key, column] for column in items) / len(items) - printed) > 1  # half a unit for each rounding
    ]
    return {
        "cells": len(cells),
        "impossible": impossible,
        "averages": len(averages),
        "averages_unlike_mean": len(unlike_mean),
    }


def published_gains(correlation: float = 0.0) -> Record:
    """Count the published gains over the baseline that exceed the noise from the number of items.

    Args:
        correlation: between the answers of a design and of the baseline. It is unknown, because the paper does not
            publish answers per item. 0 treats them as independent; for models that answer the same items it is higher.
    """
    paper = published_accuracy()
    record: Record = {"correlation": correlation}
    for name in ("cells", "averages"):
        pairs = [
            (found, paper[size, shots, BASELINE, column])
            for (size, shots, slug, column), found in paper.items()
            if slug != BASELINE and (column == "Avg.") == (name == "averages")
        ]
        higher = [(ours, base) for ours, base in pairs if ours[0] > base[0]]
        lower = [(ours, base) for ours, base in pairs if ours[0] < base[0]]
        record[name] = {
            "compared": len(pairs),
            "higher": len(higher),
            "higher_beyond_noise": sum(beyond_noise(*ours, *base, correlation) for ours, base in higher),
            "lower_beyond_noise": sum(beyond_noise(*ours, *base, correlation) for ours, base in lower),
        }
    return record
