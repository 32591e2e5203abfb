"""Compare learning rates for several designs, to choose the rate that all runs share.

`snakemake --cores all sweep` trains the designs, sizes and rates listed under `sweep` in the scale's file. The runs go
to `results/<scale>/sweep/<size>/<variant>/lr<rate>/seed<k>/` and are collected into `sweep.csv` and plotted. Compared
with a normal run, a point has its own peak and floor of the learning rate and `sweep.steps` steps; the warm-up is
shortened in proportion. A rate at which training diverges is also a result.

    ddl study point --scale laptop --size small --variant ddl-cc --rate 0.008 --seed 0 --data ... --out ...
    ddl study collect --scale laptop --results results/laptop
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from ddl.config import Scale, TrainConfig
from ddl.files import atomic, write_json
from ddl.layout import Point, points
from ddl.training.checkpoints import Stale
from ddl.training.errors import NotFiniteError, TrainingError
from ddl.training.run import Run

COLUMNS = ("scale", "size", "variant", "learning_rate", "seed", "steps", "tokens", "val_loss", "seconds", "reason")


def recipe(scale: Scale, rate: float) -> TrainConfig:
    """The scale's recipe with the given peak rate, the floor in proportion, and the steps of the sweep."""
    training, steps = scale.training, scale.sweep.steps
    return dataclasses.replace(
        training,
        learning_rate=rate,
        min_learning_rate=rate * training.min_learning_rate / training.learning_rate,
        steps=steps,
        warmup_steps=training.warmup_steps * steps // training.steps,
        snapshots=(),
    )


def train(scale: Scale, point: Point, data: Path, out: Path, stale: Stale = "refuse") -> bool:
    """Train one point and write its `point.json`; return whether it is complete. For `stale` see `Run`."""
    changed = recipe(scale, point.rate)
    run = Run(dataclasses.replace(scale, training=changed), point.size, point.variant, point.seed, data, out, stale)
    val_loss, reason = None, ""
    try:
        if not run.train():
            return False
        val_loss = run.progress.records[-1]["val_loss"]
    except NotFiniteError as error:
        reason = f"diverged: {str(error).partition(';')[0]}"
        run.say(reason)
    values: dict[str, Any] = {
        "scale": scale.name,
        "size": point.size,
        "variant": point.variant,
        "learning_rate": point.rate,
        "seed": point.seed,
        "steps": run.progress.step,
        "tokens": run.progress.step * scale.tokens_per_step,
        "val_loss": val_loss,
        "seconds": run.progress.seconds,
        "reason": reason,
    }
    if run.processes.leads:
        write_json(out / "point.json", values)
    return True


def collect(scale: Scale, results: Path) -> None:
    """Collect all points into `sweep.csv`.

    Raises:
        TrainingError: a point is missing.
    """
    rows = []
    for point in points(scale):
        path = results / point.folder / "point.json"
        if not path.is_file():
            raise TrainingError(f"{path}: not found: `snakemake --cores all sweep` trains all points")
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    with atomic(results / "sweep.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
