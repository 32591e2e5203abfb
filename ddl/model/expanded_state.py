"""The state with several value channels: how the embedding is expanded to it, and how it is compressed for a sublayer.

`Expand` makes the state from the embedding (App. A.3), and a compressor maps it to the width of a sublayer (Sec. 3.2).
"""

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.config import ModelConfig
from ddl.model.cache import Window
from ddl.ops.compress import channel_taps, compress, compress_reference, token_taps
from ddl.ops.dispatch import saved_dtype, without_autocast
from ddl.ops.expand import expand_embedding, expand_reference, repeat_embedding


class Expand(nn.Module):
    """Maps the embedding to the state: unchanged, repeated, or by the embedding convolution EC (App. A.3).

    On a scalar state, EC has one output channel: a short causal convolution over tokens (control).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.value_channels = config.value_channels
        self.convolve = expand_reference if config.kernels == "reference" else expand_embedding
        self.kernel = None
        if config.embed_conv:
            self.kernel = nn.Parameter(identity_taps(config.width, config.value_channels, config.embed_conv_kernel))

    def flops(self) -> int:
        return 0 if self.kernel is None else 2 * self.kernel.numel()

    def forward(self, x: Tensor, window: Window | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d) if d_v = 1, else (B, T, d, d_v); `window` holds the embeddings before x."""
        if self.kernel is None:
            return x if self.value_channels == 1 else repeat_embedding(x, self.value_channels)
        kernel = self.kernel.to(x.dtype)
        if window is None:
            X = self.convolve(x, kernel)
        else:
            before = kernel.shape[-1] - 1
            X = self.convolve(window.extend(x, before), kernel)[:, before:]
        return X.squeeze(-1) if self.value_channels == 1 else X


class NoCompressor(nn.Module):
    """The compressor of a scalar state: the readout is the state."""

    fused = True  # whether `Rule.rewrite_and_read` can compute it, from its taps

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def flops(self) -> int:
        return 0

    def taps(self) -> None:
        """None: there are no taps."""

    def forward(self, X: Tensor, window: Window | None = None) -> Tensor:
        return X


class Compressor(nn.Module, abc.ABC):
    """(B, T, d, d_v) -> (B, T, d), x_in[t,i] = sum_s sum_j taps[s,j,i] X[t-s,i,j]; subclasses define `taps`."""

    fused = True
    kernel: nn.Parameter  # each entry costs one multiply-add per token

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.compress = compress_reference if config.kernels == "reference" else compress

    def flops(self) -> int:
        return 2 * self.kernel.numel()

    @abc.abstractmethod
    def taps(self) -> Tensor:
        """The taps (K, d_v, d)."""

    def forward(self, X: Tensor, window: Window | None = None) -> Tensor:
        """(B, T, d, d_v) -> (B, T, d); `window` holds the states before X."""
        taps = self.taps().to(X.dtype)
        before = taps.shape[0] - 1
        if window is None or before == 0:
            return self.compress(X, taps)
        X = window.extend(X.mT, before).mT  # features are innermost in memory, so join in that layout
        return self.compress(X, taps)[:, before:]


class TokenCompressor(Compressor):
    """TC: starts as the mean over the value channels (identity taps, read vector 1 / d_v)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.kernel = nn.Parameter(identity_taps(config.width, config.value_channels, config.compressor_kernel))
        self.read = nn.Parameter(torch.full((config.value_channels,), 1 / config.value_channels))

    def taps(self) -> Tensor:
        return token_taps(self.kernel, self.read)


class ChannelCompressor(Compressor):
    """CC: starts as the mean over the value channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.kernel = nn.Parameter(torch.full((config.width, config.value_channels), 1 / config.value_channels))

    def taps(self) -> Tensor:
        return channel_taps(self.kernel)


class MeanCompressor(nn.Module):
    """The mean over the value channels, without parameters (control)."""

    fused = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.state_size = config.width * config.value_channels

    def flops(self) -> int:
        return 2 * self.state_size  # as many as CC: a weighted sum whose weights are fixed

    def forward(self, X: Tensor, window: Window | None = None) -> Tensor:
        """(B, T, d, d_v) -> (B, T, d)."""
        return X.mean(dim=-1)


class DynamicCompressor(MeanCompressor):
    """x_in = sum_j a_j X_j with one weight per token and value channel, a = 1 / d_v + W RMSNorm(mean_j X_j) (control).

    The norm has no weight. W starts at zero, so x_in starts as the mean. The weights are computed in fp32 or wider.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.eps = config.norm_eps
        self.map = nn.Parameter(torch.zeros(config.value_channels, config.width))  # no matrix that the model draws

    def flops(self) -> int:
        return 3 * super().flops()  # the mean, the map and the weighted sum

    def forward(self, X: Tensor, window: Window | None = None) -> Tensor:
        """(B, T, d, d_v) -> (B, T, d)."""
        wide = saved_dtype(X)
        with without_autocast(X):
            mean = super().forward(X).to(wide)
            change = F.linear(F.rms_norm(mean, mean.shape[-1:], eps=self.eps), self.map.to(wide))
            weights = 1 / X.shape[-1] + change
            return (X.to(wide) * weights.unsqueeze(-2)).sum(-1).to(X.dtype)


COMPRESSORS: dict[str, type[NoCompressor] | type[Compressor] | type[MeanCompressor]] = {
    "none": NoCompressor,
    "tc": TokenCompressor,
    "cc": ChannelCompressor,
    "mean": MeanCompressor,
    "dynamic": DynamicCompressor,
}


def identity_taps(width: int, channels: int, taps: int) -> Tensor:
    """A kernel (d, d_v, K) that passes the current token through: tap 0 is one, the others are zero."""
    kernel = torch.zeros(width, channels, taps)
    kernel[..., 0] = 1.0
    return kernel
