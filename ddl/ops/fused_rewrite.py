"""The fused rewrite between two sublayers: rewrite the state, compress it for the next sublayer, normalise the result.

This takes one pass over the state instead of three: X is read once, X' is written once, and the compressed state x_in
stays in registers unless the caller asks for it. The backward pass computes it again while it reads X and the gradient
in X' once each.

The backward pass needs the state before every rewrite. Either autograd stores all of these (`fused_rewrite`). Or the
forward pass overwrites one state, and the backward pass restores it by undoing one rewrite after another,
X = X' - k delta^T, which is exact up to rounding (`fused_rewrite_in_place`). The memory for states then does not grow
with depth.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddl.ops.compress import compress_reference
from ddl.ops.dispatch import check_shape, check_taps, only_reverse_mode, runs_triton, saved_dtype
from ddl.ops.fused_rewrite_arguments import Gradients, Reader, Rewrite, Saved
from ddl.ops.rewrite import normalize_direction, rewrite_reference


def fused_rewrite_reference(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    with_x_in: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rewrite (Eq. 2.2), compress (App. A.3), RMSNorm (Sec. 3), one after another; arguments as in `fused_rewrite`."""
    k = normalize_direction(k_tilde, eps_direction)
    if taps is None:
        X_next = x_in = rewrite_reference(X.unsqueeze(-1), k, v, beta).squeeze(-1)
    else:
        X_next = rewrite_reference(X, k, v, beta)
        x_in = compress_reference(X_next, taps)
    return X_next, F.rms_norm(x_in, x_in.shape[-1:], weight, eps_norm), x_in if with_x_in else None


