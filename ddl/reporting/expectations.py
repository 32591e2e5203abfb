"""What was expected of the residual designs before any of them was trained here, and what came of it.

The expectations are those of `docs/residual-designs.md`, as ranges of a difference in nats between two designs.
"""

import math
from dataclasses import dataclass

import pandas as pd

from ddl.layout import BASELINE
from ddl.reporting.judged_claims import FAIR
from ddl.reporting.read_studies import losses, rows_if_any
from ddl.reporting.rivals import STUDY, at_own_rate
from ddl.reporting.seed_statistics import Blocks, Estimate

ALIKE = 0.02  # nats: what "within" and "about as much" mean
ROUTERS = (
    "first-state",
    "denseformer",
    "attnres",
    "attnres-block",
    "delta-attnres",
    "delta-attnres-block",
    "value-residual",
)


@dataclass(frozen=True)
class Expectation:
    """The loss of each of some designs minus that of a reference lies in a range, in nats."""

    text: str
    designs: tuple[str, ...]
    reference: str
    low: float
    high: float

    def judge(self, found: Estimate) -> str:
        """Holds if the whole interval is in the range, missed if it is outside, else open."""
        if self.low <= found.low and found.high <= self.high:
            return "holds"
        return "missed" if found.high < self.low or self.high < found.low else "open"


EXPECTATIONS = (
    Expectation(
        "routing over depth changes the loss by less than 0.02 nats", ROUTERS, BASELINE, low=-ALIKE, high=ALIKE
    ),
    Expectation(
        "LAuReL changes the loss by less than 0.02 nats", ("laurel-rw", "laurel-lr"), BASELINE, low=-ALIKE, high=ALIKE
    ),
    Expectation(
        "several streams gain at most 0.03 nats", ("hc-static", "hc", "mhc", "ihc"), BASELINE, low=-0.03, high=math.inf
    ),
    Expectation("mHC and iHC are alike", ("mhc",), "ihc", low=-ALIKE, high=ALIKE),
    Expectation(
        "iHC with a normalised branch is like the normalised branch alone",
        ("ihc-normalised",),
        "normalised-branch",
        low=-ALIKE,
        high=ALIKE,
    ),
    Expectation(
        "iHC with a normalised branch is like DDL-CC without EC and erase",
        ("ihc-normalised",),
        "write-only-cc-noec",
        low=-ALIKE,
        high=ALIKE,
    ),
    Expectation(
        "the highways end at the baseline or above it",
        ("highway", "highway-vector"),
        BASELINE,
        low=-ALIKE,
        high=math.inf,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """An expectation of one design at one size, with the difference that was measured."""

    expectation: Expectation
    design: str
    difference: Estimate

    @property
    def verdict(self) -> str:
        """Holds, missed or open."""
        return self.expectation.judge(self.difference)


def outcomes(size: str, rows: pd.DataFrame | None = None) -> list[Outcome]:
    """What came of each expectation at one size, for the designs that were run there, each at its own rate."""
    every = rows_if_any(STUDY) if rows is None else rows
    own = at_own_rate(every[(every["size"] == size) & (every["backbone"] == FAIR)])
    blocks = Blocks.if_enough({str(slug): losses(group) for slug, group in own.groupby("variant", sort=False)})
    known = blocks.designs if blocks else ()
    return [
        Outcome(each, design, blocks.difference(design, each.reference))
        for each in EXPECTATIONS
        for design in each.designs
        if blocks and design in known and each.reference in known
    ]
