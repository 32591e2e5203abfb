"""Every figure that needs a GPU, in one command and eight minutes: `python -m benchmarks.gpu`.

In this order: are the operations right (else it stops); the kernels one by one; training and inference of the six
variants at the paper's two shapes; the dearest kernels of one step of the baseline and of DDL-CC. README.md beside this
file says what the columns mean. Needs torch >= 2.11 and triton >= 3.6, not even this package installed: run it in the
root of the repository.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import end_to_end, kernels
from benchmarks.end_to_end import PROFILED, Shape
from benchmarks.measure import BenchmarkError, Budget, Rows, origin
from ddl.files import write_text
from ddl.layout import ROOT

PAPER = {
    "small": Shape(12, 6, 768, vocab_size=50_304, sequence_length=1024, batch_sequences=32, dtype="bfloat16"),
    "medium": Shape(24, 8, 1024, vocab_size=50_304, sequence_length=1024, batch_sequences=16, dtype="bfloat16"),
}
LAPTOP_MEDIUM = Shape(4, 4, 128, vocab_size=4096, sequence_length=128, batch_sequences=16, dtype="float32")
PROFILED_ALONE = {"cuda": ("small", PAPER["small"], "inductor"), "cpu": ("medium", LAPTOP_MEDIUM, "")}
QUICK = {
    "small": Shape(1, 2, 16, vocab_size=64, sequence_length=16, batch_sequences=2, dtype="bfloat16"),
    "medium": Shape(2, 2, 32, vocab_size=64, sequence_length=16, batch_sequences=2, dtype="bfloat16"),
}
KERNEL_TOKENS = (32, 1024)
# Shares of the time that is left when a part begins.
TESTS_SHARE, KERNELS_SHARE, END_TO_END_SHARE = 0.25, 0.35, 0.9


def run_tests(budget: Budget) -> None:
    """The tests of the kernels, if there is a pytest: in a process of its own.

    Raises:
        BenchmarkError: a test fails.
    """
    if not all(importlib.util.find_spec(name) for name in ("pytest", "yaml")):
        print("tests/: left out, no pytest (or no yaml, which they need)", flush=True)
        return
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "ddl.ops" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-x", "-q", "-p", "no:cacheprovider", *map(str, files)]
    seconds = budget.left()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"tests/: stopped after {seconds:.0f} s, none had failed; run `pytest -m gpu` apart", flush=True)
        return
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
        raise BenchmarkError("tests/: some fail (see above), nothing is measured")
    print(f"tests/: {done.stdout.splitlines()[-1]}", flush=True)


def write_profiles(out: Path, size: str, shape: Shape, compiler: str, device: torch.device, source: dict) -> None:
    """profile-<size>-<variant>.txt for the baseline and DDL-CC."""
    for variant in PROFILED:
        batch = f"{shape.batch_sequences} x {shape.sequence_length} tokens, {shape.dtype}"
        head = [f"One training step of the {size} {variant}, {batch}, compiler: {compiler or 'none'}", str(shape)]
        head += [", ".join(f"{key} {value}" for key, value in source.items() if value != ""), ""]
        table = end_to_end.profile_step(variant, shape, compiler, device)
        path = out / f"profile-{size}-{variant}.txt"
        write_text(path, "\n".join([*head, table, ""]))
        print(f"{path}\n{table}", flush=True)


def measure_all(args: argparse.Namespace, out: Path, device: torch.device) -> int:
    """All parts; how many measurements failed."""
    on_gpu, shapes = device.type == "cuda", QUICK if args.quick else PAPER
    budget, source = Budget(60 * args.minutes), origin(device, args.commit)
    compiler = "inductor" if on_gpu else "aot_eager"
    widths = tuple(shape.width for shape in shapes.values())
    kernel_rows = Rows(out / "kernels.csv", kernels.COLUMNS, source)
    model_rows = Rows(out / "end_to_end.csv", end_to_end.COLUMNS, source)
    kernels.check(widths, device)
    if on_gpu:
        run_tests(budget.part(TESTS_SHARE))
    tokens = (2, 16) if args.quick else KERNEL_TOKENS
    failed = kernels.measure(kernel_rows, widths, tokens, device, budget.part(KERNELS_SHARE))
    torch.compiler.reset()
    failed += end_to_end.measure(model_rows, shapes, compiler, device, budget.part(END_TO_END_SHARE))
    if budget.left() > 0:
        write_profiles(out, "small", shapes["small"], compiler, device, source)
    else:
        print("dropped, no time left: profiles", flush=True)
    print(f"{kernel_rows.written + model_rows.written} rows in {out}, {budget.left():.0f} s left", flush=True)
    return failed


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure on a GPU.")
    parser.add_argument("--out", type=Path, help="folder of the rows (results/reference/<GPU>)")
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing new is begun (8)")
    parser.add_argument("--commit", help="of these files, where git does not say it")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, also on a CPU, to try the command; needs --out"
    )
    parser.add_argument(
        "--profile", action="store_true", help="only the profiles; on a CPU of the laptop scale's medium models"
    )
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if device.type == "cpu" and not (args.quick or args.profile):
            raise BenchmarkError("no GPU found; --quick tries the command on a CPU, --profile profiles a laptop model")
        if args.out is None and (args.quick or device.type == "cpu"):
            raise BenchmarkError("--out: needed for what no GPU measures, so that it does not lie among GPU figures")
        if device.type == "cpu":
            torch.set_num_threads(1)  # as the laptop scale's training
        out = args.out or ROOT / "results" / "reference" / slug(torch.cuda.get_device_name())
        if args.profile:
            size, shape, compiler = PROFILED_ALONE[device.type]
            write_profiles(out, size, shape, compiler, device, origin(device, args.commit))
        elif measure_all(args, out, device):
            raise SystemExit(1)
    except BenchmarkError as error:
        parser.exit(2, f"error: {error}\n")


def slug(name: str) -> str:
    """NVIDIA H200 -> h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


if __name__ == "__main__":
    main()
