"""The expansion of a token embedding to the residual state (App. A.3, input expansion).

The shape of a state is (B, T, d, d_v), but features are innermost in memory: loops over d then read adjacent numbers
for every d_v. Elementwise operations keep the layout of their inputs, so the layout is chosen once, here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddl.ops.dispatch import only_reverse_mode, runs_triton, saved_dtype


def shift_tokens(x: Tensor, steps: int) -> Tensor:
    """Shift by `steps` tokens along axis 1: token t gets the row of token t - steps, or zeros if there is none.

    Args:
        x: (B, T, ...).
        steps: 0 <= steps.
    """
    if steps == 0:
        return x
    padding = (0, 0) * (x.dim() - 2) + (steps, 0)
    return F.pad(x, padding)[:, : x.shape[1]]


def shift_back(x: Tensor, steps: int) -> Tensor:
    """The transpose of `shift_tokens`: token t gets the row of token t + steps, or zeros if there is none."""
    if steps == 0:
        return x
    return F.pad(x[:, steps:], (0, 0) * (x.dim() - 2) + (0, min(steps, x.shape[1])))


def tap_gradients(later: Tensor, earlier: Tensor, taps: int) -> Tensor:
    """sum_t later[t] earlier[t-s] over all sequences, for each tap s.

    Args:
        later, earlier: (B, T, d_v or 1, d).
        taps: K.

    Returns:
        (K, d_v, d).
    """
    T = later.shape[1]
    sums = [(later[:, min(s, T) :] * earlier[:, : max(T - s, 0)]).sum((0, 1)) for s in range(taps)]
    return torch.stack(sums)


def repeat_embedding(x: Tensor, value_channels: int) -> Tensor:
    """X[t,i,j] = x[t,i]: the initial state without EC.

    Args:
        x: (B, T, d).

    Returns:
        (B, T, d, d_v), features innermost.
    """
    return x.unsqueeze(-2).expand(-1, -1, value_channels, -1).contiguous().transpose(-1, -2)


def expand_reference(x: Tensor, kernel: Tensor) -> Tensor:
    """X[t,i,j] = sum_s c[i,j,s] x[t-s,i], x zero before the first token.

    Args:
        x: (B, T, d).
        kernel: (d, d_v, K), tap s looks s tokens back.

    Returns:
        (B, T, d, d_v), features innermost.
    """
    taps = kernel.permute(2, 1, 0)  # [K, d_v, d]
    S = sum(shift_tokens(x, s).unsqueeze(-2) * taps[s] for s in range(taps.shape[0]))
    assert isinstance(S, Tensor)
    return S.mT


def expand_embedding(x: Tensor, kernel: Tensor) -> Tensor:
    """EC, a depthwise causal convolution over tokens: `expand_reference` as one operation; on a GPU K must be 4.

    Raises:
        ValueError: the shapes do not fit together, or no kernel supports them.
    """
    only_reverse_mode(x, kernel)
    if kernel.dim() != 3 or kernel.shape[0] != x.shape[-1]:
        raise ValueError(f"kernel: expected (d, d_v, K) with d = {x.shape[-1]}, found {tuple(kernel.shape)}")
    return expand_op(x.contiguous(), kernel.permute(2, 1, 0).contiguous()).mT


@torch.library.custom_op("ddl::expand", mutates_args=())
def expand_op(x: Tensor, taps: Tensor) -> Tensor:
    """(B, T, d) and (K, d_v, d) taps -> (B, T, d_v, d) state S = X^T."""
    if runs_triton(x):
        from ddl.ops.expand_triton import expand_forward

        return expand_forward(x, taps)
    dtype = saved_dtype(x)
    return expand_reference(x.to(dtype), taps.permute(2, 1, 0).to(dtype)).mT.to(x.dtype)


@expand_op.register_fake
def _(x: Tensor, taps: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], taps.shape[1], taps.shape[2])


@torch.library.custom_op("ddl::expand_backward", mutates_args=())
def expand_backward_op(x: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients dx[t,i] = sum_s sum_j taps[s,j,i] g[t+s,j,i] and dtaps[s,j,i] = sum_t g[t,j,i] x[t-s,i]."""
    if runs_triton(x):
        from ddl.ops.expand_triton import expand_backward

        return expand_backward(x, taps, grad)
    dtype = saved_dtype(x)
    wide, weights = grad.to(dtype), taps.to(dtype)
    grad_x = sum(shift_back((wide * weights[s]).sum(-2), s) for s in range(taps.shape[0]))
    assert isinstance(grad_x, Tensor)
    return grad_x.to(x.dtype), tap_gradients(wide, x.to(dtype).unsqueeze(-2), taps.shape[0]).to(taps.dtype)


@expand_backward_op.register_fake
def _(x: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(taps)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return expand_backward_op(*ctx.saved_tensors, grad.contiguous())


expand_op.register_autograd(_backward, setup_context=_save)
