"""Residual rules: how the output of a sublayer enters the residual state.

A rule is a module built from a `ModelConfig`. It maps (X, x_in, c, h) to the next state:

    X     the state, (B, T, d) for a scalar state, (B, T, d, d_v) for an expanded one, or what else its reader hands on
    x_in  (B, T, d), what the sublayer reads of the state (ddl.model.readers)
    c     (B, T, d), RMSNorm(x_in), the input of the sublayer
    h     (B, T, d), the output of the sublayer

To add a rule, write a subclass of `Rule` with this `forward`, in a module of your own, and one entry in
config/variants.yaml that names it as `residual: package.module:Class`. A rule of this package is one line in `RULES`
instead. The rest of the package learns about a rule through the attributes and methods of `Rule`, whose defaults are
safe for any rule.
"""

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.config import ConfigError, ModelConfig, registered_values
from ddl.ops.dispatch import saved_dtype, without_autocast
from ddl.ops.fused_rewrite import Rebuilding, fused_rewrite, fused_rewrite_in_place
from ddl.ops.rewrite import normalize_direction, rewrite, rewrite_reference
from ddl.outside_parts import is_outside, outside_class

GATE_LOGIT_LIMIT = 15.0  # sigmoid(15) is 1 - 3e-7: a gate can start close to 0 or 2 and is still trainable


class Streams(NamedTuple):
    """A state of several streams, and how strongly the output of the sublayer is added to each of them.

    state: (B, T, d, n). weights: (n,), or (B, T, n) if every token has its own.
    """

    state: Tensor
    weights: Tensor


class Sums(NamedTuple):
    """Sums of sublayer outputs, and earlier tensors that readers have kept; all tensors are (B, T, d).

    running: each rule adds its sublayer's output to every one of them; None is an empty sum.
    kept: no rule changes them.
    """

    running: tuple[Tensor | None, ...]
    kept: tuple[Tensor, ...]


class Rule(nn.Module, abc.ABC):
    """Base class of residual rules; a subclass defines `__init__(config)` and `forward`.

    The constructor raises ConfigError for settings that the rule does not support. The model draws the matrices
    (`LanguageModel.init_matrices`); the constructor initialises all other parameters.
    """

    takes: ClassVar[type] = Tensor  # the type of X: Tensor, Streams or Sums
    fp32: ClassVar[tuple[str, ...]] = ()  # submodules that stay in fp32 when the model is converted to bf16
    fused = False  # whether the rule has `rewrite_and_read`, which also computes the input of the next sublayer

    def flops(self) -> int | None:
        """Floating-point operations per token, a multiply-add counting as two; None if they have not been counted."""
        return None

    @abc.abstractmethod
    def forward(self, X: Any, x_in: Tensor, c: Tensor, h: Tensor) -> Any:
        """The next state; if X is a tensor, it has the shape of X."""


class Additive(Rule):
    """The residual addition of the baseline, X' = X + h."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width

    def flops(self) -> int:
        return self.width

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        return X + h


class Normalised(Rule):
    """A normalised sublayer output with a learned gain, X' = X + g * h / |h| (control).

    The gain g is one number or one per feature, and starts at 1. With `branch_norm: rms`, h is divided by its root mean
    square instead; with one gain per feature this is the output norm of Peri-LN. |h| has the small-norm guard of the
    delta rule's direction.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.eps = config.width, config.direction_eps
        self.scale = config.width**0.5 if config.branch_norm == "rms" else 1.0
        self.gain = nn.Parameter(torch.ones(config.width if config.branch_gain == "vector" else 1))

    def flops(self) -> int:
        return 5 * self.width  # normalisation, gain and addition

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        wide = saved_dtype(X)
        unit = normalize_direction(h.to(wide), self.eps)
        return (X.to(wide) + self.gain.to(wide) * (self.scale * unit)).to(X.dtype)


