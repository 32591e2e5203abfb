"""The operations on the state against their equations, written out with loops or einsum in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.ops.compress import compress_channels, compress_tokens
from ddl.ops.expand import expand_embedding, repeat_embedding, shift_tokens
from ddl.ops.rewrite import normalize_direction, rewrite, rewrite_reference

SHAPES = [(1, 1, 16, 1), (2, 3, 24, 4), (1, 7, 100, 2), (3, 5, 17, 8)]


def random_inputs(shape, seed=0, dtype=torch.float64):
    """X, unit k, v and a gate in (0, 2)."""
    generator = torch.Generator().manual_seed(seed)
    B, T, d, d_v = shape
    X = torch.randn(shape, generator=generator, dtype=dtype)
    k = torch.nn.functional.normalize(torch.randn(B, T, d, generator=generator, dtype=dtype), dim=-1)
    v = torch.randn(B, T, d_v, generator=generator, dtype=dtype)
    beta = 2 * torch.rand(B, T, generator=generator, dtype=dtype)
    return X, k, v, beta


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rewrite_equals_the_shortcut_form_of_equation_2_1(shape):
    X, k, v, beta = random_inputs(shape)
    A = torch.eye(shape[2], dtype=X.dtype) - beta[..., None, None] * k[..., :, None] * k[..., None, :]
    expected = A @ X + beta[..., None, None] * k[..., :, None] * v[..., None, :]
    torch.testing.assert_close(rewrite_reference(X, k, v, beta), expected, rtol=1e-12, atol=1e-12)


def test_closed_gate_returns_the_state_bitwise():
    X, k, v, beta = random_inputs((2, 3, 24, 4), dtype=torch.float32)
    assert torch.equal(rewrite_reference(X, k, v, torch.zeros_like(beta)), X)


def test_open_gate_overwrites_the_selected_component():
    X, k, v, beta = random_inputs((2, 3, 24, 4))
    after = rewrite_reference(X, k, v, torch.ones_like(beta))
    readout = torch.einsum("bti,btij->btj", k, after)
    torch.testing.assert_close(readout, v, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2), st.integers(0, 2**31))
def test_discrepancy_shrinks_by_one_minus_the_gate_and_the_complement_stays(gate, seed):
    X, k, v, beta = random_inputs((1, 2, 12, 3), seed)
    after = rewrite_reference(X, k, v, torch.full_like(beta, gate))
    before_gap = torch.einsum("bti,btij->btj", k, X) - v
    after_gap = torch.einsum("bti,btij->btj", k, after) - v
    torch.testing.assert_close(after_gap, (1 - gate) * before_gap, rtol=1e-10, atol=1e-10)
    off_line = torch.eye(12, dtype=X.dtype) - k[..., :, None] * k[..., None, :]
    torch.testing.assert_close(off_line @ after, off_line @ X, rtol=1e-10, atol=1e-10)


def test_householder_reflection_keeps_the_norm_when_the_target_is_zero():
    X, k, v, beta = random_inputs((2, 3, 24, 4))
    after = rewrite_reference(X, k, torch.zeros_like(v), torch.full_like(beta, 2.0))
    torch.testing.assert_close(after.norm(), X.norm(), rtol=1e-12, atol=0)


def test_rewrite_has_correct_gradients_for_every_input():
    inputs = [tensor.requires_grad_() for tensor in random_inputs((1, 2, 5, 3))]
    assert torch.autograd.gradcheck(rewrite_reference, inputs)


def test_the_operation_is_normalisation_and_rewrite_with_their_gradients():
    def functions(X, h, v, beta):
        return rewrite_reference(X, normalize_direction(h, 0.1), v, beta)

    X, k, v, beta = random_inputs((2, 3, 24, 4))
    inputs = [tensor.requires_grad_() for tensor in (X, 2 * k, v, beta)]
    results = [functions(*inputs), rewrite(*inputs, 0.1)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    upstream = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=X.dtype)
    expected, found = (torch.autograd.grad(result, inputs, upstream) for result in results)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rewrite_keeps_the_memory_layout_of_the_state():
    X, k, v, beta = random_inputs((2, 3, 24, 4))
    X = X.mT.contiguous().mT
    assert rewrite_reference(X, k, v, beta).stride() == X.stride()


@pytest.mark.parametrize("norm", [1.0, 1e-3, 1e-4, 1e-6, 0.0])
def test_direction_guard_is_eps_squared_not_d_eps_squared(norm):
    d, eps = 768, 1e-5
    k_tilde = torch.zeros(1, d, dtype=torch.float64)
    k_tilde[0, 3] = norm
    expected = norm / (norm**2 + eps**2) ** 0.5
    assert normalize_direction(k_tilde, eps).norm().item() == pytest.approx(expected, rel=1e-12)


def test_direction_equals_its_rms_norm_form():
    d, eps = 48, 1e-2  # a large guard, so that the two would differ if it entered differently
    k_tilde = torch.randn(5, d, dtype=torch.float64) * 1e-2
    expected = torch.nn.functional.rms_norm(k_tilde, (d,), eps=eps**2 / d) / d**0.5
    torch.testing.assert_close(normalize_direction(k_tilde, eps), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compressors_and_expansion_equal_their_sums_written_out(shape):
    generator = torch.Generator().manual_seed(1)
    B, T, d, d_v = shape
    K = 4
    X = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(B, T, d, generator=generator, dtype=torch.float64)
    taps = torch.randn(d, d_v, K, generator=generator, dtype=torch.float64)
    channel = torch.randn(d, d_v, generator=generator, dtype=torch.float64)
    read = torch.randn(d_v, generator=generator, dtype=torch.float64)
    tc, ec = torch.zeros(B, T, d, dtype=X.dtype), torch.zeros(shape, dtype=X.dtype)
    for t in range(T):
        for s in range(min(K, t + 1)):
            tc[:, t] += (read * taps[..., s] * X[:, t - s]).sum(-1)
            ec[:, t] += taps[..., s] * x[:, t - s, :, None]
    torch.testing.assert_close(compress_tokens(X, taps, read), tc, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expand_embedding(x, taps), ec, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compress_channels(X, channel), torch.einsum("btij,ij->bti", X, channel))


def test_states_are_made_with_features_innermost():
    x = torch.randn(2, 5, 6)
    for X in (repeat_embedding(x, 4), expand_embedding(x, torch.randn(6, 4, 4))):
        assert X.shape == (2, 5, 6, 4)
        assert X.stride()[-2:] == (1, 6)


def test_shift_fills_with_zeros_and_may_exceed_the_length():
    x = torch.arange(1.0, 4.0).view(1, 3, 1)
    assert shift_tokens(x, 0) is x
    assert shift_tokens(x, 2).flatten().tolist() == [0.0, 0.0, 1.0]
    assert shift_tokens(x, 5).flatten().tolist() == [0.0, 0.0, 0.0]
