"""The language model of the paper (Sec. 3, 4.1), in one file for all variants.

The model is a decoder-only, pre-norm transformer. A reader gives each sublayer its input of width d from the residual
state, in the paper's designs by a compressor. Attention or SwiGLU processes it, and passes its output to the residual
rule, which rewrites the state. The baseline is the same model with a vector as its state and addition as its rule.
"""

import hashlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.config import ConfigError, ModelConfig
from ddl.model.cache import BlockCache, Cache, KeyValues
from ddl.model.expanded_state import COMPRESSORS, Expand
from ddl.model.readers import Reader, make_reader
from ddl.model.residual import Rule, ZeroLinear, make_rule
from ddl.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from ddl.ops.dispatch import runs_triton
from ddl.ops.fused_rewrite import Rebuilding


class RMSNorm(nn.RMSNorm):
    """weight x / sqrt(mean(x^2) + eps) in the dtype of x; PyTorch's fused kernels need the weight in that dtype too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class OutputProjection(nn.Linear):
    """The last matrix of a sublayer; its initial values are smaller, because the state sums all sublayer outputs."""


class FirstValues:
    """The values of the first attention sublayer, for later ones in the same forward pass."""

    def __init__(self) -> None:
        self.v: Tensor | None = None


class Attention(nn.Module):
    """Causal multi-head attention; queries and keys are rotated by position and then RMS-normalised.

    With a value residual (Zhou et al., 2024), the values of later blocks are a v + b v_first, with (a, b) starting at
    (1, 0).
    """

    def __init__(self, config: ModelConfig, mixes_values: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = OutputProjection(config.width, config.width, bias=False)
        self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
        self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
        self.value_weights = nn.Parameter(torch.tensor([1.0, 0.0])) if mixes_values else None

    def forward(
        self,
        c: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        past: KeyValues | None = None,
        first: FirstValues | None = None,
    ) -> Tensor:
        """(B, T, d) -> (B, T, d).

        Args:
            mask: replaces the causal mask.
            past: keys and values of earlier tokens.
            first: values of the first block, which stores them there; None without a value residual.
        """
        B, T, d = c.shape
        q, k, v = self.qkv(c).view(B, T, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # each [B, H, T, d/H]
        q, k = self.query_norm(rotate(q, rotation)).to(v.dtype), self.key_norm(rotate(k, rotation)).to(v.dtype)
        if self.value_weights is not None:
            assert first is not None
            assert first.v is not None
            a, b = self.value_weights.to(v.dtype)
            v = a * v + b * first.v
        elif first is not None:
            first.v = v
        if past is not None:
            k, v = past.extend(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and (past is None or T > 1))
        return self.out(y.transpose(1, 2).reshape(B, T, d))


class SwiGLU(nn.Module):
    """W_down(silu(W_gate c) * W_up c), hidden width floor(8 d / 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_hidden, bias=False)
        self.out = OutputProjection(config.mlp_hidden, config.width, bias=False)

    def forward(self, c: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        gate, up = self.gate_up(c).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """An attention and an MLP sublayer with a shared compressor; each reads, processes and rewrites the state.

    Args:
        config: the model settings.
        index: number of the block, from 0.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.compress = COMPRESSORS[config.compressor](config)
        self.attention_reader = make_reader(config, 2 * index)
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, mixes_values=config.value_residual and index > 0)
        self.attention_rule = make_rule(config)
        self.mlp_reader = make_reader(config, 2 * index + 1)
        self.mlp_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config)
        self.mlp_rule = make_rule(config)

    def forward(
        self,
        X: Any,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: BlockCache | None = None,
        first: FirstValues | None = None,
    ) -> Any:
        """State -> state."""
        x_in, X = self.attention_reader(X, self.compress, cache and cache.attention_input)
        c = self.attention_norm(x_in)
        X = self.attention_rule(X, x_in, c, self.attention(c, rotation, mask, cache and cache.attention, first))
        x_in, X = self.mlp_reader(X, self.compress, cache and cache.mlp_input)
        c = self.mlp_norm(x_in)
        return self.mlp_rule(X, x_in, c, self.mlp(c))


class LanguageModel(nn.Module):
    """Embedding, expansion to the state, blocks, readout, and the head tied to the embedding.

    Args:
        config: the model settings.
        seed: seed of the initial weights. Each matrix draws from its own random stream, derived from its name, so the
            backbones of all variants start from the same numbers. Draws in the constructor of a rule depend on the
            seed too.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            self.expand = Expand(config)
            self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
            self.compress = COMPRESSORS[config.compressor](config)
            self.reader = make_reader(config, 2 * config.layers)
            self.norm = RMSNorm(config.width, eps=config.norm_eps)
            if config.logit_scale:
                self.logit_scale = nn.Parameter(torch.ones(1))
        plain = type(self.reader) is Reader and not config.value_residual
        self.fused = plain and self.compress.fused and all(rule.fused for rule in self.rules())
        self.init_matrices(seed)

    def readers(self) -> list[Reader]:
        """The readers of the sublayers in order, and that of the readout."""
        return [module for module in self.modules() if isinstance(module, Reader)]

    def rules(self) -> list[Rule]:
        """The residual rules, one per sublayer, in order."""
        return [module for module in self.modules() if isinstance(module, Rule)]

    @torch.no_grad()
    def init_matrices(self, seed: int) -> None:
        """Matrices are N(0, (0.5/sqrt(d))^2), output projections that / sqrt(layers), the embedding N(0, 0.02^2).

        Layers of the class `ZeroLinear` are zero.
        """
        config = self.config
        if self.embedding.weight.is_meta:
            return  # `without_numbers` builds shapes only
        outputs, zeros = (
            {id(module.weight) for module in self.modules() if isinstance(module, kind)}
            for kind in (OutputProjection, ZeroLinear)
        )
        for name, weight in self.named_matrices():
            std = config.matrix_std_factor / config.width**0.5
            if weight is self.embedding.weight:
                std = config.embedding_std
            elif id(weight) in outputs:
                std *= config.output_std_factor / config.layers**0.5
            elif id(weight) in zeros:
                std = 0.0
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def named_matrices(self) -> list[tuple[str, Tensor]]:
        """Weights of linear layers and of the embedding: they are drawn at random and subject to weight decay."""
        return [
            (f"{name}.weight", module.weight)
            for name, module in self.named_modules()
            if isinstance(module, (nn.Linear, nn.Embedding))
        ]

    def hidden(self, ids: Tensor, real: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Compute the normalised readout of the last state from token ids.

        Args:
            ids: int64 (B, T).
            real: bool (B, T), False where a token is padding, whose readout is meaningless; None for no padding.
            cache: cache of the preceding tokens; the new ones are added to it.

        Returns:
            (B, T, d).
        """
        if cache is None and real is not None:
            cache = Cache(self.config.layers)  # the cache handles padding
        length = ids.shape[1] + (cache.length if cache else 0)
        if length > self.config.sequence_length:
            raise ValueError(f"expected at most {self.config.sequence_length} tokens, found {length}")
        x = self.embedding(ids)
        if self.config.embedding_norm:
            x = F.rms_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        if self.config.kernels == "triton" and not runs_triton(x):
            raise ConfigError(f"kernels: 'triton' needs a GPU, found {x.device}")
        if real is not None:
            x = x * real.unsqueeze(-1)
        positions, mask = cache.advance(ids, real) if cache else (torch.arange(length, device=ids.device), None)
        rotation = rotary(positions, self.config.head_dim, self.config.rope_base)
        if self.config.state_dtype == "bfloat16":
            x = x.to(torch.bfloat16)
        X = self.expand(x, cache and cache.embedding)
        if self.fused and cache is None:
            return self.fused_hidden(X, rotation)
        first = FirstValues() if self.config.value_residual else None
        state = self.blocks[0].attention_reader.begin(X)  # type: ignore[union-attr, operator]
        for i, block in enumerate(self.blocks):
            state = block(state, rotation, mask, cache and cache.blocks[i], first)
        x_in, _ = self.reader(state, self.compress, cache and cache.readout)
        return self.scaled(self.norm(x_in))

    def fused_hidden(self, X: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Run the blocks and the readout, with everything between two sublayers fused into one operation."""
        sublayers: list[tuple[Any, Any]] = []
        readers: list[tuple[Any, nn.RMSNorm]] = []
        for block in self.blocks:
            assert isinstance(block, Block)
            sublayers += [(partial(block.attention, rotation=rotation), block.attention_rule)]
            sublayers += [(block.mlp, block.mlp_rule)]
            readers += [(block.compress, block.attention_norm), (block.compress, block.mlp_norm)]
        readers += [(self.compress, self.norm)]
        compress, norm = readers[0]
        x_in = compress(X)
        c = norm(x_in)
        rebuilding = None
        if self.config.state_memory == "rebuilt" and torch.is_grad_enabled():
            X, rebuilding = X.clone(), Rebuilding()  # a copy, because the first readout saves the first state
        for (process, rule), (compress, norm) in zip(sublayers, readers[1:], strict=True):
            X, c, x_in = rule.rewrite_and_read(X, x_in, c, process(c), compress.taps(), norm, rebuilding)
        return self.scaled(c)

    def scaled(self, readout: Tensor) -> Tensor:
        """The readout times the learned factor on the logits, if the model has one."""
        return readout * self.logit_scale if self.config.logit_scale else readout

    def logits(self, hidden: Tensor) -> Tensor:
        """Readouts (..., d) -> logits (..., vocab_size) in fp32; the head is the embedding matrix."""
        return F.linear(hidden, self.embedding.weight).float()

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, T), int64 -> logits (B, T, vocab_size) in fp32."""
        return self.logits(self.hidden(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the targets (B, T) in nats, an fp32 scalar."""
        hidden, weight = self.hidden(ids), self.embedding.weight
        if self.config.kernels == "reference":
            return linear_cross_entropy_reference(hidden, weight, targets)
        return linear_cross_entropy(hidden, weight, targets)


def rotary(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles at the positions (..., T): two tensors (..., T, head_dim / 2), fp32."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of (..., T, D) by their angles (half-split layout)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def parameter_count(config: ModelConfig) -> dict[str, int]:
    """Number of parameters, in total and without the embedding (which is also the head); allocates no weights."""
    model = without_numbers(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"total": total, "non_embedding": total - model.embedding.weight.numel()}


def without_numbers(config: ModelConfig) -> LanguageModel:
    """A model on the meta device: its parameters have shapes but no memory."""
    with torch.device("meta"):
        return LanguageModel(config)
