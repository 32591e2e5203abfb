"""Which comparison of which runs decides each claim of the paper, and the verdicts that follow.

The rules (`ddl.reporting.verdict`) and the list of claims were fixed before the runs that they judge. One rival of
DDL-CC, the normalised branch with EC, was added when the runs of its two parts had pointed at it, and before its own.
Every claim about losses is judged twice for each size: with the backbone of the paper, and with the one that is fair to
the baseline. The intervals of all designs against the baseline hold together (Dunnett).
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
from ddl.reporting.main_effects import enough
from ddl.reporting.read_results import Results, published
from ddl.reporting.read_studies import at_best_rate, by_design, rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, Losses, detectable
from ddl.reporting.table_format import DASH
from ddl.reporting.token_ladder import Ladder, published_worth
from ddl.reporting.verdict import Outcome, Priced, Verdict, judge, judge_cause, judge_trade_off, not_testable

PAPER, FAIR = "paper", "embedding-std-0.09-rate-4"  # backbones: the paper's, and the one that is fair to the baseline
# Studies: the six designs; controls and the designs that they vary; some designs with several numbers of tokens.
DESIGNS, CONTROLS, LADDER = "designs", "controls", "ladder"
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
    "ddl-cc": ("write-only-cc", "baseline-equal-parameters", "baseline-ec", "normalised-branch-ec"),
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
    """Design -> seed -> loss at the design's best rate, for one size, one backbone and the longest schedule."""
    own = rows[(rows["size"] == size) & (rows["backbone"] == backbone)]
    own = own[own["steps"] == own["steps"].max()]
    return {variant: losses for (_, variant), losses in by_design(at_best_rate(own)).items() if losses}


def too_few(losses: Mapping[str, Losses]) -> bool:
    """Whether the designs have fewer than two seeds in common, so that their noise is unknown."""
    return len(set.intersection(*map(set, losses.values()))) < 2


def judge_gain(
    gain: Gain, losses: Mapping[str, Losses], published_gain: float, ladder: Ladder | None, tokens: int
) -> tuple[Estimate | None, Estimate | None, Verdict]:
    """The gain of a design over another with its interval, its worth in tokens, and the verdict on the claim.

    Args:
        losses: design -> seed -> loss, of all designs that are compared; their noise is pooled.
        ladder: losses of the baseline with several numbers of tokens; None leaves the worth out.
        tokens: of the runs.

    Returns:
        The worth is the log of a factor of tokens.
    """
    missing = [load_variants()[slug].label for slug in (gain.better, gain.worse) if slug not in losses]
    if missing:
        return None, None, not_testable(f"no run of {' and '.join(missing)}")
    if too_few(losses):
        return None, None, not_testable(TOO_FEW)
    blocks = Blocks.of(losses)
    if gain.worse == BASELINE:
        estimate = blocks.against(BASELINE)[gain.better].negated()
    else:
        estimate = blocks.contrast({gain.worse: 1.0, gain.better: -1.0})
    least = detectable(math.sqrt(2) * blocks.noise, estimate.n, blocks.degrees_of_freedom)
    if ladder is None or published_gain <= 0:  # a published loss has no size that ours could reach
        return estimate, None, judge(estimate, published_gain, least)
    worth, expected = ladder.worth(estimate, tokens), published_worth(published_gain, load_scale("paper").tokens)
    return estimate, worth, judge(estimate, published_gain, least, worth, expected)


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


def judge_cost(losses: Mapping[str, Losses], flops: Mapping[str, float]) -> Verdict:
    """The verdict on the trade-off between the loss and the FLOPs per token, among all designs with several seeds.

    Losses are relative to the mean of the designs with the same seed.

    Args:
        flops: design -> FLOPs per token; designs without are left out.
    """
    found = {slug: runs for slug, runs in losses.items() if len(runs) > 1 and slug in flops}
    if TRADE_OFF not in found or not enough(found):
        return not_testable(TOO_FEW)
    blocks, labels, priced = Blocks.of(found), load_variants(), {}
    for slug in found:
        weights = dict.fromkeys(found, -1 / len(found)) | {slug: 1 - 1 / len(found)}
        priced[labels[slug].label] = Priced(blocks.contrast(weights), flops[slug])
    return judge_trade_off(labels[TRADE_OFF].label, priced)


def judged_claims(designs: pd.DataFrame, controls: pd.DataFrame, ladder: pd.DataFrame) -> list[Judged]:
    """Every claim with its verdict.

    Args:
        designs: rows of runs of the six designs.
        controls: rows of runs of the controls and of the designs that they are compared with.
        ladder: rows of runs with several numbers of tokens.
    """
    found, labels = [], {slug: variant.label for slug, variant in load_variants().items()}
    for size in SIZES:
        gains = published_gains(size)
        counted = pd.concat([designs, controls]).query("size == @size").dropna(subset=["flops_per_token"])
        flops = dict(zip(counted["variant"], counted["flops_per_token"], strict=True))
        for backbone in (PAPER, FAIR):
            losses, tokens = of_runs(designs, size, backbone), longest(designs, size, backbone)
            rungs = Ladder.of(ladder[ladder["variant"] == BASELINE], backbone, size)
            for gain in GAINS:
                expected = gains[gain.better, gain.worse]
                judged = judge_gain(gain, losses, expected, rungs if len(rungs.tokens) > 1 else None, tokens)
                found.append(row(gain.label, gain.claim, size, backbone, expected, *judged))
            parts = of_runs(controls, size, backbone)
            for design in CAUSES:
                estimate, verdict = judge_rule(design, parts)
                text = f"The delta rule causes the gain of {labels[design]}"
                found.append(row("write-only-control", text, size, backbone, None, estimate, None, verdict))
        text = f"{labels[TRADE_OFF]} has the best trade-off of loss and FLOPs"
        found.append(row("best-trade-off", text, size, FAIR, None, None, None, judge_cost(parts | losses, flops)))
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
        published_worth=math.exp(published_worth(expected, load_scale("paper").tokens)) if expected else None,
        seeds=estimate.n if estimate else 0,
        verdict=verdict.outcome,
        why=verdict.why,
    )
