"""Whether a result in low precision is as accurate as it can be, measured against the same computation in fp64.

An absolute tolerance lets small gradients be anything. Here every error is relative to fp64, and what is allowed
follows from what plain PyTorch reaches in the same dtype: twice its error, or four roundings if that is more.
"""

import math

import torch
from torch import Tensor

# However bad the yardstick is: what is 5 % off is wrong.
LARGEST_LIMIT = 0.04
# The norm of a shorter row can be small by chance; its error is then measured by the typical row.
SHORT_ROW = 16


def relative_error(y: Tensor, exact: Tensor) -> tuple[float, float]:
    """|y - exact| / |exact| over the whole tensor, and in the worst of its rows (along the last axis).

    Rows shorter than 16 numbers, and the numbers of a vector, are measured by the root mean square of all row norms
    where their own norm is smaller. Where `exact` is zero the error is zero or infinite; if it is zero everywhere, the
    error is the largest number in y.

    Args:
        y: what was computed, any float dtype.
        exact: fp64, of the same shape.
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
    """Require that `got` is finite and no less accurate than PyTorch, over the tensor and in its worst row.

    The error may be up to the larger of twice eager's and 4 eps(dtype), and never above 4 %. The figures are printed
    (pytest -s).

    Args:
        name: of the quantity, for the message.
        got: what is tested.
        eager: the same from plain PyTorch operations in the same dtype.
        exact: the same in fp64.
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
