"""The operations in another model: the page's example, and what they refuse."""

import re

import pytest
import torch

from ddl.layout import ROOT
from ddl.ops.compress import compress
from ddl.ops.cross_entropy import linear_cross_entropy
from ddl.ops.expand import expand_embedding
from ddl.ops.fused_rewrite import fused_rewrite
from ddl.ops.rewrite import rewrite


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def page_example():
    """The example of docs/kernels.md, run; its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/kernels.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    return names


def test_the_example_of_the_page_runs_and_gives_the_shapes_that_it_says():
    found = page_example()
    assert found["X_next"].shape == (2, 16, 32, 4)
    assert found["c"].shape == (2, 16, 32)
    learned = (
        found["X"],
        found["weight"],
        *(p for name in ("sublayer", "gate", "value") for p in found[name].parameters()),
    )
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in learned)


@pytest.mark.parametrize("shape", [(), (4, 32), (1, 32, 4), (1, 4, 31)])
def test_taps_of_another_shape_are_named_with_their_axes(shape):
    X = torch.zeros(2, 16, 32, 4)
    message = re.escape(f"taps: expected (K, d_v, d) = (K, 4, 32) with a state (2, 16, 32, 4), found {shape}")
    with pytest.raises(ValueError, match=message):
        compress(X, torch.zeros(shape))
    vectors = torch.zeros(2, 16, 32), torch.zeros(2, 16, 4), torch.zeros(2, 16)
    with pytest.raises(ValueError, match=message):
        fused_rewrite(X, *vectors, torch.zeros(shape), torch.ones(32), 1e-5, 1e-5)


def calls():
    """Every operation as a function of one tensor, with that tensor."""
    X, k, v, beta = draw(2, 3, 8, 4), draw(2, 3, 8), draw(2, 3, 4), draw(2, 3).sigmoid()
    taps, weight, targets = draw(1, 4, 8), draw(8), torch.tensor([[1, 2, 0], [3, 4, 1]])
    return {
        "fused_rewrite": (lambda X: fused_rewrite(X, k, v, beta, taps, weight, 1e-5, 1e-5)[1], X),
        "the direction of fused_rewrite": (lambda k: fused_rewrite(X, k, v, beta, taps, weight, 1e-5, 1e-5)[0], k),
        "rewrite": (lambda X: rewrite(X, k, v, beta, 1e-5), X),
        "compress": (lambda X: compress(X, taps), X),
        "expand_embedding": (lambda x: expand_embedding(x, draw(8, 4, 4)), k),
        "linear_cross_entropy": (lambda x: linear_cross_entropy(x, draw(6, 8), targets), k),
    }


@pytest.mark.parametrize("name", sorted(calls()))
def test_a_forward_mode_derivative_is_refused_and_not_zero(name):
    function, tensor = calls()[name]
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(function, (tensor,), (torch.ones_like(tensor),))


@pytest.mark.parametrize("name", sorted(calls()))
def test_a_gradient_of_the_gradient_is_an_error_and_not_zero(name):
    function, tensor = calls()[name]
    tensor = tensor.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(tensor).square().sum(), tensor, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered|not have been used in the graph"):
        torch.autograd.grad(gradient.square().sum(), tensor)
