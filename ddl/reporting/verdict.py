"""The rules that turn a measured difference into a verdict on a claim.

They were fixed before the runs that they judge. A gain is the loss of the design that a claim says is worse minus the
loss of the one that it says is better, in nats, so a positive gain agrees with the claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ddl.reporting.seed_statistics import Estimate

MARGIN = 0.01  # nats: a gain that is surely smaller than this counts as none


class Outcome(StrEnum):
    """What the runs say about a claim."""

    SUPPORTED = "supported"
    DIRECTION_ONLY = "direction only"
    NOT_SUPPORTED = "not supported"
    NOT_TESTABLE = "not testable here"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Verdict:
    """The outcome for one claim, and one sentence that says why."""

    outcome: Outcome
    why: str


def not_testable(why: str) -> Verdict:
    """The verdict on a claim that no run of this scale can decide."""
    return Verdict(Outcome.NOT_TESTABLE, why)


def judge(
    gain: Estimate,
    published: float,
    detectable: float,
    size: Estimate | None = None,
    published_size: float | None = None,
) -> Verdict:
    """The verdict on "X is better than Y".

    - *supported*: the interval is above zero and the size agrees: its interval reaches half of the published size;
    - *direction only*: the interval is above zero, but the sizes are not comparable, or ours is less than half;
    - *not supported*: the interval lies below `MARGIN`, and below the published gain if that is smaller;
    - *not testable here*: the interval contains zero, and the runs could not have detected the published gain;
    - *inconclusive*: anything else.

    Args:
        gain: interval of the gain, in nats.
        published: the gain that the paper reports, in nats.
        detectable: the smallest gain that these runs would probably detect, in nats.
        size: interval of the gain in a unit that is comparable between scales, such as a multiple of tokens.
        published_size: the published gain in this unit; needed with `size`.

    Raises:
        ValueError: only one of `size` and `published_size` is given.
    """
    if (size is None) != (published_size is None):
        raise ValueError("expected size and published_size together")
    if gain.low > 0:
        if size is None or published_size is None:
            return Verdict(Outcome.DIRECTION_ONLY, "the gain is above zero; its size cannot be compared between scales")
        if size.high < published_size / 2:
            return Verdict(Outcome.DIRECTION_ONLY, "the gain is above zero, but less than half of the published size")
        return Verdict(Outcome.SUPPORTED, "the gain is above zero and its interval reaches half of the published size")
    if gain.high < 0:
        return Verdict(Outcome.NOT_SUPPORTED, "the gain is below zero")
    if gain.high < min(MARGIN, published):
        return Verdict(Outcome.NOT_SUPPORTED, f"any gain is below {min(MARGIN, published):g} nats")
    if detectable > published:
        return not_testable("the interval contains zero, and the published gain is below what these runs can detect")
    return Verdict(Outcome.INCONCLUSIVE, "the interval contains zero, although the published gain could be detected")


def judge_cause(against_alternatives: Mapping[str, Estimate]) -> Verdict:
    """The verdict on "the gain is due to X and not to what X brings along".

    Args:
        against_alternatives: alternative explanation (a design that has all but X) -> gain of the full design over it;
            the intervals must hold together.

    Returns:
        *supported* if the full design beats every alternative; *not supported* if one of them comes within `MARGIN`;
        *inconclusive* otherwise.
    """
    equal = [name for name, gain in against_alternatives.items() if gain.high < MARGIN]
    if equal:
        return Verdict(Outcome.NOT_SUPPORTED, f"{' and '.join(equal)} does as well within {MARGIN:g} nats")
    open_ones = [name for name, gain in against_alternatives.items() if gain.low <= 0]
    if open_ones:
        return Verdict(Outcome.INCONCLUSIVE, f"the runs cannot tell it from {' and '.join(open_ones)}")
    return Verdict(Outcome.SUPPORTED, "the full design beats every alternative")


@dataclass(frozen=True)
class Priced:
    """A design's loss with its interval, and its cost; both are better if lower."""

    loss: Estimate
    cost: float


def dominated_by(design: str, designs: Mapping[str, Priced]) -> list[str]:
    """The designs that cost no more than `design` and whose loss is lower beyond the intervals of both."""
    own = designs[design]
    return [
        name
        for name, other in designs.items()
        if name != design and other.cost <= own.cost and other.loss.high < own.loss.low
    ]


def judge_trade_off(design: str, designs: Mapping[str, Priced]) -> Verdict:
    """The verdict on "X has the best trade-off between loss and cost": *supported* only if nothing else is as good.

    X is *not supported* if another design dominates it, *direction only* if it is on the Pareto front together with
    others, since then the choice depends on what a nat is worth.
    """
    if better := dominated_by(design, designs):
        return Verdict(Outcome.NOT_SUPPORTED, f"{' and '.join(better)} costs no more and has a lower loss")
    front = [name for name in designs if name != design and not dominated_by(name, designs)]
    if front:
        return Verdict(Outcome.DIRECTION_ONLY, f"it is on the Pareto front, and so is {' and '.join(front)}")
    return Verdict(Outcome.SUPPORTED, "it dominates all other designs")
