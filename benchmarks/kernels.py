"""Check each kernel against fp64, and measure how much of the device's bandwidth it uses."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.kernel_cases import ALLOWED_ERROR, OPERATIONS, Case, make_case, worst_error
from benchmarks.measure import BenchmarkError, Budget, Rows, copy_speed, first_line, milliseconds
from ddl.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

COLUMNS = (
    *("operation", "provider", "mode", "batch", "length", "d", "d_v", "dtype"),
    *("p50_ms", "p20_ms", "p80_ms", "timer", "ideal_bytes", "gb_per_s", "copy_gb_per_s", "floor_ms", "percent_of_copy"),
)
# Our operations, and PyTorch's execution of the reference composition: eager and compiled.
PROVIDERS = {"cuda": ("ddl", "eager", "inductor"), "cpu": ("ddl", "eager", "aot_eager")}
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
)  # errors of a compiler or kernel, after which other measurements continue


def check(widths: tuple[int, ...], device: torch.device) -> None:
    """Check the forward and backward pass of every operation against fp64, on new random inputs.

    Raises:
        BenchmarkError: an operation is wrong.
    """
    seed = int(torch.randint(2**31, ()))
    for dtype, allowed in ALLOWED_ERROR.items():
        cases = {
            f"{name}, d = {d}, d_v = {d_v}": make_case(name, d, d_v, 2, 131, dtype, device, seed)
            for d in widths
            for name, d_v in operations()
        }
        cases |= {f"cross_entropy, d = {d}": loss_case(d, dtype, device, seed) for d in widths}
        for name, case in cases.items():
            error = worst_error(case)
            if not error <= allowed:
                raise BenchmarkError(f"{name}, {dtype}, seed {seed}: expected an error below {allowed}, found {error}")
    print(f"all operations agree with fp64 to within {ALLOWED_ERROR} (seed {seed})", flush=True)


def operations() -> Iterator[tuple[str, int]]:
    return ((name, d_v) for name, channels in OPERATIONS.items() for d_v in channels)


def loss_case(d: int, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
    """A case for the loss of the language model's head on 300 tokens."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden, weight = (torch.randn(n, d, generator=generator, device=device).to(dtype) / d**0.25 for n in (300, 5000))
    targets = torch.randint(5000, (300,), generator=generator, device=device)
    return Case(
        operation=partial(linear_cross_entropy, targets=targets),
        reference=partial(linear_cross_entropy_reference, targets=targets),
        inputs=(hidden.requires_grad_(), weight.requires_grad_()),
        upstream=(torch.ones((), device=device),),
    )


def measure(rows: Rows, widths: tuple[int, ...], tokens: tuple[int, int], device: torch.device, budget: Budget) -> int:
    """Add a row for every operation, width, provider and pass.

    If time runs out, the remaining rows have a reason instead of numbers.


    Args:
        tokens: number of sequences, and tokens per sequence.

    Returns:
        Number of measurements that failed.
    """
    copy = copy_speed(device)
    speed = copy.pop("gb_per_s")
    rows.add(operation="copy", provider="eager", mode="forward", gb_per_s=speed, copy_gb_per_s=speed, **copy)
    print(f"copy: {speed:,.0f} GB/s", flush=True)
    failed, longest = 0, 0.0
    for provider in PROVIDERS[device.type]:
        for d in widths:
            for name, d_v in operations():
                key = {"operation": name, "provider": provider, "d": d, "d_v": d_v, "dtype": "bfloat16"}
                key |= dict(zip(("batch", "length"), tokens, strict=True))
                before = budget.left()
                if before < longest:
                    rows.add(**key, mode="forward and backward", reason="dropped: no time left")
                    print(f"dropped, no time left: {provider} {name} d={d} d_v={d_v}", flush=True)
                    continue
                try:
                    measure_case(rows, key, make_case(name, d, d_v, *tokens, torch.bfloat16, device, 0), speed, device)
                except FAILURES as error:
                    failed += 1
                    rows.add(**key, mode="forward and backward", reason=first_line(error))
                    print(f"failed: {provider} {name} d={d} d_v={d_v}: {first_line(error)}", flush=True)
                longest = max(longest, before - budget.left())
    return failed


@torch._functorch.config.patch(donated_buffer=False)  # the backward pass of one graph is repeated
def measure_case(rows: Rows, key: dict[str, Any], case: Case, copy_speed: float, device: torch.device) -> None:
    """Add one row for the forward and one for the backward pass."""
    floor_bytes = case.ideal_bytes()
    function: Callable[..., Any] = case.operation
    if key["provider"] != "ddl":
        case, function = case.in_dtype(torch.bfloat16), case.reference
    if key["provider"] in ("inductor", "aot_eager"):
        torch.compiler.reset()
        function = torch.compile(function, fullgraph=True, dynamic=False, backend=key["provider"])

    def backward() -> Callable[[], tuple[Tensor, ...]]:
        outputs = case.forward(function)
        return lambda: case.backward(outputs)

    for mode, prepare in {"forward": lambda: lambda: case.forward(function), "backward": backward}.items():
        measured = milliseconds(prepare, device)
        floor = floor_bytes[mode] / copy_speed / 1e6
        rows.add(
            **key,
            **measured,
            mode=mode,
            ideal_bytes=floor_bytes[mode],
            gb_per_s=floor_bytes[mode] / measured["p50_ms"] / 1e6,
            copy_gb_per_s=copy_speed,
            floor_ms=floor,
            percent_of_copy=100 * floor / measured["p50_ms"],
        )
        print(
            f"{key['operation']:16} d={key['d']} d_v={key['d_v']} {mode:8} {key['provider']:8}"
            f"{measured['p50_ms']:9.3f} ms  {100 * floor / measured['p50_ms']:4.0f} % of copy",
            flush=True,
        )
