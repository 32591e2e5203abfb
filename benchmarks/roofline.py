"""Predict what the kernels take on GPUs that are not at hand, from counted bytes and compiled resources.

    python -m benchmarks.roofline [--out results/reference/kernels]

Nothing is measured here. A pass takes as long as the slowest of three things:

- memory: its bytes per token (`bytes.csv`), at the share `COPY` of the bandwidth in the data sheet;
- latency: a program handles one token after another and waits `TOKEN_SECONDS` for each, so the GPU needs many programs
  at once. How many a multiprocessor holds follows from registers, shared memory and warps (`resources.csv`);
- arithmetic: the FLOPs that `ddl.model.flops` counts, at the share `ARITHMETIC` of the fp32 peak.

A training step is then predicted beside the baseline's. The baseline's is the paper's throughput, or that with the
target of 1.25 times it; both are of an H200 and carried to other GPUs by their bf16 peak. A kernel that is measured far
from its prediction disproves one of the constants below.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.bytes import BF16
from benchmarks.compiled import record_launches
from benchmarks.launches import paper_passes
from benchmarks.measure import Rows, origin
from ddl.config import ModelConfig, load_scale, paper_variants
from ddl.layout import BASELINE, REFERENCE
from ddl.reporting.budget import PAPER_GPUS
from ddl.reporting.read_results import published
from ddl.reporting.readme import newest_rows

KERNELS = REFERENCE / "kernels"
COPY = 0.9  # of the bandwidth in a data sheet that a copy reaches
ARITHMETIC = 0.5  # of the fp32 peak: conversions, indices and reductions take as many instructions as multiply-adds
TOKEN_SECONDS = 1.2e-6  # to load a token's rows, reduce over them four times, and store
LAUNCH_SECONDS = 2e-6  # between two kernels of a captured graph
TOKENS = 16 * 1024  # per call, as in a micro-batch of the paper's scale
TARGET = 1.25  # times the paper's throughput of the baseline
# What the baseline does instead, compiled, in vectors of d numbers per token: it adds, normalises, and keeps the state.
RESIDUAL_ADDITION = {"forward": 4, "backward": 5}
# What the gate and the value read and write beside the fused rewrite: the context, and its gradient twice.
GENERATORS = {"forward": 1, "backward": 3}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Numbers of a data sheet; registers are 32 bits wide."""

    name: str
    bandwidth: float  # bytes/s
    fp32: float  # FLOP/s
    bf16: float  # FLOP/s, dense
    multiprocessors: int
    registers: int  # of a multiprocessor
    shared: int  # bytes of a multiprocessor
    warps: int  # most that a multiprocessor holds
    lanes: int = 32  # threads of a warp


GPUS = {
    "sm_80": Gpu("A100", 2.04e12, 19.5e12, 312e12, 108, 65536, 164 * 1024, 64),
    "sm_90": Gpu("H200", 4.8e12, 67e12, 989e12, 132, 65536, 228 * 1024, 64),
    "sm_100": Gpu("B200", 8.0e12, 75e12, 2250e12, 148, 65536, 228 * 1024, 64),
    "gfx942": Gpu("MI300X", 5.3e12, 81.7e12, 1307e12, 304, 131072, 64 * 1024, 32, 64),
}


