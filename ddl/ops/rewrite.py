"""The delta rewrite of a residual state, Eq. 2.2: read along a direction, compare with a target, write back.

A state X is (..., d, d_v): d features by d_v value channels. The `_reference` functions are the definitions: they
compute in the dtype of their inputs, so fp64 inputs give fp64 results. The `_backward` functions are the derivatives,
derived by hand; the backward passes of operation and kernel follow them. `rewrite` is the operation that models use.
"""

from typing import Any

import torch
from torch import Tensor

from ddl.ops.dispatch import check_shape, only_reverse_mode, runs_triton, saved_dtype


def normalize_direction(k_tilde: Tensor, eps: float) -> Tensor:
    """The unit direction with its small-norm guard: k = k_tilde / sqrt(|k_tilde|^2 + eps^2) (Sec. 3.1).

    This is RMSNorm without weight and with epsilon eps^2 / d, divided by sqrt(d).

    Args:
        k_tilde: (..., d), unnormalised direction.
        eps: eps_k; |k| is noticeably below 1 if |k_tilde| is not much larger than eps_k.

    Returns:
        (..., d), |k| < 1, and equal to 1 up to rounding if |k_tilde| >> eps.
    """
    return k_tilde * torch.rsqrt(k_tilde.square().sum(-1, keepdim=True) + eps * eps)


