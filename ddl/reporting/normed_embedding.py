"""What is left of the gain if the repaired embedding is normalised as well, from the study `normed-embedding`."""

from dataclasses import dataclass

import pandas as pd

from ddl.config import load_scale
from ddl.layout import BASELINE
from ddl.reporting.judged_claims import CONTROLS, DESIGNS, FAIR, LADDER, SCALE
from ddl.reporting.read_studies import losses, rows_if_any
from ddl.reporting.seed_statistics import Estimate, Losses, over_seeds, paired_difference

STUDY = "normed-embedding"
NORMED = "normed-embedding-std-0.09-rate-4"  # the backbone
DESIGN, CONVOLVED = "ddl-cc", "baseline-ec"


@dataclass(frozen=True)
class Normed:
    """Differences of losses in nats between the normalised backbone and the repaired one, and between designs."""

    baseline: Estimate  # the baseline, normalised minus repaired
    design: Estimate | None  # DDL-CC, the same; None for fewer than two seeds
    lead: Estimate  # normalised baseline minus repaired DDL-CC
    convolved: Estimate | None  # normalised baseline with EC minus repaired DDL-CC
    tokens: int  # of the longest runs of the normalised baseline
    longest: dict[str, Estimate]  # then: the loss of both baselines and of the repaired DDL-CC


def normed(size: str, rows: pd.DataFrame | None = None) -> Normed | None:
    """The comparison at one size and the learning rate that all studies share; None without enough runs."""
    every = pd.concat(map(rows_if_any, (STUDY, DESIGNS, CONTROLS, LADDER))) if rows is None else rows
    scale = load_scale(SCALE)
    own = every[(every["size"] == size) & (every["learning_rate"] == scale.training.learning_rate)]
    own = own.drop_duplicates(["backbone", "variant", "steps", "seed"])

    def of(backbone: str, design: str, tokens: int) -> Losses:
        found = own[(own["backbone"] == backbone) & (own["variant"] == design) & (own["tokens"] == tokens)]
        return losses(found)

    base, repaired, design = (
        of(backbone, slug, scale.tokens) for backbone, slug in ((NORMED, BASELINE), (FAIR, BASELINE), (FAIR, DESIGN))
    )
    if min(len(base.keys() & repaired.keys()), len(base.keys() & design.keys())) < 2:
        return None
    tokens = int(own[own["backbone"] == NORMED]["tokens"].max())
    longest = {
        "normalised baseline": of(NORMED, BASELINE, tokens),
        "repaired baseline": of(FAIR, BASELINE, tokens),
        "design": of(FAIR, DESIGN, tokens),
    }
    return Normed(
        paired_difference(base, repaired),
        difference(of(NORMED, DESIGN, scale.tokens), design),
        paired_difference(base, design),
        difference(of(NORMED, CONVOLVED, scale.tokens), design),
        tokens,
        {name: over_seeds(list(runs.values())) for name, runs in longest.items() if runs},
    )


def difference(runs: Losses, others: Losses) -> Estimate | None:
    """The paired difference; None for fewer than two common seeds."""
    return paired_difference(runs, others) if len(runs.keys() & others.keys()) > 1 else None
