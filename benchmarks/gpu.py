"""Run all measurements that need a GPU, in eight minutes: `python -m benchmarks.gpu`.

First it checks the operations, and stops if one is wrong. Then it measures each kernel, times training and inference of
all variants at the paper scale, and profiles one training step of the baseline and of DDL-CC. README.md in this folder
explains the columns. Requires torch >= 2.11, triton >= 3.6, NumPy and PyYAML. The package need not be installed if the
command runs in the root of the repository.
"""

import argparse
import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import end_to_end, kernels
from benchmarks.end_to_end import PROFILED
from benchmarks.measure import BenchmarkError, Budget, Rows, origin
from ddl.config import Scale, load_scale
from ddl.errors import UserError
from ddl.files import write_text
from ddl.layout import ROOT

PROFILED_ALONE = {"cuda": ("paper", "small"), "cpu": ("laptop", "medium")}  # scale and size
KERNEL_TOKENS = (32, 1024)
# Fraction of the remaining time that each part may use.
TESTS_SHARE, KERNELS_SHARE, END_TO_END_SHARE = 0.25, 0.35, 0.9


def run_tests(budget: Budget) -> None:
    """Run the kernel tests in a new process, if pytest is installed.

    Raises:
        BenchmarkError: a test fails.
    """
    if not importlib.util.find_spec("pytest"):
        print("tests: skipped, pytest is not installed", flush=True)
        return
    tests = ["tests/ops", "tests/model/test_kernels_in_models.py"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-x", "-q", "-p", "no:cacheprovider", *tests]
    seconds = budget.left()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(
            f"tests: stopped after {seconds:.0f} s without a failure; run `pytest -m gpu` for all of them", flush=True
        )
        return
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
        raise BenchmarkError("tests: some failed (see above); nothing was measured")
    print(f"tests: {done.stdout.splitlines()[-1]}", flush=True)


def quick_scale(on_gpu: bool) -> Scale:
    """The smoke scale with the execution settings and precision of the paper scale."""
    smoke, paper = load_scale("smoke"), load_scale("paper")
    training = dataclasses.replace(smoke.training, dtype=paper.training.dtype, compile=on_gpu)
    return dataclasses.replace(smoke, training=training, execution=paper.execution)


def write_profiles(out: Path, scale: Scale, size: str, source: dict) -> None:
    """Write profile-<size>-<variant>.txt for the baseline and DDL-CC."""
    for variant in PROFILED:
        head = [f"One training step of the {size} {variant} of the {scale.name} scale"]
        for facts in (end_to_end.describe(scale, size, variant), source):
            head += [", ".join(f"{key} {value}" for key, value in facts.items() if value != "")]
        head += [""]
        table = end_to_end.profile_step(scale, size, variant)
        path = out / f"profile-{size}-{variant}.txt"
        write_text(path, "\n".join([*head, table, ""]))
        print(f"{path}\n{table}", flush=True)


def measure_all(args: argparse.Namespace, out: Path, device: torch.device) -> int:
    """Run all parts; return the number of failed measurements."""
    on_gpu = device.type == "cuda"
    scale = quick_scale(on_gpu) if args.quick else load_scale("paper")
    budget, source = Budget(60 * args.minutes), origin(device, args.commit)
    widths = tuple(size.width for size in scale.sizes.values())
    kernel_rows = Rows(out / "kernels.csv", kernels.COLUMNS, source)
    model_rows = Rows(out / "end_to_end.csv", end_to_end.COLUMNS, source)
    kernels.check(widths, device)
    if on_gpu:
        run_tests(budget.part(TESTS_SHARE))
    tokens = (2, 16) if args.quick else KERNEL_TOKENS
    failed = kernels.measure(kernel_rows, widths, tokens, device, budget.part(KERNELS_SHARE))
    torch.compiler.reset()
    failed += end_to_end.measure(model_rows, scale, budget.part(END_TO_END_SHARE))
    if budget.left() > 0:
        write_profiles(out, scale, "small", source)
    else:
        print("dropped, no time left: profiles", flush=True)
    print(f"{kernel_rows.written + model_rows.written} rows in {out}, {budget.left():.0f} s left", flush=True)
    return failed


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure on a GPU.")
    parser.add_argument("--out", type=Path, help="folder for the rows (results/reference/<GPU>)")
    parser.add_argument("--minutes", type=float, default=8, help="time after which no new measurement starts (8)")
    parser.add_argument("--commit", help="commit of these files, if they are not in a git repository")
    parser.add_argument(
        "--quick", action="store_true", help="try the command with tiny models, also on a CPU; needs --out"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="only write profiles; on a CPU, of the medium models of the laptop scale",
    )
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if device.type == "cpu" and not (args.quick or args.profile):
            raise BenchmarkError("no GPU found; --quick tries the command on a CPU, --profile profiles a laptop model")
        if args.out is None and (args.quick or device.type == "cpu"):
            raise BenchmarkError(
                "--out: required with --quick or without a GPU, to keep such rows apart from GPU results"
            )
        if device.type == "cpu":
            torch.set_num_threads(1)  # as in training at the laptop scale
        out = args.out or ROOT / "results" / "reference" / slug(torch.cuda.get_device_name())
        if args.profile:
            scale, size = PROFILED_ALONE[device.type]
            write_profiles(out, load_scale(scale), size, origin(device, args.commit))
        elif measure_all(args, out, device):
            raise SystemExit(1)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def slug(name: str) -> str:
    """Turn the name of a GPU into a folder name: NVIDIA H200 -> h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


if __name__ == "__main__":
    main()
