"""Paths, and the names that appear in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddl.config import Scale

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "baseline"
SPLITS = ("train", "val")
# Under results/<scale>/, as patterns: the Snakefile takes the braces for wildcards, Python fills them with `format`.
DATA_MANIFEST = "data/manifest.json"
RUN = "runs/{size}/{variant}/seed{seed}"
ANY_RUN = RUN.format(size="*", variant="*", seed="*")
EVAL = "evals/{size}/{variant}/seed{seed}"
RANDOM_INIT = "evals/random-init"
COST = "cost/{size}/{variant}.json"
POINT = "sweep/{size}/{variant}/lr{rate}/seed{seed}"
KEPT_CHECKPOINTS = 2  # newest checkpoints kept per run
SWEEP = "09_learning_rate"  # notebook of the learning-rate study, built by `snakemake sweep`
# The notebooks that show the results of a scale, and the figures and tables that each draws. The other notebooks are
# derivations and read no results.
DRAWN = {
    "03_architecture": ("figure1", "table6"),
    "08_tasks": (),
    SWEEP: ("learning_rate",),
    "10_loss_curves": ("figure2", "figure3", "figure4", "table3", "gradients"),
    "11_downstream": ("table1", "table2", "table7", "table8"),
    "12_cost": ("table4", "table5", "compute"),
}


@dataclass(frozen=True)
class Point:
    """One run of the learning-rate study."""

    size: str
    variant: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Path of the run under results/<scale>/."""
        return POINT.format(size=self.size, variant=self.variant, rate=f"{self.rate:g}", seed=self.seed)


def points(scale: "Scale") -> Iterator[Point]:
    """The runs of a scale's learning-rate study.

    Raises:
        ConfigError: a size or variant does not exist.
    """
    for size in scale.sweep.sizes:
        for variant in scale.sweep.variants:
            scale.model(size, variant)
            for rate in scale.sweep.learning_rates:
                for seed in scale.seeds:
                    yield Point(size, variant, rate, seed)


def drawn_files(name: str) -> list[str]:
    """Paths of a figure's or table's files under results/<scale>/."""
    if name.startswith("table"):
        return [f"tables/{name}.{kind}" for kind in ("csv", "tex")]
    return [f"figures/{name}.{kind}" for kind in ("pdf", "svg", "png")]
