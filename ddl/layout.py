"""Where things are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddl.config import Scale

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "baseline"
SPLITS = ("train", "val")
KEPT_CHECKPOINTS = 2  # of every run, the newest


@dataclass(frozen=True)
class Point:
    """One run of a study of the learning rate."""

    size: str
    variant: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Its place under results/<scale>/."""
        return f"sweep/{self.size}/{self.variant}/lr{self.rate:g}/seed{self.seed}"


def points(scale: "Scale") -> Iterator[Point]:
    """The runs of a scale's study.

    Raises:
        ConfigError: a size or variant that does not exist.
    """
    for size in scale.sweep.sizes:
        for variant in scale.sweep.variants:
            scale.model(size, variant)
            for rate in scale.sweep.learning_rates:
                for seed in scale.seeds:
                    yield Point(size, variant, rate, seed)
