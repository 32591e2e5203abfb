"""The compressors CC and TC: expanded residual state -> width-d input of a sublayer (App. A.3).

Both compute x_in[t,i] = sum_s sum_j taps[s,j,i] X[t-s,i,j]. CC has one tap, for the token itself; TC has K taps, for
the token and the K - 1 tokens before it.
"""

from typing import Any

import torch
from torch import Tensor

from ddl.ops.dispatch import check_taps, only_reverse_mode, runs_triton, saved_dtype
from ddl.ops.expand import shift_back, shift_tokens, tap_gradients


def channel_taps(kernel: Tensor) -> Tensor:
    """The taps (1, d_v, d) of CC with the kernel (d, d_v)."""
    return kernel.T.unsqueeze(0)


def token_taps(kernel: Tensor, read: Tensor) -> Tensor:
    """The taps (K, d_v, d) of TC: the kernel (d, d_v, K) times the read vector (d_v,)."""
    return kernel.permute(2, 1, 0) * read.unsqueeze(-1)


def compress_channels(X: Tensor, kernel: Tensor) -> Tensor:
    """CC: a weighted sum over the value channels of each feature, x_in[t,i] = sum_j c[i,j] X[t,i,j].

    Args:
        X: (B, T, d, d_v), state.
        kernel: (d, d_v).

    Returns:
        (B, T, d), of the dtype of X.
    """
    return compress(X, channel_taps(kernel))


def compress_tokens(X: Tensor, kernel: Tensor, read: Tensor) -> Tensor:
    """TC: a depthwise causal convolution over tokens, then a weighted sum over the value channels.

    x_in[t,i] = sum_j w_p[j] sum_s c[i,j,s] X[t-s,i,j].

    Args:
        X: (B, T, d, d_v), state.
        kernel: (d, d_v, K), tap s looks s tokens back.
        read: (d_v,), w_p.

    Returns:
        (B, T, d), of the dtype of X.
    """
    return compress(X, token_taps(kernel, read))


def compress_reference(X: Tensor, taps: Tensor) -> Tensor:
    """x_in[t,i] = sum_s sum_j taps[s,j,i] X[t-s,i,j], X zero before the first token.

    Args:
        X: (B, T, d, d_v), state.
        taps: (K, d_v, d), tap s looks s tokens back.

    Returns:
        (B, T, d).
    """
    x_in = sum(shift_tokens((X * taps[s].mT).sum(-1), s) for s in range(taps.shape[0]))
    assert isinstance(x_in, Tensor)
    return x_in


def compress(X: Tensor, taps: Tensor) -> Tensor:
    """`compress_reference` as one operation, for the taps of either compressor; on a GPU K must be 1 or 4.

    Raises:
        ValueError: the shapes do not fit together, or no kernel supports them.
    """
    d, d_v = X.shape[-2:]
    only_reverse_mode(X, taps)
    check_taps(taps, d_v, d, X)
    return compress_op(X.mT.contiguous(), taps.contiguous())


@torch.library.custom_op("ddl::compress", mutates_args=())
def compress_op(S: Tensor, taps: Tensor) -> Tensor:
    """(B, T, d_v, d) state S = X^T and (K, d_v, d) taps -> (B, T, d)."""
    if runs_triton(S):
        from ddl.ops.compress_triton import compress_forward

        return compress_forward(S, taps)
    return compress_reference(S.mT.to(saved_dtype(S)), taps.to(saved_dtype(S))).to(S.dtype)


@compress_op.register_fake
def _(S: Tensor, taps: Tensor) -> Tensor:
    return S.new_empty(S.shape[0], S.shape[1], S.shape[3])


@torch.library.custom_op("ddl::compress_backward", mutates_args=())
def compress_backward_op(S: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients dS[t,j,i] = sum_s taps[s,j,i] g[t+s,i] and dtaps[s,j,i] = sum_t g[t,i] S[t-s,j,i]."""
    if runs_triton(S):
        from ddl.ops.compress_triton import compress_backward

        return compress_backward(S, taps, grad)
    dtype = saved_dtype(S)
    wide, weights = grad.to(dtype).unsqueeze(-2), taps.to(dtype)
    grad_S = sum(shift_back(wide, s) * weights[s] for s in range(taps.shape[0]))
    assert isinstance(grad_S, Tensor)
    return grad_S.to(S.dtype), tap_gradients(wide, S.to(dtype), taps.shape[0]).to(taps.dtype)


@compress_backward_op.register_fake
def _(S: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(S), torch.empty_like(taps)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return compress_backward_op(*ctx.saved_tensors, grad.contiguous())


compress_op.register_autograd(_backward, setup_context=_save)
