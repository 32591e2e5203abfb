"""Which learning rate each design prefers, so that the one that all share is a measured choice.

`snakemake --cores all sweep` trains the designs, sizes and rates that `sweep` in the scale's file lists, in
`results/<scale>/sweep/<size>/<variant>/lr<rate>/seed<k>/`, collects them into `sweep.csv` and draws them. A point is a
run like any other, with its own peak and floor of the learning rate and, where `sweep.steps` is less than
`training.steps`, a warm-up that is shorter by the same factor. A rate at which training diverges is a result too.

    ddl study point --scale laptop --size small --variant ddl-cc --rate 0.008 --seed 0 --data ... --out ...
    ddl study collect --scale laptop --results results/laptop
"""

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddl.cli import user_errors
from ddl.config import ConfigError, Scale, TrainConfig, load_scale
from ddl.data.shard_format import DataError
from ddl.data.tokenizer import TokenizerError
from ddl.files import atomic, write_json
from ddl.training.batches import check_shares
from ddl.training.distributed import add_processes, start_processes
from ddl.training.errors import NotFiniteError, TrainingError
from ddl.training.run import Run

COLUMNS = ("scale", "size", "variant", "learning_rate", "seed", "steps", "tokens", "val_loss", "seconds", "reason")


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    size: str
    variant: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Its place under results/<scale>/."""
        return f"sweep/{self.size}/{self.variant}/lr{self.rate:g}/seed{self.seed}"


def points(scale: Scale) -> Iterator[Point]:
    """The runs of a scale's sweep.

    Raises:
        ConfigError: a size or variant that does not exist.
    """
    for size in scale.sweep.sizes:
        for variant in scale.sweep.variants:
            scale.model(size, variant)
            for rate in scale.sweep.learning_rates:
                for seed in scale.seeds:
                    yield Point(size, variant, rate, seed)


def recipe(scale: Scale, rate: float) -> TrainConfig:
    """The scale's recipe with another peak, its floor in proportion, and the steps of the sweep."""
    training, steps = scale.training, scale.sweep.steps
    return dataclasses.replace(
        training,
        learning_rate=rate,
        min_learning_rate=rate * training.min_learning_rate / training.learning_rate,
        steps=steps,
        warmup_steps=training.warmup_steps * steps // training.steps,
    )


def train(scale: Scale, point: Point, data: Path, out: Path) -> bool:
    """Train one point and write its `point.json`; returns whether it is done, as `Run.train`."""
    changed = recipe(scale, point.rate)
    run = Run(dataclasses.replace(scale, training=changed), point.size, point.variant, point.seed, data, out)
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
    """Write `sweep.csv` from the points.

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


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(prog="ddl study", description="Scan the learning rate.")
    commands = parser.add_subparsers(dest="command", required=True)
    point = commands.add_parser("point", help="train one point")
    point.add_argument("--size", required=True)
    point.add_argument("--variant", required=True)
    point.add_argument("--rate", required=True, type=float, help="peak learning rate")
    point.add_argument("--seed", required=True, type=int)
    point.add_argument("--data", required=True, type=Path, help="folder with the manifest of the token shards")
    point.add_argument("--out", required=True, type=Path, help="folder of the point")
    add_processes(point)
    gather = commands.add_parser("collect", help="write sweep.csv")
    gather.add_argument("--results", required=True, type=Path, help="the folder of a scale, e.g. results/laptop")
    for command in (point, gather):
        command.add_argument("--scale", required=True, help="name of a file in config/scales")
    args = parser.parse_args(argv)
    with user_errors(ConfigError, DataError, TokenizerError, TrainingError):
        scale = load_scale(args.scale)
        if args.command == "point":
            check_shares(scale.training, args.processes)
            start_processes(args.processes, "ddl.training.study", sys.argv[1:] if argv is None else argv)
        if args.command == "collect":
            collect(scale, args.results)
        elif not train(
            scale, Point(args.size, args.variant, args.rate, args.seed), args.data / "manifest.json", args.out
        ):
            raise SystemExit(130)


if __name__ == "__main__":
    main()
