"""From a token embedding to the expanded residual state (App. A.3, input expansion).

The state is (B, T, d, d_v) by its indices, but features lie innermost in memory: work over d then runs over adjacent
numbers, whatever d_v is. Elementwise operations keep the layout of their inputs, so it is chosen once, here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def features_innermost(tensor: Tensor) -> Tensor:
    """The same (..., d, d_v) tensor with d adjacent in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def shift_tokens(x: Tensor, steps: int) -> Tensor:
    """Row t becomes row t - steps along axis 1, zeros before the first token: causal by construction.

    Args:
        x: (B, T, ...).
        steps: 0 <= steps.
    """
    if steps == 0:
        return x
    padding = (0, 0) * (x.dim() - 2) + (steps, 0)
    return F.pad(x, padding)[:, : x.shape[1]]


def repeat_embedding(x: Tensor, value_channels: int) -> Tensor:
    """X[t,i,j] = x[t,i]: the initial state without EC.

    Args:
        x: (B, T, d).

    Returns:
        (B, T, d, d_v), features innermost.
    """
    return x.unsqueeze(-2).expand(-1, -1, value_channels, -1).contiguous().transpose(-1, -2)


def expand_embedding(x: Tensor, kernel: Tensor) -> Tensor:
    """EC, a depthwise causal convolution over tokens: X[t,i,j] = sum_s c[i,j,s] x[t-s,i].

    Args:
        x: (B, T, d).
        kernel: (d, d_v, K), tap s looks s tokens back.

    Returns:
        (B, T, d, d_v), features innermost.
    """
    taps = kernel.permute(2, 1, 0).contiguous()  # [K, d_v, d]
    X = sum(shift_tokens(x, s).unsqueeze(-2) * taps[s] for s in range(taps.shape[0]))
    assert isinstance(X, torch.Tensor)
    return X.transpose(-1, -2)
