"""The tensors of the fused rewrite in groups, as `ddl.ops.fused_rewrite` hands them to the CPU code and to the kernels.

A state X, (B, T, d, d_v), is held as S = X^T: d_v rows of d adjacent features for every token.
"""

from typing import NamedTuple

from torch import Tensor


class Rewrite(NamedTuple):
    """What rewrites the state."""

    h: Tensor  # (B, T, d), unnormalised direction k_tilde, the output of a sublayer
    v: Tensor  # (B, T, d_v), target
    beta: Tensor  # (B, T), gate


class Reader(NamedTuple):
    """What reads the rewritten state: the compressor and the norm in front of the next sublayer."""

    taps: Tensor | None  # (K, d_v, d), tap s looks s tokens back; None for d_v = 1 without a compressor
    weight: Tensor  # (d,), of the norm


class Saved(NamedTuple):
    """What the forward pass keeps of every token for the backward pass: the numbers that take a sum over features."""

    inverse: Tensor  # (B, T), q = 1 / sqrt(|h|^2 + eps_direction^2), so that the direction is k = q h
    readout: Tensor  # (B, T, d_v), r = S k
    rstd: Tensor  # (B, T), 1 / sqrt(mean(x_in^2) + eps_norm)


class Gradients(NamedTuple):
    """The gradients of the loss in the state before the rewrite, in `Rewrite` and in `Reader`, shaped as those are."""

    S: Tensor
    h: Tensor
    v: Tensor
    beta: Tensor
    taps: Tensor | None
    weight: Tensor
