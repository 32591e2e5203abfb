"""What the committed studies found about the gain, as numbers for the paper, the README and notebook 13."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ddl.config import load_scale, load_variants, paper_variants
from ddl.files import finite
from ddl.layout import BASELINE
from ddl.reporting.copied_tokens import CopiedTokens, copied_tokens
from ddl.reporting.inside_models import InsideModels, inside_models
from ddl.reporting.judged_claims import (
    CONTROLS,
    DESIGNS,
    FAIR,
    LADDER,
    PAPER,
    SCALE,
    committed_verdicts,
    of_runs,
    pooled,
    published_gains,
)
from ddl.reporting.main_effects import Effect, Primary, main_effects, primary_comparisons
from ddl.reporting.normed_embedding import Normed, normed
from ddl.reporting.read_studies import rows_if_any
from ddl.reporting.rivals import said_of_rivals
from ddl.reporting.seed_statistics import Blocks, Estimate, paired_difference
from ddl.reporting.table_format import count
from ddl.reporting.token_ladder import Ladder, Prediction, decay_of_gap, predictions

EXPANDED, SCALAR, WRITE_ONLY, SIMPLE = "ddl-cc", "ddl-dv1", "write-only-cc", "normalised-branch-ec"
RUNGS = 4  # the fewest that a ladder is fitted to: three, and one to predict
SIZE = "small"  # most runs of the studies have this size


def removed(paper: dict[str, Estimate], fair: dict[str, Estimate]) -> tuple[float, float, float] | None:
    """The share of DDL-CC's gain that the repaired backbone removes, and the ends that both intervals allow."""
    before, after = paper.get(EXPANDED), fair.get(EXPANDED)
    if not before or not after or before.low <= 0:
        return None
    ends = [1 - gain / whole for gain in (after.low, after.high) for whole in (before.low, before.high)]
    return 1 - after.mean / before.mean, min(ends), max(ends)


@dataclass(frozen=True)
class Finding:
    """Losses in nats, for one size: gains over the baseline with the paper's backbone and with the repaired one.

    What has too few runs is None or left out. The intervals of the gains hold together.
    """

    size: str
    paper: dict[str, Estimate]  # design -> gain over the baseline
    fair: dict[str, Estimate]
    repair: Estimate | None  # what the baseline gains by the repaired backbone
    effects: list[Effect]  # of the parts of DDL, on the repaired backbone
    primary: list[Primary]
    noises: dict[str, float]  # design -> deviation of a run, the seed's effect removed, on the repaired backbone
    longest: "Longest | None"
    normed: Normed | None  # with a normalised embedding as well

    @property
    def closed(self) -> tuple[float, float, float] | None:
        """The share of DDL-CC's gain that the repaired backbone removes, and the ends that both intervals allow."""
        return removed(self.paper, self.fair)

    def against(self, rival: str) -> Estimate | None:
        """Loss of a rival of DDL-CC minus that of DDL-CC, on the repaired backbone."""
        return next((each.difference.negated() for each in self.primary if each.rival == rival), None)

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON types, each estimate also as it is printed."""
        labels = {slug: variant.label for slug, variant in load_variants().items()}
        return {
            "size": self.size,
            "paper": {slug: shown(gain) for slug, gain in self.paper.items()},
            "fair": {slug: shown(gain) for slug, gain in self.fair.items()},
            "repair": self.repair and shown(self.repair),
            "effects": [{"part": effect.part} | shown(effect.main) for effect in self.effects],
            "primary": [
                {"name": each.name, "said": apart(each.difference), "p": shown_p(each.adjusted_p)}
                | shown(each.difference)
                for each in self.primary
            ],
            "closed": self.closed,
            "longest": self.longest
            and {
                "tokens": self.longest.tokens,
                "gains": [{"label": labels[slug]} | shown(gain) for slug, gain in self.longest.fair.items()],
                "copied": [
                    {"label": labels[each.design], "repeated": each.own.repeated, "new": each.own.new}
                    for each in self.longest.split
                ],
            },
        }


def shown(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON types with the text that is printed for it; what is not finite is null."""
    values = {key: finite(value) if isinstance(value, float) else value for key, value in asdict(estimate).items()}
    return values | {"shown": estimate.shown(), "separated": estimate.separated}


