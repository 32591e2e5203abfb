"""The delta rewrite of a residual state, Eq. 2.2: read along a direction, compare with a target, write back.

A state X is (..., d, d_v): d features by d_v value channels. Every function computes in the dtype it is given, so that
fp64 in gives fp64 out.
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
