# mypy: allow-untyped-defs
"""Triton kernels of the rewrite, forward and backward, each in one pass over the state.

A program holds the state of one token, d_v rows of d features, so that everything of width d is read or written once:
X, h and X' in the forward pass; X, h, the gradient in X' and those in X and h in the backward pass. For d_v = 4 that is
9 and 14 vectors of d numbers per token. The forward pass saves d_v + 1 numbers per token for the backward pass: those
that need a sum over all features. All arithmetic is in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddl.ops.launch import check_supported, load


# X' = X + beta k (v - X^T k)^T        k = h / sqrt(|h|^2 + eps^2)
@triton.jit
def rewrite_forward_kernel(
    S_ptr,
    h_ptr,
    v_ptr,
    beta_ptr,
    S_next_ptr,
    inverse_ptr,
    readout_ptr,
    eps,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_D)
    j = tl.arange(0, DV)
    real = i < D
    state = token * (DV * D) + j[:, None] * D + i[None, :]
    # 1. Read the token.
    S = load(S_ptr + state, real[None, :])
    h = load(h_ptr + token * D + i, real)
    v = tl.load(v_ptr + token * DV + j).to(tl.float32)
    beta = tl.load(beta_ptr + token).to(tl.float32)
    # 2. Read the state along the direction k = inverse h.
    inverse = tl.rsqrt(tl.sum(h * h, 0) + eps * eps)
    readout = inverse * tl.sum(S * h[None, :], 1)
    # 3. Compare with the target and write back.
    delta = beta * (v - readout)
    tl.store(S_next_ptr + state, S + delta[:, None] * (inverse * h)[None, :], mask=real[None, :])
    # 4. Save for the backward pass the numbers that need a sum over all features.
    tl.store(inverse_ptr + token, inverse)
    tl.store(readout_ptr + token * DV + j, readout)


# With G the gradient in X', g = G^T k and e = v - X^T k:
#   dX = G - beta k g^T    dv = beta g    dbeta = g^T e    dk = beta (G e - X g)    dh = inverse (dk - k (k^T dk))
# where k^T dk = beta (g^T e - g^T X^T k) needs no further sum over the features.
@triton.jit
def back_through_rewrite(G, X, k, e, beta, inverse, readout):
    g = tl.sum(G * k[None, :], 1)
    grad_beta = tl.sum(g * e, 0)
    grad_k = beta * tl.sum(G * e[:, None] - X * g[:, None], 0)
    along = beta * (grad_beta - tl.sum(g * readout, 0))
    return G - k[None, :] * (beta * g)[:, None], inverse * (grad_k - along * k), beta * g, grad_beta


@triton.jit
def rewrite_backward_kernel(
    S_ptr,
    h_ptr,
    v_ptr,
    beta_ptr,
    inverse_ptr,
    readout_ptr,
    grad_ptr,
    grad_S_ptr,
    grad_h_ptr,
    grad_v_ptr,
    grad_beta_ptr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_D)
    j = tl.arange(0, DV)
    real = i < D
    state = token * (DV * D) + j[:, None] * D + i[None, :]
    # 1. Read the token.
    S = load(S_ptr + state, real[None, :])
    G = load(grad_ptr + state, real[None, :])
    inverse = tl.load(inverse_ptr + token)
    k = inverse * load(h_ptr + token * D + i, real)
    readout = tl.load(readout_ptr + token * DV + j)
    e = tl.load(v_ptr + token * DV + j).to(tl.float32) - readout
    beta = tl.load(beta_ptr + token).to(tl.float32)
    # 2. Go back through the rewrite and the normalisation of the direction.
    grad_S, grad_h, grad_v, grad_beta = back_through_rewrite(G, S, k, e, beta, inverse, readout)
    tl.store(grad_S_ptr + state, grad_S, mask=real[None, :])
    tl.store(grad_h_ptr + token * D + i, grad_h, mask=real)
    tl.store(grad_v_ptr + token * DV + j, grad_v)
    tl.store(grad_beta_ptr + token, grad_beta)


def rewrite_blocks(d: int) -> dict[str, int]:
    """Launch settings: one block per row of d features, 8 adjacent features (16 bytes of bf16) per thread."""
    block = triton.next_power_of_2(d)
    return {"BLOCK_D": block, "num_warps": min(max(block // 256, 1), 16)}


def rewrite_forward(S: Tensor, h: Tensor, v: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel.

    Args:
        S: (N, d_v, d), state before the rewrite.
        h: (N, d), unnormalised direction.
        v: (N, d_v), target.
        beta: (N,), gate.
        eps: eps_k of the small-norm guard.

    Returns:
        the state after the rewrite, in the dtype of S; in fp32: 1 / |h| with the guard (N,), and X^T k (N, d_v).

    Raises:
        ValueError: no kernel supports the dtype, d or d_v.
    """
    N, d_v, d = S.shape
    check_supported(S.dtype, d, d_v)
    S_next = torch.empty_like(S)
    inverse = torch.empty_like(beta, dtype=torch.float32)
    readout = torch.empty_like(v, dtype=torch.float32)
    rewrite_forward_kernel[(N,)](
        S_ptr=S,
        h_ptr=h,
        v_ptr=v,
        beta_ptr=beta,
        S_next_ptr=S_next,
        inverse_ptr=inverse,
        readout_ptr=readout,
        eps=eps,
        D=d,
        DV=d_v,
        **rewrite_blocks(d),
    )
    return S_next, inverse, readout


def rewrite_backward(
    S: Tensor, h: Tensor, v: Tensor, beta: Tensor, inverse: Tensor, readout: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward kernel.

    Args:
        S, h, v, beta: as in the forward pass.
        inverse, readout: results of the forward pass.
        grad: (N, d_v, d), gradient in the state after the rewrite, in the dtype of S.

    Returns:
        the gradients in S, h, v and beta, each in the dtype of its tensor.

    Raises:
        ValueError: no kernel supports the dtype, d or d_v.
    """
    N, d_v, d = S.shape
    check_supported(S.dtype, d, d_v)
    grad_S, grad_h, grad_v, grad_beta = (torch.empty_like(tensor) for tensor in (S, h, v, beta))
    rewrite_backward_kernel[(N,)](
        S_ptr=S,
        h_ptr=h,
        v_ptr=v,
        beta_ptr=beta,
        inverse_ptr=inverse,
        readout_ptr=readout,
        grad_ptr=grad,
        grad_S_ptr=grad_S,
        grad_h_ptr=grad_h,
        grad_v_ptr=grad_v,
        grad_beta_ptr=grad_beta,
        D=d,
        DV=d_v,
        **rewrite_blocks(d),
    )
    return grad_S, grad_h, grad_v, grad_beta
