"""Check that a low-precision result is as accurate as possible, compared with the same computation in fp64.

An absolute tolerance would accept any value for small gradients. Here every error is relative to fp64. The limit
follows from the error of plain PyTorch in the same dtype: twice that error, or four roundings if that is more.
"""

import math

import torch
from torch import Tensor

# A result that is off by 5 % is wrong, however large the error of plain PyTorch is.
LARGEST_LIMIT = 0.04
# The norm of a shorter row can be small by chance; its error is then relative to the norm of a typical row.
SHORT_ROW = 16


def relative_error(y: Tensor, exact: Tensor) -> tuple[float, float]:
    """The relative error |y - exact| / |exact|, over the whole tensor and in its worst row (along the last axis).

    The error of a row shorter than 16 numbers, or of one number of a vector, is relative to the root mean square of all
    row norms if its own norm is smaller. Where a row of `exact` is zero, the error is zero or infinite. If `exact` is
    zero everywhere, the error is the largest absolute value in y.

    Args:
        y: the computed values, any float dtype.
        exact: the exact values, fp64, of the same shape.
    """
    exact = exact.detach().cpu()
    rows = exact.unsqueeze(-1) if exact.dim() <= 1 else exact.flatten(0, -2)
    difference = y.detach().cpu().double().reshape(rows.shape) - rows
    if not rows.any():
        return difference.abs().max().item(), difference.abs().max().item()
    scale = rows.norm(dim=-1)
    if rows.shape[-1] < SHORT_ROW:
        scale = scale.clamp_min(scale.square().mean().sqrt().item())
    error = difference.norm(dim=-1)
    worst = torch.where(error == 0, error, error / scale).max().item()
    return (difference.norm() / rows.norm()).item(), worst


def assert_as_accurate(name: str, got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Require that `got` is finite and about as accurate as PyTorch, over the tensor and in its worst row.

    The limit is twice the error of `eager`, at most 4 %, or 4 eps(dtype) if that is more. The errors and limits are
    printed; `pytest -s` shows them.

    Args:
        name: name of the quantity, for the message.
        got: the values under test.
        eager: the values from plain PyTorch operations in the same dtype.
        exact: the values in fp64.
    """
    assert exact.dtype == torch.float64, f"{name}: the exact values are {exact.dtype}, expected fp64"
    assert got.shape == eager.shape == exact.shape, f"{name}: shapes {got.shape}, {eager.shape}, {exact.shape}"
    assert got.dtype == eager.dtype, f"{name}: dtypes {got.dtype}, {eager.dtype}"
    pointers = {tensor.data_ptr() for tensor in (got, eager, exact)}
    assert len(pointers) == 3, f"{name}: a tensor is compared with itself"
    assert exact.isfinite().all(), f"{name}: the exact values are not finite"
    assert got.isfinite().all(), f"{name}: {got.numel() - int(got.isfinite().sum())} numbers are not finite"
    rounding = torch.finfo(got.dtype).eps
    for what, error, yardstick in zip(
        ("tensor", "worst row"), relative_error(got, exact), relative_error(eager, exact), strict=True
    ):
        usable = min(2 * yardstick, LARGEST_LIMIT) if math.isfinite(yardstick) else LARGEST_LIMIT
        limit = max(usable, 4 * rounding)
        figures = f"{name}, {what}: error {error:.2e}, eager {yardstick:.2e}, allowed {limit:.2e}"
        print(figures)
        assert error <= limit, figures
