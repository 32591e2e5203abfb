"""What the committed studies found about the gain, as numbers for the paper, the README and notebook 13."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ddl.config import load_scale, load_variants
from ddl.layout import BASELINE
from ddl.reporting.judged_claims import (
    CONTROLS,
    DESIGNS,
    FAIR,
    LADDER,
    PAPER,
    committed_verdicts,
    of_runs,
    published_gains,
)
from ddl.reporting.main_effects import Effect, Primary, enough, main_effects, primary_comparisons
from ddl.reporting.read_studies import rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, Losses, paired_difference
from ddl.reporting.token_ladder import Ladder, Prediction, decay_of_gap, predictions

EXPANDED, SCALAR, WRITE_ONLY, SIMPLE = "ddl-cc", "ddl-dv1", "write-only-cc", "normalised-branch-ec"
SCALE = "laptop"  # of the studies
RUNGS = 4  # the fewest that a ladder is fitted to: three, and one to predict
SIZE = "small"  # most runs of the studies have this size


@dataclass(frozen=True)
class Finding:
    """Losses in nats: gains over the baseline with the paper's backbone and with the fair one, for one size.

    A gain is None if its runs have fewer than two seeds in common.
    """

    size: str
    paper: dict[str, Estimate]  # design -> gain over the baseline
    fair: dict[str, Estimate]
    repair: Estimate | None  # what the baseline gains by the fair backbone
    erase: Estimate | None  # loss of DDL-CC without its erase term, minus that of DDL-CC, on the fair backbone
    simple: Estimate | None  # loss of the normalised branch with EC, minus that of DDL-CC, on the fair backbone
    effects: list[Effect]  # of the parts of DDL, on the fair backbone
    primary: list[Primary]

    @property
    def closed(self) -> float | None:
        """The share of the gain of DDL-CC that the fair backbone removes."""
        if EXPANDED not in self.paper or EXPANDED not in self.fair:
            return None
        return 1 - self.fair[EXPANDED].mean / self.paper[EXPANDED].mean

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON types, each estimate also as it is printed."""
        return {
            "size": self.size,
            "paper": {slug: shown(gain) for slug, gain in self.paper.items()},
            "fair": {slug: shown(gain) for slug, gain in self.fair.items()},
            "repair": self.repair and shown(self.repair),
            "erase": self.erase and shown(self.erase),
            "simple": self.simple and shown(self.simple),
            "effects": [{"part": effect.part} | shown(effect.main) for effect in self.effects],
            "primary": [
                {"name": each.name, "adjusted_p": each.adjusted_p} | shown(each.difference) for each in self.primary
            ],
            "closed_percent": None if self.closed is None else round(100 * self.closed),
        }


def shown(estimate: Estimate) -> dict[str, Any]:
    """An estimate with the text that is printed for it."""
    return asdict(estimate) | {"shown": estimate.shown(), "separated": estimate.separated}


def finding(size: str = SIZE) -> Finding:
    """What the committed rows of the studies say about one size."""
    designs, controls = rows_if_any(DESIGNS), rows_if_any(CONTROLS)
    runs = {backbone: of_runs(designs, size, backbone) for backbone in (PAPER, FAIR)}
    of_controls = of_runs(controls, size, FAIR)
    return Finding(
        size,
        gains(runs[PAPER]),
        gains(runs[FAIR]),
        difference(runs[PAPER].get(BASELINE, {}), runs[FAIR].get(BASELINE, {})),
        difference(of_controls.get(WRITE_ONLY, {}), of_controls.get(EXPANDED, {})),
        difference(of_controls.get(SIMPLE, {}), of_controls.get(EXPANDED, {})),
        main_effects(of_controls),
        primary_comparisons(of_controls),
    )


