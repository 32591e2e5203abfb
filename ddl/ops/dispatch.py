"""What all operations share: where they run, in which precision, and the check of their arguments."""

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels on CPU tensors


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor is a Triton kernel."""
    return tensor.is_cuda or INTERPRETED


def saved_dtype(state: Tensor) -> torch.dtype:
    """Of arithmetic on a state and of what a forward pass saves of a token: fp64 for an fp64 state, else fp32."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], state: Tensor) -> None:
    """Raises ValueError unless the argument `name` of an operation has the shape that belongs to the state."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: expected {tuple(shape)} with a state {tuple(state.shape)}, found {tuple(tensor.shape)}"
        )
