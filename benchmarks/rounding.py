"""Train the same models where only rounding differs, to see how far apart their losses end.

    python -m benchmarks.rounding --data results/laptop/data --csv results/reference/rounding.csv

Another number of threads or another instruction set adds the same numbers in another order. Each run has the settings,
data, code and seed of a run of the study `noise`, and is a process of its own, because these libraries choose their
instructions when they are loaded. One row per run is appended; runs that have a row are skipped.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.measure import Rows, origin
from ddl.config import load_scale, load_study
from ddl.layout import Point
from ddl.studies.points import train

STUDY, SIZE, BACKBONE = "noise", "small", "embedding-std-0.09-rate-4"
POINT = tuple(field.name for field in dataclasses.fields(Point))
COLUMNS = ("scale", *POINT, "threads", "instructions", "val_loss")
# Instruction set -> the variables that limit PyTorch's own loops, oneDNN and MKL to it; "native" is the best one.
INSTRUCTIONS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
MACHINES = ((1, "native"), (1, "avx2"), (1, "sse4"), (2, "native"), (4, "native"))


def points(seeds: list[int]) -> list[Point]:
    """The runs of the study that are repeated."""
    found = load_study(STUDY).points()
    return [each for each in found if (each.size, each.backbone) == (SIZE, BACKBONE) and each.seed in seeds]


def val_loss(point: Point, threads: int, data: Path) -> float | None:
    """Train one run with a number of threads and return its validation loss; None if it diverged."""
    scale = load_scale(load_study(STUDY).scale)
    scale = dataclasses.replace(scale, training=dataclasses.replace(scale.training, threads=threads))
    with tempfile.TemporaryDirectory() as out:
        train(scale, point, data / "manifest.json", Path(out))
        found: float | None = json.loads((Path(out) / "point.json").read_text(encoding="utf-8"))["val_loss"]
    return found


def in_own_process(point: Point, threads: int, instructions: str, data: Path) -> float | None:
    """`val_loss` in a new process that loads its libraries with an instruction set."""
    before = dict(os.environ)
    os.environ.update(INSTRUCTIONS[instructions], OMP_NUM_THREADS=str(threads))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(val_loss, point, threads, data).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that `ddl data` wrote")
    parser.add_argument("--csv", type=Path, required=True, help="file that rows are appended to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs (default 0 1 2)")
    options = parser.parse_args()
    rows = Rows(options.csv, COLUMNS, origin(torch.device("cpu"), commit=None))
    with open(options.csv, newline="", encoding="utf-8") as file:
        done = {(row["variant"], row["seed"], row["threads"], row["instructions"]) for row in csv.DictReader(file)}
    for (threads, instructions), point in itertools.product(MACHINES, points(options.seeds)):
        if (point.variant, str(point.seed), str(threads), instructions) in done:
            continue
        loss = in_own_process(point, threads, instructions, options.data)
        rows.add(
            scale=load_study(STUDY).scale,
            **dataclasses.asdict(point),
            threads=threads,
            instructions=instructions,
            val_loss=f"{loss:.8f}" if loss else "",  # text, because numbers are rounded to five digits
            reason="" if loss else "diverged",
        )
        print(f"{point.variant} seed {point.seed}, {threads} threads, {instructions}: {loss}", flush=True)


if __name__ == "__main__":
    main()
