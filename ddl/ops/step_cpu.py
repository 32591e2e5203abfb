"""The fused step on the CPU: rewrite, compress and RMSNorm of a sublayer boundary, and its derivative by hand.

With S = X^T the state of d_v rows of d features, s = sqrt(|h|^2 + eps_direction^2) and k = h / s:

    readout   r = S k                                   delta = beta (v - r)
    state     S' = S + delta k^T
    input     x[t] = sum_s sum_j taps[s,j] S'[t-s,j]     x = S' without taps (d_v = 1)
    normed    c = x rstd weight                         rstd = 1 / sqrt(mean x^2 + eps_norm)

PyTorch's own operations only. Each is one pass over memory, so the passes are what is counted here: per-token numbers
are applied to one value channel at a time, in place where the target is ours. All arithmetic is in fp32 at least.
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
    """One step: S' and the normalised input of the next sublayer.

    Args:
        S: (B, T, d_v, d), state before; overwritten by the state after if `in_place`.
        h: (B, T, d), unnormalised direction.
        v: (B, T, d_v), target.
        beta: (B, T), gate.
        taps: (K, d_v, d), weight of the channels of the token s back; None only with d_v = 1.
        weight: (d,), of the norm.

    Returns:
        S' and c in the dtypes of S and h, and for the backward 1 / s (B, T), r (B, T, d_v) and rstd (B, T).
    """
    wide = torch.promote_types(torch.float32, S.dtype)
    direction = h.to(wide)
    inverse = torch.rsqrt(square_norm(direction) + eps_direction * eps_direction)
    readout = inverse.unsqueeze(-1) * rows_times(S.to(wide), direction)
    k = direction * inverse.unsqueeze(-1)
    after = add_outer(S.to(wide), beta.to(wide).unsqueeze(-1) * (v.to(wide) - readout), k, in_place)
    S_next = S.copy_(after) if in_place else after.to(S.dtype)
    x_in = compress(after, taps)
    rstd = torch.rsqrt(square_norm(x_in) / x_in.shape[-1] + eps_norm)
    c = (x_in * rstd.unsqueeze(-1)).mul_(weight.to(wide))
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
    """The gradients of a step, in S, h, v, beta, taps and weight.

    With n = x rstd, e = v - r, and G = dS' + the share that c sends through the compressor:

        dx = rstd (weight dc - n mean(weight dc n))      dweight = sum_bt dc n
        G[t,j] = dS'[t,j] + sum_s taps[s,j] dx[t+s]      dtaps[s,j] = sum_bt dx[t] S'[t-s,j]
        g = G k    dv = beta g    dbeta = g^T e          dS = G - dv k^T
        dk = beta (G^T e - S^T g)                        dh = (dk - k k^T dk) / s,  k^T dk = beta g^T (e - r)

    Args:
        S: (B, T, d_v, d), state before; if `in_place` the state after, which the state before overwrites.
        inverse, readout, rstd: what the forward returned.
        grad_next: (B, T, d_v, d), dS'; None for zero.
        grad_c: (B, T, d), dc; None for zero.
        others: as in the forward.

    Returns:
        the gradients, each in the dtype of what it belongs to; None for absent taps.
    """
    wide = torch.promote_types(torch.float32, S.dtype)
    k = h.to(wide) * inverse.unsqueeze(-1)
    gate = beta.to(wide).unsqueeze(-1)
    discrepancy = v.to(wide) - readout
    delta = gate * discrepancy
    if in_place:
        after = S.to(wide)
        before = None
    else:
        before = S.to(wide)
        after = add_outer(before, delta, k)

    grad_taps = None if taps is None else torch.zeros_like(taps, dtype=wide)
    grad_weight = torch.zeros_like(weight)
    grad = torch.zeros_like(S, dtype=wide) if grad_next is None else grad_next.to(wide, copy=True)
    if grad_c is not None:
        normed = compress(after, taps).mul_(rstd.unsqueeze(-1))
        product = grad_c.to(wide) * normed
        grad_weight = product.sum((0, 1)).to(weight.dtype)
        mean = (product @ weight.to(wide)).div_(product.shape[-1])
        grad_x = torch.mul(grad_c, weight, out=product) if grad_c.dtype == wide else grad_c.to(wide) * weight.to(wide)
        grad_x.addcmul_(normed, mean.unsqueeze(-1), value=-1).mul_(rstd.unsqueeze(-1))
        if taps is None:
            grad.add_(grad_x.unsqueeze(-2))
        else:
            T = S.shape[1]
            for s in range(min(taps.shape[0], T)):
                ahead = grad_x[:, s:].unsqueeze(-2)
                grad[:, : T - s].addcmul_(ahead, taps[s].to(wide))
                grad_taps[s] = (ahead * after[:, : T - s]).sum((0, 1))
    if before is None:
        before = S.copy_(add_outer(after, -delta, k, True)).to(wide)

    along = rows_times(grad, k)
    grad_v = gate * along
    grad_beta = (along * discrepancy).sum(-1)
    grad_h = torch.zeros_like(k)
    for j in range(S.shape[2]):
        grad_h.addcmul_(grad[:, :, j], delta[..., j, None])
        grad_h.addcmul_(before[:, :, j], grad_v[..., j, None], value=-1)
    overlap = (grad_v * (discrepancy - readout)).sum(-1, keepdim=True)
    grad_h.addcmul_(k, overlap, value=-1).mul_(inverse.unsqueeze(-1))
    grad_S = add_outer(grad, -grad_v, k, True)
    return (
        grad_S.to(S.dtype),
        grad_h.to(h.dtype),
        grad_v.to(v.dtype),
        grad_beta.to(beta.dtype),
        grad_taps if grad_taps is None else grad_taps.to(taps.dtype),
        grad_weight,
    )


def square_norm(x: Tensor) -> Tensor:
    """|x|^2 over the last axis."""
    return torch.linalg.vector_norm(x, dim=-1).square_()


def rows_times(S: Tensor, k: Tensor) -> Tensor:
    """S k: (B, T, d_v, d), (B, T, d) -> (B, T, d_v)."""
    return (S * k.unsqueeze(-2)).sum(-1)


def add_outer(S: Tensor, rows: Tensor, k: Tensor, in_place: bool = False) -> Tensor:
    """S + rows k^T, rows (B, T, d_v)."""
    rows, k = rows.unsqueeze(-1), k.unsqueeze(-2)
    return S.addcmul_(rows, k) if in_place else torch.addcmul(S, rows, k)


def compress(S: Tensor, taps: Tensor | None) -> Tensor:
    """x[t] = sum_s sum_j taps[s,j] S[t-s,j], zeros before the first token; S itself without taps: (B, T, d)."""
    if taps is None:
        return S.squeeze(2).clone()
    T = S.shape[1]
    x = torch.zeros_like(S[:, :, 0], memory_format=torch.contiguous_format)
    for s in range(min(taps.shape[0], T)):
        for j in range(S.shape[2]):
            x[:, s:].addcmul_(S[:, : T - s, j], taps[s, j].to(S.dtype))
    return x
