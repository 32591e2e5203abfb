"""Estimate the GPU-hours and disk space that the paper's six designs need at a scale."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ddl.config import SIZES, Scale, load_scale, paper_variants
from ddl.layout import BASELINE, KEPT_CHECKPOINTS
from ddl.model.language_model import parameter_count
from ddl.reporting.read_results import gpu_cost, published

PAPER_GPUS = 4  # H200 (Sec. 4.1); we assume that Tables 4 and 5 give their combined throughput
# Card -> TFLOP/s of dense bf16 matrix products and TB/s of memory, from the vendors' data sheets.
CARDS = {
    "H200": (989, 4.8),
    "H100": (989, 3.35),
    "B200": (2250, 8.0),
    "MI300X": (1307, 5.3),
    "A100": (312, 2.04),
    "L40S": (362, 0.864),
    "RTX 4090": (165, 1.008),
    "RTX 3090": (71, 0.936),
}
CHECKPOINT_BYTES = 3 * 4  # per parameter: the weight and two moments, in fp32
WEIGHT_BYTES = 4  # per parameter, in fp32
TOKEN_BYTES = 2


@dataclass(frozen=True)
class Throughput:
    """Training tokens per second per GPU for each design, and the source.

    `estimated` are the designs whose throughput is estimated rather than published or measured; `error` is the largest
    relative error of that estimate where it can be checked.
    """

    tok_per_s: dict[str, float]
    source: str
    estimated: set[str] = field(default_factory=set)
    error: float = 0.0


def throughput(size: str) -> Throughput:
    """Throughput measured by `benchmarks/gpu.py` if it covers all six designs, else the published throughput."""
    measured = gpu_cost(size)
    speeds = {variant: float(record["train_tok_per_s_median"]) for variant, record in measured.items()}
    if all(math.isfinite(speeds.get(slug, math.nan)) for slug in paper_variants()):
        device = next(iter(measured.values()))["device"]
        return Throughput(speeds, f"the throughput measured on one {device} (`benchmarks/gpu.py`)")
    return published_throughput(size)


def published_throughput(size: str) -> Throughput:
    """Throughput of one of the paper's H200 GPUs.

    A design that is published at the other size only is estimated: its ratio to the baseline there, times the
    throughput of the baseline here.
    """
    here, there = (_published_speeds(name) for name in (size, *(other for other in SIZES if other != size)))
    guesses = {slug: speed / there[BASELINE] * here[BASELINE] for slug, speed in there.items()}
    return Throughput(
        guesses | here,
        f"the published throughput (Tables 4 and 5, v3 and the revised text), which is assumed to be the total of the "
        f"paper's {PAPER_GPUS} H200 GPUs",
        guesses.keys() - here.keys(),
        max(abs(guesses[slug] / here[slug] - 1) for slug in guesses.keys() & here.keys()),
    )


def _published_speeds(size: str) -> dict[str, float]:
    """Training tokens per second per GPU of the designs for which either version of the paper gives it."""
    frame = published("cost")
    own = frame[frame["size"] == size].set_index("variant")["train_ktok_per_s"]
    return {str(variant): 1000 * float(speed) / PAPER_GPUS for variant, speed in own.items()}


def gpu_hours(scale: Scale, size: str, variant: str, found: Throughput | None = None) -> float:
    """GPU-hours to train one of the paper's designs at one size, over all seeds.

    A model with a smaller vocabulary than the paper's is assumed to be faster in proportion to its parameters.

    Args:
        found: the throughput of the paper's models; None for the best that is known.
    """
    here, paper = (parameter_count(each.model(size, variant))["total"] for each in (scale, load_scale("paper")))
    speed = (found or throughput(size)).tok_per_s[variant]
    return len(scale.seeds) * scale.tokens / speed / 3600 * here / paper


def hours_by_card(scale: Scale) -> str:
    """One line: hours to train the paper's twelve models on one card of several kinds, relative to an H200.

    A card is as much slower as its arithmetic or its memory is, whichever is more.
    """
    hours = sum(
        gpu_hours(scale, size, slug, published_throughput(size)) for size in scale.sizes for slug in paper_variants()
    )
    flops, bandwidth = CARDS["H200"]
    cards = [
        f"{name} {hours * max(flops / own_flops, bandwidth / own_bandwidth):,.1f}"
        for name, (own_flops, own_bandwidth) in CARDS.items()
    ]
    source = published_throughput(next(iter(scale.sizes))).source
    return (
        f"hours to train the paper's twelve models on one card, without validation and evaluation, not measured: "
        f"{', '.join(cards)}. From {source}; in proportion to the parameters, and on other cards to arithmetic or "
        "memory bandwidth, whichever is slower."
    )


def _shown(hours: float, decimals: int) -> str:
    """Hours with these decimals, or with two below one hour."""
    return f"{hours:,.{decimals if hours >= 1 else 2}f}"


def disk_bytes(scale: Scale) -> dict[str, int]:
    """Bytes of token shards (if the number of tokens is known), weights and checkpoints, for the paper's designs."""
    parameters = len(scale.seeds) * sum(
        parameter_count(scale.model(size, variant))["total"] for size in scale.sizes for variant in paper_variants()
    )
    tokens = scale.corpus.most_tokens
    return ({} if tokens is None else {"token shards": TOKEN_BYTES * tokens}) | {
        "weights": WEIGHT_BYTES * parameters,
        "checkpoints": KEPT_CHECKPOINTS * CHECKPOINT_BYTES * parameters,
    }


