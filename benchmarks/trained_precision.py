"""Train the same model in four precisions and compare the final losses: `python -m benchmarks.trained_precision`.

DDL-CC models with many thin layers are trained with the laptop scale's recipe on its text. For each seed, runs differ
only in how they are computed: in fp32; and in bf16 autocast with rebuilt fp32 states, stored bf16 states, and rebuilt
bf16 states. One row per run is appended to results/reference/kernels/trained_precision.csv. An interrupted run
continues from its checkpoint.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import torch

from benchmarks.measure import Rows, origin
from ddl.config import ExecutionConfig, Scale, SizeConfig, load_scale
from ddl.layout import ROOT
from ddl.training.run import Run

MODES = {  # arithmetic, states -> precision of the matrix products, execution
    ("fp32", "stored"): ("float32", ExecutionConfig("auto", "parameters", "stored")),
    ("bf16, state in fp32", "rebuilt"): ("bfloat16", ExecutionConfig("auto", "parameters", "rebuilt")),
    ("bf16, state in bf16", "stored"): ("bfloat16", ExecutionConfig("auto", "bfloat16", "stored")),
    ("bf16, state in bf16", "rebuilt"): ("bfloat16", ExecutionConfig("auto", "bfloat16", "rebuilt")),
}
COLUMNS = ("variant", "layers", "width", "steps", "tokens", "seed", "arithmetic", "states", "val_loss")
VARIANT = "ddl-cc"


def scale_of(size: SizeConfig, steps: int, mode: tuple[str, str]) -> Scale:
    """The laptop scale with one size, other steps and half the batch, computed in this mode."""
    laptop = load_scale("laptop")
    dtype, execution = MODES[mode]
    training = dataclasses.replace(
        laptop.training,
        steps=steps,
        warmup_steps=laptop.training.warmup_steps * steps // laptop.training.steps,
        batch_sequences=laptop.training.batch_sequences // 2,
        micro_batch_sequences=laptop.training.batch_sequences // 2,
        val_interval=steps,
        dtype=dtype,  # type: ignore[arg-type]
    )
    return dataclasses.replace(laptop, sizes=dict.fromkeys(laptop.sizes, size), training=training, execution=execution)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Final losses of four precisions, seed by seed.")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the laptop scale's tokens")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=384)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference" / "kernels")
    args = parser.parse_args(argv)
    rows = Rows(args.out / "trained_precision.csv", COLUMNS, origin(torch.device("cpu"), None))
    with open(rows.path, newline="", encoding="utf-8") as file:
        done = [{key: row[key] for key in COLUMNS} for row in csv.DictReader(file)]
    for seed in args.seeds:
        for mode in MODES:
            scale = scale_of(SizeConfig(args.layers, args.width // 32, args.width), args.steps, mode)
            run = {"variant": VARIANT, "layers": args.layers, "width": args.width, "steps": args.steps}
            run |= {"tokens": scale.tokens, "seed": seed, "arithmetic": mode[0], "states": mode[1]}
            if any({key: str(value) for key, value in run.items()}.items() <= row.items() for row in done):
                continue
            folder = args.runs / f"{args.layers}x{args.width}-{args.steps}" / f"seed{seed}" / "-".join(mode)
            training = Run(scale, "small", VARIANT, seed, args.data, folder)
            if not training.train():
                return
            rows.add(**run, val_loss=training.progress.records[-1]["val_loss"])


if __name__ == "__main__":
    main()
