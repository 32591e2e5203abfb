"""The backward pass that was derived by hand: against autograd and finite differences, and at its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.model.residual import Delta
from ddl.ops.rewrite import (
    gate_backward,
    normalize_direction,
    normalize_direction_backward,
    rewrite_backward_reference,
    rewrite_reference,
)

TOLERANCE = 1e-12  # of fp64 numbers, relative to the largest of their tensor
INPUTS = ("X", "k", "v", "beta")
seeds = st.integers(0, 2**31)
gates = st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 2)
lengths = st.sampled_from([0.0, 1.0]) | st.floats(1e-9, 10)


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def example(seed, d=5, d_v=3, gate=None, leading=(2, 3)):
    """X, unit k, v, a gate, and a gradient of the rewritten state."""
    X, k, v, beta, grad = draw(seed, (*leading, d, d_v), (*leading, d), (*leading, d_v), leading, (*leading, d, d_v))
    beta = 2 * torch.sigmoid(beta) if gate is None else torch.full_like(beta, gate)
    return X, normalize_direction(k, 0.0), v, beta, grad


def off(found, expected):
    """Largest error, relative to the largest number that was expected; infinite for what should be all zeros."""
    assert found.shape == expected.shape
    error = (found - expected).abs().max()
    return float(error / expected.abs().max()) if error else 0.0


def by_autograd(function, inputs, grad):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad)


class ByHand(torch.autograd.Function):
    """The rewrite with the derived backward pass, for gradcheck: finite differences then know nothing of autograd."""

    @staticmethod
    def forward(ctx, X, k, v, beta):
        ctx.save_for_backward(X, k, v, beta)
        return rewrite_reference(X, k, v, beta)

    @staticmethod
    def backward(ctx, grad):
        return rewrite_backward_reference(*ctx.saved_tensors, grad)


class NormalizeByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k_tilde, eps):
        ctx.save_for_backward(k_tilde)
        ctx.eps = eps
        return normalize_direction(k_tilde, eps)

    @staticmethod
    def backward(ctx, grad):
        return normalize_direction_backward(*ctx.saved_tensors, ctx.eps, grad), None


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 17), st.integers(1, 5), gates, lengths, st.sampled_from([(), (4,), (2, 3)]))
def test_derived_gradients_of_the_rewrite_are_those_of_autograd(seed, d, d_v, gate, length, leading):
    X, k, v, beta, grad = example(seed, d, d_v, gate, leading)
    inputs = (X, length * k, v, beta)  # the formulas do not need a unit direction
    derived = rewrite_backward_reference(*inputs, grad)
    # Terms of this size may cancel, as they do along k at a gate near one, and leave rounding of theirs.
    size = (1 + length) ** 2 * (1 + X.abs().max() + v.abs().max()) * grad.abs().max()
    for name, found, expected in zip(INPUTS, derived, by_autograd(rewrite_reference, inputs, grad), strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE * size, name


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("d_v", [1, 3])
def test_derived_gradients_of_the_rewrite_pass_gradcheck(d_v, gate):
    inputs = [tensor.requires_grad_() for tensor in example(1, d_v=d_v, gate=gate, leading=(2,))[:4]]
    assert torch.autograd.gradcheck(ByHand.apply, inputs)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 40), lengths, st.sampled_from([1e-5, 1e-2, 1.0]))
def test_derived_gradient_of_the_normalisation_is_that_of_autograd(seed, d, length, eps):
    k_tilde, grad = draw(seed, (3, d), (3, d))
    k_tilde = length * normalize_direction(k_tilde, 0.0)
    found = normalize_direction_backward(k_tilde, eps, grad)
    (expected,) = by_autograd(lambda x: normalize_direction(x, eps), [k_tilde], grad)
    # Along k both subtract nearly equal numbers, so rounding is relative to |grad| / s and not to the result.
    scale = grad.norm(dim=-1).max() / (length**2 + eps**2) ** 0.5
    assert (found - expected).abs().max() < TOLERANCE * scale


@pytest.mark.parametrize("length", [0.0, 0.3, 1.0, 5.0])
def test_derived_gradient_of_the_normalisation_passes_gradcheck(length):
    k_tilde = (length * normalize_direction(draw(2, (3, 6))[0], 0.0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NormalizeByHand.apply(x, 0.5), [k_tilde])


@settings(max_examples=60, deadline=None)
@given(seeds, lengths)
def test_guard_bounds_the_gradient_of_a_small_direction(seed, length):
    eps = 1e-5
    k_tilde, grad = draw(seed, (4, 8), (4, 8))
    k_tilde = length * normalize_direction(k_tilde, 0.0)
    size = normalize_direction_backward(k_tilde, eps, grad).norm(dim=-1) / grad.norm(dim=-1)
    assert (size <= (1 + TOLERANCE) / max(eps, length)).all()


def test_without_a_guard_the_gradient_of_a_direction_is_orthogonal_to_it():
    k_tilde, grad = draw(3, (4, 8), (4, 8))
    found = normalize_direction_backward(k_tilde, 0.0, grad)
    assert (found * k_tilde).sum(-1).abs().max() < TOLERANCE
    assert found.norm() > 0.1


@settings(max_examples=40, deadline=None)
@given(st.floats(-30, 30), st.floats(-5, 5))
def test_derived_gradient_of_the_gate_is_that_of_autograd(logit, upstream):
    z, grad = torch.tensor([logit], dtype=torch.float64), torch.tensor([upstream], dtype=torch.float64)
    (expected,) = by_autograd(lambda x: 2 * torch.sigmoid(x), [z], grad)
    found = gate_backward(2 * torch.sigmoid(z), grad)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)  # 1 - beta / 2 cancels near an open gate


def test_closed_gate_passes_the_gradient_of_the_state_bitwise_and_none_to_direction_and_target():
    X, k, v, beta, grad = example(4, gate=0.0)
    grad_X, grad_k, grad_v, grad_beta = rewrite_backward_reference(X, k, v, beta, grad)
    assert torch.equal(grad_X, grad)
    assert not grad_k.any()
    assert not grad_v.any()
    assert (grad_beta.abs() > 0).all()
    assert not gate_backward(beta, grad_beta).any()


def test_overwritten_component_receives_no_gradient_and_the_rest_receives_all():
    X, k, v, beta, grad = example(5, gate=1.0)
    grad_X = rewrite_backward_reference(X, k, v, beta, grad)[0]
    assert torch.einsum("bti,btij->btj", k, grad_X).abs().max() < TOLERANCE
    across = torch.eye(5, dtype=X.dtype) - k[..., :, None] * k[..., None, :]
    assert off(across @ grad_X, across @ grad) < TOLERANCE


def test_reflecting_gate_keeps_the_length_of_the_gradient_of_the_state():
    X, k, v, beta, grad = example(6, gate=2.0)
    grad_X = rewrite_backward_reference(X, k, v, beta, grad)[0]
    assert off(grad_X.square().sum((-2, -1)), grad.square().sum((-2, -1))) < TOLERANCE
    assert off(grad_X, grad) > 0.1


@settings(max_examples=40, deadline=None)
@given(seeds, gates)
def test_gradient_of_the_state_is_itself_rewritten_with_nothing_to_write(seed, gate):
    X, k, v, beta, grad = example(seed, gate=gate)
    rewritten = rewrite_reference(grad, k, torch.zeros_like(v), beta)
    assert off(rewrite_backward_reference(X, k, v, beta, grad)[0], rewritten) < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 12), gates)
def test_mean_shrinkage_over_an_orthonormal_basis_is_gate_times_two_minus_gate_over_width(seed, d, gate):
    (grad, mix) = draw(seed, (d, 2), (d, d))
    basis = torch.linalg.qr(mix).Q.T
    zeros = torch.zeros(d, 2, dtype=grad.dtype)
    after = rewrite_reference(grad.expand(d, d, 2), basis, zeros, torch.full((d,), gate, dtype=grad.dtype))
    expected = grad.square().sum() * (1 - gate * (2 - gate) / d)
    assert abs(float(after.square().sum() / d - expected)) < TOLERANCE * float(grad.square().sum())


@pytest.mark.parametrize("gate", ["linear", "mlp"])
@pytest.mark.parametrize("activation", ["linear", "sigmoid4"])
def test_gradients_of_the_residual_rule_are_the_derived_functions_in_a_row(tiny_config, gate, activation):
    config = tiny_config("ddl-cc", gate=gate, gate_hidden=7, value_activation=activation)
    torch.manual_seed(0)
    rule = Delta(config).double()
    leading, d = (2, 3), config.width
    X, x_in, c, h, grad = draw(7, (*leading, d, 4), (*leading, d), (*leading, d), (*leading, d), (*leading, d, 4))
    X, c, h = (tensor.requires_grad_() for tensor in (X, c, h))
    k, v, beta = (tensor.detach() for tensor in rule.generate(X, x_in, c, h))
    rule(X, x_in, c, h).backward(grad)
    grad_X, grad_k, grad_v, grad_beta = rewrite_backward_reference(X.detach(), k, v, beta, grad)
    if activation == "sigmoid4":
        grad_v = grad_v * v * (1 - v / 4)
    grad_z = gate_backward(beta, grad_beta)
    rule.requires_grad_(False)
    c_fixed, h_fixed = c.detach(), h.detach()
    features = c_fixed if gate == "linear" else torch.tanh(rule.gate.hidden(c_fixed))
    assert off(X.grad, grad_X) < TOLERANCE
    assert off(h.grad, normalize_direction_backward(h_fixed, config.direction_eps, grad_k)) < TOLERANCE
    assert off(rule.value.linear.weight.grad, torch.einsum("btj,bti->ji", grad_v, c_fixed)) < TOLERANCE
    assert off(rule.value.linear.bias.grad, grad_v.sum((0, 1))) < TOLERANCE
    assert off(rule.gate.logit.weight.grad[0], torch.einsum("bt,bti->i", grad_z, features)) < TOLERANCE
    into_gate = grad_z[..., None] * rule.gate.logit.weight[0]
    if gate == "mlp":
        into_gate = (into_gate * (1 - features.square())) @ rule.gate.hidden.weight
    assert off(c.grad, grad_v @ rule.value.linear.weight + into_gate) < TOLERANCE


def test_derived_gradients_keep_the_precision_they_are_given():
    inputs = [tensor.float() for tensor in example(8)]
    exact = rewrite_backward_reference(*(tensor.double() for tensor in inputs))
    for found, expected in zip(rewrite_backward_reference(*inputs), exact, strict=True):
        assert found.dtype == torch.float32
        assert off(found.double(), expected) < 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("spoil", [lambda g: 0 * g, lambda g: 1.05 * g, lambda g: torch.cat((g[:-1], 2 * g[-1:]))])
def test_measure_of_error_notices_a_wrong_gradient(spoil):
    for name, gradient in zip(INPUTS, rewrite_backward_reference(*example(9)), strict=True):
        assert off(spoil(gradient), gradient) > 1e-3, name
