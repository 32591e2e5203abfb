"""The accuracy check rejects wrong results: a check that accepts a zero gradient proves nothing."""

import pytest
import torch
from torch import Tensor

from tests.helpers.numerics import assert_as_accurate, relative_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def sample(dtype: torch.dtype, scale: float = 1.0, shape: tuple[int, ...] = (63, 4, 100)) -> tuple[Tensor, Tensor]:
    """Exact values and their rounding, the best possible result of a computation in this dtype."""
    exact = scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return exact, exact.to(dtype)


def replace(tensor: Tensor, index: tuple[int, ...] | int, value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_rounding_is_accurate(dtype, scale):
    exact, rounded = sample(dtype, scale)
    assert_as_accurate("y", rounded.clone(), rounded, exact)


WRONG = {
    "zero": lambda y: torch.zeros_like(y),
    "5 percent off": lambda y: 1.05 * y,
    "one wrong last row": lambda y: replace(y, (-1, -1), 0.0),
    "negative": lambda y: -y,
    "NaN": lambda y: replace(y, (3, 2, 1), float("nan")),
    "infinite": lambda y: replace(y, (3, 2, 1), float("inf")),
    "shape": lambda y: y[:-1].clone(),
    "transposed": lambda y: y.transpose(0, 1).contiguous(),
    "dtype": lambda y: y.double(),
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_mistakes_are_rejected(mistake, dtype, scale):
    exact, rounded = sample(dtype, scale)
    with pytest.raises(AssertionError, match=r"^y[,:]"):
        assert_as_accurate("y", WRONG[mistake](rounded), rounded, exact)


@pytest.mark.parametrize("shape", [(100_000, 2), (100_000,)], ids=str)
def test_one_wrong_number_in_many_short_rows_is_rejected(shape):
    exact, rounded = sample(torch.bfloat16, shape=shape)
    exact, rounded = replace(exact, -1, 1.0), replace(rounded, -1, 1.0)
    wrong = replace(rounded, -1, -1.0)
    assert relative_error(wrong, exact)[0] < 0.02, "not seen over the tensor"
    with pytest.raises(AssertionError, match="worst row"):
        assert_as_accurate("y", wrong, rounded, exact)


def test_a_tensor_compared_with_itself_is_rejected():
    exact, rounded = sample(torch.float32)
    with pytest.raises(AssertionError, match="itself"):
        assert_as_accurate("y", rounded, rounded, exact)
    with pytest.raises(AssertionError, match="itself"):
        assert_as_accurate("y", exact.clone(), exact, exact)


def test_exact_values_must_be_fp64():
    exact, rounded = sample(torch.float32)
    with pytest.raises(AssertionError, match="fp64"):
        assert_as_accurate("y", rounded.clone(), rounded, exact.float())


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_useless_yardstick_excuses_nothing(bad):
    exact, rounded = sample(torch.bfloat16)
    with pytest.raises(AssertionError, match="allowed 4"):
        assert_as_accurate("y", 1.05 * rounded, torch.full_like(rounded, bad), exact)


def test_a_less_accurate_yardstick_allows_twice_its_error():
    exact, _ = sample(torch.float32)
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    eager = (exact * (1 + 1e-3 * noise)).float()
    assert_as_accurate("y", (exact * (1 + 1.5e-3 * noise)).float(), eager, exact)
    with pytest.raises(AssertionError, match="tensor"):
        assert_as_accurate("y", (exact * (1 + 2.5e-3 * noise)).float(), eager, exact)


def test_zero_is_expected_to_rounding():
    exact = torch.zeros(5, 20, dtype=torch.float64)
    zero = torch.zeros(5, 20)
    assert_as_accurate("y", zero.clone(), zero, exact)
    with pytest.raises(AssertionError):
        assert_as_accurate("y", torch.full_like(zero, 1e-5), zero, exact)


def test_a_zero_row_is_expected_exactly():
    exact, rounded = sample(torch.float32)
    exact, rounded = replace(exact, (5, 1), 0.0), replace(rounded, (5, 1), 0.0)
    assert_as_accurate("y", rounded.clone(), rounded, exact)
    with pytest.raises(AssertionError, match="worst row"):
        assert_as_accurate("y", replace(rounded, (5, 1, 0), 1e-20), rounded, exact)
