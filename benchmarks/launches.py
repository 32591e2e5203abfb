"""Launches of the kernels of `ddl.ops` with the paper's shapes: bf16 activations and states, fp32 parameters.

The values do not matter: the tensors are zeros, or have no data on the device "meta".
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ddl.ops.compress_triton import compress_backward, compress_forward
from ddl.ops.expand_triton import expand_backward, expand_forward
from ddl.ops.fused_rewrite_arguments import Reader, Rewrite, Saved
from ddl.ops.fused_rewrite_triton import fused_rewrite_backward, fused_rewrite_forward
from ddl.ops.rewrite_triton import rewrite_backward, rewrite_forward

EPS = 1e-5
WIDTHS = (768, 1024)  # widths of the small and medium models
TOKENS = 256  # one sequence, longer than the tokens of one program


class Pass(NamedTuple):
    """A forward or backward pass of an operation.

    Args:
        operation: a name in `benchmarks.kernel_cases.OPERATIONS`.
        direction: "forward" or "backward".
        d_v: value channels.
        run: calls the launcher.
    """

    operation: str
    direction: str
    d_v: int
    run: Callable[[], object]


def paper_passes(d: int, device: str, in_place: bool = False, with_x_in: bool = False) -> list[Pass]:
    """All passes of the paper's models of width d.

    Args:
        in_place: fused rewrites rebuild the states.
        with_x_in: fused rewrites return the compressed state too, as for a value that reads it.
    """

    def activation(*shape: int) -> Tensor:
        return torch.zeros(1, TOKENS, *shape, dtype=torch.bfloat16, device=device)

    def number(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    passes = []

    def add(name: str, d_v: int, forward: Callable[[], object], backward: Callable[[], object]) -> None:
        passes.extend((Pass(name, "forward", d_v, forward), Pass(name, "backward", d_v, backward)))

    for d_v in (1, 4):
        inputs = tuple(tensor[0] for tensor in (activation(d_v, d), activation(d), activation(d_v), number(1, TOKENS)))
        saved = number(TOKENS), number(TOKENS, d_v)
        add(
            "rewrite",
            d_v,
            partial(rewrite_forward, *inputs, EPS),
            partial(rewrite_backward, *inputs, *saved, torch.zeros_like(inputs[0])),
        )
    S, x = activation(4, d), activation(d)
    for name, K in (("compress_cc", 1), ("compress_tc", 4)):
        taps = number(K, 4, d)
        add(name, 4, partial(compress_forward, S, taps), partial(compress_backward, S, taps, x))
    taps = number(4, 4, d)
    add("expand", 4, partial(expand_forward, x, taps), partial(expand_backward, x, taps, S))
    for name, K, d_v in (("fused_rewrite", 0, 1), ("fused_rewrite_cc", 1, 4), ("fused_rewrite_tc", 4, 4)):
        state, rewrite = activation(d_v, d), Rewrite(activation(d), activation(d_v), number(1, TOKENS))
        reader = Reader(number(K, d_v, d) if K else None, number(d))
        kept = Saved(number(1, TOKENS), number(1, TOKENS, d_v), number(1, TOKENS))
        grads, x_in = (torch.zeros_like(state), activation(d)), activation(d) if with_x_in else None
        add(
            name,
            d_v,
            partial(fused_rewrite_forward, state, rewrite, reader, EPS, EPS, in_place, x_in),
            partial(fused_rewrite_backward, state, rewrite, reader, kept, *grads, in_place, x_in),
        )
    return passes
