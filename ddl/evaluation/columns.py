"""What a column of the accuracy tables shows: its task, or all items of its tasks together if it has several."""

import math
from collections.abc import Iterable
from typing import Any


def by_column(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Column -> its result, in the order in which columns appear.

    Args:
        results: one per task, with column, metric, value, stderr, n, chance and, if it is to be named, task.

    Returns:
        The result of a task that has its column for itself, unchanged; else the accuracy on the items of all tasks of
        the column, with the standard error of a mean over independent items.
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
