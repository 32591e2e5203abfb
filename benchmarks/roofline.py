"""Predict what the kernels take on GPUs that are not at hand, from counted bytes and compiled resources.

    python -m benchmarks.roofline [--out results/reference/kernels]

Nothing is measured here. A pass takes as long as the slowest of three things:

- memory: its bytes per token (`bytes.csv`), at the share `COPY` of the bandwidth in the data sheet;
- latency: a program takes one group of tokens after another and waits `STEP_SECONDS` for each. How many programs run at
  once follows from how many are launched, and from their registers, shared memory and warps (`resources.csv`);
- arithmetic: its FLOPs, at the share `ARITHMETIC` of the fp32 peak.

A training step is then predicted beside the baseline's. The baseline's is the paper's throughput, or that with the
target of 1.25 times it; both are of an H200 and carried to other GPUs by their bf16 peak. A kernel that is measured far
from its prediction disproves one of the constants below.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.bytes import BF16
from benchmarks.compiled import Launch, record_launches
from benchmarks.launches import TOKENS as LAUNCHED_TOKENS
from benchmarks.launches import paper_passes
from benchmarks.measure import Rows, origin
from ddl.config import ModelConfig, load_scale, paper_variants
from ddl.layout import BASELINE, REFERENCE
from ddl.reporting.budget import CARDS, PAPER_GPUS
from ddl.reporting.read_results import published
from ddl.reporting.readme import newest_rows

KERNELS = REFERENCE / "kernels"
COPY = 0.9  # of the bandwidth in a data sheet that a copy reaches
ARITHMETIC = 0.5  # of the fp32 peak: conversions, indices and reductions take as many instructions as multiply-adds
STEP_SECONDS = 1.2e-6  # to load the rows of a group of tokens, reduce over them four times, and store
LAUNCH_SECONDS = 2e-6  # between two kernels of a captured graph
TARGET = 1.25  # times the paper's throughput of the baseline
# What the baseline does in place of a fused rewrite, compiled, in vectors of d numbers per token. Forward: it reads x
# and h, and writes x' and c. Backward: it reads x' and the gradients in x' and c, and writes one that is also h's.
RESIDUAL_ADDITION = {"forward": 4, "backward": 4}
# What gate and value read and write beside the fused rewrite, each for itself. Forward: the context. Backward: it
# again for the gradient of the weights, the gradient in it, and the sum of these gradients.
GENERATORS = {"forward": 2, "backward": 6}
PROGRAMS = 32  # most programs that a multiprocessor of NVIDIA holds


@dataclass(frozen=True)
class Gpu:
    """Numbers of a data sheet; registers are 32 bits wide."""

    name: str  # in `ddl.reporting.budget.CARDS`
    fp32: float  # FLOP/s
    multiprocessors: int
    registers: int  # of a multiprocessor
    shared: int  # bytes of a multiprocessor
    warps: int  # most that a multiprocessor holds
    lanes: int = 32  # threads of a warp

    @property
    def bf16(self) -> float:
        """FLOP/s of dense products."""
        return CARDS[self.name][0] * 1e12

    @property
    def copy(self) -> float:
        """Bytes/s of a copy, reading and writing together."""
        return COPY * CARDS[self.name][1] * 1e12


GPUS = {
    "sm_80": Gpu("A100", 19.5e12, 108, 65536, 164 * 1024, 64),
    "sm_90": Gpu("H200", 67e12, 132, 65536, 228 * 1024, 64),
    "sm_100": Gpu("B200", 75e12, 148, 65536, 228 * 1024, 64),
    "gfx942": Gpu("MI300X", 163.4e12, 304, 131072, 64 * 1024, 32, 64),
}


@dataclass(frozen=True)
class Kernel:
    """What one launch of a kernel needs.

    Args:
        registers: per thread.
        shared: bytes of a program.
        warps: of a program.
        programs_per_token: programs that are launched, divided by the tokens.
        steps: groups of tokens that a program takes one after another.
    """

    registers: int
    shared: int
    warps: int
    programs_per_token: float
    steps: int

    def at_once(self, gpu: Gpu) -> int:
        """Programs that a multiprocessor holds."""
        registers = math.ceil(self.registers / 8) * 8 * gpu.lanes * self.warps
        return min(gpu.registers // registers, gpu.shared // (self.shared + 1024), gpu.warps // self.warps, PROGRAMS)


@dataclass(frozen=True)
class Prediction:
    """Seconds per token of a pass, by what limits it."""

    memory: float
    latency: float
    arithmetic: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.latency, self.arithmetic)

    @property
    def limit(self) -> str:
        return max(("memory", "latency", "arithmetic"), key=lambda name: getattr(self, name))


def predict(gpu: Gpu, size: float, flops: float, kernel: Kernel, tokens: int) -> Prediction:
    """Predict a pass of one kernel.

    Args:
        size: bytes per token.
        flops: per token.
        tokens: of the call.
    """
    waves = math.ceil(kernel.programs_per_token * tokens / (kernel.at_once(gpu) * gpu.multiprocessors))
    return Prediction(
        size / gpu.copy + LAUNCH_SECONDS / tokens,
        waves * kernel.steps * STEP_SECONDS / tokens,
        flops / (ARITHMETIC * gpu.fp32),
    )


def steps_of(launch: Launch) -> int:
    """Groups of tokens that one program takes one after another."""
    found = launch.arguments
    tokens = found.get("chunk") or found.get("CHUNK")
    return math.ceil(tokens / found.get("BLOCK_T", 1)) if tokens else 1


@cache
def launches(d: int) -> dict[tuple[str, str, str, str], Launch]:
    """Operation, direction, channels and states -> the launch of its kernel, for `LAUNCHED_TOKENS` tokens."""
    found = {}
    for states in ("stored", "rebuilt"):
        for each in paper_passes(d, "meta", states == "rebuilt"):
            (found[each.operation, each.direction, str(each.d_v), states],) = record_launches(each.run)
    return found


def flops(operation: str, direction: str, d: int, d_v: int) -> int:
    """FLOPs per token; a backward pass has twice those of the forward pass.

    A rewrite normalises k, reads along it, and adds (`Delta.flops`); a reader multiplies each channel by its taps.
    """
    taps = {"cc": 1, "tc": 4, "expand": 4}.get(operation.rpartition("_")[2], 0)
    rewrite = 4 * d * d_v + 3 * d if "rewrite" in operation else 0
    norm = 4 * d if operation.startswith("fused") else 0
    return (rewrite + 2 * d * d_v * taps + norm) * (2 if direction == "backward" else 1)


def micro_batch() -> int:
    """Tokens of a micro-batch of the paper's scale."""
    scale = load_scale("paper")
    return scale.training.micro_batch_sequences * scale.sequence_length


