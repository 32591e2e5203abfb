"""The fused step across a sublayer boundary: rewrite the state, compress it for the next sublayer, normalise.

One pass over the state instead of three: X is read once and X' is written once, and the width-d readout between them
never leaves the registers. The backward pass recomputes it from the same one pass over X and the gradient in X'.

A backward pass needs the states of all sublayers. Either each is stored, as autograd does (`step`), or there is one
state that the forward pass overwrites and the backward pass rebuilds by undoing one rewrite after another
(`step_in_place`): X_l = X_{l+1} - k_l delta_l^T is exact but for rounding, and memory does not grow with depth.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddl.ops.compress import compress_reference
from ddl.ops.dispatch import check_shape, runs_triton, saved_dtype
from ddl.ops.rewrite import normalize_direction, rewrite_reference


def step_reference(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
) -> tuple[Tensor, Tensor]:
    """Rewrite (Eq. 2.2), compress (App. A.3), RMSNorm (Sec. 3), one after another; arguments as in `step`."""
    k = normalize_direction(k_tilde, eps_direction)
    if taps is None:
        X_next = x_in = rewrite_reference(X.unsqueeze(-1), k, v, beta).squeeze(-1)
    else:
        X_next = rewrite_reference(X, k, v, beta)
        x_in = compress_reference(X_next, taps)
    return X_next, F.rms_norm(x_in, x_in.shape[-1:], weight, eps_norm)


def step(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
) -> tuple[Tensor, Tensor]:
    """The next state and the normalised input of the next sublayer.

        X' = X + beta k (v^T - k^T X)      k = `normalize_direction(k_tilde, eps_direction)`
        x_in[t,i] = sum_s sum_j taps[s,j,i] X'[t-s,i,j]
        c = weight x_in / sqrt(mean(x_in^2) + eps_norm)

    Args:
        X: (B, T, d, d_v), or (B, T, d) for a scalar state.
        k_tilde: (B, T, d), unnormalised direction: the output of the sublayer.
        v: (B, T, d_v), target.
        beta: (B, T), gate in [0, 2].
        taps: (K, d_v, d) of the compressor that reads X' (`channel_taps`, `token_taps`), K one of 1 and 4 on a GPU;
            None for a scalar state, which is its own readout.
        weight: (d,) of the norm behind that compressor.
        eps_direction: eps_k of the small-norm guard.
        eps_norm: epsilon of the norm.

    Returns:
        X', of the shape and dtype of X, features innermost; and c, (B, T, d) in the dtype of k_tilde.

    Raises:
        ValueError: shapes that do not belong together, or that no kernel is made for.
    """
    S, arguments = prepare(X, k_tilde, v, beta, taps, weight)
    S_next, c, *_ = step_op(S, *arguments, eps_direction, eps_norm)
    return as_state(S_next, scalar=taps is None), c


class Rebuilding:
    """How many steps a state that is overwritten has behind it: forward counts up, backward counts down."""

    def __init__(self) -> None:
        self.position = 0
        # Here and not where it is defined: this imports the compiler, which takes more than a second.
        self.apply = torch.compiler.disable(InPlaceStep.apply)


def step_in_place(
    X: Tensor,
    k_tilde: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
    rebuilding: Rebuilding,
) -> tuple[Tensor, Tensor]:
    """`step` that overwrites X, and whose backward pass puts back what was there.

    All steps on one X share a `Rebuilding`. Nothing else may keep X for its backward pass, the backward passes of the
    steps run once and in reverse order, and torch.compile leaves the function out of its graphs.

    Returns:
        X itself, rewritten; and c as `step` returns it.

    Raises:
        ValueError: as `step`; and a state that does not have its features innermost.
    """
    S, arguments = prepare(X.detach(), k_tilde, v, beta, taps, weight)
    if S.data_ptr() != X.data_ptr():
        raise ValueError("X: expected a state with its features innermost, which can be overwritten")
    return rebuilding.apply(X, *arguments, eps_direction, eps_norm, rebuilding)


def prepare(
    X: Tensor, k_tilde: Tensor, v: Tensor, beta: Tensor, taps: Tensor | None, weight: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]]:
    """Check the shapes; the state as (B, T, d_v, d) and the other arguments contiguous."""
    if X.dim() != (3 if taps is None else 4):
        raise ValueError(f"X: expected (B, T, d) without taps or (B, T, d, d_v) with taps, found {tuple(X.shape)}")
    S = as_rows(X, scalar=taps is None).contiguous()
    B, T, d_v, d = S.shape
    for name, tensor, shape in (("k_tilde", k_tilde, (B, T, d)), ("v", v, (B, T, d_v)), ("beta", beta, (B, T))):
        check_shape(name, tensor, shape, X)
    check_shape("weight", weight, (d,), X)
    if taps is not None:
        check_shape("taps", taps, (taps.shape[0], d_v, d), X)
        taps = taps.contiguous()
    return S, (k_tilde.contiguous(), v.contiguous(), beta.contiguous(), taps, weight.contiguous())


def as_rows(X: Tensor, scalar: bool) -> Tensor:
    """(B, T, d, d_v), or (B, T, d) if scalar -> (B, T, d_v, d), as a state lies in memory."""
    return X.unsqueeze(2) if scalar else X.mT


def as_state(S: Tensor, scalar: bool) -> Tensor:
    """The inverse of `as_rows`."""
    return S.squeeze(2) if scalar else S.mT


def forward_pass(
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
    """S_next, c and what the backward pass needs of every token: inverse = 1 / |h|, readout = S k, rstd = 1 / |x_in|.

    Args:
        S: (B, T, d_v, d), X^T; overwritten by S_next with `in_place`.
        h: (B, T, d), k_tilde; v: (B, T, d_v); beta: (B, T); taps: (K, d_v, d) or None; weight: (d,).
    """
    if runs_triton(S):
        from ddl.ops.fused_rewrite_triton import step_forward
    else:
        from ddl.ops.fused_rewrite_cpu import step_forward_cpu as step_forward
    return step_forward(S, h, v, beta, taps, weight, eps_direction, eps_norm, in_place)


def backward_pass(
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
    """The gradients in S, h, v, beta, taps and weight.

    Args:
        S: (B, T, d_v, d), the state before the step; with `in_place` the state after it, which is put back.
        grad_next, grad_c: of S_next and c; None for zero.
    """
    if runs_triton(S):
        from ddl.ops.fused_rewrite_triton import step_backward
    else:
        from ddl.ops.fused_rewrite_cpu import step_backward_cpu as step_backward
    return step_backward(S, h, v, beta, taps, weight, inverse, readout, rstd, grad_next, grad_c, in_place)


@torch.library.custom_op("ddl::step", mutates_args=())
def step_op(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`forward_pass` into a new state."""
    return forward_pass(S, h, v, beta, taps, weight, eps_direction, eps_norm, in_place=False)


