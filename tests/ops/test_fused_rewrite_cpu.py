"""The CPU's hand-written step against autograd through the equations, in fp64."""

import pytest
import torch

from ddl.ops.expand import shift_tokens
from ddl.ops.fused_rewrite_cpu import step_backward_cpu, step_forward_cpu
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


def step_by_equations(S, h, v, beta, taps, weight):
    """The same step, one equation a line, for autograd to differentiate."""
    X = rewrite_reference(S.mT, normalize_direction(h, EPS_DIRECTION), v, beta)
    x = X.squeeze(-1) if taps is None else sum(shift_tokens((X.mT * tap).sum(-2), s) for s, tap in enumerate(taps))
    return X.mT, x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS_NORM) * weight


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("in_place", [False, True], ids=["stored", "rebuilt"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("d_v", "K"), CHANNELS_AND_TAPS)
@pytest.mark.parametrize("used", ["both", "state", "normed"])
def test_step_and_its_gradients_equal_autograd_through_the_equations(d_v, K, shape, used, in_place):
    inputs = random_inputs(d_v, K, shape)
    leaves = [tensor if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    expected = step_by_equations(*leaves)
    grads = [
        torch.randn_like(tensor) if used in ("both", name) else None
        for name, tensor in zip(("state", "normed"), expected, strict=True)
    ]
    given = [grad if grad is None else grad.clone() for grad in grads]
    loss = sum((tensor * grad).sum() for tensor, grad in zip(expected, grads, strict=True) if grad is not None)
    wanted = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], allow_unused=True)

    S, rest = inputs[0].clone(), inputs[1:]
    S_next, c, *saved = step_forward_cpu(S, *rest, EPS_DIRECTION, EPS_NORM, in_place)
    assert (S_next.data_ptr() == S.data_ptr()) == in_place
    assert relative_error(S_next, expected[0]) < 1e-12
    assert relative_error(c, expected[1]) < 1e-12
    found = step_backward_cpu(S, *rest, *saved, *given, in_place)
    assert relative_error(S, inputs[0]) < 1e-12  # the state before, kept or rebuilt
    assert (found[4] is None) == (K is None)
    for gradient, want in zip([gradient for gradient in found if gradient is not None], wanted, strict=True):
        assert not gradient.any() if want is None else relative_error(gradient, want) < 1e-12
    for grad, same in zip(grads, given, strict=True):
        assert grad is None or torch.equal(grad, same)  # what autograd hands in may belong to others


def test_strided_taps_and_a_bf16_state_give_outputs_in_the_dtypes_of_the_inputs():
    S, h, v, beta, taps, weight = random_inputs(4, 4, (2, 5, 64), torch.float32)
    taps = taps.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    low = (S.bfloat16(), h.bfloat16(), v, beta, taps, weight)
    high = (low[0].double(), low[1].double(), *(tensor.double() for tensor in low[2:]))
    for in_place in (False, True):
        outputs = step_forward_cpu(low[0].clone(), *low[1:], EPS_DIRECTION, EPS_NORM, in_place)
        exact = step_forward_cpu(*high, EPS_DIRECTION, EPS_NORM, False)
        assert [tensor.dtype for tensor in outputs] == [torch.bfloat16] * 2 + [torch.float32] * 3
        for found, want in zip(outputs, exact, strict=True):
            assert relative_error(found.double(), want) < 2**-8
        grads = (torch.ones_like(S).bfloat16(), torch.ones_like(h).bfloat16())
        state = outputs[0].clone() if in_place else low[0]
        found = step_backward_cpu(state, *low[1:], *outputs[2:], *grads, in_place)
        wanted = step_backward_cpu(*high, *exact[2:], *(grad.double() for grad in grads), False)
        for gradient, want, owner in zip(found, wanted, low, strict=True):
            assert gradient.dtype == owner.dtype
            assert relative_error(gradient.double(), want) < 2**-6
