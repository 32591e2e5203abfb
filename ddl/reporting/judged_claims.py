"""Which comparison of which runs decides each claim of the paper, and the verdicts that follow.

The list was fixed before the runs that it judges, as were the rules (`ddl.reporting.verdict`). Every claim about losses
is judged twice for each size: with the backbone of the paper, and with the one that is fair to the baseline. The
intervals of all designs against the baseline hold together (Dunnett).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ddl.config import SIZES, load_variants
from ddl.files import finite, write_json
from ddl.layout import BASELINE
from ddl.reporting.read_results import Results, published
from ddl.reporting.read_studies import at_best_rate, by_design, rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, Losses, detectable
from ddl.reporting.verdict import Outcome, Verdict, judge, judge_cause, not_testable

PAPER, FAIR = "paper", "embedding-std-0.09-rate-4"  # backbones: the paper's, and the one that is fair to the baseline
DESIGNS, CONTROLS = "designs", "controls"  # studies: the six designs; controls and the designs that they vary
TOO_FEW = "fewer than two seeds"


@dataclass(frozen=True)
class Gain:
    """A claim that one design has a lower validation loss than another; `label` is its row in paper/claims.csv."""

    label: str
    claim: str
    better: str
    worse: str = BASELINE


GAINS = (
    Gain("lower-loss", "DDL (d_v = 1) lowers the loss", "ddl-dv1"),
    Gain("lower-loss", "DDL-TC lowers the loss", "ddl-tc"),
    Gain("lower-loss", "DDL-CC lowers the loss", "ddl-cc"),
    Gain("expanded-gains-more", "DDL-CC gains more than d_v = 1", "ddl-cc", "ddl-dv1"),
    Gain("no-ec-isolates-ec", "EC lowers the loss of DDL-CC", "ddl-cc", "ddl-cc-noec"),
    Gain("no-ec-isolates-ec", "EC lowers the loss of DDL-TC", "ddl-tc", "ddl-tc-noec"),
)
# For the claim that the delta rule causes a gain, not what comes with it: design -> designs that have all but the rule.
CAUSES = {
    "ddl-dv1": ("write-only", "normalised-branch", "dynamic-strength"),
    "ddl-cc": ("write-only-cc", "baseline-equal-parameters", "baseline-ec"),
}
ELSEWHERE = (
    ("one-shot-averages", "DDL raises the average accuracy", "models of this size answer the benchmarks at chance"),
    (
        "best-trade-off",
        "DDL-CC has the best trade-off",
        "the costs of the paper are those of a GPU and of larger models",
    ),
    ("cost-of-expansion", "The published speeds and memory", "they are those of a GPU and of larger models"),
)


@dataclass(frozen=True)
class Judged:
    """One row of the table of verdicts; losses in nats, the gain positive if the claim's design is better."""

    label: str
    claim: str
    size: str  # empty if the claim is not about one size
    backbone: str  # empty if no run was judged
    published: float | None
    gain: float | None
    low: float | None
    high: float | None
    seeds: int
    verdict: Outcome
    why: str

    def as_json(self) -> dict[str, Any]:
        """The row as JSON types; an infinite end of an interval is null."""
        values = asdict(self)
        return {key: finite(value) if isinstance(value, float) else value for key, value in values.items()}


def published_gains(size: str) -> dict[tuple[str, str], float]:
    """(better, worse) -> published loss of `worse` minus that of `better`, in nats."""
    frame = published("validation_loss")
    losses = frame[frame["size"] == size].set_index("variant")["val_loss"]
    return {(gain.better, gain.worse): float(losses[gain.worse] - losses[gain.better]) for gain in GAINS}


def of_runs(rows: pd.DataFrame, size: str, backbone: str) -> dict[str, Losses]:
    """Design -> seed -> loss at the design's best rate, for one size, one backbone and the longest schedule."""
    own = rows[(rows["size"] == size) & (rows["backbone"] == backbone)]
    own = own[own["steps"] == own["steps"].max()]
    return {variant: losses for (_, variant), losses in by_design(at_best_rate(own)).items() if losses}


