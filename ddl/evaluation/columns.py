"""Combine tasks into the columns of the accuracy tables: a column with several tasks pools their items."""

import math
from collections.abc import Iterable
from typing import Any


def by_column(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Map each column to its result, in order of first appearance.

    Args:
        results: one per task, with column, metric, value, stderr, n, chance and optionally the task's name as `task`.

    Returns:
        For a column with one task, its result unchanged. For a column with several, the accuracy over the items of all
        its tasks, with the standard error of a mean over independent items.
    """
    members: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        members.setdefault(result["column"], []).append(result)
    return {column: found[0] if len(found) == 1 else _together(found) for column, found in members.items()}


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    n = sum(result["n"] for result in results)
    named = {
        key: ", ".join(dict.fromkeys(result[key] for result in results))
        for key in ("column", "task", "metric")
        if key in results[0]
    }
    means = {key: math.fsum(result["n"] * result[key] for result in results) / n for key in ("value", "chance")}
    return named | means | {"stderr": math.hypot(*(result["n"] * result["stderr"] for result in results)) / n, "n": n}
