"""Collect what a study measured inside its models: gradient norms, gates, and losses under interventions.

A study with `inside: true` has a long table beside its rows: `run` is the number of a row of the study, counted from
zero, and every other row is one number of that run.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddl.config import Scale, Study
from ddl.files import atomic, write_json
from ddl.layout import POINT_MECHANISM, REFERENCE, STUDY_INSIDE, Point
from ddl.provenance import provenance
from ddl.studies.rows import StudyError, committed, divergence

COLUMNS = ("run", "kind", "name", "place", "value")
GRADIENTS, INTERVENTIONS, SUBLAYERS = "gradient", "intervention", "sublayer"
EVERY = 4  # of the records of the gradient norms, one in so many is kept
OBSERVED = ("gate", "gate_sd", "erase_share", "overwrites", "energy_before", "energy_after", "change", "growth")


def gradients(run: Path) -> Iterator[tuple[str, str, str, float]]:
    """Norm of the gradient of the embedding, of each block and of the rest; the place is the step."""
    with open(run / "gradients.csv", newline="", encoding="utf-8") as file:
        for record in list(csv.DictReader(file))[::EVERY]:
            squares: dict[str, float] = {}
            for name, value in record.items():
                if name != "step" and value:
                    squares[part_of(name)] = squares.get(part_of(name), 0.0) + float(value) ** 2
            for part, square in squares.items():
                yield GRADIENTS, part, record["step"], math.sqrt(square)


def part_of(name: str) -> str:
    """The part of a model that a column of gradients.csv belongs to, e.g. "blocks.0"."""
    if name.startswith("blocks."):
        return ".".join(name.split(".")[:2])
    return name if name == "embedding" else "rest"


def interventions(run: Path) -> Iterator[tuple[str, str, str, float]]:
    """Rise of the loss in nats per token under each change of the rules; the place is its sublayers."""
    found = json.loads((run / POINT_MECHANISM / "interventions.json").read_text(encoding="utf-8"))
    tokens, unchanged = sum(found["tokens"]), sum(found["loss"])
    for entry in found["changes"]:
        yield INTERVENTIONS, entry["change"], entry["sublayers"], (sum(entry["loss"]) - unchanged) / tokens


def sublayers(run: Path) -> Iterator[tuple[str, str, str, float]]:
    """What the rule of each sublayer does, over all tokens; the place is the number of the sublayer."""
    found = json.loads((run / POINT_MECHANISM / "mechanism.json").read_text(encoding="utf-8"))
    for row in found["sublayers"]:
        if row["tokens"] == "all":
            for name in OBSERVED:
                if row.get(name) is not None:
                    yield SUBLAYERS, name, str(row["sublayer"]), float(row[name])


def look_inside(scale: Scale, run: Path, data: Path, out: Path) -> None:
    """`measure_run`; a run of a study that diverged has no weights, and both files then hold the reason only."""
    from ddl.evaluation.mechanism import measure_run

    reason = divergence(run)
    if not reason:
        return measure_run(scale, run, data, out)
    for name in ("mechanism.json", "interventions.json"):
        write_json(out / name, {"reason": reason, "provenance": provenance()})
    print(f"{run}: {reason}")
    return None


def collect_inside(study: Study, results: Path, reuse: bool = False, partial: bool = False) -> int:
    """Write the table of a study; arguments as of `ddl.studies.rows.collect`.

    Returns:
        The number of runs that it covers; a run that diverged has no rows in it.

    Raises:
        StudyError: the study does not look inside, or a run is missing and `partial` is not set.
    """
    if not study.inside:
        raise StudyError(f"config/studies/{study.name}.yaml: inside: expected true, found false")
    kept = reusable(study) if reuse else {}
    known = kept.keys() | (committed(study).keys() if reuse else set())
    rows: list[dict[str, Any]] = []
    runs = set()
    present = [point for point in study.points() if (results / point.folder / "point.json").is_file() or point in known]
    if not partial and (missing := [point for point in study.points() if point not in present]):
        raise StudyError(f"{results / missing[0].folder}/point.json: not found")
    for number, point in enumerate(present):
        folder = results / point.folder
        if (folder / POINT_MECHANISM / "interventions.json").is_file():
            found = [] if divergence(folder) else [*gradients(folder), *interventions(folder), *sublayers(folder)]
            rows += [dict(zip(COLUMNS, (number, *entry[:3], f"{entry[3]:.4g}"), strict=True)) for entry in found]
            runs.add(number)
        elif point in kept:
            rows += [row | {"run": number} for row in kept[point]]
            runs.add(number)
        elif not partial:
            raise StudyError(f"{folder / POINT_MECHANISM}/interventions.json: not found")
    with (
        atomic(results / STUDY_INSIDE.format(study=study.name)) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(runs)


def reusable(study: Study) -> dict[Point, list[dict[str, Any]]]:
    """Committed tables of the runs of a study, whichever study they were measured for: run -> its rows."""
    tables: dict[str, dict[int, list[dict[str, Any]]]] = {}
    found = {}
    for point, (row, name, number) in committed(study, also=STUDY_INSIDE).items():
        if name not in tables:
            tables[name] = {}
            with open(REFERENCE / STUDY_INSIDE.format(study=name), newline="", encoding="utf-8") as file:
                for entry in csv.DictReader(file):
                    tables[name].setdefault(int(entry["run"]), []).append(dict(entry))
        if number in tables[name] or row["reason"]:
            found[point] = tables[name].get(number, [])
    return found