@step_op.register_fake
def _(
    S: Tensor,
    h: Tensor,
    v: Tensor,
    beta: Tensor,
    taps: Tensor | None,
    weight: Tensor,
    eps_direction: float,
    eps_norm: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved = saved_dtype(S)
    inverse, readout, rstd = (torch.empty_like(like, dtype=saved) for like in (beta, v, beta))
    return torch.empty_like(S), torch.empty_like(h), inverse, readout, rstd


@torch.library.custom_op("ddl::step_backward", mutates_args=())
def step_backward_op(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`backward_pass` with stored states; without taps their gradient is an empty tensor, an operator has no None."""
    grads = backward_pass(S, h, v, beta, taps, weight, inverse, readout, rstd, grad_next, grad_c, in_place=False)
    grad_S, grad_h, grad_v, grad_beta, grad_taps, grad_weight = grads
    return grad_S, grad_h, grad_v, grad_beta, weight.new_empty(0) if grad_taps is None else grad_taps, grad_weight


@step_backward_op.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_taps = weight.new_empty(0) if taps is None else torch.empty_like(taps)
    grad_S, grad_h, grad_v, grad_beta, grad_weight = (torch.empty_like(tensor) for tensor in (S, h, v, beta, weight))
    return grad_S, grad_h, grad_v, grad_beta, grad_taps, grad_weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    S, h, v, beta, taps, weight, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(S, h, v, beta, taps, weight, *output[2:])


def _backward(ctx: Any, grad_next: Tensor | None, grad_c: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    taps = ctx.saved_tensors[4]
    *grads, grad_taps, grad_weight = step_backward_op(*ctx.saved_tensors, contiguous(grad_next), contiguous(grad_c))
    return *grads, None if taps is None else grad_taps, grad_weight, None, None


step_op.register_autograd(_backward, setup_context=_save)


class InPlaceStep(torch.autograd.Function):
    """Autograd's side of `step_in_place`; an operator of torch.library cannot both overwrite and have a gradient."""

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
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(X)
        S = as_rows(X, scalar=taps is None)
        _, c, *saved = forward_pass(S, h, v, beta, taps, weight, eps_direction, eps_norm, in_place=True)
        rebuilding.position += 1
        ctx.rebuilding, ctx.position = rebuilding, rebuilding.position
        ctx.S = S.detach()  # not save_for_backward, which refuses a tensor that later steps overwrite
        ctx.save_for_backward(h, v, beta, taps, weight, *saved)
        return X, c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.position != ctx.rebuilding.position:
            raise RuntimeError(
                f"rebuilt states: expected the backward pass of step {ctx.rebuilding.position}, found step "
                f"{ctx.position}; it runs once and in order, use stored states for anything else"
            )
        ctx.rebuilding.position -= 1
        h, v, beta, taps, weight, inverse, readout, rstd = ctx.saved_tensors
        grad_X, grad_c = grads
        grad_next = None if grad_X is None else contiguous(as_rows(grad_X, scalar=taps is None))
        grad_S, *others = backward_pass(
            ctx.S, h, v, beta, taps, weight, inverse, readout, rstd, grad_next, contiguous(grad_c), in_place=True
        )
        return as_state(grad_S, scalar=taps is None), *others, None, None, None


def contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()
