"""What the committed studies found about the gain, as numbers for the paper, the README and notebook 13."""

from dataclasses import asdict, dataclass
from typing import Any

from ddl.layout import BASELINE
from ddl.reporting.judged_claims import CONTROLS, DESIGNS, FAIR, PAPER, of_runs
from ddl.reporting.read_studies import rows_if_any
from ddl.reporting.seed_statistics import Blocks, Estimate, Losses, paired_difference

EXPANDED, SCALAR, WRITE_ONLY = "ddl-cc", "ddl-dv1", "write-only-cc"
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
    )


def gains(losses: dict[str, Losses]) -> dict[str, Estimate]:
    """Design -> loss of the baseline minus that of the design; the intervals hold together."""
    found = {slug: runs for slug, runs in losses.items() if len(runs.keys() & losses.get(BASELINE, {}).keys()) > 1}
    if len(found) < 2 or len(set.intersection(*map(set, found.values()))) < 2:
        return {}
    return {slug: estimate.negated() for slug, estimate in Blocks.of(found).against(BASELINE).items()}


def difference(losses: Losses, reference: Losses) -> Estimate | None:
    """Paired difference; None with fewer than two common seeds."""
    return paired_difference(losses, reference) if len(losses.keys() & reference.keys()) > 1 else None
