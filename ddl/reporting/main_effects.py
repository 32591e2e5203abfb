"""What each part of DDL adds to the loss, averaged over the pairs of designs that differ in this part alone.

The designs form an incomplete factorial: a normalised output, a strength from the token, the erase term, the embedding
convolution (EC), value channels and the way they are read. Every pair of a part differs in nothing else, so the mean
over its pairs is the part's main effect and their scatter shows whether it depends on the others.
"""

from dataclasses import dataclass

from ddl.reporting.seed_statistics import Blocks, Estimate, holm, p_value

# Part -> pairs of designs (with it, without it).
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "normalised output": (
        ("normalised-branch", "baseline"),
        ("normalised-branch-ec", "baseline-ec"),
        ("write-only", "dynamic-strength"),
    ),
    "strength from the token": (
        ("dynamic-strength", "baseline"),
        ("write-only", "normalised-branch"),
        ("write-only-ec", "normalised-branch-ec"),
    ),
    "erase term": (
        ("erase-only", "baseline"),
        ("ddl-dv1", "write-only"),
        ("ddl-dv1-ec", "write-only-ec"),
        ("ddl-cc", "write-only-cc"),
        ("ddl-cc-mean-read", "write-only-cc-mean-read"),
    ),
    "embedding convolution": (
        ("baseline-ec", "baseline"),
        ("normalised-branch-ec", "normalised-branch"),
        ("write-only-ec", "write-only"),
        ("ddl-dv1-ec", "ddl-dv1"),
        ("ddl-cc", "ddl-cc-noec"),
    ),
    "four value channels, read by CC": (("write-only-cc", "write-only-ec"), ("ddl-cc", "ddl-dv1-ec")),
    "CC's read, not the mean": (("ddl-cc", "ddl-cc-mean-read"), ("write-only-cc", "write-only-cc-mean-read")),
}

# The three comparisons that decide what the delta rule is worth: name -> (design of the paper, its rival).
PRIMARY = {
    "DDL-CC against the baseline": ("ddl-cc", "baseline"),
    "DDL-CC against the same without its erase term": ("ddl-cc", "write-only-cc"),
    "DDL-CC against a normalised branch with EC": ("ddl-cc", "normalised-branch-ec"),
}


@dataclass(frozen=True)
class Effect:
    """What a part does to the loss, in nats; below zero it helps. The intervals use the noise of all designs."""

    part: str
    main: Estimate
    pairs: dict[tuple[str, str], Estimate]  # (with the part, without it) -> difference


@dataclass(frozen=True)
class Primary:
    """A primary comparison: loss of the design minus that of its rival, with a p-value adjusted by Holm's method."""

    name: str
    rival: str
    difference: Estimate
    adjusted_p: float


def main_effects(blocks: Blocks | None) -> list[Effect]:
    """The effect of every part whose designs all have runs; empty without enough runs.

    Args:
        blocks: losses with one backbone and one size.
    """
    if not blocks:
        return []
    effects = []
    for part, pairs in PARTS.items():
        if not all(design in blocks.designs for pair in pairs for design in pair):
            continue
        weights: dict[str, float] = {}
        for with_it, without in pairs:
            weights[with_it] = weights.get(with_it, 0) + 1 / len(pairs)
            weights[without] = weights.get(without, 0) - 1 / len(pairs)
        each = {pair: blocks.difference(*pair) for pair in pairs}
        effects.append(Effect(part, blocks.contrast(weights), each))
    return effects


def primary_comparisons(blocks: Blocks | None) -> list[Primary]:
    """The comparisons of `PRIMARY` that have runs; the p-values are corrected for their number."""
    if not blocks:
        return []
    pairs = {name: pair for name, pair in PRIMARY.items() if set(pair) <= set(blocks.designs)}
    differences = {name: blocks.difference(*pair) for name, pair in pairs.items()}
    adjusted = holm({name: p_value(found, blocks.degrees_of_freedom) for name, found in differences.items()})
    return [Primary(name, pairs[name][1], differences[name], adjusted[name]) for name in pairs]
