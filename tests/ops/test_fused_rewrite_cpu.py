"""The CPU's hand-written fused rewrite against autograd through the equations, in fp64."""

import pytest
import torch

from ddl.ops.expand import shift_tokens
from ddl.ops.fused_rewrite_arguments import Reader, Rewrite
from ddl.ops.fused_rewrite_cpu import fused_rewrite_backward, fused_rewrite_forward
from ddl.ops.rewrite import normalize_direction, rewrite_reference

EPS_DIRECTION, EPS_NORM = 1e-5, 1e-5
SHAPES = [(1, 1, 16), (3, 7, 33), (2, 5, 24)]  # B, T, d; with K = 4 the first has fewer tokens than taps
CHANNELS_AND_TAPS = [(1, None), (1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (4, 4), (8, 1), (8, 4)]


def random_inputs(d_v, K, shape, dtype=torch.float64):
    """S, h, v, beta, taps (None without K), weight; the first direction is as short as eps."""
    generator = torch.Generator().manual_seed(0)
    B, T, d = shape
    sizes = [(B, T, d_v, d), (B, T, d), (B, T, d_v), (B, T), (K, d_v, d) if K else None, (d,)]
    inputs = [size and torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    inputs[1][0, 0] *= EPS_DIRECTION / d**0.5
    inputs[3] = 2 * torch.sigmoid(inputs[3])
    return inputs


def rewrite_by_equations(S, h, v, beta, taps, weight):
    """The same operation, one equation per line, for autograd to differentiate."""
    X = rewrite_reference(S.mT, normalize_direction(h, EPS_DIRECTION), v, beta)
    x = X.squeeze(-1) if taps is None else sum(shift_tokens((X.mT * tap).sum(-2), s) for s, tap in enumerate(taps))
    return X.mT, x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS_NORM) * weight, x


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("in_place", [False, True], ids=["stored", "rebuilt"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("d_v", "K"), CHANNELS_AND_TAPS)
@pytest.mark.parametrize("used", ["state normed", "state", "normed", "state normed x_in"])
def test_outputs_and_gradients_equal_autograd_through_the_equations(d_v, K, shape, used, in_place):
    inputs = random_inputs(d_v, K, shape)
    leaves = [tensor if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    expected = rewrite_by_equations(*leaves)
    grads = [
        torch.randn_like(tensor) if name in used.split() else None
        for name, tensor in zip(("state", "normed", "x_in"), expected, strict=True)
    ]
    given = [grad if grad is None else grad.clone() for grad in grads]
    loss = sum((tensor * grad).sum() for tensor, grad in zip(expected, grads, strict=True) if grad is not None)
    wanted = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], allow_unused=True)

    S, rewrite, reader = inputs[0].clone(), Rewrite(*inputs[1:4]), Reader(*inputs[4:])
    x_in = torch.full_like(expected[2], torch.nan)
    S_next, c, saved = fused_rewrite_forward(S, rewrite, reader, EPS_DIRECTION, EPS_NORM, in_place, x_in)
    assert (S_next.data_ptr() == S.data_ptr()) == in_place
    assert relative_error(S_next, expected[0]) < 1e-12
    assert relative_error(c, expected[1]) < 1e-12
    assert relative_error(x_in, expected[2]) < 1e-12
    found = fused_rewrite_backward(S, rewrite, reader, saved, *given[:2], in_place, given[2])
    assert relative_error(x_in, expected[2]) < 1e-12  # rebuilding a scalar state leaves it alone
    assert relative_error(S, inputs[0]) < 1e-12  # the state before, kept or rebuilt
    assert (found.taps is None) == (K is None)
    for gradient, want in zip([gradient for gradient in found if gradient is not None], wanted, strict=True):
        assert not gradient.any() if want is None else relative_error(gradient, want) < 1e-12
    for grad, same in zip(grads, given, strict=True):
        assert grad is None or torch.equal(grad, same)  # what autograd hands in may belong to others


def test_strided_taps_and_a_bf16_state_give_outputs_in_the_dtypes_of_the_inputs():
    S, h, v, beta, taps, weight = random_inputs(4, 4, (2, 5, 64), torch.float32)
    taps = taps.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    low = (S.bfloat16(), Rewrite(h.bfloat16(), v, beta), Reader(taps, weight))
    high = (low[0].double(), *(type(group)(*(tensor.double() for tensor in group)) for group in low[1:]))
    owners = (low[0], *low[1], *low[2])
    for in_place in (False, True):
        *outputs, saved = fused_rewrite_forward(low[0].clone(), *low[1:], EPS_DIRECTION, EPS_NORM, in_place)
        *exact, exact_saved = fused_rewrite_forward(*high, EPS_DIRECTION, EPS_NORM, False)
        assert [tensor.dtype for tensor in (*outputs, *saved)] == [torch.bfloat16] * 2 + [torch.float32] * 3
        for found, want in zip((*outputs, *saved), (*exact, *exact_saved), strict=True):
            assert relative_error(found.double(), want) < 2**-8
        grads = (torch.ones_like(S).bfloat16(), torch.ones_like(h).bfloat16())
        state = outputs[0].clone() if in_place else low[0]
        found = fused_rewrite_backward(state, *low[1:], saved, *grads, in_place)
        wanted = fused_rewrite_backward(*high, exact_saved, *(grad.double() for grad in grads), False)
        for gradient, want, owner in zip(found, wanted, owners, strict=True):
            assert gradient.dtype == owner.dtype
            assert relative_error(gradient.double(), want) < 2**-6
