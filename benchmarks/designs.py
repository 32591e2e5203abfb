"""Time a training step of every residual design: `python -m benchmarks.designs --csv results/reference/designs.csv`.

All designs of the study `rivals` are in one process and take turns, and `ratio` is the baseline's time over a design's,
formed within each round, so that a slow phase of the machine affects all of them. Designs are in plain PyTorch
(`kernels: reference`), because only DDL has operations of its own: otherwise the table would compare effort spent on
kernels. Designs with fused operations have a second row with them, compared with the baseline as it is trained, whose
loss is an operation too. One row per design, size and kind is appended.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.measure import Rows, origin
from ddl.config import SIZES, ModelConfig, load_scale, load_study
from ddl.layout import BASELINE
from ddl.model.language_model import LanguageModel
from ddl.training.cost import Subject, spread
from ddl.training.distributed import Processes

COLUMNS = ("scale", "size", "variant", "kernels", "ms", "ratio", "ratio_p20", "ratio_p80", "rounds")
STUDY = "rivals"


def configs(size: str) -> dict[tuple[str, str], ModelConfig]:
    """(design, kernels) -> the settings of its model."""
    study = load_study(STUDY)
    scale, found = load_scale(study.scale), {}
    for slug in dict.fromkeys(point.variant for point in study.points() if point.size == size):
        config = scale.model(size, slug)
        found[slug, "reference"] = dataclasses.replace(config, kernels="reference", state_memory="stored")
        if slug == BASELINE or LanguageModel(config).fused:
            found[slug, "auto"] = config
    return found


def measure(rows: Rows, size: str, rounds: int, warmup: int) -> None:
    """Add the rows of one size."""
    scale = load_scale(load_study(STUDY).scale)
    subjects = {key: Subject(scale, LanguageModel(config)) for key, config in configs(size).items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in subjects}
    for number in range(warmup + rounds):
        for key, subject in subjects.items():
            seconds = subject.seconds(subject.train_step)
            if number >= warmup:
                times[key].append(seconds)
    for (slug, kernels), seconds in times.items():
        ratio = spread(np.array(times[BASELINE, kernels]) / np.array(seconds))
        rows.add(
            scale=scale.name,
            size=size,
            variant=slug,
            kernels=kernels,
            ms=1e3 * float(np.median(seconds)),
            ratio=ratio["median"],
            ratio_p20=ratio["p20"],
            ratio_p80=ratio["p80"],
            rounds=rounds,
        )
        print(f"{size} {slug} ({kernels}): {1e3 * np.median(seconds):.0f} ms, {ratio['median']:.2f} of baseline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="file that rows are appended to")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each design (default 30)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default 3)")
    options = parser.parse_args()
    rows = Rows(options.csv, COLUMNS, origin(Processes().device, commit=None))
    for size in SIZES:
        measure(rows, size, options.rounds, options.warmup)


if __name__ == "__main__":
    main()