def rewrite_reference(X: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """X' = X + beta k (v^T - k^T X) (Eq. 2.2).

    Args:
        X: (..., d, d_v), state.
        k: (..., d), unit direction.
        v: (..., d_v), target.
        beta: (...), gate in [0, 2].

    Returns:
        (..., d, d_v), the rewritten state, in the memory layout of X.
    """
    readout = torch.einsum("...i,...ij->...j", k, X)
    delta = beta.unsqueeze(-1) * (v - readout)
    return torch.addcmul(X, k.unsqueeze(-1), delta.unsqueeze(-2))


def undo_rewrite_reference(X_next: Tensor, k: Tensor, delta: Tensor) -> Tensor:
    """X = X' - k delta^T: the state before a rewrite, from the state after it and its rank-one change.

    Exact up to the rounding of two additions, for every gate: there is no division, so beta = 1 is not special.

    Args:
        X_next: (..., d, d_v), the rewritten state X'.
        k: (..., d), the direction of the rewrite, of any length.
        delta: (..., d_v), the correction beta (v - X^T k).

    Returns:
        (..., d, d_v), the state before the rewrite, in the memory layout of X_next.
    """
    return torch.addcmul(X_next, k.unsqueeze(-1), delta.unsqueeze(-2), value=-1)


def rewrite_backward_reference(
    X: Tensor, k: Tensor, v: Tensor, beta: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a loss through `rewrite_reference`.

    With G the gradient of the loss in X', e = v - X^T k the discrepancy and g = G^T k:

        dX = G - beta k g^T = (I - beta k k^T) G      dv = beta g
        dk = beta (G e - X g)                         dbeta = g^T e

    k is treated as a free vector of any length.

    Args:
        X: (..., d, d_v), state before the rewrite.
        k: (..., d), direction.
        v: (..., d_v), target.
        beta: (...), gate.
        grad: (..., d, d_v), G.

    Returns:
        the gradients in X, k, v and beta, each with the shape of its tensor.
    """
    discrepancy = v - torch.einsum("...i,...ij->...j", k, X)
    along = torch.einsum("...i,...ij->...j", k, grad)
    grad_v = beta.unsqueeze(-1) * along
    grad_X = torch.addcmul(grad, k.unsqueeze(-1), -grad_v.unsqueeze(-2))
    spread = torch.einsum("...ij,...j->...i", grad, discrepancy) - torch.einsum("...ij,...j->...i", X, along)
    return grad_X, beta.unsqueeze(-1) * spread, grad_v, (along * discrepancy).sum(-1)


def normalize_direction_backward(k_tilde: Tensor, eps: float, grad: Tensor) -> Tensor:
    """The gradient of a loss through `normalize_direction`.

    With s = sqrt(|k_tilde|^2 + eps^2) and k = k_tilde / s: dk_tilde = (I - k k^T) grad / s, which is at most
    |grad| / s <= |grad| / eps.

    Args:
        k_tilde: (..., d), unnormalised direction.
        eps: eps_k.
        grad: (..., d), gradient in k.

    Returns:
        (..., d), the gradient in k_tilde.
    """
    inverse = torch.rsqrt(k_tilde.square().sum(-1, keepdim=True) + eps * eps)
    k = k_tilde * inverse
    return inverse * (grad - k * (k * grad).sum(-1, keepdim=True))


def gate_backward(beta: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a loss through the bounded gate beta = 2 sigmoid(z): dz = beta (1 - beta / 2) grad.

    Args:
        beta: (...), gate in [0, 2].
        grad: (...), gradient in beta.

    Returns:
        (...), the gradient in the logit z.
    """
    return beta * (1 - beta / 2) * grad


def rewrite(X: Tensor, k_tilde: Tensor, v: Tensor, beta: Tensor, eps: float) -> Tensor:
    """X' = X + beta k (v^T - k^T X) with k = `normalize_direction(k_tilde, eps)`, as one operation.

    Args:
        X: (..., d, d_v), state; on a GPU d_v must be 1, 2, 4 or 8.
        k_tilde: (..., d), unnormalised direction.
        v: (..., d_v), target.
        beta: (...), gate in [0, 2].
        eps: eps_k of the small-norm guard.

    Returns:
        (..., d, d_v), features innermost, of the dtype of X.

    Raises:
        ValueError: the shapes do not fit together, or no kernel supports them.
    """
    leading, (d, d_v) = X.shape[:-2], X.shape[-2:]
    only_reverse_mode(X, k_tilde, v, beta)
    check_shape("k_tilde", k_tilde, (*leading, d), X)
    check_shape("v", v, (*leading, d_v), X)
    check_shape("beta", beta, leading, X)
    S = X.mT.reshape(-1, d_v, d).contiguous()
    h, v, beta = k_tilde.reshape(-1, d).contiguous(), v.reshape(-1, d_v).contiguous(), beta.reshape(-1).contiguous()
    S_next, _, _ = rewrite_op(S, h, v, beta, eps)
    return S_next.view(*leading, d_v, d).mT


@torch.library.custom_op("ddl::rewrite", mutates_args=())
def rewrite_op(S: Tensor, h: Tensor, v: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(N, d_v, d) state S = X^T, (N, d), (N, d_v), (N,) -> next state, inverse (N,) = 1 / |h|, readout (N, d_v)."""
    if runs_triton(S):
        from ddl.ops.rewrite_triton import rewrite_forward

        return rewrite_forward(S, h, v, beta, eps)
    h, v, beta = (tensor.to(saved_dtype(S)) for tensor in (h, v, beta))
    inverse = torch.rsqrt(h.square().sum(-1) + eps * eps)
    k = h * inverse.unsqueeze(-1)
    readout = torch.einsum("ni,nji->nj", k, S.to(k.dtype))
    delta = beta.unsqueeze(-1) * (v - readout)
    return torch.addcmul(S.to(k.dtype), delta.unsqueeze(-1), k.unsqueeze(-2)).to(S.dtype), inverse, readout


@rewrite_op.register_fake
def _(S: Tensor, h: Tensor, v: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    saved = saved_dtype(S)
    return torch.empty_like(S), torch.empty_like(beta, dtype=saved), torch.empty_like(v, dtype=saved)


@torch.library.custom_op("ddl::rewrite_backward", mutates_args=())
def rewrite_backward_op(
    S: Tensor, h: Tensor, v: Tensor, beta: Tensor, inverse: Tensor, readout: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in S, h, v and beta: `rewrite_backward_reference`, then `normalize_direction_backward`."""
    if runs_triton(S):
        from ddl.ops.rewrite_triton import rewrite_backward

        return rewrite_backward(S, h, v, beta, inverse, readout, grad)
    saved = inverse.dtype
    k = h.to(saved) * inverse.unsqueeze(-1)
    discrepancy = v.to(saved) - readout
    G = grad.to(saved)
    along = torch.einsum("ni,nji->nj", k, G)
    grad_v = beta.to(saved).unsqueeze(-1) * along
    grad_S = torch.addcmul(G, grad_v.unsqueeze(-1), k.unsqueeze(-2), value=-1)
    spread = torch.einsum("nji,nj->ni", G, discrepancy) - torch.einsum("nji,nj->ni", S.to(saved), along)
    grad_k = beta.to(saved).unsqueeze(-1) * spread
    grad_h = inverse.unsqueeze(-1) * (grad_k - k * (k * grad_k).sum(-1, keepdim=True))
    grad_beta = (along * discrepancy).sum(-1)
    return grad_S.to(S.dtype), grad_h.to(h.dtype), grad_v.to(v.dtype), grad_beta.to(beta.dtype)


@rewrite_backward_op.register_fake
def _(
    S: Tensor, h: Tensor, v: Tensor, beta: Tensor, inverse: Tensor, readout: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(S), torch.empty_like(h), torch.empty_like(v), torch.empty_like(beta)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    S, h, v, beta, _ = inputs
    _, inverse, readout = output
    ctx.mark_non_differentiable(inverse, readout)
    ctx.save_for_backward(S, h, v, beta, inverse, readout)


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *rewrite_backward_op(*ctx.saved_tensors, grad.contiguous()), None


rewrite_op.register_autograd(_backward, setup_context=_save)
