"""The parts of a residual update, for any rule: its direction, what it writes and what it erases.

With its direction, target and gate held fixed, a rule is an affine map of the state:

    X' = W + A X = X + W + E,    W = rule(0), the write,    E = A X - X, the erasure

For the delta rule W = beta k v^T and E = -beta k k^T X. The baseline has W = h and E = 0. A rule that only writes has
E = 0 too, whatever its settings are called.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddl.model.language_model import LanguageModel
from ddl.model.residual import Delta, Rule


class Inputs(NamedTuple):
    """What a rule is called with: `Rule.forward(*inputs)`."""

    X: Tensor
    x_in: Tensor
    c: Tensor
    h: Tensor


class Constant(nn.Module):
    """A gate or target that is the same for every token.

    Args:
        value: () for a gate, (d_v,) for a target.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, first: Tensor, *_: Tensor) -> Tensor:
        return self.value.expand(*first.shape[:2], *self.value.shape)


class Given(nn.Module):
    """A direction that does not depend on the state: `k_tilde`, (B, T, d)."""

    def __init__(self, k_tilde: Tensor) -> None:
        super().__init__()
        self.k_tilde = k_tilde

    def forward(self, X: Tensor) -> Tensor:
        return self.k_tilde


def has_part(rule: Rule, name: str) -> bool:
    """Whether a rule generates a `gate` or a target (`value`)."""
    return isinstance(getattr(rule, name, None), nn.Module)


def with_parts(rule: Rule, **parts: nn.Module) -> Rule:
    """A rule that generates its `gate`, `value` or `direction` by other modules and shares all else with `rule`."""
    changed = copy.copy(rule)
    changed._modules = dict(rule._modules)
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed


def held(rule: Rule, inputs: Inputs) -> Rule:
    """The rule with its direction held fixed if it depends on the state; targets and gates never do."""
    if not has_part(rule, "direction"):
        return rule
    return with_parts(rule, direction=Given(rule.direction_of(inputs.X, inputs.h)))  # type: ignore[operator]


def direction(rule: Rule, inputs: Inputs) -> Tensor:
    """The unit direction of an update, (B, T, d): k of the delta rule, h / |h| of any other."""
    return F.normalize(rule.direction_of(inputs.X, inputs.h) if isinstance(rule, Delta) else inputs.h, dim=-1)


def write(rule: Rule, inputs: Inputs) -> Tensor:
    """W, what an update adds whatever the state is, with the shape of X."""
    return held(rule, inputs).forward(torch.zeros_like(inputs.X), *inputs[1:])


def carry(rule: Rule, inputs: Inputs, state: Tensor) -> Tensor:
    """A M for a state M with the shape of X: what is left of M after the update, all else held fixed."""
    return held(rule, inputs).forward(state, *inputs[1:]) - write(rule, inputs)


@contextmanager
def watched(model: LanguageModel, see: Callable[[int, Rule, Inputs, Tensor], None]) -> Iterator[None]:
    """Call `see(sublayer, rule, inputs, X_next)` whenever a rule of the model has run.

    The blocks of the model must call their rules, as they do with `kernels: reference`.
    """

    def hook(index: int, rule: nn.Module, arguments: tuple[Tensor, ...], X_next: Tensor) -> None:
        assert isinstance(rule, Rule)
        see(index, rule, Inputs(*arguments), X_next)

    hooks = [rule.register_forward_hook(partial(hook, index)) for index, rule in enumerate(model.rules())]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