def fused_rewrite(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    with_x_in: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next state and the normalised input of the next sublayer, differentiable once in all tensors.

        X' = X + beta k (v^T - k^T X)      k = `normalize_direction(k_tilde, eps_direction)`
        x_in[t,i] = sum_s sum_j taps[s,j,i] X'[t-s,i,j]
        c = weight x_in / sqrt(mean(x_in^2) + eps_norm)

    Args:
        X: (B, T, d, d_v), or (B, T, d) for a scalar state.
        k_tilde: (B, T, d), unnormalised direction: the output of the sublayer.
        v: (B, T, d_v), target.
        beta: (B, T), gate in [0, 2].
        taps: (K, d_v, d), the compressor that reads X' (`channel_taps`, `token_taps`); on a GPU K must be 1 or 4. None
            for a scalar state, which needs no compressor.
        weight: (d,), the weight of the norm that follows the compressor.
        eps_direction: eps_k of the small-norm guard.
        eps_norm: epsilon of the norm.
        with_x_in: also return the compressed state x_in, for a rule that reads it; otherwise it is never in memory.

    Returns:
        X', with the shape and dtype of X, features innermost; c, (B, T, d), in the dtype of k_tilde; x_in, like c, or
        None.

    Raises:
        ValueError: the shapes do not fit together, or no kernel supports them.
        NotImplementedError: a tensor has a forward-mode tangent.

    A gradient of the gradient, torch.func.grad and forward mode are refused; `fused_rewrite_reference` has all three.
    docs/kernels.md has an example.
    """
    S, rewrite, reader = prepare(X, Rewrite(k_tilde, v, beta), Reader(taps, weight))
    S_next, c, x_in, *_ = fused_rewrite_op(S, *rewrite, *reader, eps_direction, eps_norm, with_x_in)
    return as_state(S_next, scalar=taps is None), c, x_in if with_x_in else None


class Rebuilding:
    """A counter of the rewrites of an overwritten state: the forward pass counts up, the backward pass counts down."""

    def __init__(self) -> None:
        self.position = 0
        # Wrapped here and not at its definition: this imports the compiler, which takes more than a second.
        self.apply = torch.compiler.disable(InPlaceRewrite.apply)


def fused_rewrite_in_place(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    rebuilding: Rebuilding,
    with_x_in: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`fused_rewrite`, but it overwrites X, and its backward pass restores X.

    All rewrites of one X share a `Rebuilding`. No other operation may save X for its backward pass. The backward passes
    of the rewrites must run once and in reverse order. torch.compile does not include this function in its graphs.

    Returns:
        X itself, rewritten; c and x_in as in `fused_rewrite`.

    Raises:
        ValueError: as in `fused_rewrite`; also if the features of X are not innermost in memory.
    """
    S, rewrite, reader = prepare(X.detach(), Rewrite(k_tilde, v, beta), Reader(taps, weight))
    if S.data_ptr() != X.data_ptr():
        raise ValueError("X: expected a state with its features innermost, which can be overwritten")
    return rebuilding.apply(X, *rewrite, *reader, eps_direction, eps_norm, rebuilding, with_x_in)


def prepare(X: Tensor, rewrite: Rewrite, reader: Reader) -> tuple[Tensor, Rewrite, Reader]:
    """Check the shapes; return the state as (B, T, d_v, d) and the arguments, all contiguous."""
    (h, v, beta), (taps, weight) = rewrite, reader
    only_reverse_mode(X, h, v, beta, taps, weight)
    if X.dim() != (3 if taps is None else 4):
        raise ValueError(f"X: expected (B, T, d) without taps or (B, T, d, d_v) with taps, found {tuple(X.shape)}")
    S = as_rows(X, scalar=taps is None).contiguous()
    B, T, d_v, d = S.shape
    for name, tensor, shape in (("k_tilde", h, (B, T, d)), ("v", v, (B, T, d_v)), ("beta", beta, (B, T))):
        check_shape(name, tensor, shape, X)
    check_shape("weight", weight, (d,), X)
    if taps is not None:
        check_taps(taps, d_v, d, X)
        taps = taps.contiguous()
    return S, Rewrite(h.contiguous(), v.contiguous(), beta.contiguous()), Reader(taps, weight.contiguous())


def as_rows(X: Tensor, scalar: bool) -> Tensor:
    """(B, T, d, d_v), or (B, T, d) if scalar -> (B, T, d_v, d), the layout of a state in memory."""
    return X.unsqueeze(2) if scalar else X.mT


def as_state(S: Tensor, scalar: bool) -> Tensor:
    """The inverse of `as_rows`."""
    return S.squeeze(2) if scalar else S.mT


def forward_pass(
    S: Tensor,
    rewrite: Rewrite,
    reader: Reader,
    eps_direction: float,
    eps_norm: float,
    in_place: bool,
    x_in: Tensor | None,
) -> tuple[Tensor, Tensor, Saved]:
    """The next state, c, and the numbers to save for the backward pass.

    Args:
        S: (B, T, d_v, d), state before the rewrite; overwritten by the next state if `in_place`.
        x_in: (B, T, d) to fill with the compressed state; None to discard it.
    """
    if runs_triton(S):
        from ddl.ops.fused_rewrite_triton import fused_rewrite_forward
    else:
        from ddl.ops.fused_rewrite_cpu import fused_rewrite_forward
    return fused_rewrite_forward(S, rewrite, reader, eps_direction, eps_norm, in_place, x_in)


def backward_pass(
    S: Tensor,
    rewrite: Rewrite,
    reader: Reader,
    saved: Saved,
    grad_next: Tensor | None,
    grad_c: Tensor | None,
    grad_x_in: Tensor | None,
    in_place: bool,
) -> Gradients:
    """The gradients of the loss in all inputs.

    Args:
        S: (B, T, d_v, d), state before the rewrite; if `in_place`, the state after it, in which the rewrite is undone.
        grad_next, grad_c, grad_x_in: gradients in the next state, in c and in x_in; None for zero.
    """
    if grad_c is None and grad_x_in is not None:
        grad_c = torch.zeros_like(rewrite.h)  # the code below goes back through the compressor only with grad_c
    if runs_triton(S):
        from ddl.ops.fused_rewrite_triton import fused_rewrite_backward
    else:
        from ddl.ops.fused_rewrite_cpu import fused_rewrite_backward
    return fused_rewrite_backward(S, rewrite, reader, saved, grad_next, grad_c, in_place, grad_x_in)


# torch.library and torch.autograd need every tensor as a separate argument, so the groups are unpacked from here on.
@torch.library.custom_op("ddl::fused_rewrite", mutates_args=())
def fused_rewrite_op(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    with_x_in: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`forward_pass` into a new state. An operator cannot return None, so x_in is empty if nobody reads it."""
    rewrite, reader = Rewrite(h, v, beta), Reader(taps, weight)
    x_in = torch.empty_like(h) if with_x_in else None
    S_next, c, saved = forward_pass(S, rewrite, reader, eps_direction, eps_norm, in_place=False, x_in=x_in)
    return S_next, c, h.new_empty(0) if x_in is None else x_in, *saved


@fused_rewrite_op.register_fake
def _(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    with_x_in: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inverse, readout, rstd = (torch.empty_like(like, dtype=saved_dtype(S)) for like in (beta, v, beta))
    x_in = torch.empty_like(h) if with_x_in else h.new_empty(0)
    return torch.empty_like(S), torch.empty_like(h), x_in, inverse, readout, rstd


@torch.library.custom_op("ddl::fused_rewrite_backward", mutates_args=())
def fused_rewrite_backward_op(
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
    grad_x_in: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`backward_pass` with stored states. An operator cannot return None, so without taps their gradient is empty."""
    rewrite, reader, saved = Rewrite(h, v, beta), Reader(taps, weight), Saved(inverse, readout, rstd)
    grads = backward_pass(S, rewrite, reader, saved, grad_next, grad_c, grad_x_in, in_place=False)
    grad_taps = weight.new_empty(0) if grads.taps is None else grads.taps
    return grads.S, grads.h, grads.v, grads.beta, grad_taps, grads.weight


@fused_rewrite_backward_op.register_fake
def _(
    S: Tensor, h: Tensor, v: Tensor, beta: Tensor, taps: Tensor | None, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_taps = weight.new_empty(0) if taps is None else torch.empty_like(taps)
    grad_S, grad_h, grad_v, grad_beta, grad_weight = (torch.empty_like(tensor) for tensor in (S, h, v, beta, weight))
    return grad_S, grad_h, grad_v, grad_beta, grad_taps, grad_weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, with_x_in = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3 if with_x_in else 2 :])
    ctx.save_for_backward(*tensors, *output[3:])


def _backward(ctx: Any, *grads_in: Tensor | None) -> tuple[Tensor | None, ...]:
    taps = ctx.saved_tensors[4]
    grads = fused_rewrite_backward_op(*ctx.saved_tensors, *map(contiguous, grads_in[:3]))
    *others, grad_taps, grad_weight = grads
    return *others, None if taps is None else grad_taps, grad_weight, None, None, None


fused_rewrite_op.register_autograd(_backward, setup_context=_save)


class InPlaceRewrite(torch.autograd.Function):
    """`fused_rewrite_in_place` for autograd: operators of torch.library that overwrite cannot have a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        h: Tensor,
        v: Tensor,
        beta: Tensor,
        taps: Tensor | None,
        weight: Tensor,
        eps_direction: float,
        eps_norm: float,
        rebuilding: Rebuilding,
        with_x_in: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(X)
        S, rewrite, reader = as_rows(X, scalar=taps is None), Rewrite(h, v, beta), Reader(taps, weight)
        x_in = torch.empty_like(h) if with_x_in else None
        _, c, saved = forward_pass(S, rewrite, reader, eps_direction, eps_norm, in_place=True, x_in=x_in)
        rebuilding.position += 1
        ctx.rebuilding, ctx.position = rebuilding, rebuilding.position
        ctx.S = S.detach()  # not save_for_backward, which rejects a tensor that later rewrites change
        ctx.save_for_backward(*rewrite, *reader, *saved)
        return X, c, x_in

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.position != ctx.rebuilding.position:
            raise RuntimeError(
                f"rebuilt states: expected the backward pass of rewrite {ctx.rebuilding.position}, found rewrite "
                f"{ctx.position}; it runs once and in order, use stored states for anything else"
            )
        ctx.rebuilding.position -= 1
        h, v, beta, taps, weight, *saved = ctx.saved_tensors
        rewrite, reader, scalar = Rewrite(h, v, beta), Reader(taps, weight), taps is None
        grad_X, grad_c, grad_x_in = grads
        grad_next = None if grad_X is None else contiguous(as_rows(grad_X, scalar))
        grads_in = grad_next, contiguous(grad_c), contiguous(grad_x_in)
        grad_S, *others = backward_pass(ctx.S, rewrite, reader, Saved(*saved), *grads_in, in_place=True)
        return as_state(grad_S, scalar), *others, None, None, None, None


def contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()
