"""Readers: what a sublayer reads from the residual state, and what the rule after it receives.

A reader stands before each sublayer, and the last one before the final norm. It maps the state to x_in (B, T, d), the
input of the norm that follows, and hands the state on to the rule. The reader of the paper's designs is the compressor
of its block; it hands on the state as it is.

Streams are stored as value channels are, (B, T, d, n) with features innermost in memory. Coefficients are computed in
fp32 or wider. Only the compressor reads earlier tokens, so no other reader needs a cache.

To add a reader, write a subclass of `Reader` in a module of your own, and one entry in config/variants.yaml that names
it as `reader: package.module:Class`. A reader of this package is one line in `READERS` instead.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.config import ConfigError, ModelConfig
from ddl.model.cache import Window
from ddl.model.residual import RULES, Streams, Sums, named_class, rule_class
from ddl.ops.dispatch import saved_dtype, without_autocast

MIX_EPS = 1e-6  # mHC, iHC: added to sigmoids, and to sums before they divide
SINKHORN_ROUNDS = 20
SCALE = 0.01  # initial scale of generated coefficients: they start close to their constant part


class Reader(nn.Module):
    """The reader of the paper's designs: the compressor of its block. The state is handed on unchanged.

    Args:
        config: the model settings.
        place: 0 .. 2 layers - 1 are the sublayers in order, 2 layers is the readout.
    """

    gives: ClassVar[tuple[type, ...]] = (Tensor,)  # types of state that it can hand on to a rule
    streams: ClassVar[bool | None] = None  # whether it needs several streams, or one; None: both are possible

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__()
        self.width, self.count, self.eps = config.width, config.value_channels, config.norm_eps
        self.place, self.is_readout = place, place == 2 * config.layers
        self.starts_block = place % 2 == 0

    def flops(self, compressor: int) -> int:
        """Floating-point operations per token; `compressor` is how many the compressor of the block has."""
        return compressor

    def begin(self, X: Tensor) -> Any:
        """The first state from the expanded embedding; the model calls it on the reader of the first sublayer."""
        return X

    def forward(self, X: Any, compress: Callable[..., Tensor], window: Window | None = None) -> tuple[Tensor, Any]:
        """State -> (x_in, state for the rule)."""
        return compress(X, window), X


class FirstState(Reader):
    """Residual scalars and a skip from the embedding: before each block, x <- a x + b x_0 (modded-nanogpt, nanochat).

    a starts at 1, b at `first_state_weight`.
    """

    gives, streams = (Sums,), False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        if self.starts_block and not self.is_readout:
            self.weights = nn.Parameter(torch.tensor([1.0, config.first_state_weight]))

    def flops(self, compressor: int) -> int:
        return 3 * self.width if self.starts_block and not self.is_readout else 0

    def begin(self, X: Tensor) -> Sums:
        return Sums((X,), (X,))

    def forward(self, X: Sums, compress: Any, window: Window | None = None) -> tuple[Tensor, Sums]:
        (x,), (first,) = X
        assert x is not None
        if self.starts_block and not self.is_readout:
            a, b = self.weights.to(saved_dtype(x))
            x = (a * x + b * first).to(x.dtype)
        return x, Sums((x,), (first,))


class DepthAverage(Reader):
    """DenseFormer (Pagliardini et al., 2024): after each block, a weighted sum of the embedding and all blocks.

    x_i = sum_j a_ij Y_j, where Y_0 is the embedding and Y_j = Block_j(x_{j-1}). a_ii starts at 1, all others at 0.
    """

    gives, streams = (Sums,), False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        if self.starts_block and place:
            self.weights = nn.Parameter(torch.eye(place // 2 + 1)[-1].clone())

    def flops(self, compressor: int) -> int:
        return 2 * self.width * (self.place // 2 + 1) if self.starts_block and self.place else 0

    def begin(self, X: Tensor) -> Sums:
        return Sums((X,), (X,))

    def forward(self, X: Sums, compress: Any, window: Window | None = None) -> tuple[Tensor, Sums]:
        (x,), kept = X
        assert x is not None
        if not (self.starts_block and self.place):
            return x, X
        kept = (*kept, x)
        mean = weighted_sum(self.weights.to(saved_dtype(x)), kept).to(x.dtype)
        return mean, Sums((mean,), kept)


class DepthAttention(Reader):
    """Attention Residuals (Kimi, 2026): a sublayer reads a mean of earlier outputs with softmax weights, and no sum.

    x_in = sum_i p_i v_i, p = softmax_i(w . RMSNorm(v_i)), where the sources v are the embedding and the outputs of the
    earlier sublayers. With `sources_every` = B > 1, the outputs of B sublayers are summed to one source, and a sum that
    is not complete is a source as well. w starts at zero, with all sources equally weighted.
    """

    gives, streams = (Sums,), False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.every = config.sources_every
        self.sources = self.count_sources()
        if self.sources > 1:
            self.query = nn.Parameter(torch.zeros(config.width))

    def flops(self, compressor: int) -> int:
        return self.sources * 7 * self.width if self.sources > 1 else 0  # norm, product with the query, weighted sum

    def count_sources(self) -> int:
        """How many sources this place reads."""
        return 1 + -(-self.place // self.every)

    def begin(self, X: Tensor) -> Sums:
        return Sums((None,), (X,))

    def forward(self, X: Sums, compress: Any, window: Window | None = None) -> tuple[Tensor, Sums]:
        X = self.complete(X)
        (partial,) = X.running
        sources = X.kept if partial is None else (*X.kept, partial)
        return self.attend(sources), X

    def complete(self, X: Sums) -> Sums:
        """Make the last running sum a source if its sublayers are complete."""
        *others, partial = X.running
        if self.place % self.every or partial is None:
            return X
        return Sums((*others, None), (*X.kept, partial))

    def attend(self, sources: tuple[Tensor, ...]) -> Tensor:
        """The weighted mean of the sources, (B, T, d); a single source is read as it is."""
        if len(sources) == 1:
            return sources[0]
        wide = saved_dtype(sources[0])
        with without_autocast(sources[0]):
            query = self.query.to(wide)
            logits = torch.stack([F.rms_norm(v.to(wide), v.shape[-1:], eps=self.eps) @ query for v in sources])
            weights = torch.softmax(logits, dim=0).unsqueeze(-1)
            return weighted_sum(weights, sources).to(sources[0].dtype)


class AddedDepthAttention(DepthAttention):
    """Delta Attention Residuals (arXiv 2605.18855): depth attention beside the stream, x_in = x + sum_i p_i v_i.

    The sources are those of depth attention, without a sum that is not complete. The first sublayer and the readout
    read the stream only.
    """

    def flops(self, compressor: int) -> int:
        return super().flops(compressor) + (self.width if self.sources else 0)

    def count_sources(self) -> int:
        return 0 if self.is_readout or not self.place else 1 + self.place // self.every

    def begin(self, X: Tensor) -> Sums:
        return Sums((X, None), (X,))

    def forward(self, X: Sums, compress: Any, window: Window | None = None) -> tuple[Tensor, Sums]:
        X = self.complete(X)
        x = X.running[0]
        assert x is not None
        return (x + self.attend(X.kept) if self.sources else x), X


class StreamReader(Reader):
    """Base of readers of several streams; with the delta rule they only read, and hand on the streams themselves."""

    gives, streams = (Streams, Tensor), True

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.hands_on_weights = rule_class(config).takes is Streams


class HyperConnections(StreamReader):
    """Hyper-Connections (Zhu et al., 2024), with coefficients that depend on the token.

    For stream i, N_i = RMSNorm(H_i) and, with a constant part and a generated one,

        a_i = A_i + s tanh(N_i W) in R^{1+n},  b_i = B_i + s' tanh(N_i w)
        x_in = sum_i a_{i,0} H_i,  M_j = sum_i a_{i,j} H_i,  H'_j = M_j + b_j h

    The readout is the sum of the streams. It starts as the baseline: sublayer s reads stream s mod n, A mixes no
    streams, B = 1, and W and w are zero.
    """

    generated = True

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        if self.is_readout:
            return
        n, d = self.count, self.width
        identity = torch.eye(n)
        self.read_and_mix = nn.Parameter(torch.cat((identity[:, place % n, None], identity), dim=1))
        if self.hands_on_weights:
            self.write = nn.Parameter(torch.ones(n))
        if self.generated:
            self.norm_weight = nn.Parameter(torch.ones(d))
            self.read_and_mix_map = nn.Parameter(torch.zeros(d, 1 + n))
            self.read_and_mix_scale = nn.Parameter(torch.full((1,), SCALE))
        if self.generated and self.hands_on_weights:
            self.write_map = nn.Parameter(torch.zeros(d))
            self.write_scale = nn.Parameter(torch.full((1,), SCALE))

    def flops(self, compressor: int) -> int:
        n, d = self.count, self.width
        if self.is_readout:
            return n * d
        generated = 4 * n * d + 2 * n * d * (1 + n + self.hands_on_weights) if self.generated else 0
        return generated + 2 * n * d * (1 + n)

    def forward(self, X: Tensor, compress: Any, window: Window | None = None) -> tuple[Tensor, Any]:
        if self.is_readout:
            return X.sum(-1), X
        wide = saved_dtype(X)
        with without_autocast(X):
            H = X.mT.to(wide)  # (B, T, n, d), contiguous
            N = F.rms_norm(H, H.shape[-1:], self.norm_weight.to(wide), self.eps) if self.generated else None
            mixed = self.coefficients("read_and_mix", N, wide).mT @ H  # (B, T, 1 + n, d)
            x_in, streams = mixed[:, :, 0].to(X.dtype), mixed[:, :, 1:].mT.to(X.dtype)
            if not self.hands_on_weights:
                return x_in, streams
            return x_in, Streams(streams, self.coefficients("write", N, wide))

    def coefficients(self, name: str, N: Tensor | None, wide: torch.dtype) -> Tensor:
        """A constant part and, if the streams N (B, T, n, d) are given, a generated one for each token."""
        constant = getattr(self, name).to(wide)
        if N is None:
            return cast(Tensor, constant)
        map_, scale = getattr(self, f"{name}_map").to(wide), getattr(self, f"{name}_scale").to(wide)
        return cast(Tensor, constant + scale * torch.tanh(N @ map_))


class StaticHyperConnections(HyperConnections):
    """Hyper-Connections with constant coefficients."""

    generated = False


class IdentityMixing(StreamReader):
    """iHC, identity mixing (Hunyuan HY-V4): streams that are read and written with generated weights and never mixed.

    With u = vec(H) / rms(vec(H)) and constants e = 1e-6:

        p = sigmoid(s_1 P u + b_1) + e,  x_in = sum_i p_i H_i
        q = 2 sigmoid(s_2 Q u + b_2) + e,  H'_j = H_j + q_j h

    The readout has weights of its own like p. It starts close to the baseline: p at 1/n, q at 1, with random P and Q of
    small scale s, which make the streams different.
    """

    mixes, write_eps = False, MIX_EPS

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        n, d = self.count, self.width
        reads = torch.full((n,), -math.log(max(n - 1, 1)))  # the logit of 1 / n
        biases = {"read": reads}  # at the start
        if not self.is_readout and self.hands_on_weights:
            biases["write"] = torch.zeros(n)
        if not self.is_readout and self.mixes:
            biases["mix"] = (4 * torch.eye(n) - 4).flatten()
        self.sizes = {name: len(start) for name, start in biases.items()}
        self.map = nn.Parameter(torch.randn(sum(self.sizes.values()), n * d) / math.sqrt(n * d))
        self.bias = nn.Parameter(torch.cat(list(biases.values())))
        self.scales = nn.Parameter(torch.full((len(biases),), SCALE))

    def flops(self, compressor: int) -> int:
        n, size = self.count, self.width * self.count
        reading = 4 * size + 2 * size * sum(self.sizes.values()) + 2 * size  # norm, map, weighted sum
        return reading + (4 * SINKHORN_ROUNDS * n**2 + 2 * n * size if "mix" in self.sizes else 0)

    def forward(self, X: Tensor, compress: Any, window: Window | None = None) -> tuple[Tensor, Any]:
        wide = saved_dtype(X)
        with without_autocast(X):
            H = X.mT.to(wide)
            u = F.rms_norm(H.flatten(-2), (H.shape[-1] * H.shape[-2],), eps=self.eps)
            sizes = list(self.sizes.values())
            products = F.linear(u, self.map.to(wide)).split(sizes, dim=-1)
            parts = zip(self.sizes, self.scales.to(wide), products, self.bias.to(wide).split(sizes), strict=True)
            logits = {name: scale * product + bias for name, scale, product, bias in parts}
            x_in = ((torch.sigmoid(logits["read"]) + MIX_EPS).unsqueeze(-2) @ H).squeeze(-2).to(X.dtype)
            if "mix" in logits:
                mix = doubly_stochastic(logits["mix"].unflatten(-1, (self.count, self.count)))
                X = (mix.mT @ H).mT.to(X.dtype)
            if "write" in logits:
                return x_in, Streams(X, 2 * torch.sigmoid(logits["write"]) + self.write_eps)
            return x_in, X


class ManifoldConnections(IdentityMixing):
    """mHC, manifold-constrained Hyper-Connections (DeepSeek, 2025): identity mixing with a doubly stochastic mix.

    H'_j = sum_i R_ij H_i + q_j h, where R comes from n x n further logits by 20 rounds of Sinkhorn's normalisation.
    Their biases start at 0 on the diagonal and -4 off it.
    """

    mixes, write_eps = True, 0.0


READERS: dict[str, type[Reader]] = {
    "compressor": Reader,
    "first-state": FirstState,
    "depth-average": DepthAverage,
    "depth-attention": DepthAttention,
    "added-depth-attention": AddedDepthAttention,
    "hyper-connections": HyperConnections,
    "static-hyper-connections": StaticHyperConnections,
    "identity-mixing": IdentityMixing,
    "manifold-connections": ManifoldConnections,
}


def make_reader(config: ModelConfig, place: int) -> Reader:
    """Build the reader that `config.reader` names, for one place.

    Raises:
        ConfigError: there is no such reader or rule, or the reader does not fit the rule or the number of streams.
    """
    reader = named_class("reader", config.reader, READERS, Reader)
    if rule_class(config).takes not in reader.gives:
        fitting = ", ".join(name for name, rule in RULES.items() if rule.takes in reader.gives)
        raise ConfigError(f"reader: {config.reader!r} needs residual {fitting}, found {config.residual!r}")
    if reader.streams is not None and reader.streams != (config.value_channels > 1):
        expected = "several streams" if reader.streams else "1"
        raise ConfigError(
            f"value_channels: expected {expected} with reader {config.reader!r}, found {config.value_channels}"
        )
    return reader(config, place)


def weighted_sum(weights: Tensor, sources: tuple[Tensor, ...]) -> Tensor:
    """sum_i weights[i] sources[i]."""
    total = weights[0] * sources[0]
    for weight, source in zip(weights[1:], sources[1:], strict=True):
        total = total + weight * source
    return total


def doubly_stochastic(logits: Tensor) -> Tensor:
    """Matrices (..., n, n) whose rows and columns sum to one, from logits of the same shape."""
    matrix = torch.softmax(logits, dim=-1) + MIX_EPS
    matrix = matrix / (matrix.sum(dim=-2, keepdim=True) + MIX_EPS)
    for _ in range(SINKHORN_ROUNDS - 1):
        matrix = matrix / (matrix.sum(dim=-1, keepdim=True) + MIX_EPS)
        matrix = matrix / (matrix.sum(dim=-2, keepdim=True) + MIX_EPS)
    return matrix
