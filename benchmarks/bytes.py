"""Count the bytes per token that the kernels move, and compare with the minimum and with eager PyTorch.

    TRITON_INTERPRET=1 python -m benchmarks.bytes [--csv results/reference/kernels/bytes.csv]

Triton's interpreter runs the launchers, and every unmasked element of every load and store is counted. The first access
of a launch to an address counts as memory traffic. Repeated accesses (halos, parameters, rows read again) are assumed
to be served by a cache and are counted separately. For PyTorch operations, in launchers (e.g. the sum of partial
gradients) and in the eager composition, inputs and outputs are counted. Activations are bf16, parameters fp32.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from benchmarks.kernel_cases import OPERATIONS, make_case
from benchmarks.launches import TOKENS, WIDTHS, paper_passes
from benchmarks.measure import Rows, origin
from ddl.ops.dispatch import INTERPRETED

BF16 = 2  # bytes
# Vectors of d numbers per token in the authors' public code for DDL-CC, which has one kernel for the rewrite and
# separate operations for compression and norm. Forward 9 + 5 + 2; backward 14 + 9 + 3, plus 12 to add the two gradients
# in X'. Everything else in their code is eager.
AUTHORS = {
    ("rewrite", "forward"): 9,
    ("rewrite", "backward"): 14,
    ("fused_rewrite_cc", "forward"): 16,
    ("fused_rewrite_cc", "backward"): 38,
}


class Traffic(NamedTuple):
    """Bytes moved between memory and processor, and bytes served by a cache."""

    memory: int
    cache: int


class EagerTraffic(TorchDispatchMode):
    """Count the bytes of inputs and outputs of PyTorch operations; views and empty tensors are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view and "empty" not in func._schema.name:
            # Indexing reads only the elements that it returns.
            read = results if func._schema.name == "aten::index" else (args, kwargs)
            tensors = [leaf for leaf in tree_leaves((read, results)) if isinstance(leaf, Tensor)]
            self.bytes += sum(stored_bytes(tensor) for tensor in tensors)
        return results


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor occupies in memory; an expanded axis counts once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(np.prod(sizes)) * tensor.element_size()


@contextmanager
def recorded_accesses() -> Iterator[dict[str, list[tuple[np.ndarray, int]]]]:
    """Record addresses and sizes of all elements that interpreted kernels load and store.

    Hides the interpreter's copies of kernel arguments from `EagerTraffic`.
    """
    accesses: dict[str, list[tuple[np.ndarray, int]]] = {"load": [], "store": []}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    launch = GridExecutor.__call__

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses, wanted = np.broadcast_arrays(pointers.data, mask.data)
        accesses[kind].append((addresses[wanted.astype(bool)], size))

    def noted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def noted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def unseen_launch(self: Any, *arguments: Any, **options: Any) -> None:
        with _disable_current_modes():
            launch(self, *arguments, **options)

    with (
        mock.patch.object(GridExecutor, "__call__", unseen_launch),
        mock.patch.object(InterpreterBuilder, "create_masked_load", noted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", noted_store),
    ):
        yield accesses


def count(run: Callable[[], object]) -> Traffic:
    """Traffic of a launcher: its kernel and the PyTorch operations that it calls."""
    memory = cache = 0
    with EagerTraffic() as eager, recorded_accesses() as accesses:
        run()
    for kind in accesses.values():
        for size in {size for _, size in kind}:
            addresses = np.concatenate([found for found, each in kind if each == size])
            distinct = len(np.unique(addresses))
            memory += distinct * size
            cache += (len(addresses) - distinct) * size
    return Traffic(memory + eager.bytes, cache)


def floor(operation: str, direction: str, d_v: int) -> int:
    """Minimum traffic in vectors of d numbers per token: read each operand once and write each result once.

    The forward pass reads the state, writes the next state and moves one more vector; the fused rewrite moves two, h
    and c. The backward pass reads the state and the gradient of the result, writes the gradient of the state, and moves
    every vector and its gradient.
    """
    if operation.startswith("fused_rewrite"):
        return 2 * d_v + 2 if direction == "forward" else 3 * d_v + 3
    if operation == "rewrite":
        return 2 * d_v + 1 if direction == "forward" else 3 * d_v + 2
    if operation == "expand":
        return d_v + 1 if direction == "forward" else d_v + 2
    return d_v + 1 if direction == "forward" else 2 * d_v + 1


def eager_traffic(operation: str, d: int, d_v: int) -> dict[str, int]:
    """Bytes of the forward and backward pass of the eager composition, entirely in bf16."""
    case = make_case(operation, d, d_v, 1, TOKENS, torch.bfloat16, torch.device("cpu"), seed=0).in_dtype(torch.bfloat16)
    with EagerTraffic() as forward:
        outputs = case.forward(case.reference)
    with EagerTraffic() as backward:
        case.backward(outputs)
    return {"forward": forward.bytes, "backward": backward.bytes}


def table(d: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table for one width, in bytes per token."""
    stored = {(each.operation, each.d_v, each.direction): each for each in paper_passes(d, "cpu")}
    rebuilt = {(each.operation, each.d_v, each.direction): each for each in paper_passes(d, "cpu", in_place=True)}
    for operation, channels in OPERATIONS.items():
        for d_v in channels:
            eager = eager_traffic(operation, d, d_v)
            for direction in ("forward", "backward"):
                key = operation, d_v, direction
                for states, passes in (("stored", stored), ("rebuilt", rebuilt)):
                    if states == "rebuilt" and not operation.startswith("fused_rewrite"):
                        continue
                    ours = count(passes[key].run)
                    authors = AUTHORS.get((operation, direction))
                    yield {
                        "operation": operation,
                        "d_v": d_v,
                        "d": d,
                        "direction": direction,
                        "states": states,
                        "floor": floor(operation, direction, d_v) * d * BF16,
                        "ours": ours.memory / TOKENS,
                        "cache": ours.cache / TOKENS,
                        "eager": eager[direction] / TOKENS,
                        "authors": authors * d * BF16 if authors and d_v == 4 else eager[direction] / TOKENS,
                    }


FIGURES = ("floor", "ours", "cache", "eager", "authors")
COLUMNS = ("operation", "d_v", "d", "direction", "states", *FIGURES)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="append the rows, in bytes per token, to this file")
    arguments = parser.parse_args(argv)
    if not INTERPRETED:
        parser.error("set TRITON_INTERPRET=1")
    rows = Rows(arguments.csv, COLUMNS, origin(torch.device("cpu"), None)) if arguments.csv else None
    for d in WIDTHS:
        print(f"\nd = {d}: bytes per token (and vectors of d numbers in bf16)\n")
        print(f"{'operation':16} {'d_v':>3} {'pass':8} {'states':8}" + "".join(f"{name:>18}" for name in FIGURES))
        for row in table(d):
            figures = "".join(f"{row[name]:10,.0f} {f'({row[name] / d / BF16:.1f})':>7}" for name in FIGURES)
            print(f"{row['operation']:16} {row['d_v']:3} {row['direction']:8} {row['states']:8}{figures}", flush=True)
            if rows:
                rows.add(**row)


if __name__ == "__main__":
    main()
