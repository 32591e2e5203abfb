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
    better = [name for name, gain in against_alternatives.items() if gain.high < 0]
    if better:
        return Verdict(Outcome.NOT_SUPPORTED, f"better without it: {', '.join(better)}")
    equal = [name for name, gain in against_alternatives.items() if gain.high < MARGIN]
    if equal:
        return Verdict(Outcome.NOT_SUPPORTED, f"as good without it, within {MARGIN:g} nats: {', '.join(equal)}")
    open_ones = [name for name, gain in against_alternatives.items() if gain.low <= 0]
    if open_ones:
        return Verdict(Outcome.INCONCLUSIVE, f"the runs cannot tell it from: {', '.join(open_ones)}")
    return Verdict(Outcome.SUPPORTED, "the full design beats every alternative")


@dataclass(frozen=True)
class Priced:
    """Another design: its loss minus that of the judged one, and its cost; both are better if lower."""

    difference: Estimate
    cost: float


def judge_trade_off(cost: float, others: Mapping[str, Priced]) -> Verdict:
    """The verdict on "X has the best trade-off between loss and cost".

    X is *not supported* if a design that costs no more is surely better, *supported* if every other design costs at
    least as much and is surely worse, and *direction only* otherwise, since then it depends on what a nat is worth.

    Args:
        cost: of the judged design.
        others: name -> other design; the intervals must hold together.
    """
    better = [name for name, other in others.items() if other.cost <= cost and other.difference.high < 0]
    if better:
        first = min(better, key=lambda name: others[name].difference.mean)
        more = f" and {len(better) - 1} more" if len(better) > 1 else ""
        return Verdict(Outcome.NOT_SUPPORTED, f"better for no more FLOPs: {first}{more}")
    if all(other.cost >= cost and other.difference.low > 0 for other in others.values()):
        return Verdict(Outcome.SUPPORTED, "every other design costs at least as much and is worse")
    return Verdict(Outcome.DIRECTION_ONLY, "no design is surely better for no more FLOPs, but not all are worse")
