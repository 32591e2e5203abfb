"""Train the readings of the value branch with several seeds: `python -m benchmarks.value_bias --csv value_bias.csv`.

The paper is silent on a bias of the value (`value_bias_init`), and the authors' public code reads another input. Each
reading is a design of the family `control` in config/variants.yaml, trained here beside the design that it varies. A
row holds the loss of one run on the whole validation split. Runs whose row exists are skipped, and an interrupted run
continues from its checkpoint, so the command can be stopped and repeated.
"""

import argparse
import csv
from pathlib import Path

import torch

from benchmarks.measure import Rows, origin
from ddl.config import Scale, load_scale
from ddl.data.sequences import TokenSequences
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.run import validation_loss
from ddl.layout import DATA_MANIFEST, ROOT
from ddl.training.run import Run

DESIGNS = (
    "baseline",
    "ddl-dv1",
    "ddl-dv1-no-value-bias",
    "ddl-cc",
    "ddl-cc-no-value-bias",
    "ddl-cc-public-value",
)
COLUMNS = ("scale", "size", "variant", "seed", "steps", "tokens", "params", "val_loss", "val_loss_stderr", "seconds")


def done(path: Path) -> set[tuple[str, ...]]:
    """Scale, size, variant and seed of the rows that a CSV has."""
    if not path.is_file():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {tuple(row[column] for column in COLUMNS[:4]) for row in csv.DictReader(file)}


def train(scale: Scale, size: str, variant: str, seed: int, rows: Rows) -> None:
    """Train one run, if it has not been trained, and append its row."""
    results = ROOT / "results" / scale.name
    manifest, out = results / DATA_MANIFEST, results / "value-bias" / size / variant / f"seed{seed}"
    run = Run(scale, size, variant, seed, manifest, out, stale="restart")
    if not run.train():
        raise SystemExit(130)  # interrupted: the same command continues from the checkpoint
    split = TokenSequences(manifest, "val", scale.sequence_length)
    end_of_text = end_of_text_id(load_tokenizer(run.tokenizer))
    batch_tokens = scale.evaluation.batch_tokens
    found, _ = validation_loss(run.learner.model.eval(), split, batch_tokens, torch.float32, end_of_text)
    rows.add(
        scale=scale.name,
        size=size,
        variant=variant,
        seed=seed,
        steps=run.progress.step,
        tokens=scale.tokens,
        params=sum(parameter.numel() for parameter in run.learner.model.parameters()),
        val_loss=found["val_loss"],
        val_loss_stderr=found["val_loss_stderr"],
        seconds=run.progress.seconds,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Validation losses of the readings of the value branch.")
    parser.add_argument("--csv", type=Path, required=True, help="append the rows to this file")
    parser.add_argument("--scale", type=load_scale, default="laptop", help="scale whose recipe and data are used")
    parser.add_argument("--size", default="small", help="size of the models (small)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=DESIGNS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.scale.training.threads)
    rows = Rows(args.csv, COLUMNS, origin(torch.device("cpu"), None))
    for seed in args.seeds:
        for variant in args.variants:
            if (args.scale.name, args.size, variant, str(seed)) not in done(args.csv):
                train(args.scale, args.size, variant, seed, rows)


if __name__ == "__main__":
    main()