def programs_at_once(gpu: Gpu, registers: int, shared: int, warps: int) -> int:
    """Programs of a kernel that a multiprocessor holds.

    Args:
        registers: per thread.
        shared: bytes of shared memory of a program.
        warps: of a program.
    """
    per_program = math.ceil(registers / 8) * 8 * gpu.lanes * warps
    return min(gpu.registers // per_program, gpu.shared // (shared + 1024), gpu.warps // warps)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds per token of a pass, by what limits it."""

    memory: float
    latency: float
    arithmetic: float
    programs: int  # at once on a multiprocessor

    @property
    def seconds(self) -> float:
        return max(self.memory, self.latency, self.arithmetic)

    @property
    def limit(self) -> str:
        return max(("memory", "latency", "arithmetic"), key=lambda name: getattr(self, name))


def predict(gpu: Gpu, size: float, flops: float, kernels: list[tuple[int, int, int]], tokens: int) -> Prediction:
    """Predict a pass.

    Args:
        size: bytes per token.
        flops: per token.
        kernels: registers, shared memory and warps of its kernels; the one of which fewest fit counts.
        tokens: of a call.
    """
    programs = min(programs_at_once(gpu, *kernel) for kernel in kernels)
    return Prediction(
        size / (COPY * gpu.bandwidth) + LAUNCH_SECONDS * len(kernels) / tokens,
        TOKEN_SECONDS / (programs * gpu.multiprocessors),
        flops / (ARITHMETIC * gpu.fp32),
        programs,
    )


@cache
def warps_of(d: int) -> dict[tuple[str, str, str, str, str], int]:
    """Operation, direction, channels, states and kernel -> warps of a program, from the launchers."""
    found = {}
    for states in ("stored", "rebuilt"):
        for each in paper_passes(d, "meta", states == "rebuilt"):
            for launch in record_launches(each.run):
                key = each.operation, each.direction, str(each.d_v), states, launch.kernel.__name__
                found[key] = launch.options.get("num_warps", 4)
    return found


def flops(operation: str, direction: str, d: int, d_v: int) -> float:
    """FLOPs per token; a backward pass has twice those of the forward pass."""
    taps = {"cc": 1, "tc": 4}.get(operation.rpartition("_")[2], 0)
    rewrite = 6 * d * d_v + 3 * d if "rewrite" in operation else 0  # k^T X, the update, and the norm of k
    read_out = 2 * d * d_v * (taps or (4 if operation == "expand" else 0))
    norm = 4 * d if operation.startswith("fused") else 0
    return (rewrite + read_out + norm) * (2 if direction == "backward" else 1)


def passes() -> Iterator[dict[str, Any]]:
    """Predictions of all passes on all GPUs: rows of the table."""
    resources = newest_rows(KERNELS / "resources.csv")
    for row in newest_rows(KERNELS / "bytes.csv"):
        d, d_v = int(row["d"]), int(row["d_v"])
        key = row["operation"], row["direction"], row["d_v"], row["states"]
        for target, gpu in GPUS.items():
            kernels = [
                (int(each["registers"]), int(each["shared"]), warps_of(d)[*key, each["kernel"]])
                for each in resources
                if (each["operation"], each["direction"], each["d_v"], each["states"]) == key
                and (each["d"], each["target"]) == (row["d"], target)
            ]
            work = flops(row["operation"], row["direction"], d, d_v)
            found = predict(gpu, float(row["ours"]), work, kernels, TOKENS)
            yield {
                "gpu": gpu.name,
                "operation": row["operation"],
                "d_v": d_v,
                "d": d,
                "direction": row["direction"],
                "states": row["states"],
                "ns_per_token": 1e9 * found.seconds,
                "limit": found.limit,
                "programs": found.programs,
                "percent_of_copy": 100 * float(row["floor"]) / (COPY * gpu.bandwidth) / found.seconds,
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
                config = scale.model(size, variant)
                more = added_seconds(config, gpu, seconds)
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
    operation = "fused_rewrite" if d_v == 1 else f"fused_rewrite_{config.compressor}"
    vector = d * BF16 / (COPY * gpu.bandwidth)
    total = 0.0
    for direction in ("forward", "backward"):
        sublayer = seconds[gpu.name, operation, d_v, d, direction]
        sublayer += (GENERATORS[direction] - RESIDUAL_ADDITION[direction]) * vector
        total += 2 * config.layers * sublayer
        if d_v > 1:
            total += seconds[gpu.name, "expand", d_v, d, direction]
            total += seconds[gpu.name, operation.replace("fused_rewrite", "compress"), d_v, d, direction]
    return total


PASSES = ("gpu", "operation", "d_v", "d", "direction", "states", "ns_per_token", "limit", "programs", "percent_of_copy")
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
