"""Shared parts of the benchmarks: time budgets, CSV files to which rows are appended, and timing."""

import csv
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddl.errors import UserError
from ddl.provenance import provenance

CALLS, REPEATS = 10, 20  # calls between two time stamps on a GPU; number of such measurements
CPU_REPEATS = 3
QUANTILES = {"p20": 0.2, "p50": 0.5, "p80": 0.8}
COPY_BYTES = 2**30
ORIGIN = ("device", "device_type", "torch", "triton", "driver", "commit", "dirty", "utc")


class BenchmarkError(UserError):
    """Measurements cannot start; the message gives the reason in one line."""


class Budget:
    """A time budget in seconds that starts now."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def part(self, share: float) -> "Budget":
        """A budget that is a share of the time left."""
        return Budget(share * self.left())


class Rows:
    """A CSV with one row per measurement; new rows are appended at once, and existing rows are kept.

    Args:
        path: the file.
        columns: columns of this kind of measurement, followed by `reason` (why a row has no numbers) and the origin.
        origin: values of the columns `ORIGIN`.

    Raises:
        BenchmarkError: the file has other columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], origin: dict[str, Any]) -> None:
        self.path, self.columns, self.origin = path, (*columns, "reason", *ORIGIN), origin
        self.written = 0
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", self.columns)
        with open(path, newline="", encoding="utf-8") as file:
            found = tuple(next(csv.reader(file), ()))
        if found != self.columns:
            raise BenchmarkError(f"{path}: expected the columns {', '.join(self.columns)}, found {', '.join(found)}")

    def add(self, **values: Any) -> None:
        """Append a row; columns without a value are empty."""
        row = {"reason": ""} | self.origin | {key: shown(value) for key, value in values.items()}
        if unknown := set(row) - set(self.columns):
            raise KeyError(f"{self.path}: no columns {sorted(unknown)}")
        self._write("a", [row.get(column, "") for column in self.columns])
        self.written += 1

    def _write(self, mode: str, cells: Any) -> None:
        with open(self.path, mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def shown(value: Any) -> Any:
    """Round a float to five significant digits; return other values unchanged."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def origin(device: torch.device, commit: str | None) -> dict[str, Any]:
    """The columns that record the origin of a row."""
    source = provenance()
    return {
        "device": source["device"],
        "device_type": device.type,
        "torch": torch.__version__,
        "triton": source["versions"]["triton"],
        "driver": driver_version() if device.type == "cuda" else "",
        "commit": source["commit"] or commit,
        "dirty": source["dirty"] if source["commit"] else "",
        "utc": source["utc"],
    }


def driver_version() -> str:
    """The GPU's driver version from nvidia-smi; empty if there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def milliseconds(prepare: Callable[[], Callable[[], Any]], device: torch.device) -> dict[str, Any]:
    """Quantiles of the time of one call in ms, and the `timer` that measured them.

    On a GPU the calls are captured in a CUDA graph, and events time its replays, because most kernels here run faster
    than Python can launch them. If capture fails, the calls themselves are timed and the timer is "events".

    Args:
        prepare: returns the function to time. It runs on the stream used for the capture, because a backward pass runs
            on the stream of its forward pass.
    """
    if device.type == "cpu":
        times, timer = cpu_times(prepare()), "clock"
    else:
        times, timer = gpu_times(prepare)
    quantiles = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([*QUANTILES.values()]).double())
    return {**{f"{name}_ms": value for name, value in zip(QUANTILES, quantiles.tolist(), strict=True)}, "timer": timer}


def cpu_times(work: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(1 + CPU_REPEATS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def gpu_times(prepare: Callable[[], Callable[[], Any]]) -> tuple[list[float], str]:
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work = prepare()
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph, timer = torch.cuda.CUDAGraph(), "graph"
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(CALLS):
                work()
    except RuntimeError as error:
        print(f"CUDA graph capture failed, so launches are timed too: {first_line(error)}", flush=True)
        timer = "events"
    times = []
    with torch.cuda.stream(stream):
        for _ in range(1 + REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            if timer == "graph":
                graph.replay()
            else:
                for _ in range(CALLS):
                    work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / CALLS)
    return times[1:], timer


def copy_speed(device: torch.device) -> dict[str, Any]:
    """Copy bandwidth within the device (bytes read plus written, in GB/s), for a copy larger than its caches."""
    source = torch.ones(COPY_BYTES if device.type == "cuda" else 2**24, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    measured = milliseconds(lambda: lambda: target.copy_(source), device)
    return measured | {"gb_per_s": 2 * source.numel() / measured["p50_ms"] / 1e6}


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, for a row's `reason`."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