def shown_p(p: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def finding(size: str = SIZE) -> Finding:
    """What the committed rows of the studies say about one size."""
    rows = pd.concat([rows_if_any(DESIGNS), rows_if_any(CONTROLS)])
    paper, fair = (pooled(rows, size, backbone) for backbone in (PAPER, FAIR))
    before, after = (of_runs(rows, size, backbone).get(BASELINE, {}) for backbone in (PAPER, FAIR))
    return Finding(
        size,
        gains(paper),
        gains(fair),
        paired_difference(before, after) if len(before.keys() & after.keys()) > 1 else None,
        main_effects(fair),
        primary_comparisons(fair),
        fair.spread if fair else {},
        longest(rows_if_any(LADDER), size),
        normed(size),
    )


@dataclass(frozen=True)
class Longest:
    """The runs with the most tokens: gains over the baseline with the paper's backbone and with the repaired one."""

    tokens: int
    paper: dict[str, Estimate]  # empty if the ladder on this backbone ends lower
    fair: dict[str, Estimate]
    rivals: dict[str, Estimate]  # design -> its loss minus that of DDL-CC, on the repaired backbone
    split: list[CopiedTokens]  # by design, on the repaired backbone

    @property
    def closed(self) -> tuple[float, float, float] | None:
        """The share of DDL-CC's gain that the repaired backbone removes, and the ends that both intervals allow."""
        return removed(self.paper, self.fair)

    @property
    def copies(self) -> CopiedTokens | None:
        """The split of DDL-CC's lead, if it leads and most of that is in tokens that can be copied."""
        own = next((each for each in self.split if each.design == EXPANDED), None)
        leads = EXPANDED in self.fair and self.fair[EXPANDED].separated and self.fair[EXPANDED].mean > 0
        return own if leads and own and min(own.parts.values()) > 0.5 else None


def longest(rows: pd.DataFrame, size: str) -> Longest | None:
    """The highest rung of the ladder with the repaired backbone; None if it has a single one, or no baseline."""
    paper, fair = (Ladder.of(rows, backbone, size) for backbone in (PAPER, FAIR))
    if len(fair.tokens) < 2 or BASELINE not in fair.losses:
        return None
    same = paper.tokens[-1:] == fair.tokens[-1:] and BASELINE in paper.losses
    rivals = [slug for slug in (WRITE_ONLY, SIMPLE) if {slug, EXPANDED} <= fair.losses.keys()]
    return Longest(
        fair.tokens[-1],
        top_gaps(paper, paper.losses) if same else {},
        top_gaps(fair, fair.losses),
        {slug: gap.negated() for slug, gap in top_gaps(fair, rivals, EXPANDED).items()},
        [each for each in copied_tokens(rows, FAIR, size) if each.tokens == fair.tokens[-1]],
    )


def top_gaps(ladder: Ladder, designs: Iterable[str], base: str = BASELINE) -> dict[str, Estimate]:
    """Loss of `base` minus that of each other design at the highest rung."""
    gaps = {slug: ladder.gap(slug, len(ladder.tokens) - 1, base) for slug in designs if slug != base}
    return {slug: gap for slug, gap in gaps.items() if gap}


def gains(blocks: Blocks | None) -> dict[str, Estimate]:
    """Design of the paper -> loss of the baseline minus that of the design; the intervals hold together."""
    if not blocks or BASELINE not in blocks.designs:
        return {}
    others = [slug for slug in paper_variants() if slug in blocks.designs and slug != BASELINE]
    return {slug: blocks.difference(slug, BASELINE, len(others)).negated() for slug in others}


def sentences(found: Finding) -> dict[str, str]:
    """The answer, then one text each on the embedding, the parts of DDL, the most tokens and copying, where known."""
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    if EXPANDED not in found.paper or EXPANDED not in found.fair or found.repair is None:
        return {"answer": "The runs that tell where the gain comes from have not been done."}
    expanded, closed, top = labels[EXPANDED], found.closed, found.longest
    said = {"answer": answer(found, expanded)}
    carried = ": the embedding carried {} ({} to {})".format(*map(percent, closed)) if closed else ""
    said["embedding"] = (
        f"With that embedding the {found.size} {expanded} {lead(found.paper[EXPANDED])}. If the embedding of every "
        f"design starts larger and learns faster, the baseline improves by {counted(found.repair)}, and {expanded} "
        f"{lead(found.fair[EXPANDED])}{carried}."
    )
    if found.normed:
        said["normed"] = normalised(found.normed, expanded)
    parts = []
    if scalar := found.fair.get(SCALAR):
        parts.append(f"{labels[SCALAR]} then {lead(scalar)}.")
    if erase := found.against(WRITE_ONLY):
        parts.append(f"The same design without the erase term ends {apart(erase)} {expanded}.")
    if simple := found.against(SIMPLE):
        parts.append(
            "A baseline with normalised sublayer outputs and DDL's embedding convolution, and no delta rule, ends "
            f"{apart(simple)} {expanded}."
        )
    if parts:
        said["parts"] = " ".join(parts)
    if top and EXPANDED in top.fair:
        recipe = f", and on the paper's recipe it {lead(top.paper[EXPANDED])}" if EXPANDED in top.paper else ""
        names = {WRITE_ONLY: "without the erase term it", SIMPLE: "the baseline with normalised outputs and EC"}
        rivals = [f"{name} ends {apart(top.rivals[slug])} it" for slug, name in names.items() if slug in top.rivals]
        said["tokens"] = (
            f"After {count(top.tokens)} tokens {expanded} {lead(top.fair[EXPANDED])}{recipe}"
            f"{'; ' if rivals else ''}{' and '.join(rivals)} (noise pooled over the numbers of tokens)."
        )
        if top.copies:
            own, base = top.copies.own, top.copies.baseline
            said["copying"] = (
                f"Of this lead, {top.copies.shown_part} is in the {percent(top.copies.share)} of tokens that repeat a "
                f"pair of tokens of their context, which a model can copy: there {expanded} has a loss of "
                f"{own.repeated:.2f} and the baseline of {base.repeated:.2f}, elsewhere {own.new:.2f} and "
                f"{base.new:.2f}."
            )
    return said


def normalised(found: Normed, expanded: str) -> str:
    """What a normalised embedding changes, for the baseline and for what DDL-CC is compared with."""
    said = f"If that embedding is also normalised, the baseline {moves(found.baseline)}"
    if found.design:
        said += f" and {expanded} {moves(found.design)}"
    said += f". {expanded} with the larger embedding alone then {lead(found.lead, 'that baseline')}"
    said += f", which ends {apart(found.convolved)} {expanded} if it has EC too." if found.convolved else "."
    if found.longest.keys() >= {"normalised baseline", "repaired baseline", "design"}:
        texts = {name: f"{each.mean:.2f} (n = {each.n})" for name, each in found.longest.items()}
        said += (
            f" After {count(found.tokens)} tokens the normalised baseline has a loss of "
            f"{texts['normalised baseline']}, the other one of {texts['repaired baseline']}, and {expanded} of "
            f"{texts['design']}."
        )
    return said


def moves(difference: Estimate) -> str:
    """How a loss changes, e.g. "improves by 0.04 ± 0.01 nats (n = 5)"."""
    if not difference.separated:
        return f"changes within the noise ({difference.shown('+')} nats, n = {difference.n})"
    return f"improves by {counted(difference.negated())}" if difference.mean < 0 else f"loses {counted(difference)}"


def answer(found: Finding, expanded: str) -> str:
    """What carries the gain, in one sentence."""
    closed, top = found.closed, found.longest
    if not closed or closed[1] <= 0:
        return f"The lead of {expanded} in our small runs does not come from the initial embedding."
    usual, amount = count(load_scale(SCALE).tokens), "most" if closed[1] > 0.5 else "part"
    said = f"After {usual} tokens, {amount} of {expanded}'s lead on the paper's recipe comes from the initial embedding"
    if top and top.closed:
        amount = "most" if top.closed[1] > 0.5 else "less than half" if top.closed[2] < 0.5 else ""
        said += f", and {amount} of it after {count(top.tokens)}" if amount else ""
    if top and top.copies:
        said += (
            f"; with a larger embedding, {top.copies.shown_part} of the lead after {count(top.tokens)} is in tokens "
            "that can be copied from the context"
        )
    return f"{said}."


def other_size(found: Finding) -> str:
    """What the runs of another size say, in one sentence after those of the first; empty without runs."""
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    if EXPANDED not in found.fair:
        return ""
    rivals = {WRITE_ONLY: "without the erase term it", SIMPLE: "the baseline with normalised outputs and EC"}
    ends = [f"{name} ends {apart(gap)} that" for slug, name in rivals.items() if (gap := found.against(slug))]
    said = f"The {found.size} {labels[EXPANDED]} {lead(found.fair[EXPANDED])} with the larger embedding"
    return f"{said}{'; ' if ends else ''}{' and '.join(ends)}."


def overwriting(found: InsideModels) -> str:
    """Whether trained models overwrite, and whether the erase term is used and useful, in two sentences."""
    shares, before, after = (
        (min(values), max(values)) for values in (found.erase_share, found.energy_before, found.energy_after)
    )
    said = (
        f"In {found.models} trained {found.size} models of {load_variants()[EXPANDED].label}, "
        f"{overwriting_sublayers(found)}: "
        f"the erase term is {percent(shares[0])} to {percent(shares[1])} of an update, and along "
        f"the direction the state has {before[0]:.1f} to {before[1]:.1f} times the energy of chance before the update "
        f"and {after[0]:.0f} to {after[1]:.0f} times after it. Without the erase term at test time "
        f"the loss rises by {found.relies.shown()} nats"
    )
    useful = found.useful and f"; models that are trained without it end {apart(found.useful)} those with it"
    return f"{said}{useful or ''}."


def overwriting_sublayers(found: InsideModels) -> str:
    """Which sublayers overwrite, e.g. "1 of 8 sublayers overwrites (the attention of block 4, in 3 of 3 models)"."""
    hits, total = found.overwriting, len(found.erase_share)
    if not hits:
        return f"not one of the {total} sublayers overwrites"
    which = ", ".join(
        f"the {'MLP' if place % 2 else 'attention'} of block {place // 2 + 1}, in {count} of {found.models} models"
        for place, count in hits.items()
    )
    return f"{len(hits)} of {total} sublayers overwrite{'s' if len(hits) == 1 else ''} ({which})"


def percent(share: float) -> str:
    """A share as it is printed, e.g. "84 %"."""
    return f"{100 * share:.0f} %"


def findings(small: Finding | None = None) -> dict[str, str]:
    """What the committed studies say: the answer, then what it rests on, small models first.

    Args:
        small: the finding for the small models, if it is known already.
    """
    inside, medium = inside_models(SIZE), inside_models("medium")
    said = sentences(small or finding()) | {"medium": other_size(finding("medium"))}
    said["inside"] = overwriting(inside) if inside else ""
    if inside and medium:
        said["inside"] += f" In {medium.models} medium models, {overwriting_sublayers(medium)}."
    said["rivals"] = said_of_rivals(SIZE)
    return {about: text for about, text in said.items() if text}


def counted(estimate: Estimate) -> str:
    """An estimate with its number of seeds."""
    return f"{estimate.shown()} nats (n = {estimate.n})"


def lead(gain: Estimate, base: str = "the baseline") -> str:
    """What a gain over a baseline says."""
    if not gain.separated:
        return f"is level with {base} within the noise (gain {gain.shown()} nats, n = {gain.n})"
    return f"leads {base} by {counted(gain)}" if gain.mean > 0 else f"trails {base} by {counted(gain.negated())}"


def apart(difference: Estimate) -> str:
    """How far one design ends from another, e.g. "0.04 ± 0.01 nats (n = 5) below"."""
    if not difference.separated:
        return f"within the noise (difference {difference.shown('+')} nats, n = {difference.n}) of"
    return f"{counted(difference.negated())} below" if difference.mean < 0 else f"{counted(difference)} above"


@dataclass(frozen=True)
class Rung:
    """The gap of a design to the baseline at one number of tokens."""

    tokens: int
    gap: Estimate
    worth: Estimate | None  # log of a factor of tokens of the baseline

    @property
    def factor(self) -> tuple[float, float, float] | None:
        """The factor of tokens with the ends of its interval."""
        return (math.exp(self.worth.mean), math.exp(self.worth.low), math.exp(self.worth.high)) if self.worth else None


@dataclass(frozen=True)
class Climb:
    """The gaps of a design on the token ladder, and what they predict."""

    backbone: str
    design: str
    rungs: list[Rung]
    exponent: Prediction | None  # of a power law of the gap
    top: dict[str, Prediction]  # model -> the highest rung's gap, predicted from the rungs below
    published_tokens: dict[str, Prediction]  # model -> the gap at the paper's number of tokens
    published_gain: float | None

    @property
    def holds(self) -> bool:
        """Whether the intervals of the predicted and of the measured gap at the highest rung meet.

        If they do not, the models miss a rung that is near, and say nothing about the paper's number of tokens.
        """
        predicted, measured = self.top["all"], self.rungs[-1].gap
        return predicted.low <= measured.high and predicted.high >= measured.low

    def as_json(self) -> dict[str, Any]:
        """The gaps as JSON types, each also as it is printed; without predictions for the paper if none hold."""
        return {
            "holds": self.holds,
            "backbone": self.backbone,
            "design": self.design,
            "rungs": [{"tokens": r.tokens, "factor": r.factor, "said": lead(r.gap)} | shown(r.gap) for r in self.rungs],
            "exponent": self.exponent and asdict(self.exponent),
            "top": {model: asdict(found) for model, found in self.top.items()},
            "published_tokens": {m: asdict(found) for m, found in self.published_tokens.items() if self.holds},
            "published_gain": self.published_gain,
        }


def climbs(size: str = SIZE) -> list[Climb]:
    """The token ladder of every design with enough rungs, on both backbones."""
    rows, found = rows_if_any(LADDER), []
    tokens, gains = load_scale("paper").tokens, published_gains(size)
    for backbone in (PAPER, FAIR):
        ladder = Ladder.of(rows, backbone, size)
        if len(ladder.tokens) < RUNGS or not ladder.noise[2] or BASELINE not in ladder.losses:
            continue
        top, last = predictions(ladder.below(len(ladder.tokens) - 1), ladder.tokens[-1]), predictions(ladder, tokens)
        for design in top:
            gaps = [(place, ladder.gap(design, place)) for place in ladder.rungs]
            rungs = [Rung(ladder.tokens[at], gap, ladder.worth(gap, ladder.tokens[at])) for at, gap in gaps if gap]
            exponent = decay_of_gap(ladder, design)
            published = gains.get((design, BASELINE))
            found.append(Climb(backbone, design, rungs, exponent, top[design], last[design], published))
    return found


def evidence() -> dict[str, Any]:
    """All that the committed studies say, as JSON types."""
    _, judged = committed_verdicts(load_scale(SCALE))
    found = finding()
    return found.as_json() | {
        "said": findings(found),
        "ladder": [climb.as_json() for climb in climbs()],
        "verdicts": [claim.as_json() for claim in judged],
    }
