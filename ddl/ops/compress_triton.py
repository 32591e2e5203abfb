# mypy: allow-untyped-defs
"""Triton kernels of CC and TC, forward and backward, each in one pass over the state.

Each program is one warp and holds blocks of tokens by features. A row that several taps need is loaded once per tap;
only the first of these loads misses the cache. All arithmetic is in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddl.ops.launch import check_supported, feature_block, load


# x_in[t,i] = sum_j sum_s taps[s,j,i] S[t-s,j,i], S zero before the first token
@triton.jit(do_not_specialize=["tokens"])
def compress_forward_kernel(
    S_ptr,
    taps_ptr,
    x_in_ptr,
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
    earlier = t[None, :] - s[:, None]
    inside = (earlier >= 0) & (t < tokens)[None, :]
    x_in = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for j in tl.static_range(DV):
        # 1. Read channel j of the tokens t - s.
        rows = ((sequence + earlier) * DV + j) * D
        S = load(S_ptr + rows[:, :, None] + i[None, None, :], inside[:, :, None] & real[None, None, :])
        # 2. Add their weighted sum.
        taps = load(taps_ptr + ((s * DV + j) * D)[:, None] + i[None, :], real[None, :])
        x_in += tl.sum(taps[:, None, :] * S, 0)
    tl.store(x_in_ptr + ((sequence + t) * D)[:, None] + i[None, :], x_in, mask=(t < tokens)[:, None] & real[None, :])


# With g the gradient in x_in, zero after the last token:
#   dS[t,j,i] = sum_s taps[s,j,i] g[t+s,i]        dtaps[s,j,i] = sum_t g[t+s,i] S[t,j,i]
@triton.jit(do_not_specialize=["tokens"])
def compress_backward_kernel(
    S_ptr,
    taps_ptr,
    grad_ptr,
    grad_S_ptr,
    grad_taps_ptr,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The programs for the channels of a chunk are adjacent, so that they read g from memory only once.
    chunk = tl.program_id(0).to(tl.int64) // DV
    j = tl.program_id(0) % DV
    chunks = tl.cdiv(tokens, CHUNK)
    sequence = chunk // chunks * tokens
    first = chunk % chunks * CHUNK
    i = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = i < D
    s = tl.arange(0, K)
    tap = ((s * DV + j) * D)[:, None] + i[None, :]
    taps = load(taps_ptr + tap, real[None, :])
    grad_taps = tl.zeros([K, BLOCK_D], tl.float32)
    for start in range(first, tl.minimum(first + CHUNK, tokens), BLOCK_T):
        # 1. Read channel j of the tokens t, and the gradients in the inputs t + s to which it contributed.
        t = start + tl.arange(0, BLOCK_T)
        later = t[None, :] + s[:, None]
        state = (((sequence + t) * DV + j) * D)[:, None] + i[None, :]
        inside = (t < tokens)[:, None] & real[None, :]
        S = load(S_ptr + state, inside)
        rows = (sequence + later) * D
        g = load(grad_ptr + rows[:, :, None] + i[None, None, :], (later < tokens)[:, :, None] & real[None, None, :])
        # 2. Compute the gradients of these tokens and their contribution to the gradients of the taps.
        tl.store(grad_S_ptr + state, tl.sum(taps[:, None, :] * g, 0), mask=inside)
        grad_taps += tl.sum(g * S[None, :, :], 1)
    tl.store(grad_taps_ptr + chunk * (K * DV * D) + tap, grad_taps, mask=real[None, :])


BLOCK_T = {1: 8, 4: 4}  # tokens that a program holds at a time, for each number of taps
CHUNK = 128  # tokens over which one program sums the gradients of the taps


def compress_forward(S: Tensor, taps: Tensor) -> Tensor:
    """Launch the forward kernel.

    Args:
        S: (B, T, d_v, d), state.
        taps: (K, d_v, d), tap s looks s tokens back; K is 1 or 4.

    Returns:
        (B, T, d), of the dtype of S.

    Raises:
        ValueError: no kernel supports the dtype, d, d_v or K.
    """
    B, T, d_v, d = S.shape
    K = taps.shape[0]
    check_supported(S.dtype, d, d_v, K, (1, 4))
    x_in = S.new_empty(B, T, d)
    block_d = feature_block(d)
    compress_forward_kernel[(B * triton.cdiv(T, BLOCK_T[K]), triton.cdiv(d, block_d))](
        S_ptr=S,
        taps_ptr=taps,
        x_in_ptr=x_in,
        tokens=T,
        D=d,
        DV=d_v,
        K=K,
        BLOCK_T=BLOCK_T[K],
        BLOCK_D=block_d,
        num_warps=1,
    )
    return x_in


def compress_backward(S: Tensor, taps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel.

    Args:
        S, taps: as in the forward pass.
        grad: (B, T, d), gradient in its result.

    Returns:
        the gradients in S and taps, each in the dtype of its tensor.

    Raises:
        ValueError: no kernel supports the dtype, d, d_v or K.
    """
    B, T, d_v, d = S.shape
    K = taps.shape[0]
    check_supported(S.dtype, d, d_v, K, (1, 4))
    chunks = B * triton.cdiv(T, CHUNK)
    grad_S = torch.empty_like(S)
    grad_taps = torch.empty(chunks, *taps.shape, dtype=torch.float32, device=S.device)
    block_d = feature_block(d)
    compress_backward_kernel[(chunks * d_v, triton.cdiv(d, block_d))](
        S_ptr=S,
        taps_ptr=taps,
        grad_ptr=grad,
        grad_S_ptr=grad_S,
        grad_taps_ptr=grad_taps,
        tokens=T,
        D=d,
        DV=d_v,
        K=K,
        CHUNK=CHUNK,
        BLOCK_T=BLOCK_T[K],
        BLOCK_D=block_d,
        num_warps=1,
    )
    return grad_S, grad_taps.sum(0).to(taps.dtype)
