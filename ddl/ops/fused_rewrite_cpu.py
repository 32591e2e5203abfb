"""The fused step on the CPU: rewrite, compress and RMSNorm of a sublayer boundary, and its derivative by hand.

With S = X^T the state as d_v rows of d features, q = 1 / sqrt(|h|^2 + eps_direction^2) and the direction k = q h:

    readout   r = S k
    state     S' = S + delta k^T,  delta = beta (v - r)
    input     x[t] = sum_s sum_j taps[s,j] S'[t-s,j]          without taps (d_v = 1): x = S'
    normed    c = x rstd weight,  rstd = 1 / sqrt(mean x^2 + eps_norm)

Every operation is one pass over memory, so passes are what is saved: k is never formed, q goes into the per-token
numbers that multiply h instead (`step` = q delta), and sums over value channels or taps add one (B, T, d) slice after
another in place. Arithmetic is in fp32, or in fp64 for a state in fp64.
"""

import torch
from torch import Tensor


def step_forward_cpu(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step: the next state and the normalised input of the next sublayer.

    Args:
        S: (B, T, d_v, d), state before; overwritten by the next state if `in_place`.
        h: (B, T, d), unnormalised direction.
        v: (B, T, d_v), target.
        beta: (B, T), gate.
        taps: (K, d_v, d), what the token s back adds to the input; None only with d_v = 1.
        weight: (d,), of the norm.

    Returns:
        S' and c, each in the dtype of S and h, and for the backward q (B, T), r (B, T, d_v) and rstd (B, T).
    """
    h_wide, taps = widen(h, S), taps if taps is None else widen(taps, S)
    inverse = torch.rsqrt(square_norm(h_wide) + eps_direction * eps_direction)
    readout = read(S, h_wide) * inverse.unsqueeze(-1)
    step = (v - readout) * (beta * inverse).unsqueeze(-1)
    S_next = S if in_place else torch.empty_like(S)
    torch.addcmul(S, step.unsqueeze(-1), h_wide.unsqueeze(-2), out=S_next)
    x = compress(widen(S_next, S), taps)
    rstd = torch.rsqrt(square_norm(x) / x.shape[-1] + eps_norm)
    c = (x * rstd.unsqueeze(-1)).mul_(weight)
    return S_next, c.to(h.dtype), inverse, readout, rstd


def step_backward_cpu(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    inverse: Tensor,
    readout: Tensor,
    rstd: Tensor,
    grad_next: Tensor | None,
    grad_c: Tensor | None,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """The gradients of a loss through one step.

    With G the gradient in S' by either way (`input_backward`), e = v - r the discrepancy and g = G k:

        dS = G - dv k^T      dv = beta g      dbeta = g^T e
        dk = G^T delta - S^T dv               dh = q (dk - k k^T dk),  k^T dk = dv^T (e - r)

    Args:
        S: (B, T, d_v, d), state before; if `in_place` the next state, which the state before overwrites.
        h, v, beta, taps, weight: as in the forward.
        inverse, readout, rstd: q, r and rstd of the forward.
        grad_next: (B, T, d_v, d), gradient in S'; None for zero.
        grad_c: (B, T, d), gradient in c; None for zero.

    Returns:
        the gradients in S, h, v, beta, taps (None without) and weight, each in the dtype of what it belongs to.
    """
    h_wide = widen(h, S)
    direction = h_wide.unsqueeze(-2)
    discrepancy = v - readout
    step = discrepancy * (beta * inverse).unsqueeze(-1)
    S_next = widen(S, S) if in_place else torch.addcmul(S, step.unsqueeze(-1), direction)
    grad, grad_taps, grad_weight = input_backward(S_next, taps, weight, rstd, grad_next, grad_c)
    if in_place:
        S.addcmul_(step.unsqueeze(-1), direction, value=-1)

    along = read(grad, h_wide) * inverse.unsqueeze(-1)
    grad_v = along * beta.unsqueeze(-1)
    grad_beta = (along * discrepancy).sum(-1)
    back = grad_v * inverse.unsqueeze(-1)
    overlap = (back * (discrepancy - readout)).sum(-1) * inverse
    grad_h = h_wide * -overlap.unsqueeze(-1)
    for j in range(S.shape[2]):
        grad_h.addcmul_(grad[:, :, j], step[:, :, j, None])
        grad_h.addcmul_(S[:, :, j], back[:, :, j, None], value=-1)
    grad_S = grad.addcmul_(back.unsqueeze(-1), direction, value=-1)
    return grad_S.to(S.dtype), grad_h.to(h.dtype), grad_v.to(v.dtype), grad_beta.to(beta.dtype), grad_taps, grad_weight


def input_backward(
    S: Tensor, taps: Tensor | None, weight: Tensor, rstd: Tensor, grad_next: Tensor | None, grad_c: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients in the next state S, in taps and in weight: what comes to S directly and what comes through c.

    dweight = sum_bt rstd dc x               dx = rstd (weight dc - rstd^2 x mean(weight dc x))
    dtaps[s,j] = sum_bt dx[t] S[t-s,j]       G[t,j] = grad_next[t,j] + sum_s taps[s,j] dx[t+s]
    """
    if grad_next is None:
        grad_next = torch.zeros_like(S)
    if grad_c is None:
        grad = grad_next.to(S.dtype, copy=True)
        return grad, taps if taps is None else torch.zeros_like(taps), torch.zeros_like(weight)
    wide_taps = taps if taps is None else widen(taps, S)
    x = compress(S, wide_taps)
    product = x * grad_c
    grad_weight = (rstd.flatten() @ product.flatten(0, 1)).to(weight.dtype)
    share = (product @ widen(weight, S)) * rstd**3 / x.shape[-1]
    grad_x = torch.mul(grad_c, widen(weight, S), out=product).mul_(rstd.unsqueeze(-1))
    grad_x = grad_x.addcmul_(x, share.unsqueeze(-1), value=-1).unsqueeze(-2)
    if taps is None or wide_taps is None:
        return grad_next + grad_x, None, grad_weight
    grad = torch.addcmul(grad_next, grad_x, wide_taps[0])
    grad_taps, T = torch.zeros_like(wide_taps), S.shape[1]
    for s in range(min(len(grad_taps), T)):
        if s:
            grad[:, : T - s].addcmul_(grad_x[:, s:], wide_taps[s])
        grad_taps[s] = (grad_x[:, s:] * S[:, : T - s]).sum((0, 1))
    return grad, grad_taps.to(taps.dtype), grad_weight


def widen(tensor: Tensor, S: Tensor) -> Tensor:
    """In the dtype of the arithmetic, contiguous: with strided taps a compressor takes four times as long."""
    return tensor.to(torch.promote_types(S.dtype, torch.float32)).contiguous()


def square_norm(x: Tensor) -> Tensor:
    """|x|^2 over the last axis, by the one reduction that forms no squares in memory."""
    return torch.linalg.vector_norm(x, dim=-1).square_()


def read(S: Tensor, h: Tensor) -> Tensor:
    """S h: (B, T, d_v, d), (B, T, d) -> (B, T, d_v); twice as fast here as a batched matrix product."""
    return (S * h.unsqueeze(-2)).sum(-1)


def compress(S: Tensor, taps: Tensor | None) -> Tensor:
    """x[t] = sum_s sum_j taps[s,j] S[t-s,j], zeros before the first token: (B, T, d)."""
    if taps is None:
        return S.squeeze(2)
    T = S.shape[1]
    x = S[:, :, 0] * taps[0, 0]
    for s in range(min(taps.shape[0], T)):
        for j in range(S.shape[2]):
            if s or j:
                x[:, s:].addcmul_(S[:, : T - s, j], taps[s, j])
    return x