def passes() -> Iterator[dict[str, Any]]:
    """Predictions of all passes on all GPUs: rows of the table."""
    names = ("operation", "direction", "d_v", "states", "d", "target")
    compiled = {tuple(row[name] for name in names): row for row in newest_rows(KERNELS / "resources.csv")}
    counted = {tuple(row[name] for name in names[:-1]): row for row in newest_rows(KERNELS / "bytes.csv")}
    for (operation, direction, d_v, states, d), row in counted.items():
        launch = launches(int(d))[operation, direction, d_v, states]
        for target, gpu in GPUS.items():
            found = compiled[operation, direction, d_v, states, d, target]
            kernel = Kernel(
                int(found["registers"]),
                int(found["shared"]),
                launch.options.get("num_warps", 4),
                launch.programs / LAUNCHED_TOKENS,
                steps_of(launch),
            )
            work = flops(operation, direction, int(d), int(d_v))
            predicted = predict(gpu, float(row["ours"]), work, kernel, micro_batch())
            yield {
                "gpu": gpu.name,
                "operation": operation,
                "d_v": int(d_v),
                "d": int(d),
                "direction": direction,
                "states": states,
                "ns_per_token": 1e9 * predicted.seconds,
                "limit": predicted.limit,
                "latency_ns": 1e9 * predicted.latency,
                "percent_of_copy": 100 * float(row["floor"]) / gpu.copy / predicted.seconds,
            }


def steps(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Predicted throughput of training, as a ratio to the baseline's, from the rows of `passes`."""
    scale = load_scale("paper")
    speeds = published("cost").query("variant == @BASELINE").set_index("size")["train_ktok_per_s"]
    seconds = {
        (row["gpu"], row["operation"], row["d_v"], row["d"], row["direction"]): row["ns_per_token"] / 1e9
        for row in rows
        if row["states"] == scale.execution.state_memory
    }
    for size in scale.sizes:
        for gpu in GPUS.values():
            base = PAPER_GPUS / (1000 * speeds[size]) * GPUS["sm_90"].bf16 / gpu.bf16
            for variant in paper_variants():
                if variant == BASELINE:
                    continue
                more = added_seconds(scale.model(size, variant), gpu, seconds)
                yield {
                    "gpu": gpu.name,
                    "size": size,
                    "variant": variant,
                    "ratio_at_papers_speed": base / (base + more),
                    "ratio_at_target": base / TARGET / (base / TARGET + more),
                }


def added_seconds(config: ModelConfig, gpu: Gpu, seconds: dict[tuple[str, str, int, int, str], float]) -> float:
    """Seconds per token that a design adds to a training step of the baseline."""
    d, d_v = config.width, config.value_channels
    reader = "" if d_v == 1 else f"_{config.compressor}"
    vector = d * BF16 / gpu.copy
    total = 0.0
    for direction in ("forward", "backward"):
        sublayer = seconds[gpu.name, f"fused_rewrite{reader}", d_v, d, direction]
        sublayer += (GENERATORS[direction] - RESIDUAL_ADDITION[direction]) * vector
        total += 2 * config.layers * sublayer
        if d_v > 1:  # the first state, and the first reading of it
            repeat = (d_v + 1) * vector
            total += seconds[gpu.name, "expand", d_v, d, direction] if config.embed_conv else repeat
            total += seconds[gpu.name, f"compress{reader}", d_v, d, direction]
    return total


PASSES = (
    *("gpu", "operation", "d_v", "d", "direction", "states"),
    *("ns_per_token", "limit", "latency_ns", "percent_of_copy"),
)
STEPS = ("gpu", "size", "variant", "ratio_at_papers_speed", "ratio_at_target")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for predicted_passes.csv and predicted_steps.csv")
    arguments = parser.parse_args(argv)
    of_passes = list(passes())
    for name, columns, rows in (("passes", PASSES, of_passes), ("steps", STEPS, list(steps(of_passes)))):
        kept = arguments.out and Rows(
            arguments.out / f"predicted_{name}.csv", columns, origin(torch.device("cpu"), None)
        )
        print(*columns, sep="\t")
        for row in rows:
            print(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()), sep="\t")
            if kept:
                kept.add(**row)


if __name__ == "__main__":
    main()
