"""Common code of all operations: choice of device code, precision of the arithmetic, and checks of arguments."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels on CPU tensors


def runs_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor run as Triton kernels."""
    return tensor.is_cuda or INTERPRETED


def saved_dtype(state: Tensor) -> torch.dtype:
    """The dtype of arithmetic on a state and of values saved for its backward pass: fp64 for fp64, otherwise fp32."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations compute in the dtype of their arguments; tensors without numbers need none."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def only_reverse_mode(*tensors: Tensor | None) -> None:
    """Refuse tensors with forward-mode tangents, which custom operations of PyTorch drop without a word.

    Raises:
        NotImplementedError: one of them has a tangent.
    """
    if torch.compiler.is_compiling():  # the check is not traced
        return
    if any(tensor is not None and unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            "the operations of ddl.ops have no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad); "
            "their references, such as rewrite_reference, have one"
        )


def check_taps(taps: Tensor, value_channels: int, width: int, state: Tensor) -> None:
    """Raise ValueError unless the taps are (K, d_v, d) for the d_v and d of the state."""
    if taps.dim() != 3 or taps.shape[1:] != (value_channels, width):
        raise ValueError(
            f"taps: expected (K, d_v, d) = (K, {value_channels}, {width}) with a state {tuple(state.shape)}, found "
            f"{tuple(taps.shape)}"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], state: Tensor) -> None:
    """Raise ValueError unless the argument `name` of an operation has the shape that fits the state."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: expected {tuple(shape)} with a state {tuple(state.shape)}, found {tuple(tensor.shape)}"
        )
