# mypy: allow-untyped-defs
"""Triton kernels of the fused rewrite: rewrite, compress and RMSNorm in one pass over the state, forward and backward.

A program walks along consecutive tokens of a sequence with all d features in registers, so everything of width d is
read or written once: X, h, X' and c in the forward pass; X, h, the gradients in X' and c, and those in X and h in the
backward pass. For d_v = 4 that is 10 and 15 vectors of d numbers per token. There is little other traffic: d_v + 2
numbers per token that the backward pass needs, and each program's share of the parameters' gradients. These shares are
summed afterwards in a fixed order, so that two runs agree bit for bit. All arithmetic is in fp32.

Token compression also needs rows of the neighbouring programs (the halo): the K - 1 tokens before a program's own and,
in the backward pass, the K - 1 tokens after them. They are read from the state, or from a copy if the state is
overwritten.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddl.ops.fused_rewrite_arguments import Gradients, Reader, Rewrite, Saved
from ddl.ops.launch import check_supported, load
from ddl.ops.rewrite_triton import back_through_rewrite


# X' = X + beta k (v - X^T k)^T                   k = h / sqrt(|h|^2 + eps_direction^2)
# x_in[t] = sum_s sum_j taps[s,j] X'[t-s,j]       no compressor (K = 0): x_in = X'
# c = weight x_in / sqrt(mean(x_in^2) + eps_norm)
#
# Token compression (K = 4) is computed in transposed form: row t contributes to x_in of the tokens t to t + 3.
@triton.jit(do_not_specialize=["tokens", "chunk"])
def fused_rewrite_forward_kernel(
    S_ptr,
    halo_ptr,
    h_ptr,
    v_ptr,
    beta_ptr,
    taps_ptr,
    weight_ptr,
    S_next_ptr,
    c_ptr,
    x_in_ptr,
    inverse_ptr,
    readout_ptr,
    rstd_ptr,
    tokens,
    chunk,
    eps_direction,
    eps_norm,
    D: tl.constexpr,
    DV: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(tokens, chunk)
    sequence = program // chunks * tokens
    first = program % chunks * chunk
    stop = tl.minimum(first + chunk, tokens)
    HALO: tl.constexpr = K - 1 if K > 1 else 0

    i = tl.arange(0, BLOCK)
    j = tl.arange(0, DV)
    real = i < D
    tile = j[:, None] * D + i[None, :]
    SIZE: tl.constexpr = DV * D  # numbers in the state of a token, and in a tap
    weight = load(weight_ptr + i, real)
    # The contributions of the rows already visited to x_in of this token, the next, and the one after that.
    ahead_0 = tl.zeros([BLOCK], tl.float32)
    ahead_1 = tl.zeros([BLOCK], tl.float32)
    ahead_2 = tl.zeros([BLOCK], tl.float32)

    for t in range(tl.maximum(first - HALO, 0), stop):
        token = sequence + t
        own = t >= first
        # 1. Read the token.
        X_ptr = S_ptr + token * SIZE
        if halo_ptr is not None:
            X_ptr = tl.where(own, X_ptr, halo_ptr + (program * HALO + HALO + t - first) * SIZE)
        X = load(X_ptr + tile, real[None, :])
        h = load(h_ptr + token * D + i, real)
        v = tl.load(v_ptr + token * DV + j).to(tl.float32)
        beta = tl.load(beta_ptr + token).to(tl.float32)
        # 2. Read along the direction k = inverse h.
        inverse = tl.rsqrt(tl.sum(h * h, 0) + eps_direction * eps_direction)
        readout = inverse * tl.sum(h[None, :] * X, 1)
        # 3. Compare with the target and write back.
        delta = beta * (v - readout)
        X += (inverse * h)[None, :] * delta[:, None]
        tl.store(S_next_ptr + token * SIZE + tile, X, mask=real[None, :] & own)
        # 4. Compress.
        x_in = tl.sum(X if K == 0 else X * load(taps_ptr + tile, real[None, :]), 0)
        if K == 4:
            x_in += ahead_0
            ahead_0 = ahead_1 + tl.sum(X * load(taps_ptr + SIZE + tile, real[None, :]), 0)
            ahead_1 = ahead_2 + tl.sum(X * load(taps_ptr + 2 * SIZE + tile, real[None, :]), 0)
            ahead_2 = tl.sum(X * load(taps_ptr + 3 * SIZE + tile, real[None, :]), 0)
        if x_in_ptr is not None:
            tl.store(x_in_ptr + token * D + i, x_in, mask=real & own)
        # 5. Normalise.
        rstd = tl.rsqrt(tl.sum(x_in * x_in, 0) / D + eps_norm)
        tl.store(c_ptr + token * D + i, weight * (rstd * x_in), mask=real & own)
        # 6. Save for the backward pass the numbers that need a sum over all features.
        tl.store(inverse_ptr + token, inverse, mask=own)
        tl.store(readout_ptr + token * DV + j, readout, mask=own)
        tl.store(rstd_ptr + token, rstd, mask=own)


# Without token compression, with x_hat = rstd x_in and u = weight dc:
#   dx_in = rstd (u - x_hat mean(u x_hat))        dweight = sum_t dc x_hat
#   plus, if a rule reads x_in too, the gradient in it (grad_x_in_ptr)
#   G = dX' + taps dx_in                          dtaps = sum_t dx_in X'
# The rest, from the gradient G in X', is `back_through_rewrite`.
@triton.jit(do_not_specialize=["tokens", "chunk"])
def fused_rewrite_backward_kernel(
    S_ptr,
    h_ptr,
    v_ptr,
    beta_ptr,
    taps_ptr,
    weight_ptr,
    inverse_ptr,
    readout_ptr,
    rstd_ptr,
    grad_next_ptr,
    grad_c_ptr,
    grad_x_in_ptr,
    grad_S_ptr,
    grad_h_ptr,
    grad_v_ptr,
    grad_beta_ptr,
    grad_taps_ptr,
    grad_weight_ptr,
    tokens,
    chunk,
    D: tl.constexpr,
    DV: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = program * chunk
    stop = tl.minimum(first + chunk, tokens)

    i = tl.arange(0, BLOCK)
    j = tl.arange(0, DV)
    real = i < D
    tile = j[:, None] * D + i[None, :]
    SIZE: tl.constexpr = DV * D  # numbers in the state of a token, and in a tap
    weight = load(weight_ptr + i, real)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    grad_taps = tl.zeros([DV, BLOCK], tl.float32)

    for token in range(first, stop):
        # 1. Read the token; the states before and after the rewrite differ by k delta^T.
        S = load(S_ptr + token * SIZE + tile, real[None, :])
        h = load(h_ptr + token * D + i, real)
        beta = tl.load(beta_ptr + token).to(tl.float32)
        inverse = tl.load(inverse_ptr + token)
        readout = tl.load(readout_ptr + token * DV + j)
        e = tl.load(v_ptr + token * DV + j).to(tl.float32) - readout
        k = inverse * h
        change = k[None, :] * (beta * e)[:, None]
        if IN_PLACE:
            X_next = S
            X = S - change
            tl.store(S_ptr + token * SIZE + tile, X, mask=real[None, :])
        else:
            X = S
            X_next = S + change
        # 2. Go back through the norm and the compressor.
        G = tl.zeros([DV, BLOCK], tl.float32)
        if grad_next_ptr is not None:
            G = load(grad_next_ptr + token * SIZE + tile, real[None, :])
        if grad_c_ptr is not None:
            grad_c = load(grad_c_ptr + token * D + i, real)
            rstd = tl.load(rstd_ptr + token)
            if K == 0:
                x_hat = rstd * tl.sum(X_next, 0)
            else:
                taps = load(taps_ptr + tile, real[None, :])
                x_hat = rstd * tl.sum(taps * X_next, 0)
            u = weight * grad_c
            grad_x_in = rstd * (u - x_hat * (tl.sum(u * x_hat, 0) / D))
            if grad_x_in_ptr is not None:
                grad_x_in += load(grad_x_in_ptr + token * D + i, real)
            grad_weight += grad_c * x_hat
            if K == 0:
                G += grad_x_in[None, :]
            else:
                G += grad_x_in[None, :] * taps
                grad_taps += grad_x_in[None, :] * X_next
        # 3. Go back through the rewrite.
        grad_S, grad_h, grad_v, grad_beta = back_through_rewrite(G, X, k, e, beta, inverse, readout)
        tl.store(grad_S_ptr + token * SIZE + tile, grad_S, mask=real[None, :])
        tl.store(grad_h_ptr + token * D + i, grad_h, mask=real)
        tl.store(grad_v_ptr + token * DV + j, grad_v)
        tl.store(grad_beta_ptr + token, grad_beta)

    # 4. Store this program's share of the parameters' gradients.
    if grad_c_ptr is not None:
        tl.store(grad_weight_ptr + program * D + i, grad_weight, mask=real)
        if K == 1:
            tl.store(grad_taps_ptr + program * SIZE + tile, grad_taps, mask=real[None, :])


# The same with token compression:
#   x_in[t] = sum_s taps[s] X'[t-s]    G[t] = dX'[t] + sum_s taps[s] dx_in[t+s]    dtaps[s] = sum_t dx_in[t+s] X'[t]
#
# Rows are visited in descending order, ROWS at a time: x_in[t] is complete once row t - 3 has been visited. The rows of
# X and dx_in of these tokens are then read again, soon enough to be in the cache. The 4 d_v d sums of dtaps also stay
# in the cache, because there are not enough registers for them.
@triton.jit(do_not_specialize=["tokens", "chunk"])
def fused_rewrite_backward_tokens_kernel(
    S_ptr,
    halo_ptr,
    h_ptr,
    v_ptr,
    beta_ptr,
    taps_ptr,
    weight_ptr,
    inverse_ptr,
    readout_ptr,
    rstd_ptr,
    grad_next_ptr,
    grad_c_ptr,
    grad_x_in_ptr,
    ring_ptr,
    grad_S_ptr,
    grad_h_ptr,
    grad_v_ptr,
    grad_beta_ptr,
    grad_taps_ptr,
    grad_weight_ptr,
    tokens,
    chunk,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(tokens, chunk)
    sequence = program // chunks * tokens
    first = program % chunks * chunk
    stop = tl.minimum(first + chunk, tokens)

    i = tl.arange(0, BLOCK)
    j = tl.arange(0, DV)
    real = i < D
    tile = j[:, None] * D + i[None, :]
    SIZE: tl.constexpr = DV * D  # numbers in the state of a token, and in a tap
    RING: tl.constexpr = 2 * ROWS
    PAIR: tl.constexpr = 2 if DV > 1 else 1
    ring_ptr += program * (RING * D)  # dx_in of the last RING tokens
    grad_taps_ptr += program * (4 * SIZE)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    above_1 = tl.zeros([BLOCK], tl.float32)  # contributions of the rows above r to x_in[r+1], x_in[r+2], x_in[r+3]
    above_2 = tl.zeros([BLOCK], tl.float32)
    above_3 = tl.zeros([BLOCK], tl.float32)

    for top in range(stop + 5, first - 1, -ROWS):
        bottom = tl.maximum(top - ROWS + 1, first)
        for t in range(top, bottom - 1, -1):
            # 1. Read X' of row r, the last row that x_in[t] needs; it is zero before and after the sequence.
            r = t - 3
            token = sequence + r
            inside = (r >= 0) & (r < tokens)
            X_ptr = S_ptr + token * SIZE
            if halo_ptr is not None:
                slot = tl.where(r < first, r - first + 3, r - stop + 3)
                X_ptr = tl.where((r >= first) & (r < stop), X_ptr, halo_ptr + (program * 6 + slot) * SIZE)
            X_next = load(X_ptr + tile, real[None, :] & inside)
            if not IN_PLACE:
                k = load(inverse_ptr + token, inside) * load(h_ptr + token * D + i, real & inside)
                e = load(v_ptr + token * DV + j, inside) - load(readout_ptr + token * DV + j, inside)
                X_next += k[None, :] * (load(beta_ptr + token, inside) * e)[:, None]
            # 2. Compress.
            x_in = above_3 + tl.sum(X_next * load(taps_ptr + 3 * SIZE + tile, real[None, :]), 0)
            above_3 = above_2 + tl.sum(X_next * load(taps_ptr + 2 * SIZE + tile, real[None, :]), 0)
            above_2 = above_1 + tl.sum(X_next * load(taps_ptr + SIZE + tile, real[None, :]), 0)
            above_1 = tl.sum(X_next * load(taps_ptr + tile, real[None, :]), 0)
            # 3. Go back through the norm.
            token = sequence + t
            rstd = load(rstd_ptr + token, t < tokens)
            grad_c = load(grad_c_ptr + token * D + i, real & (t < tokens))
            x_hat = rstd * x_in
            u = load(weight_ptr + i, real) * grad_c
            grad_x_in = rstd * (u - x_hat * (tl.sum(u * x_hat, 0) / D))
            if grad_x_in_ptr is not None:
                grad_x_in += load(grad_x_in_ptr + token * D + i, real & (t < tokens))
            grad_weight += tl.where(t < stop, grad_c * x_hat, 0.0)
            tl.store(ring_ptr + (t & (RING - 1)) * D + i, grad_x_in, mask=real)

        tl.debug_barrier()  # threads now read rows of dx_in, and later of X, that other threads wrote
        for t in range(tl.minimum(top, stop - 1), bottom - 1, -1):
            # 4. Go back through the compressor.
            token = sequence + t
            G = tl.zeros([DV, BLOCK], tl.float32)
            if grad_next_ptr is not None:
                G = load(grad_next_ptr + token * SIZE + tile, real[None, :])
            for s in range(tl.minimum(4, tokens - t)):
                grad_x_in = load(ring_ptr + ((t + s) & (RING - 1)) * D + i, real)
                G += load(taps_ptr + s * SIZE + tile, real[None, :]) * grad_x_in[None, :]
            # 5. Go back through the rewrite.
            X = load(S_ptr + token * SIZE + tile, real[None, :])
            beta = tl.load(beta_ptr + token).to(tl.float32)
            inverse = tl.load(inverse_ptr + token)
            readout = tl.load(readout_ptr + token * DV + j)
            e = tl.load(v_ptr + token * DV + j).to(tl.float32) - readout
            k = inverse * load(h_ptr + token * D + i, real)
            if IN_PLACE:
                X -= k[None, :] * (beta * e)[:, None]
                tl.store(S_ptr + token * SIZE + tile, X, mask=real[None, :])
            grad_S, grad_h, grad_v, grad_beta = back_through_rewrite(G, X, k, e, beta, inverse, readout)
            tl.store(grad_S_ptr + token * SIZE + tile, grad_S, mask=real[None, :])
            tl.store(grad_h_ptr + token * D + i, grad_h, mask=real)
            tl.store(grad_v_ptr + token * DV + j, grad_v)
            tl.store(grad_beta_ptr + token, grad_beta)

        # 6. Add the contribution of these rows to the gradient of the taps.
        tl.debug_barrier()
        for pair in tl.static_range(DV // PAIR):
            p = pair * PAIR + tl.arange(0, PAIR)
            some = p[:, None] * D + i[None, :]
            earlier = real[None, :] & (top < stop + 5)
            grad_taps_0 = load(grad_taps_ptr + some, earlier)
            grad_taps_1 = load(grad_taps_ptr + SIZE + some, earlier)
            grad_taps_2 = load(grad_taps_ptr + 2 * SIZE + some, earlier)
            grad_taps_3 = load(grad_taps_ptr + 3 * SIZE + some, earlier)
            for t in range(tl.minimum(top, stop - 1), bottom - 1, -1):
                token = sequence + t
                X = load(S_ptr + token * SIZE + some, real[None, :])
                k = tl.load(inverse_ptr + token) * load(h_ptr + token * D + i, real)
                e = tl.load(v_ptr + token * DV + p).to(tl.float32) - tl.load(readout_ptr + token * DV + p)
                X_next = X + k[None, :] * (tl.load(beta_ptr + token).to(tl.float32) * e)[:, None]
                grad_taps_0 += load(ring_ptr + (t & (RING - 1)) * D + i, real)[None, :] * X_next
                grad_taps_1 += load(ring_ptr + ((t + 1) & (RING - 1)) * D + i, real)[None, :] * X_next
                grad_taps_2 += load(ring_ptr + ((t + 2) & (RING - 1)) * D + i, real)[None, :] * X_next
                grad_taps_3 += load(ring_ptr + ((t + 3) & (RING - 1)) * D + i, real)[None, :] * X_next
            tl.store(grad_taps_ptr + some, grad_taps_0, mask=real[None, :])
            tl.store(grad_taps_ptr + SIZE + some, grad_taps_1, mask=real[None, :])
            tl.store(grad_taps_ptr + 2 * SIZE + some, grad_taps_2, mask=real[None, :])
            tl.store(grad_taps_ptr + 3 * SIZE + some, grad_taps_3, mask=real[None, :])
        tl.debug_barrier()

    tl.store(grad_weight_ptr + program * D + i, grad_weight, mask=real)


# By default, ptxas limits the registers per thread so that one more program fits on a multiprocessor, and spills the
# rest to memory. We allow a thread the maximum instead.
MOST_REGISTERS = {} if torch.version.hip else {"maxnreg": 255}


class Layout(NamedTuple):
    """The launch parameters of a kernel; computed from the shape, not tuned by measurements."""

    chunk: int  # tokens per program
    rows: int  # tokens between updates of the taps' gradient, with token compression; a power of two
    warps: int


def choose_layout(d: int, K: int, dtype: torch.dtype) -> Layout:
    """Give each thread 16 bytes of every row of a state of this dtype: sums over channels stay within a thread.

    A program takes one token after another, so a micro-batch must make several programs for each multiprocessor of a
    GPU. A shorter chunk spends more on its shares of the gradients of weight and taps, of which there are K d_v rows
    (benchmarks/roofline.py weighs the two).
    """
    warps = triton.next_power_of_2(d) * dtype.itemsize // (16 * 32)
    return Layout(chunk={0: 16, 1: 32, 4: 64}[K], rows=16, warps=min(max(warps, 1), 32))


def fused_rewrite_forward(
    S: Tensor,
    rewrite: Rewrite,
    reader: Reader,
    eps_direction: float,
    eps_norm: float,
    in_place: bool,
    x_in: Tensor | None = None,
) -> tuple[Tensor, Tensor, Saved]:
    """Launch the forward kernel.

    Args:
        S: (B, T, d_v, d), state before the rewrite; overwritten by the next state if `in_place`. All tensors must be
            contiguous.
        x_in: (B, T, d) to fill with the compressed state; None to discard it.

    Returns:
        the next state and c, in the dtypes of S and h; the numbers to save for the backward pass, in fp32.

    Raises:
        ValueError: no kernel supports d, d_v or K.
    """
    K = check(S, reader.taps)
    B, T, d_v, d = S.shape
    layout = choose_layout(d, K, S.dtype)
    S_next = S if in_place else torch.empty_like(S)
    c = torch.empty_like(rewrite.h)
    _, v, beta = rewrite
    saved = Saved(*(torch.empty_like(like, dtype=torch.float32) for like in (beta, v, beta)))
    sequences, tokens = (B, T) if K == 4 else (1, B * T)
    fused_rewrite_forward_kernel[(sequences * triton.cdiv(tokens, layout.chunk),)](
        S_ptr=S,
        halo_ptr=copy_halo(S, layout.chunk, before=3, after=0) if in_place and K == 4 else None,
        **pointers("", rewrite, reader, saved),
        S_next_ptr=S_next,
        c_ptr=c,
        x_in_ptr=x_in,
        tokens=tokens,
        chunk=layout.chunk,
        eps_direction=eps_direction,
        eps_norm=eps_norm,
        D=d,
        DV=d_v,
        K=K,
        BLOCK=triton.next_power_of_2(d),
        num_warps=layout.warps,
    )
    return S_next, c, saved


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
    """Launch the backward kernel that fits the compressor.

    Args:
        S: (B, T, d_v, d), state before the rewrite; if `in_place`, the state after it, in which the rewrite is undone.
        grad_next: (B, T, d_v, d), gradient in the next state; None for zero.
        grad_c: (B, T, d), gradient in c; None for zero.
        grad_x_in: (B, T, d), gradient in the compressed state, in addition to that from c; None for zero. It needs
            grad_c.

    Returns:
        the gradients, each in the dtype of its tensor.

    Raises:
        ValueError: no kernel supports d, d_v or K.
    """
    taps, weight = reader
    K = check(S, taps) if grad_c is not None else 0  # without it the compressor receives no gradient
    B, T, d_v, d = S.shape
    layout = choose_layout(d, K, S.dtype)
    sequences, tokens = (B, T) if K == 4 else (1, B * T)
    programs = sequences * triton.cdiv(tokens, layout.chunk)
    taps_shares = torch.empty((programs, K, d_v, d), dtype=torch.float32, device=S.device)
    weight_shares = torch.empty((programs, d), dtype=torch.float32, device=S.device)
    grad_S, grad_h, grad_v, grad_beta = (torch.empty_like(like) for like in (S, *rewrite))
    grads = Gradients(grad_S, grad_h, grad_v, grad_beta, taps_shares, weight_shares)
    arguments = {
        "S_ptr": S,
        **pointers("", rewrite, reader, saved),
        "grad_next_ptr": grad_next,
        "grad_c_ptr": grad_c,
        "grad_x_in_ptr": grad_x_in,
        **pointers("grad_", grads),
        "tokens": tokens,
        "chunk": layout.chunk,
        "D": d,
        "DV": d_v,
        "BLOCK": triton.next_power_of_2(d),
        "IN_PLACE": in_place,
        "num_warps": layout.warps,
    }
    if K == 4:
        fused_rewrite_backward_tokens_kernel[(programs,)](
            **arguments,
            halo_ptr=copy_halo(S, layout.chunk, before=3, after=3) if in_place else None,
            ring_ptr=torch.empty((programs, 2 * layout.rows, d), dtype=torch.float32, device=S.device),
            ROWS=layout.rows,
            **MOST_REGISTERS,
        )
    else:
        fused_rewrite_backward_kernel[(programs,)](**arguments, K=K)
    if grad_c is None:
        return grads._replace(taps=None if taps is None else torch.zeros_like(taps), weight=torch.zeros_like(weight))
    grad_taps = None if taps is None else taps_shares.sum(0).to(taps.dtype)
    return grads._replace(taps=grad_taps, weight=weight_shares.sum(0).to(weight.dtype))


def pointers(prefix: str, *groups: Rewrite | Reader | Saved | Gradients) -> dict[str, Tensor | None]:
    """The tensors of the groups under the names of the kernel's arguments: h becomes h_ptr."""
    return {f"{prefix}{name}_ptr": tensor for group in groups for name, tensor in group._asdict().items()}


def copy_halo(S: Tensor, chunk: int, before: int, after: int) -> Tensor:
    """(B, chunks, before + after, d_v, d): copies of the rows around each chunk. Rows outside a sequence are unused."""
    tokens = S.shape[1]
    starts = torch.arange(0, tokens, chunk, device=S.device)
    around = torch.cat([torch.arange(-before, 0, device=S.device), torch.arange(chunk, chunk + after, device=S.device)])
    return S[:, (starts.unsqueeze(1) + around).clamp(0, tokens - 1)]


def check(S: Tensor, taps: Tensor | None) -> int:
    """Return K, or 0 without a compressor; raise ValueError if no kernel supports the arguments."""
    d_v, d = S.shape[2:]
    check_supported(S.dtype, d, d_v, 1 if taps is None else taps.shape[0], (1, 4))
    if taps is None and d_v > 1:
        raise ValueError(f"taps: expected a compressor with d_v = {d_v}, found none")
    return 0 if taps is None else taps.shape[0]
