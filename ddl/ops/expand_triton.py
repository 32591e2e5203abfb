# mypy: allow-untyped-defs
"""Triton kernels of EC, forward and backward, each in one pass over the state.

A row that several taps need is loaded once per tap; only the first of these loads misses the cache. All arithmetic is
in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddl.ops.launch import check_supported, feature_block, load


# S[t,j,i] = sum_s taps[s,j,i] x[t-s,i], x zero before the first token
@triton.jit(do_not_specialize=["tokens"])
def expand_forward_kernel(
    x_ptr,
    taps_ptr,
    S_ptr,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(tokens, BLOCK_T)
    sequence = program // blocks * tokens
    t = program % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = i < D
    s = tl.arange(0, K)
    # 1. Read the tokens t - s.
    earlier = t[None, :] - s[:, None]
    inside = (earlier >= 0) & (t < tokens)[None, :]
    rows = (sequence + earlier) * D
    x = load(x_ptr + rows[:, :, None] + i[None, None, :], inside[:, :, None] & real[None, None, :])
    # 2. Compute their weighted sum for each channel.
    for j in tl.static_range(DV):
        taps = load(taps_ptr + ((s * DV + j) * D)[:, None] + i[None, :], real[None, :])
        S = tl.sum(taps[:, None, :] * x, 0)
        rows = ((sequence + t) * DV + j) * D
        tl.store(S_ptr + rows[:, None] + i[None, :], S, mask=(t < tokens)[:, None] & real[None, :])


# With G the gradient in S, zero after the last token:
#   dx[t,i] = sum_j sum_s taps[s,j,i] G[t+s,j,i]        dtaps[s,j,i] = sum_t x[t,i] G[t+s,j,i]
#
# There is one warp per channel. It walks along the tokens and keeps the sums of its taps' gradients in registers.
@triton.jit(do_not_specialize=["tokens"])
def expand_backward_kernel(
    x_ptr,
    taps_ptr,
    grad_ptr,
    grad_x_ptr,
    grad_taps_ptr,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(tokens, CHUNK)
    sequence = chunk // chunks * tokens
    first = chunk % chunks * CHUNK
    i = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = i < D
    j = tl.arange(0, DV)
    s = tl.arange(0, K)
    state = (j * D)[:, None] + i[None, :]
    tap = (s * (DV * D))[:, None, None] + state[None, :, :]
    taps = load(taps_ptr + tap, real[None, None, :])
    grad_taps = tl.zeros([K, DV, BLOCK_D], tl.float32)
    for t in range(first, tl.minimum(first + CHUNK, tokens)):
        # 1. Read the token, once for each channel, and the gradients in the states t + s to which it contributed.
        x = load(x_ptr + (sequence + t) * D + (j * 0)[:, None] + i[None, :], real[None, :])
        rows = (sequence + t + s) * (DV * D)
        inside = (t + s < tokens)[:, None, None] & real[None, None, :]
        G = load(grad_ptr + rows[:, None, None] + state[None, :, :], inside)
        # 2. Compute the gradient of this token and its contribution to the gradients of the taps.
        tl.store(grad_x_ptr + (sequence + t) * D + i, tl.sum(tl.sum(taps * G, 0), 0), mask=real)
        grad_taps += x[None, :, :] * G
    tl.store(grad_taps_ptr + chunk * (K * DV * D) + tap, grad_taps, mask=real[None, None, :])


BLOCK_T = 4  # tokens that a program of the forward pass holds at a time
CHUNK = 128  # tokens over which one program sums the gradients of the taps


def expand_forward(x: Tensor, taps: Tensor) -> Tensor:
    """Launch the forward kernel.

    Args:
        x: (B, T, d), embeddings.
        taps: (4, d_v, d), tap s looks s tokens back.

    Returns:
        (B, T, d_v, d), of the dtype of x.

    Raises:
        ValueError: no kernel supports the dtype, d, d_v or the number of taps.
    """
    B, T, d = x.shape
    K, d_v, _ = taps.shape
    check_supported(x.dtype, d, d_v, K, (4,))
    S = x.new_empty(B, T, d_v, d)
    block_d = feature_block(d)
    expand_forward_kernel[(B * triton.cdiv(T, BLOCK_T), triton.cdiv(d, block_d))](
        x_ptr=x,
        taps_ptr=taps,
        S_ptr=S,
        tokens=T,
        D=d,
        DV=d_v,
        K=K,
        BLOCK_T=BLOCK_T,
        BLOCK_D=block_d,
        num_warps=1,
    )
    return S


def expand_backward(x: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel.

    Args:
        x, taps: as in the forward pass.
        grad: (B, T, d_v, d), gradient in its result.

    Returns:
        the gradients in x and taps, each in the dtype of its tensor.

    Raises:
        ValueError: no kernel supports the dtype, d, d_v or the number of taps.
    """
    B, T, d = x.shape
    K, d_v, _ = taps.shape
    check_supported(x.dtype, d, d_v, K, (4,))
    chunks = B * triton.cdiv(T, CHUNK)
    grad_x = torch.empty_like(x)
    grad_taps = torch.empty(chunks, *taps.shape, dtype=torch.float32, device=x.device)
    block_d = feature_block(d)
    expand_backward_kernel[(chunks, triton.cdiv(d, block_d))](
        x_ptr=x,
        taps_ptr=taps,
        grad_ptr=grad,
        grad_x_ptr=grad_x,
        grad_taps_ptr=grad_taps,
        tokens=T,
        D=d,
        DV=d_v,
        K=K,
        CHUNK=CHUNK,
        BLOCK_D=block_d,
        num_warps=d_v,
    )
    return grad_x, grad_taps.sum(0).to(taps.dtype)
