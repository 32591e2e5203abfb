"""How much of a gap to the baseline is in tokens that can be copied from the context, from the rows of studies.

A target that repeats a pair of tokens of its sequence is what an induction head predicts (Olsson et al., 2022), see
`ddl.evaluation.repeated_pairs`. The losses of these and of the other targets, weighted by their shares, add up to the
validation loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from ddl.layout import BASELINE

KEYS = ["backbone", "size", "tokens", "seed"]


@dataclass(frozen=True)
class Split:
    """Mean losses of both kinds of targets over seeds, in nats."""

    repeated: float
    new: float


@dataclass(frozen=True)
class CopiedTokens:
    """One design beside the baseline at one number of tokens, over the seeds that both have."""

    tokens: int
    design: str
    share: float  # of the targets that repeat a pair
    own: Split
    baseline: Split
    parts: Mapping[int, float]  # seed -> the share of the gap that is in these targets

    @property
    def gap(self) -> Split:
        """The baseline's losses minus the design's."""
        return Split(self.baseline.repeated - self.own.repeated, self.baseline.new - self.own.new)

    @property
    def shown_part(self) -> str:
        """The share of the gap as it is printed, from the lowest seed to the highest."""
        low, high = (f"{100 * end(self.parts.values()):.0f}" for end in (min, max))
        return f"{low} %" if low == high else f"{low} % to {high} %"


def copied_tokens(rows: pd.DataFrame, backbone: str, size: str) -> list[CopiedTokens]:
    """Every design at every number of tokens, with rows that have both losses. Designs keep the order of the rows."""
    if "repeated_loss" not in rows:
        return []
    own = rows[(rows["backbone"] == backbone) & (rows["size"] == size)].dropna(subset=["repeated_loss", "new_loss"])
    own = own.assign(share=(own["val_loss"] - own["new_loss"]) / (own["repeated_loss"] - own["new_loss"]))
    pairs = own.merge(own[own["variant"] == BASELINE], on=KEYS, suffixes=("", "_baseline"))
    found = []
    for _, runs in pairs[pairs["variant"] != BASELINE].groupby(["tokens", "variant"], sort=False):
        gaps = runs["val_loss_baseline"] - runs["val_loss"]
        parts = runs["share"] * (runs["repeated_loss_baseline"] - runs["repeated_loss"]) / gaps
        found.append(
            CopiedTokens(
                int(runs["tokens"].iloc[0]),
                str(runs["variant"].iloc[0]),
                float(runs["share"].mean()),
                Split(float(runs["repeated_loss"].mean()), float(runs["new_loss"].mean())),
                Split(float(runs["repeated_loss_baseline"].mean()), float(runs["new_loss_baseline"].mean())),
                dict(zip(runs["seed"].astype(int), parts.astype(float), strict=True)),
            )
        )
    return sorted(found, key=lambda each: each.tokens)
