"""Compile the kernels for several GPUs, without needing one, and print their registers, spills and shared memory.

    python -m benchmarks.compiled [--csv results/reference/kernels/resources.csv]

Triton compiles to a cubin or hsaco without a GPU. The kernels are those that the launchers call at the paper's widths.
"""

import argparse
import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks.launches import WIDTHS, paper_passes
from benchmarks.measure import Rows, origin

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: the kernel that is launched.
        arguments: name -> argument; tensors may be on any device.
        options: compiler options.
        programs: how many programs of it are launched.
    """

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]
    programs: int

    def compile(self, target: GPUTarget) -> CompiledKernel:
        """Compile the kernel as for a launch on this GPU, with pointers aligned to 16 bytes as in PyTorch."""
        constants, signature, aligned = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name], signature[parameter.name] = value, "constexpr"
            elif isinstance(value, Tensor):
                signature[parameter.name] = f"*{TYPES[value.dtype]}"
                aligned[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        source = ASTSource(self.kernel, signature, constants, aligned)
        return triton.compile(source, target=target, options=self.options)


def record_launches(run: Callable[[], object]) -> list[Launch]:
    """Record the launches of a function without executing them."""
    launches = []

    def record(kernel: JITFunction, *, grid: Any, warmup: bool, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
        launches.append(Launch(kernel, arguments, options, math.prod(grid)))

    with mock.patch.object(JITFunction, "run", record):
        run()
    return launches


@dataclass(frozen=True)
class Resources:
    """Resources of a program: registers per thread, spilled bytes per thread, and bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


def resources(compiled: CompiledKernel) -> Resources:
    if "amdgcn" in compiled.asm:
        fields = dict(
            re.findall(r"^\s*\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", compiled.asm["amdgcn"], re.M)
        )
        return Resources(int(fields["vgpr_count"]), int(fields["private_segment_fixed_size"]), compiled.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)


def global_accesses(launch: Launch, ptx: str) -> dict[str, list[int]]:
    """Bytes per thread of each load and store, for each tensor argument, from the compiled PTX.

    An address is an argument plus an offset, so the register with the address is traced back to the argument.
    """
    passed = [p.name for p in launch.kernel.params if not p.is_constexpr and launch.arguments[p.name] is not None]
    holds: dict[str, set[str]] = {}  # register -> arguments whose addresses it may contain
    accesses: dict[str, list[int]] = {}
    lines = [line.strip() for line in ptx.splitlines()]
    while True:
        before = sum(map(len, holds.values()))
        for line in lines:
            if loaded := re.search(r"ld\.param\.\w+\s+(%rd\d+), \[\w+_param_(\d+)\]", line):
                holds.setdefault(loaded[1], set()).add(passed[int(loaded[2])] if int(loaded[2]) < len(passed) else "")
            elif moved := re.match(r"(?:@!?%p\d+ )?(?:add|sub|mov|selp|mad|cvta)[.\w:]*\s+(%rd\d+), (.*);", line):
                for register in re.findall(r"%rd\d+", moved[2]):
                    holds.setdefault(moved[1], set()).update(holds.get(register, ()))
        if sum(map(len, holds.values())) == before:
            break
    for kind, address in re.findall(r"(?:ld|st)\.global([.\w:]*)\s[^\[]*\[\s*(%rd\d+)", ptx):
        vector, bits = re.search(r"\.v(\d)", kind), re.search(r"\.[bfus](\d+)", kind)
        assert bits is not None, kind
        for name in holds[address]:
            accesses.setdefault(name, []).append(int(bits[1]) // 8 * int(vector[1] if vector else 1))
    return accesses


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    arguments = parser.parse_args(argv)
    columns = ("operation", "direction", "d_v", "d", "states", "kernel", "target", "registers", "spilled", "shared")
    rows = Rows(arguments.csv, columns, origin(torch.device("cpu"), None)) if arguments.csv else None
    print(f"{'kernel':36} {'operation':16} {'d_v':>3} {'d':>5} {'states':8} {'target':7} registers spilled shared")
    for d in WIDTHS:
        for in_place in (False, True):
            for each in paper_passes(d, "meta", in_place):
                if in_place and not each.operation.startswith("fused_rewrite"):
                    continue
                for launch in record_launches(each.run):
                    for name, target in TARGETS.items():
                        found = resources(launch.compile(target))
                        states = "rebuilt" if in_place else "stored"
                        print(
                            f"{launch.kernel.__name__:36} {each.operation:16} {each.d_v:3} {d:5} {states:8} {name:7} "
                            f"{found.registers:9} {found.spilled:7} {found.shared:6}"
                        )
                        if rows:
                            rows.add(
                                operation=each.operation,
                                direction=each.direction,
                                d_v=each.d_v,
                                d=d,
                                states=states,
                                kernel=launch.kernel.__name__,
                                target=name,
                                **vars(found),
                            )


if __name__ == "__main__":
    main()