class AdditiveErase(Rule):
    """The baseline with the erase term of the delta rule, X' = X + h - beta k (k^T X) with k = h / |h| (control)."""

    fp32 = ("gate",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.eps = config.width, config.direction_eps
        self.gate = make_gate(config)

    def flops(self) -> int:
        return 8 * self.width + self.gate.flops()  # normalisation, readout, erasure and addition

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        state, branch = X.to(saved_dtype(X)), h.to(saved_dtype(X))
        k = normalize_direction(branch, self.eps)
        erased = self.gate(c) * (k * state).sum(-1)
        return (state + branch - erased.unsqueeze(-1) * k).to(X.dtype)


class Delta(Rule):
    """The delta rewrite X' = X + beta k (v^T - k^T X) with generated k, v and beta (Eq. 2.2).

    The settings `erase` and `write` change or omit one of its two terms (controls).
    """

    fp32 = ("gate", "erase_gate")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.value_channels = config.width, config.value_channels
        self.erase, self.write = config.erase, config.write
        self.is_control = (config.erase, config.write) != ("shared", "normalised")
        self.fused = config.kernels != "reference" and not self.is_control
        self.reference = config.kernels == "reference"
        self.reads_x_in = config.value_input == "compressed"
        self.eps = config.direction_eps
        self.direction = MLPDirection(config) if config.direction == "mlp" else None
        self.gate = make_gate(config)
        self.erase_gate = Gate(config) if config.erase == "own" else None
        self.value = Value(config)

    def flops(self) -> int:
        erases, writes_along_k = self.erase != "none", self.write == "normalised"
        products = 1 + erases + (erases and not writes_along_k)  # readout, rank-one changes along k and k_tilde
        rewrite = 2 * products * self.width * self.value_channels
        rewrite += 3 * self.width if erases or writes_along_k else 0  # normalisation of the direction
        direction = 0 if self.direction is None else self.direction.flops()
        gates = self.gate.flops() + (0 if self.erase_gate is None else self.erase_gate.flops())
        return rewrite + direction + gates + self.value.flops()

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        state = X.unsqueeze(-1) if X.dim() == 3 else X  # a scalar state has one value channel
        if self.is_control:
            X_next = self.control(state, self.direction_of(X, h), self.value(x_in, c, h), c)
        elif self.reference:
            X_next = rewrite_reference(state, *self.generate(X, x_in, c, h))
        else:
            k_tilde, v, beta = self.direction_of(X, h), self.value(x_in, c, h), self.gate(c)
            X_next = rewrite(state, k_tilde, v, beta, self.eps)
        return X_next.squeeze(-1) if X.dim() == 3 else X_next

    def rewrite_and_read(
        self,
        X: Tensor,
        x_in: Tensor | None,
        c: Tensor,
        h: Tensor,
        taps: Tensor | None,
        norm: nn.RMSNorm,
        rebuilding: Rebuilding | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rewrite, compress with `taps` and normalise with `norm`: all work between two sublayers, in one operation.

        Args:
            x_in: may be None if the value does not read it.
            taps: taps of the compressor that reads the next state, as `fused_rewrite` takes them.
            rebuilding: overwrite X and rebuild it in the backward pass; None keeps X unchanged.

        Returns:
            the next state, the input c of the next sublayer, and the next x_in, or None if the value does not read it.
        """
        v, beta = self.value(x_in, c, h), self.gate(c)
        assert norm.eps is not None
        arguments = (X, self.direction_of(X, h), v, beta, taps, norm.weight, self.eps, norm.eps)
        if rebuilding is None:
            return fused_rewrite(*arguments, self.reads_x_in)
        return fused_rewrite_in_place(*arguments, rebuilding, self.reads_x_in)

    def control(self, X: Tensor, k_tilde: Tensor, v: Tensor, c: Tensor) -> Tensor:
        """X' = X + beta w v^T - beta' k (k^T X), from plain operations, in fp32 or wider.

        w is k or, for `write: unnormalised`, k_tilde. beta' is beta, a gate of its own, or 0.
        """
        wide = saved_dtype(X)
        state, k_tilde, beta = X.to(wide), k_tilde.to(wide), self.gate(c)
        k = normalize_direction(k_tilde, self.eps)
        written = beta.unsqueeze(-1) * v.to(wide)
        along = k if self.write == "normalised" else k_tilde
        if self.erase == "none":
            return add_outer(state, along, written).to(X.dtype)
        readout = (k.unsqueeze(-1) * state).sum(-2)
        erased = (beta if self.erase_gate is None else self.erase_gate(c)).unsqueeze(-1) * readout
        if along is k:
            return add_outer(state, k, written - erased).to(X.dtype)
        return add_outer(add_outer(state, k_tilde, written), k, -erased).to(X.dtype)

    def direction_of(self, X: Tensor, h: Tensor) -> Tensor:
        """The direction before normalisation, k_tilde (B, T, d)."""
        return h if self.direction is None else self.direction(X)

    def generate(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Direction k (B, T, d), target v (B, T, d_v) and gate beta (B, T) of this rewrite."""
        k_tilde = self.direction_of(X, h)
        k = normalize_direction(k_tilde.float() if k_tilde.dtype == torch.bfloat16 else k_tilde, self.eps)
        return k.to(X.dtype), self.value(x_in, c, h).to(X.dtype), self.gate(c).to(X.dtype)


class Highway(Rule):
    """A gated mean of state and output, X' = (1 - t) X + t h with t = sigmoid(W c + b) (Srivastava et al., 2015).

    With `highway_gate: vector`, every feature has its own gate.
    """

    fp32 = ("gate",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.gate_limit > 1:
            raise ConfigError(f"gate_limit: a highway's gate is at most 1, found {config.gate_limit}")
        self.width = config.width
        self.gate = Gate(config, config.width if config.highway_gate == "vector" else 1)

    def flops(self) -> int:
        return 3 * self.width + self.gate.flops()

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        state, t = X.to(saved_dtype(X)), self.gate(c)
        return (state + (t if t.dim() == 3 else t.unsqueeze(-1)) * (h - state)).to(X.dtype)


class NormPreserving(Rule):
    """A highway with fixed gates that keeps the norm of uncorrelated parts, X' = a X + b h / rms(h).

    b = sigmoid(g / 0.3) and a = sqrt(1 - b^2), at least sqrt(0.001), with one g per feature that starts at 0.
    """

    TEMPERATURE, SMALLEST = 0.3, 1e-3

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.eps = config.width, config.norm_eps
        self.gain = nn.Parameter(torch.zeros(config.width))

    def flops(self) -> int:
        return 6 * self.width  # normalisation, two products and a sum

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        wide = saved_dtype(X)
        b = torch.sigmoid(self.gain.to(wide) / self.TEMPERATURE)
        a = (1 - b.square()).clamp(min=self.SMALLEST).sqrt()
        return (a * X.to(wide) + b * F.rms_norm(h.to(wide), h.shape[-1:], eps=self.eps)).to(X.dtype)


class LaurelWeights(Rule):
    """LAuReL-RW, X' = a h + b X with two learned numbers that start at 1 (Menghani et al., 2025)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width
        self.weights = nn.Parameter(torch.ones(2))

    def flops(self) -> int:
        return 3 * self.width

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        a, b = self.weights.to(saved_dtype(X))
        return (a * h + b * X).to(X.dtype)


class LaurelLowRank(Rule):
    """LAuReL-LR, X' = h + X + U V X with a product U V of rank `laurel_rank` (Menghani et al., 2025).

    U starts at zero, so that the rule starts as addition.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.laurel_rank < 1:
            raise ConfigError(f"laurel_rank: expected a positive integer, found {config.laurel_rank}")
        self.width = config.width
        self.down = nn.Linear(config.width, config.laurel_rank, bias=False)
        self.up = ZeroLinear(config.laurel_rank, config.width, bias=False)

    def flops(self) -> int:
        return 2 * self.width + linear_flops(self)

    def forward(self, X: Tensor, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        return (h + X + self.up(self.down(X))).to(X.dtype)


class AddToStreams(Rule):
    """Add the output to every stream, H'_j = H_j + w_j h; the reader gives the weights w."""

    takes = Streams

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.streams, self.eps = config.width, config.value_channels, config.direction_eps

    def flops(self) -> int:
        return 2 * self.width * self.streams

    def forward(self, X: Streams, x_in: Tensor, c: Tensor, h: Tensor) -> Tensor:
        wide = saved_dtype(X.state)
        return add_outer(X.state.to(wide), self.write(h.to(wide)), X.weights.to(wide)).to(X.state.dtype)

    def write(self, h: Tensor) -> Tensor:
        """What is added, (B, T, d)."""
        return h


class AddNormalisedToStreams(AddToStreams):
    """H'_j = H_j + w_j h / |h|: the write of the delta rule with weights from the reader (control)."""

    def flops(self) -> int:
        return super().flops() + 3 * self.width

    def write(self, h: Tensor) -> Tensor:
        return normalize_direction(h, self.eps)


class Carry(Rule):
    """Addition for readers that keep earlier tensors: the output is added to each running sum."""

    takes = Sums

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width

    def flops(self) -> int:
        return self.width

    def forward(self, X: Sums, x_in: Tensor, c: Tensor, h: Tensor) -> Sums:
        return X._replace(running=tuple(h if sum_ is None else sum_ + h for sum_ in X.running))


RULES: dict[str, type[Rule]] = {
    "additive": Additive,
    "normalised": Normalised,
    "additive-erase": AdditiveErase,
    "delta": Delta,
    "highway": Highway,
    "norm-preserving": NormPreserving,
    "laurel-rw": LaurelWeights,
    "laurel-lr": LaurelLowRank,
    "streams": AddToStreams,
    "normalised-streams": AddNormalisedToStreams,
    "carry": Carry,
}


def make_gate(config: ModelConfig) -> "Gate | FixedGate":
    """The gate that `config.gate` names."""
    return FixedGate(config) if config.gate == "fixed" else Gate(config)


class FixedGate(nn.Module):
    """beta = `gate_init` for every token, without parameters (control)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.beta = config.gate_init

    def flops(self) -> int:
        return 0

    def forward(self, c: Tensor) -> Tensor:
        """(B, T, d) -> (B, T)."""
        return torch.full(c.shape[:-1], self.beta, dtype=saved_dtype(c), device=c.device)


class ZeroLinear(nn.Linear):
    """A linear layer that the model starts at zero."""


class Gate(nn.Module):
    """beta = 2 sigmoid(Linear(c)), or 2 sigmoid(Linear(tanh(Linear(c)))), with logits in fp32 or wider (App. A.2).

    `gate_limit` replaces the 2. A gate can have several outputs.
    """

    def __init__(self, config: ModelConfig, outputs: int = 1) -> None:
        super().__init__()
        self.limit = config.gate_limit
        features = config.gate_hidden if config.gate == "mlp" else config.width
        self.hidden = nn.Linear(config.width, features, bias=False) if config.gate == "mlp" else None
        self.logit = nn.Linear(features, outputs)
        share = min(max(config.gate_init / self.limit, 1e-12), 1 - 1e-12)
        bias = min(max(math.log(share / (1 - share)), -GATE_LOGIT_LIMIT), GATE_LOGIT_LIMIT)
        nn.init.constant_(self.logit.bias, bias)

    def flops(self) -> int:
        return linear_flops(self)

    def forward(self, c: Tensor) -> Tensor:
        """(B, T, d) -> (B, T), or (B, T, outputs) with several outputs, in (0, limit)."""
        with without_autocast(c):
            c = c.to(self.logit.weight.dtype)  # this weight stays in fp32 when the model computes in bf16
            if self.hidden is not None:
                c = torch.tanh(self.hidden(c))
            return self.limit * torch.sigmoid(self.logit(c).squeeze(-1))


class Value(nn.Module):
    """The target v in R^{d_v}: a linear function of the configured input (Sec. 3.1, App. A.2).

    Its bias starts at `value_bias_init`; null leaves it out. With `sigmoid4`, v is 4 sigmoid(.) of the linear function.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input = config.value_input
        self.activation = config.value_activation
        self.linear = nn.Linear(config.width, config.value_channels, bias=config.value_bias_init is not None)
        if config.value_bias_init is not None:
            nn.init.constant_(self.linear.bias, config.value_bias_init)

    def flops(self) -> int:
        return linear_flops(self)

    def forward(self, x_in: Tensor | None, c: Tensor, h: Tensor) -> Tensor:
        """(B, T, d) each -> (B, T, d_v); x_in may be None if it is not the configured input."""
        v = self.linear({"normed": c, "compressed": x_in, "output": h}[self.input])
        return 4 * torch.sigmoid(v) if self.activation == "sigmoid4" else v


class MLPDirection(nn.Module):
    """k_tilde = MLP(Pool(X)), where Pool is the mean or the concatenation over the value channels (App. A.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.flatten = config.direction_pool == "flatten"
        features = config.width * (config.value_channels if self.flatten else 1)
        self.up = nn.Linear(features, config.width, bias=False)
        self.down = nn.Linear(config.width, config.width, bias=False)

    def flops(self) -> int:
        return linear_flops(self)

    def forward(self, X: Tensor) -> Tensor:
        """State -> (B, T, d)."""
        if X.dim() == 4:
            X = X.flatten(-2) if self.flatten else X.mean(-1)
        return self.down(F.silu(self.up(X)))


def make_rule(config: ModelConfig) -> Rule:
    """Build the rule that `config.residual` names, for one sublayer; raises as `rule_class` does."""
    return rule_class(config)(config)


def rule_class(config: ModelConfig) -> type[Rule]:
    """The class of the rule that `config.residual` names.

    Raises:
        ConfigError: there is no such rule, or it is outside the package and no registered design names it.
    """
    return named_class("residual", config.residual, RULES, Rule)


def named_class(setting: str, name: str, known: Mapping[str, type], base: type) -> Any:
    """The class of this package or from outside it that a setting names; raises as `rule_class` does."""
    if is_outside(name):
        return outside_class(setting, name, base, registered_values(setting))
    if name not in known:
        raise ConfigError(f"{setting}: expected one of {', '.join(known)}, or package.module:Class, found {name!r}")
    return known[name]


def add_outer(X: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """X + a b^T for a state (..., d, d_v), a (..., d) and b (..., d_v), in the memory layout of X."""
    return torch.addcmul(X, a.unsqueeze(-1), b.unsqueeze(-2))


def linear_flops(module: nn.Module) -> int:
    """FLOPs per token of all linear layers in a module."""
    return sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