def budget_part(names: Iterable[str] = ("workstation", "h200", "paper")) -> str:
    """The table of GPU-hours with its assumptions, and the disk space."""
    scales = [load_scale(name) for name in names]
    columns = [(scale, size) for scale in scales for size in scale.sizes]
    heads = [f"`{scale.name}`, {size}" for scale, size in columns]
    lines = [f"| GPU-hours | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for slug, variant in paper_variants().items():
        marks = ["≈ " if slug in throughput(size).estimated else "" for _, size in columns]
        hours = [_shown(gpu_hours(scale, size, slug), 1) for scale, size in columns]
        cells = [mark + number for mark, number in zip(marks, hours, strict=True)]
        lines.append(f"| {variant.label} | {' | '.join(cells)} |")
    sums = [sum(gpu_hours(scale, size, slug) for slug in paper_variants()) for scale, size in columns]
    marks = ["≈ " if throughput(size).estimated else "" for _, size in columns]
    totals = [f"{mark}{_shown(hours, 0)}" for mark, hours in zip(marks, sums, strict=True)]
    lines += [f"| all six | {' | '.join(totals)} |", ""]
    for source in dict.fromkeys(throughput(size).source for _, size in columns):
        sizes = " and ".join(size for size in scales[0].sizes if throughput(size).source == source)
        lines.append(f"Not run: the hours of the {sizes} models are computed from {source}.")
    guessed = {size: throughput(size) for _, size in columns if throughput(size).estimated}
    for size, found in guessed.items():
        labels = " and ".join(paper_variants()[slug].label for slug in sorted(found.estimated))
        lines.append(
            f"≈: neither version of the paper publishes the throughput of {labels} at the {size} size. It is estimated "
            "from the ratio to the baseline at the other size. For the designs that are published at both sizes, this "
            f"estimate is within {math.ceil(1000 * found.error) / 10:g}% of the published throughput."
        )
    disks = []
    for scale in scales:
        parts = [f"{count / 1e9:,.0f} GB of {kind}" for kind, count in disk_bytes(scale).items()]
        disks.append(f"`{scale.name}` needs {', '.join(parts)}")
    lines += [
        "A model with a smaller vocabulary than the paper's is assumed to be faster in proportion to its parameters. "
        "Validation and evaluation are not included.",
        "",
        f"Disk for all twelve runs: {'; '.join(disks)}.",
    ]
    return "\n".join(lines)