def too_few(losses: Mapping[str, Losses]) -> bool:
    """Whether the designs have fewer than two seeds in common, so that their noise is unknown."""
    return len(set.intersection(*map(set, losses.values()))) < 2


def judge_gain(gain: Gain, losses: Mapping[str, Losses], published_gain: float) -> tuple[Estimate | None, Verdict]:
    """The gain of a design over another with its interval, and the verdict on the claim.

    Args:
        losses: design -> seed -> loss, of all designs that are compared; their noise is pooled.
    """
    missing = [load_variants()[slug].label for slug in (gain.better, gain.worse) if slug not in losses]
    if missing:
        return None, not_testable(f"no run of {' and '.join(missing)}")
    if too_few(losses):
        return None, not_testable(TOO_FEW)
    blocks = Blocks.of(losses)
    if gain.worse == BASELINE:
        estimate = blocks.against(BASELINE)[gain.better].negated()
    else:
        estimate = blocks.contrast({gain.worse: 1.0, gain.better: -1.0})
    least = detectable(math.sqrt(2) * blocks.noise, estimate.n, blocks.degrees_of_freedom)
    return estimate, judge(estimate, published_gain, least)


def judge_rule(design: str, losses: Mapping[str, Losses]) -> tuple[Estimate | None, Verdict]:
    """The smallest gain of a design over those that lack only the delta rule, and the verdict on the rule as cause."""
    others = [slug for slug in CAUSES[design] if slug in losses]
    if design not in losses or not others:
        return None, not_testable("no run of the designs without the rule")
    compared = {slug: losses[slug] for slug in (design, *others)}
    if too_few(compared):
        return None, not_testable(TOO_FEW)
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    gains = Blocks.of(compared).against(design)
    return min(gains.values(), key=lambda gain: gain.mean), judge_cause({labels[slug]: gains[slug] for slug in others})


def judged_claims(designs: pd.DataFrame, controls: pd.DataFrame) -> list[Judged]:
    """Every claim with its verdict.

    Args:
        designs: rows of runs of the six designs.
        controls: rows of runs of the controls and of the designs that they are compared with.
    """
    found, labels = [], {slug: variant.label for slug, variant in load_variants().items()}
    for size in SIZES:
        gains = published_gains(size)
        for backbone in (PAPER, FAIR):
            losses = of_runs(designs, size, backbone)
            for gain in GAINS:
                expected = gains[gain.better, gain.worse]
                estimate, verdict = judge_gain(gain, losses, expected)
                found.append(row(gain.label, gain.claim, size, backbone, expected, estimate, verdict))
            losses = of_runs(controls, size, backbone)
            for design in CAUSES:
                estimate, verdict = judge_rule(design, losses)
                text = f"The delta rule causes the gain of {labels[design]}"
                found.append(row("write-only-control", text, size, backbone, None, estimate, verdict))
    for label, claim, why in ELSEWHERE:
        found.append(row(label, claim, "", "", None, None, not_testable(why)))
    return found


def write_verdicts(results: Path) -> None:
    """Write `verdict.json` for a scale: the claims, judged by the committed rows of the scale's studies.

    Args:
        results: folder of the scale.
    """
    scale = Results(results).scale
    designs, controls = (
        rows[rows["scale"] == scale.name] for rows in (rows_if_any(study) for study in (DESIGNS, CONTROLS))
    )
    judged = judged_claims(designs, controls)
    sources = {study: len(rows) for study, rows in ((DESIGNS, designs), (CONTROLS, controls))}
    write_json(results / "verdict.json", {"rows": sources, "claims": [claim.as_json() for claim in judged]})


def row(
    label: str,
    claim: str,
    size: str,
    backbone: str,
    expected: float | None,
    estimate: Estimate | None,
    verdict: Verdict,
) -> Judged:
    """One row of the table of verdicts."""
    if estimate is None:
        return Judged(label, claim, size, backbone, expected, None, None, None, 0, verdict.outcome, verdict.why)
    interval = (estimate.mean, estimate.low, estimate.high, estimate.n)
    return Judged(label, claim, size, backbone, expected, *interval, verdict.outcome, verdict.why)
