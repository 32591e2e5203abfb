"""The table of choices, paper/choices.csv: where the paper leaves something open, and what this package uses.

A name in braces, such as {training.weight_decay}, is a setting. It is replaced by the setting's value, so the file
contains no value that the configuration defines. {benchmarks.acc} is the list of benchmarks with that metric.
"""

import csv
import re
from typing import Any

from ddl.config import Scale, to_mapping
from ddl.errors import UserError
from ddl.evaluation.paper_benchmarks import BENCHMARKS
from ddl.layout import ROOT

FILE = ROOT / "paper" / "choices.csv"
PLACEHOLDER = re.compile(r"\{([\w.]+)\}")


class ChoicesError(UserError):
    """A choice that names a setting which does not exist."""


def choices(scale: Scale, other: Scale | None = None) -> list[dict[str, str]]:
    """The rows of paper/choices.csv, with the values of the settings at a scale and, as `settings`, their names.

    Args:
        other: a second scale; where its value differs, it follows in brackets.

    Raises:
        ChoicesError: a row names an unknown setting.
    """
    scales = {entry.name: _settings(entry) for entry in (scale, other) if entry}
    with open(FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        row
        | {
            "settings": ", ".join(
                name for name in PLACEHOLDER.findall(row["used"]) if not name.startswith("benchmarks")
            ),
            "used": PLACEHOLDER.sub(lambda found, row=row: _value(found[1], scales, row["topic"]), row["used"]),
        }
        for row in rows
    ]


def settings_of_designs(scale: Scale) -> dict[str, Any]:
    """The settings of DDL-CC that do not depend on the size."""
    model = to_mapping(scale.model("small", "ddl-cc"))
    return {key: value for key, value in model.items() if key not in ("layers", "width", "heads")}


def _settings(scale: Scale) -> dict[str, Any]:
    metrics = {
        metric: [entry.column for entry in BENCHMARKS if entry.metric == metric] for metric in ("acc", "acc_norm")
    }
    own = {"training": to_mapping(scale.recipe), "model": settings_of_designs(scale), "benchmarks": metrics}
    return to_mapping(scale) | own


def _value(name: str, scales: dict[str, dict[str, Any]], topic: str) -> str:
    first, *others = ((scale, _text(_find(name, settings, topic))) for scale, settings in scales.items())
    return first[1] + "".join(f" ({scale}: {value})" for scale, value in others if value != first[1])


def _find(name: str, settings: dict[str, Any], topic: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ChoicesError(f"paper/choices.csv: {topic}: unknown setting {{{name}}}")
        value = value[key]
    return value


def _text(value: Any) -> str:
    """A value as prose shows it: 50,304; 1e-5; none; a list with commas."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, (int, float)):
        return f"{int(value):,}" if value == int(value) else re.sub(r"e-0", "e-", f"{value:g}")
    return "none" if value is None else str(value)
