"""The fused rewrite on the CPU: rewrite, compress and RMSNorm between two sublayers, with its derivative by hand.

With S = X^T the state as d_v rows of d features, q = 1 / sqrt(|h|^2 + eps_direction^2) and the direction k = q h:

    readout   r = S k
    state     S' = S + delta k^T,  delta = beta (v - r)
    input     x[t] = sum_s sum_j taps[s,j] S'[t-s,j]          without taps (d_v = 1): x = S'
    normed    c = x rstd weight,  rstd = 1 / sqrt(mean x^2 + eps_norm)

Every operation is one pass over memory, so the code uses few of them. It never computes k: it multiplies q into the few
numbers per token by which h is multiplied (`write` = q delta). And it computes sums over value channels or taps in
place, one (B, T, d) slice after another. Arithmetic is in fp32, or in fp64 if the state is fp64.
"""

import torch
from torch import Tensor

from ddl.ops.fused_rewrite_arguments import Gradients, Reader, Rewrite, Saved


def fused_rewrite_forward(
    S: Tensor,
    rewrite: Rewrite,
    reader: Reader,
    eps_direction: float,
    eps_norm: float,
    in_place: bool,
    x_in: Tensor | None = None,
) -> tuple[Tensor, Tensor, Saved]:
    """The next state S' and the normalised input c of the next sublayer, in the dtypes of S and h.

    Args:
        S: (B, T, d_v, d), state before the rewrite; overwritten by the next state if `in_place`.
        x_in: (B, T, d) to fill with the input x before its norm; None to discard x.
    """
    h, v, beta = rewrite
    h_wide, taps = widen(h, S), reader.taps if reader.taps is None else widen(reader.taps, S)
    inverse = torch.rsqrt(square_norm(h_wide) + eps_direction * eps_direction)
    readout = read(S, h_wide) * inverse.unsqueeze(-1)
    write = (v - readout) * (beta * inverse).unsqueeze(-1)
    S_next = S if in_place else torch.empty_like(S)
    torch.addcmul(S, write.unsqueeze(-1), h_wide.unsqueeze(-2), out=S_next)
    x = compress(widen(S_next, S), taps)
    if x_in is not None:
        x_in.copy_(x)
    rstd = torch.rsqrt(square_norm(x) / x.shape[-1] + eps_norm)
    c = (x * rstd.unsqueeze(-1)).mul_(reader.weight)
    return S_next, c.to(h.dtype), Saved(inverse, readout, rstd)


def fused_rewrite_backward(
    S: Tensor,
    rewrite: Rewrite,
    reader: Reader,
    saved: Saved,
    grad_next: Tensor | None,
    grad_c: Tensor | None,
    in_place: bool,
    grad_x_in: Tensor | None = None,
) -> Gradients:
    """The gradients of the loss, each in the dtype of its tensor.

    With G the whole gradient in S' (`input_backward`), e = v - r the discrepancy and g = G k:

        dS = G - dv k^T      dv = beta g      dbeta = g^T e
        dk = G^T delta - S^T dv               dh = q (dk - k k^T dk),  k^T dk = dv^T (e - r)

    Args:
        S: (B, T, d_v, d), state before the rewrite; if `in_place`, the state after it, in which the rewrite is undone.
        grad_next: (B, T, d_v, d), gradient in S'; None for zero.
        grad_c: (B, T, d), gradient in c; None for zero.
        grad_x_in: (B, T, d), further gradient in x; None for zero. It needs grad_c.
    """
    (h, v, beta), (inverse, readout, rstd) = rewrite, saved
    h_wide = widen(h, S)
    direction = h_wide.unsqueeze(-2)
    discrepancy = v - readout
    write = discrepancy * (beta * inverse).unsqueeze(-1)
    S_next = widen(S, S) if in_place else torch.addcmul(S, write.unsqueeze(-1), direction)
    grad, grad_taps, grad_weight = input_backward(S_next, reader, rstd, grad_next, grad_c, grad_x_in)
    if in_place:
        S.addcmul_(write.unsqueeze(-1), direction, value=-1)

    along = read(grad, h_wide) * inverse.unsqueeze(-1)
    grad_v = along * beta.unsqueeze(-1)
    grad_beta = (along * discrepancy).sum(-1)
    back = grad_v * inverse.unsqueeze(-1)
    overlap = (back * (discrepancy - readout)).sum(-1) * inverse
    grad_h = h_wide * -overlap.unsqueeze(-1)
    for j in range(S.shape[2]):
        grad_h.addcmul_(grad[:, :, j], write[:, :, j, None])
        grad_h.addcmul_(S[:, :, j], back[:, :, j, None], value=-1)
    grad_S = grad.addcmul_(back.unsqueeze(-1), direction, value=-1)
    return Gradients(
        grad_S.to(S.dtype), grad_h.to(h.dtype), grad_v.to(v.dtype), grad_beta.to(beta.dtype), grad_taps, grad_weight
    )


def input_backward(
    S: Tensor, reader: Reader, rstd: Tensor, grad_next: Tensor | None, grad_c: Tensor | None, grad_x_in: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients in the next state S, in taps and in weight; that in S is the sum of grad_next and the part from x.

    dweight = sum_bt rstd dc x               dx = grad_x_in + rstd (weight dc - rstd^2 x mean(weight dc x))
    dtaps[s,j] = sum_bt dx[t] S[t-s,j]       G[t,j] = grad_next[t,j] + sum_s taps[s,j] dx[t+s]
    """
    taps, weight = reader
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
    grad_x.addcmul_(x, share.unsqueeze(-1), value=-1)
    if grad_x_in is not None:
        grad_x.add_(grad_x_in)
    grad_x = grad_x.unsqueeze(-2)
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
    """The tensor in the dtype of the arithmetic, and contiguous: strided taps make a compressor four times slower."""
    return tensor.to(torch.promote_types(S.dtype, torch.float32)).contiguous()


def square_norm(x: Tensor) -> Tensor:
    """|x|^2 over the last axis; this is the only reduction that does not write the squares to memory."""
    return torch.linalg.vector_norm(x, dim=-1).square_()


def read(S: Tensor, h: Tensor) -> Tensor:
    """S h: (B, T, d_v, d), (B, T, d) -> (B, T, d_v); on a CPU twice as fast as a batched matrix product."""
    return (S * h.unsqueeze(-2)).sum(-1)


def compress(S: Tensor, taps: Tensor | None) -> Tensor:
    """x[t] = sum_s sum_j taps[s,j] S[t-s,j], with zeros before the first token: (B, T, d)."""
    if taps is None:
        return S.squeeze(2)
    T = S.shape[1]
    x = S[:, :, 0] * taps[0, 0]
    for s in range(min(taps.shape[0], T)):
        for j in range(S.shape[2]):
            if s or j:
                x[:, s:].addcmul_(S[:, : T - s, j], taps[s, j])
    return x
