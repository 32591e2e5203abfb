"""The arguments of the fused rewrite in groups, as `ddl.ops.fused_rewrite` passes them to the CPU code and the kernels.

A state X, (B, T, d, d_v), is passed as S = X^T: d_v rows of d adjacent features for every token.
"""

from typing import NamedTuple

from torch import Tensor


class Rewrite(NamedTuple):
    """The inputs of a rewrite, except for the state."""

    h: Tensor  # (B, T, d), unnormalised direction k_tilde, the output of a sublayer
    v: Tensor  # (B, T, d_v), target
    beta: Tensor  # (B, T), gate


class Reader(NamedTuple):
    """The parameters that read the rewritten state: the compressor and the norm of the next sublayer."""

    taps: Tensor | None  # (K, d_v, d), tap s looks s tokens back; None without a compressor (d_v = 1)
    weight: Tensor  # (d,), weight of the norm


class Saved(NamedTuple):
    """The numbers per token that the forward pass saves for the backward pass: those that need a sum over features."""

    inverse: Tensor  # (B, T), q = 1 / sqrt(|h|^2 + eps_direction^2), so that the direction is k = q h
    readout: Tensor  # (B, T, d_v), r = S k
    rstd: Tensor  # (B, T), 1 / sqrt(mean(x_in^2) + eps_norm)


class Gradients(NamedTuple):
    """The gradients of the loss in the state before the rewrite and in the fields of `Rewrite` and `Reader`."""

    S: Tensor
    h: Tensor
    v: Tensor
    beta: Tensor
    taps: Tensor | None
    weight: Tensor
