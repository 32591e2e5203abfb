"""Which comparison of which runs decides each claim of the paper, and the verdicts that follow.

The rules (`ddl.reporting.verdict`) and the list of claims were committed before the runs of the six designs and the
controls. Four things came later, when some of these rows were known: the size of a gain is compared in tokens, the
trade-off is judged by FLOPs, the normalised branch with EC is a rival of DDL-CC, to which the runs of its two parts had
pointed, and noise is pooled over the designs of `POOLED` only. Every claim about losses is judged twice for each size:
with the backbone of the paper, and with the repaired one. All designs run at the rate of the scale. Intervals that
decide one claim hold together (Dunnett).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ddl.config import SIZES, Scale, load_scale, load_variants
from ddl.files import finite, write_json
from ddl.layout import BASELINE
from ddl.reporting.main_effects import PARTS
from ddl.reporting.read_results import Results, published
from ddl.reporting.read_studies import RUN, by_design, rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, Losses, detectable
from ddl.reporting.table_format import DASH
from ddl.reporting.token_ladder import Ladder, published_worth
from ddl.reporting.verdict import Outcome, Priced, Verdict, judge, judge_cause, judge_trade_off, not_testable

SCALE = "laptop"  # of the studies
PAPER, FAIR = "paper", "embedding-std-0.09-rate-4"  # backbones: the paper's, and the one with the repaired embedding
# Studies: the six designs; controls and the designs that they vary; some designs with several numbers of tokens.
DESIGNS, CONTROLS, LADDER = "designs", "controls", "ladder"


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
# For the claim that the delta rule causes a gain, not what comes with it: design -> its rivals without the rule.
CAUSES = {
    "ddl-dv1": ("write-only", "normalised-branch", "dynamic-strength"),
    "ddl-cc": ("write-only-cc", "baseline-equal-parameters", "baseline-ec", "normalised-branch-ec"),
}
# The designs whose noise is pooled: those of the claims and of the main effects. Other controls may be much noisier.
POOLED = {
    *(design for gain in GAINS for design in (gain.better, gain.worse)),
    *(rival for rivals in CAUSES.values() for rival in rivals),
    *(design for pairs in PARTS.values() for pair in pairs for design in pair),
}
TRADE_OFF = "ddl-cc"  # the design that the paper says has the best trade-off
ELSEWHERE = (
    ("one-shot-averages", "DDL raises the average accuracy", "the offline tasks are not the eight benchmarks"),
    ("cost-of-expansion", "The published speeds and memory", "they are those of a GPU and of larger models"),
)


@dataclass(frozen=True)
class Judged:
    """One row of the table of verdicts; losses in nats, the gain positive if the claim's design is better.

    `worth` is the gain as a factor of tokens of the baseline, and `published_worth` that of the published gain.
    """

    label: str
    claim: str
    size: str  # empty if the claim is not about one size
    backbone: str  # empty if no run was judged
    published: float | None
    gain: float | None
    low: float | None
    high: float | None
    worth: float | None
    published_worth: float | None
    seeds: int
    verdict: Outcome
    why: str

    @property
    def shown(self) -> str:
        """The gain ± the half-width of its interval, as it is printed; a dash if it was not measured."""
        if self.gain is None or self.low is None or self.high is None:
            return DASH
        return Estimate(self.gain, self.low, self.high, math.nan, self.seeds).shown("+")

    def as_json(self) -> dict[str, Any]:
        """The row as JSON types; an infinite end of an interval is null."""
        values = asdict(self) | {"shown": self.shown}
        return {key: finite(value) if isinstance(value, float) else value for key, value in values.items()}


def published_gains(size: str) -> dict[tuple[str, str], float]:
    """(better, worse) -> published loss of `worse` minus that of `better`, in nats."""
    frame = published("validation_loss")
    losses = frame[frame["size"] == size].set_index("variant")["val_loss"]
    return {(gain.better, gain.worse): float(losses[gain.worse] - losses[gain.better]) for gain in GAINS}


def of_runs(rows: pd.DataFrame, size: str, backbone: str) -> dict[str, Losses]:
    """Design -> seed -> loss for one size and backbone, at the rate of the scale and for the longest schedule."""
    shared = load_scale(SCALE).training.learning_rate
    own = rows[(rows["size"] == size) & (rows["backbone"] == backbone) & (rows["learning_rate"] == shared)]
    own = own[own["steps"] == own["steps"].max()].drop_duplicates([*RUN, "seed"])
    return {variant: losses for (_, variant), losses in by_design(own).items() if losses}


def pooled(rows: pd.DataFrame, size: str, backbone: str) -> Blocks | None:
    """The fit of the designs in `POOLED`; None if there are too few runs."""
    return Blocks.if_enough({slug: runs for slug, runs in of_runs(rows, size, backbone).items() if slug in POOLED})


def judge_gain(
    gain: Gain, blocks: Blocks | None, published_gain: float, ladder: Ladder, tokens: int
) -> tuple[Estimate | None, Estimate | None, Verdict]:
    """The gain of a design over another with its interval, its worth in tokens, and the verdict on the claim.

    Args:
        blocks: losses of all designs that were run, whose noise is pooled; None if there are too few.
        ladder: losses of the baseline with several numbers of tokens.
        tokens: of the runs.

    Returns:
        The worth is the log of a factor of tokens.
    """
    missing = [slug for slug in (gain.better, gain.worse) if not blocks or slug not in blocks.designs]
    if not blocks or missing:
        return None, None, not_testable(f"fewer than two seeds of {' and '.join(map(label_of, missing))}")
    comparisons = len([other for other in GAINS if other.worse == BASELINE]) if gain.worse == BASELINE else 1
    estimate = blocks.difference(gain.better, gain.worse, comparisons).negated()
    if published_gain <= 0:
        return estimate, None, not_testable("the paper does not report this gain at this size")
    least = detectable(math.sqrt(2) * blocks.noise, estimate.n, blocks.degrees_of_freedom, comparisons)
    worth = ladder.worth(estimate, tokens)
    expected = published_worth(published_gain, load_scale("paper").tokens) if worth else None
    return estimate, worth, judge(estimate, published_gain, least, worth, expected)


def judge_rule(design: str, blocks: Blocks | None) -> tuple[Estimate | None, Verdict]:
    """The smallest gain of a design over those without the delta rule, and the verdict on the rule as cause."""
    known = blocks.designs if blocks else ()
    rivals = [slug for slug in CAUSES[design] if slug in known]
    if not blocks or design not in known or not rivals:
        return None, not_testable("fewer than two seeds of the design or of all its rivals")
    gains = {slug: blocks.difference(design, slug, len(rivals)).negated() for slug in rivals}
    smallest = min(gains.values(), key=lambda gain: gain.mean)
    verdict = judge_cause({label_of(slug): gain for slug, gain in gains.items()})
    lacking = [label_of(slug) for slug in CAUSES[design] if slug not in known]
    if lacking and verdict.outcome is Outcome.SUPPORTED:
        return smallest, Verdict(Outcome.INCONCLUSIVE, f"no runs of {', '.join(lacking)}")
    return smallest, verdict


def judge_cost(blocks: Blocks | None, flops: Mapping[str, float]) -> Verdict:
    """The verdict on the trade-off between the loss and the FLOPs per token, among the designs that are compared.

    Args:
        flops: design -> FLOPs per token; designs without are left out.
    """
    if not blocks or TRADE_OFF not in blocks.designs or TRADE_OFF not in flops:
        return not_testable(f"fewer than two seeds of {label_of(TRADE_OFF)}")
    differences = blocks.against(TRADE_OFF)
    others = {label_of(slug): Priced(found, flops[slug]) for slug, found in differences.items() if slug in flops}
    return judge_trade_off(flops[TRADE_OFF], others)


def label_of(slug: str) -> str:
    """The label of a design."""
    return load_variants()[slug].label


def judged_claims(designs: pd.DataFrame, controls: pd.DataFrame, ladder: pd.DataFrame) -> list[Judged]:
    """Every claim with its verdict.

    Args:
        designs: rows of runs of the six designs.
        controls: rows of runs of the controls and of the designs that they are compared with.
        ladder: rows of runs with several numbers of tokens.
    """
    found, rows = [], pd.concat([designs, controls])
    for size in SIZES:
        gains = published_gains(size)
        counted = rows[rows["size"] == size].dropna(subset=["flops_per_token"])
        flops = dict(zip(counted["variant"], counted["flops_per_token"].astype(float), strict=True))
        for backbone in (PAPER, FAIR):
            blocks, tokens = pooled(rows, size, backbone), longest(rows, size, backbone)
            rungs = Ladder.of(ladder[ladder["variant"] == BASELINE], backbone, size)
            for gain in GAINS:
                expected = gains[gain.better, gain.worse]
                judged = judge_gain(gain, blocks, expected, rungs, tokens)
                found.append(row(gain.label, gain.claim, size, backbone, expected, *judged))
            for design in CAUSES:
                estimate, verdict = judge_rule(design, blocks)
                text = f"The delta rule causes the gain of {label_of(design)}"
                found.append(row("write-only-control", text, size, backbone, None, estimate, None, verdict))
        text = f"{label_of(TRADE_OFF)} has the best trade-off of loss and FLOPs"
        found.append(row("best-trade-off", text, size, FAIR, None, None, None, judge_cost(blocks, flops)))
    for label, claim, why in ELSEWHERE:
        found.append(row(label, claim, "", "", None, None, None, not_testable(why)))
    return found


def longest(rows: pd.DataFrame, size: str, backbone: str) -> int:
    """The tokens of the longest schedule; 0 without runs."""
    return int(max(rows[(rows["size"] == size) & (rows["backbone"] == backbone)]["tokens"], default=0))


def committed_verdicts(scale: Scale) -> tuple[dict[str, int], list[Judged]]:
    """The claims, judged by the committed rows of a scale's studies, and the number of rows of each study."""
    studies = {study: rows_if_any(study) for study in (DESIGNS, CONTROLS, LADDER)}
    own = {study: rows[rows["scale"] == scale.name] for study, rows in studies.items()}
    judged = judged_claims(own[DESIGNS], own[CONTROLS], own[LADDER])
    return {study: len(rows) for study, rows in own.items()}, judged


def write_verdicts(results: Path) -> None:
    """Write `verdict.json` for a scale.

    Args:
        results: folder of the scale.
    """
    rows, judged = committed_verdicts(Results(results).scale)
    write_json(results / "verdict.json", {"rows": rows, "claims": [claim.as_json() for claim in judged]})


def row(
    label: str,
    claim: str,
    size: str,
    backbone: str,
    expected: float | None,
    estimate: Estimate | None,
    worth: Estimate | None,
    verdict: Verdict,
) -> Judged:
    """One row of the table of verdicts; `worth` is the log of a factor of tokens."""
    return Judged(
        label=label,
        claim=claim,
        size=size,
        backbone=backbone,
        published=expected,
        gain=estimate.mean if estimate else None,
        low=estimate.low if estimate else None,
        high=estimate.high if estimate else None,
        worth=math.exp(worth.mean) if worth else None,
        published_worth=math.exp(published_worth(expected, load_scale("paper").tokens)) if worth and expected else None,
        seeds=estimate.n if estimate else 0,
        verdict=verdict.outcome,
        why=verdict.why,
    )
