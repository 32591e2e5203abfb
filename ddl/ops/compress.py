"""From the expanded residual state to the width-d input of a sublayer (App. A.3): CC and TC."""

import torch
from torch import Tensor

from ddl.ops.expand import features_innermost, shift_tokens


def compress_channels(X: Tensor, kernel: Tensor) -> Tensor:
    """CC, one kernel over the value channels for each feature: x_in[t,i] = sum_j c[i,j] X[t,i,j].

    Args:
        X: (B, T, d, d_v), state.
        kernel: (d, d_v).

    Returns:
        (B, T, d).
    """
    return (X * features_innermost(kernel)).sum(-1)


def compress_tokens(X: Tensor, kernel: Tensor, read: Tensor) -> Tensor:
    """TC, a depthwise causal convolution over tokens and a read vector over the value channels.

    x_in[t,i] = sum_j w_p[j] sum_s c[i,j,s] X[t-s,i,j]. Both are linear, so the read vector is folded into the kernel
    and each tap reads the state once.

    Args:
        X: (B, T, d, d_v), state.
        kernel: (d, d_v, K), tap s looks s tokens back.
        read: (d_v,), w_p.

    Returns:
        (B, T, d).
    """
    taps = kernel.permute(2, 1, 0) * read.unsqueeze(-1)  # [K, d_v, d]
    x_in = sum(shift_tokens((X * taps[s].transpose(-1, -2)).sum(-1), s) for s in range(taps.shape[0]))
    assert isinstance(x_in, torch.Tensor)
    return x_in
