"""Common code of all operations: choice of device code, precision of the arithmetic, and checks of arguments."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

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


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], state: Tensor) -> None:
    """Raise ValueError unless the argument `name` of an operation has the shape that fits the state."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: expected {tuple(shape)} with a state {tuple(state.shape)}, found {tuple(tensor.shape)}"
        )