def sentences(found: Finding) -> list[str]:
    """What carries the gain, in a few sentences."""
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    if EXPANDED not in found.paper or EXPANDED not in found.fair or found.repair is None or found.closed is None:
        return ["The runs that tell where the gain comes from have not been done."]
    gain, rest, expanded = found.paper[EXPANDED], found.fair[EXPANDED], labels[EXPANDED]
    most = "most" if found.closed > 0.5 else "part"
    said = [
        f"On the paper's recipe {most} of DDL's lead at this scale comes from the baseline's embedding.",
        f"There the {found.size} {expanded} leads the baseline by {gain.shown()} nats ({gain.n} seeds). If the "
        f"embedding of every design starts larger and learns faster, the baseline gains {found.repair.shown()} nats, "
        f"and {expanded} leads by {rest.shown()} ({rest.n} seeds): the embedding carried {found.closed:.0%}.",
    ]
    if scalar := found.fair.get(SCALAR):
        zero = "" if scalar.separated else ", which includes zero"
        said.append(f"{labels[SCALAR]} then leads by {scalar.shown()}{zero}.")
    if found.erase:
        zero = "" if found.erase.separated else ", which includes zero"
        said.append(
            f"Leaving out its erase term changes the loss of {expanded} by {found.erase.shown('+')} nats{zero}."
        )
    if found.simple:
        said.append(
            "A baseline with normalised sublayer outputs and DDL's embedding convolution, but without a delta rule, "
            f"ends {apart(found.simple)} {expanded}."
        )
    return said


def apart(difference: Estimate) -> str:
    """How far one design ends from another, e.g. "0.04 ± 0.01 nats below"."""
    if not difference.separated:
        return f"within the noise ({difference.shown('+')} nats) of"
    if difference.mean < 0:
        return f"{difference.negated().shown()} nats below"
    return f"{difference.shown()} nats above"


def gains(losses: dict[str, Losses]) -> dict[str, Estimate]:
    """Design -> loss of the baseline minus that of the design; the intervals hold together."""
    found = {slug: runs for slug, runs in losses.items() if len(runs.keys() & losses.get(BASELINE, {}).keys()) > 1}
    if not enough(found):
        return {}
    return {slug: estimate.negated() for slug, estimate in Blocks.of(found).against(BASELINE).items()}


def difference(losses: Losses, reference: Losses) -> Estimate | None:
    """Paired difference; None with fewer than two common seeds."""
    return paired_difference(losses, reference) if len(losses.keys() & reference.keys()) > 1 else None


@dataclass(frozen=True)
class Rung:
    """The gap of a design to the baseline at one number of tokens."""

    tokens: int
    gap: Estimate
    worth: Estimate  # log of a factor of tokens of the baseline


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

    def as_json(self) -> dict[str, Any]:
        """The gaps as JSON types, each also as it is printed."""
        return {
            "backbone": self.backbone,
            "design": self.design,
            "rungs": [{"tokens": r.tokens, "factor": math.exp(r.worth.mean)} | shown(r.gap) for r in self.rungs],
            "exponent": self.exponent and asdict(self.exponent),
            "top": {model: asdict(found) for model, found in self.top.items()},
            "published_tokens": {model: asdict(found) for model, found in self.published_tokens.items()},
            "published_gain": self.published_gain,
        }


def climbs(size: str = SIZE) -> list[Climb]:
    """The token ladder of every design with enough rungs, on both backbones."""
    rows, found = rows_if_any(LADDER), []
    tokens, gains = load_scale("paper").tokens, published_gains(size)
    for backbone in (PAPER, FAIR):
        ladder = Ladder.of(rows, backbone, size)
        if len(ladder.tokens) < RUNGS or not ladder.noise[1] or BASELINE not in ladder.losses:
            continue
        top, last = predictions(ladder.below(len(ladder.tokens) - 1), ladder.tokens[-1]), predictions(ladder, tokens)
        for design in top:
            gaps = [(place, ladder.gap(design, place)) for place in range(len(ladder.tokens))]
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
        "sentences": sentences(found),
        "ladder": [climb.as_json() for climb in climbs()],
        "verdicts": [claim.as_json() for claim in judged],
    }
