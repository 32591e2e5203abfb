"""Cases to check and time the operations of `ddl.ops`: inputs, operation, and the reference composition in PyTorch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddl.ops.compress import compress, compress_reference
from ddl.ops.expand import expand_embedding, expand_reference
from ddl.ops.fused_rewrite import fused_rewrite, fused_rewrite_reference
from ddl.ops.rewrite import normalize_direction, rewrite, rewrite_reference

EPS = 1e-5
# Operation -> numbers of value channels with which the paper's models use it.
OPERATIONS = {
    "rewrite": (1, 4),
    "expand": (4,),
    "compress_cc": (4,),
    "compress_tc": (4,),
    "fused_rewrite": (1,),
    "fused_rewrite_cc": (4,),
    "fused_rewrite_tc": (4,),
}
# Allowed relative error against fp64 over a whole tensor: a few roundings in bf16, many in fp32.
ALLOWED_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One operation with inputs of one shape.

    Args:
        operation, reference: functions that compute the same outputs from the inputs.
        inputs: leaves that require gradients; None for an input that the operation does not use.
        upstream: random gradients of the outputs.
    """

    operation: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: tuple[Tensor | None, ...]
    upstream: tuple[Tensor, ...]

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in self.inputs if x is not None]

    def in_dtype(self, dtype: torch.dtype) -> "Case":
        """The same case with all tensors converted to one dtype."""
        inputs = tuple(None if x is None else x.detach().to(dtype).requires_grad_() for x in self.inputs)
        return replace(self, inputs=inputs, upstream=tuple(x.to(dtype) for x in self.upstream))

    def forward(self, function: Callable[..., Any]) -> tuple[Tensor, ...]:
        """Outputs of `operation`, `reference` or a compiled version of either."""
        outputs = function(*self.inputs)
        return tuple(y for y in outputs if y is not None) if isinstance(outputs, tuple) else (outputs,)

    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of all inputs; the graph is retained, so that the backward pass can be timed separately."""
        return torch.autograd.grad(outputs, self.leaves, self.upstream, retain_graph=True)

    def ideal_bytes(self) -> dict[str, int]:
        """Bytes of ideal forward and backward passes, which read each operand once and write each result once."""
        inputs, outputs = total_bytes(self.leaves), total_bytes(self.upstream)
        return {"forward": inputs + outputs, "backward": 2 * inputs + outputs}


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rewrite_composition(X: Tensor, h: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    return rewrite_reference(X, normalize_direction(h, EPS), v, beta)


def make_case(
    name: str, d: int, d_v: int, batch: int, length: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Case:
    """Make random inputs for an operation: gates, taps and norm weights in fp32 as in models, the rest in `dtype`."""
    generator = torch.Generator(device).manual_seed(seed)
    scalar = name == "fused_rewrite"  # without a compressor, the state is a vector

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def activation(*shape: int) -> Tensor:
        return parameter(batch, length, *shape).to(dtype)

    def state() -> Tensor:
        return activation(d) if scalar else activation(d_v, d).mT

    def taps() -> Tensor:
        return parameter(1 if name.endswith("cc") else 4, d_v, d)

    beta = 2 * torch.sigmoid(parameter(batch, length))
    operation: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: tuple[Tensor | None, ...]
    upstream: tuple[Tensor, ...]
    if name == "rewrite":
        operation, reference = partial(rewrite, eps=EPS), rewrite_composition
        inputs, upstream = (state(), activation(d), activation(d_v), beta), (state(),)
    elif name == "expand":
        operation, reference = expand_embedding, expand_reference
        inputs, upstream = (activation(d), taps().permute(2, 1, 0).contiguous()), (state(),)
    elif name.startswith("compress"):
        operation, reference = compress, compress_reference
        inputs, upstream = (state(), taps()), (activation(d),)
    else:
        operation = partial(fused_rewrite, eps_direction=EPS, eps_norm=EPS)
        reference = partial(fused_rewrite_reference, eps_direction=EPS, eps_norm=EPS)
        inputs = (state(), activation(d), activation(d_v), beta, None if scalar else taps(), parameter(d))
        upstream = (state(), activation(d))
    leaves = tuple(None if x is None else x.requires_grad_() for x in inputs)
    return Case(operation, reference, leaves, upstream)


def worst_error(case: Case) -> float:
    """The largest relative error |y - exact| / |exact| over all outputs and gradients of the operation.

    Exact values come from the reference composition in fp64. NaN if any value is not finite.
    """
    exact = case.in_dtype(torch.float64)
    outputs, right = case.forward(case.operation), exact.forward(exact.reference)
    pairs = zip((*outputs, *case.backward(outputs)), (*right, *exact.backward(right)), strict=True)
    errors = [(got.detach().double() - wanted.detach()).norm() / wanted.detach().norm() for got, wanted in pairs]
    return float(torch.stack(errors).max())
