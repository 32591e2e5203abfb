"""The delta rewrite of a residual state, Eq. 2.2: read along a direction, compare with a target, write back.

A state X is (..., d, d_v): d features by d_v value channels. Every function computes in the dtype it is given, so that
fp64 in gives fp64 out. The `_backward` functions are the derivatives, worked out by hand: what a kernel's backward
pass is measured against.
"""

import torch
from torch import Tensor


def normalize_direction(k_tilde: Tensor, eps: float) -> Tensor:
    """The unit direction with its small-norm guard: k = k_tilde / sqrt(|k_tilde|^2 + eps^2) (Sec. 2.1).

    This is RMSNorm without weight and with epsilon eps^2 / d, divided by sqrt(d).

    Args:
        k_tilde: (..., d), unnormalised direction.
        eps: eps_k; |k| falls below 1 once |k_tilde| comes near it.

    Returns:
        (..., d), |k| < 1, and 1 to rounding for |k_tilde| >> eps.
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
    """X = X' - k delta^T: the state before a rewrite, from the state after it and the rewrite's rank-one change.

    Exact but for the rounding of two additions, at every gate: nothing is divided, so beta = 1 is no special case.

    Args:
        X_next: (..., d, d_v), the rewritten state X'.
        k: (..., d), the direction that the rewrite was given, of length one or not.
        delta: (..., d_v), its correction beta (v - X^T k).

    Returns:
        (..., d, d_v), the state before, in the memory layout of X_next.
    """
    return torch.addcmul(X_next, k.unsqueeze(-1), delta.unsqueeze(-2), value=-1)


def rewrite_backward_reference(
    X: Tensor, k: Tensor, v: Tensor, beta: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a loss through `rewrite_reference`.

    With G the gradient of the loss in X', e = v - X^T k the discrepancy and g = G^T k:

        dX = G - beta k g^T = (I - beta k k^T) G      dv = beta g
        dk = beta (G e - X g)                         dbeta = g^T e

    k counts as a free vector here, of length one or not.

    Args:
        X: (..., d, d_v), state before the rewrite.
        k: (..., d), direction.
        v: (..., d_v), target.
        beta: (...), gate.
        grad: (..., d, d_v), G.

    Returns:
        the gradients in X, k, v and beta, each of the shape of what it belongs to.
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
