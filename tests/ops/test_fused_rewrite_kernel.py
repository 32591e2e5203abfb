"""The Triton kernels of the fused rewrite against fp64, in the interpreter or on a GPU.

Outputs are allocated full of NaN, so that a number which no program writes is found. Programs are made so short that
every sequence with more than a few tokens is walked by several.
"""

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.numerics import assert_as_accurate

pytest.importorskip("triton", reason="no triton on this platform")

from ddl.ops import fused_rewrite_triton
from ddl.ops.fused_rewrite import as_rows, as_state, fused_rewrite_reference
from ddl.ops.fused_rewrite_arguments import Reader, Rewrite
from ddl.ops.fused_rewrite_triton import fused_rewrite_backward, fused_rewrite_forward

EPS_DIRECTION, EPS_NORM = 1e-5, 1e-5
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Of the state, and of the direction and c.
DTYPES = {"fp32": (FP32, FP32), "bf16": (BF16, BF16), "fp16": (FP16, FP16), "fp32-bf16": (FP32, BF16)}
# (B, T, d, d_v) and K, 0 without a compressor.
CASES = {
    "B1-T1-d16-dv1-none": ((1, 1, 16, 1), 0),
    "B2-T9-d100-dv1-none": ((2, 9, 100, 1), 0),
    "B2-T7-d96-dv4-cc": ((2, 7, 96, 4), 1),
    "B2-T9-d64-dv2-cc": ((2, 9, 64, 2), 1),
    "B1-T1-d16-dv1-tc": ((1, 1, 16, 1), 4),
    "B1-T5-d130-dv8-tc": ((1, 5, 130, 8), 4),
    "B2-T13-d100-dv4-tc": ((2, 13, 100, 4), 4),
}
COMPRESSORS = {"none": ((2, 7, 48, 1), 0), "cc": ((2, 7, 48, 4), 1), "tc": ((2, 7, 48, 4), 4)}
OUTPUTS = ("S_next", "c", "x_in", "grad_S", "grad_h", "grad_v", "grad_beta", "grad_taps", "grad_weight")

each_compressor = pytest.mark.parametrize(("shape", "K"), COMPRESSORS.values(), ids=COMPRESSORS)
in_both_modes = pytest.mark.parametrize("in_place", [False, True], ids=["stored", "in place"])


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """torch.empty and its relatives return NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_layout(monkeypatch):
    """Change fields of the layout that the launchers choose."""
    choose = fused_rewrite_triton.choose_layout

    def change(**fields):
        monkeypatch.setattr(fused_rewrite_triton, "choose_layout", lambda *shape: choose(*shape)._replace(**fields))

    return change


@pytest.fixture(autouse=True)
def short_programs(set_layout):
    set_layout(chunk=5, rows=4)


def inputs(device: str, shape: tuple[int, ...], K: int, dtype: torch.dtype, other: torch.dtype, norm: float = 1.0):
    """S, h, v, beta, taps, weight and the gradients in S_next, c and x_in; the last is None, since most rules do not
    read x_in. There are gates of 0, 1 and 2 among the first tokens."""
    B, T, d, d_v = shape
    torch.manual_seed(B + T + d + d_v + K)
    beta = 2 * torch.rand(B, T)
    beta.view(-1)[: B * T // 2] = torch.tensor([0.0, 1.0, 2.0]).repeat(B * T)[: B * T // 2]
    h = norm * torch.nn.functional.normalize(torch.randn(B, T, d), dim=-1)
    state, c = torch.randn(2, B, T, d_v, d).to(dtype), torch.randn(B, T, d).to(other)
    taps = torch.randn(K, d_v, d) / d_v if K else None
    v, weight = torch.randn(B, T, d_v).to(other), torch.rand(d) + 0.5
    tensors = (state[0], h.to(other), v, beta, taps, weight, state[1], c, None)
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def run(S, h, v, beta, taps, weight, grad_next, grad_c, grad_x_in, in_place=False) -> dict[str, Tensor]:
    """All outputs and gradients; also, as "S", what the state memory holds after the backward pass."""
    x_in = None if grad_x_in is None else torch.empty_like(h)
    S, rewrite, reader = S.clone(), Rewrite(h, v, beta), Reader(taps, weight)
    S_next, c, saved = fused_rewrite_forward(S, rewrite, reader, EPS_DIRECTION, EPS_NORM, in_place, x_in)
    assert (S_next is S) == in_place
    after = S_next.clone()
    grads = fused_rewrite_backward(S, rewrite, reader, saved, grad_next, grad_c, in_place, grad_x_in)
    return {"S": S} | {name: y for name, y in zip(OUTPUTS, (after, c, x_in, *grads), strict=True) if y is not None}


def reference(dtype: torch.dtype | None, *tensors: Tensor | None) -> dict[str, Tensor]:
    """The same by autograd through `fused_rewrite_reference`, in `dtype` or, if None, in the dtype of the state."""
    leaves = [t if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors[:6]]
    grads_in = [t if t is None else t.to(dtype or t.dtype) for t in tensors[6:]]
    computed = [t if t is None else t.to(dtype or leaves[0].dtype) for t in leaves]
    scalar = leaves[4] is None
    with_x_in = grads_in[2] is not None
    arguments = as_state(computed[0], scalar), *computed[1:], EPS_DIRECTION, EPS_NORM, with_x_in
    X_next, c, x_in = fused_rewrite_reference(*arguments)
    outputs = as_rows(X_next, scalar), c.to(leaves[1].dtype), None if x_in is None else x_in.to(leaves[1].dtype)
    pairs = [(y, grad) for y, grad in zip(outputs, grads_in, strict=True) if grad is not None]
    wanted = [leaf for leaf in leaves if leaf is not None]
    used, upstream = zip(*pairs, strict=True)
    grads = iter(torch.autograd.grad(used, wanted, upstream, materialize_grads=True))
    gradients = [None if leaf is None else next(grads) for leaf in leaves]
    return {name: y.detach() for name, y in zip(OUTPUTS, (*outputs, *gradients), strict=True) if y is not None}


def assert_accurate(tensors: list[Tensor | None], in_place: bool = False) -> None:
    got, eager, exact = run(*tensors, in_place=in_place), reference(None, *tensors), reference(torch.float64, *tensors)
    for name in exact:
        assert_as_accurate(name, got[name], eager[name], exact[name])


def every_case() -> list:
    """All shapes in all dtypes on a GPU; in the interpreter every kernel in every dtype, at one of its shapes in turn,
    unless `-m full` asks for all."""
    cases = []
    for (case, (shape, K)), (column, (name, dtypes)) in itertools.product(CASES.items(), enumerate(DTYPES.items())):
        of_kernel = [other for other, (_, k) in CASES.items() if k == K]
        sampled = of_kernel[column % len(of_kernel)] == case
        marks = [pytest.mark.interpreter] if sampled else [pytest.mark.interpreter, pytest.mark.full]
        cases.append(pytest.param("cpu", shape, K, *dtypes, marks=marks, id=f"cpu-{case}-{name}"))
        cases.append(pytest.param("cuda", shape, K, *dtypes, marks=pytest.mark.gpu, id=f"cuda-{case}-{name}"))
    return cases


@pytest.mark.parametrize(("device", "shape", "K", "dtype", "other"), every_case())
def test_every_output_and_gradient_is_as_accurate_as_eager(device, shape, K, dtype, other):
    assert_accurate(inputs(device, shape, K, dtype, other))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@each_compressor
def test_a_state_that_is_overwritten_gives_accurate_gradients_and_comes_back(device, shape, K, dtype):
    tensors = inputs(device, shape, K, dtype, dtype)
    assert_accurate(tensors, in_place=True)
    back = run(*tensors, in_place=True)["S"]
    assert (back - tensors[0]).abs().max() <= 4 * torch.finfo(dtype).eps * tensors[0].abs().max()


@each_compressor
def test_overwriting_the_state_changes_no_bit_of_the_forward_pass(device, shape, K):
    tensors = inputs(device, shape, K, FP32, FP32)
    stored, overwritten = run(*tensors), run(*tensors, in_place=True)
    for name in ("S_next", "c"):
        assert torch.equal(stored[name], overwritten[name]), name


@in_both_modes
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@each_compressor
def test_the_compressed_state_and_its_gradient_are_as_accurate_as_eager(device, shape, K, dtype, in_place):
    tensors = inputs(device, shape, K, dtype, dtype)
    tensors[8] = torch.randn(shape[:3], device=device).to(dtype)
    assert_accurate(tensors, in_place)


@in_both_modes
@each_compressor
def test_returning_the_compressed_state_changes_no_bit_of_the_rest(device, shape, K, in_place):
    tensors = inputs(device, shape, K, FP32, FP32)
    without = run(*tensors, in_place=in_place)
    tensors[8] = torch.zeros(shape[:3], device=device)
    for name, value in run(*tensors, in_place=in_place).items():
        assert name == "x_in" or torch.equal(value, without[name]), name


@pytest.mark.parametrize("norm", [1e-3, 1e-4, 1e-6, 0.0])
@each_compressor
def test_short_directions(device, shape, K, norm):
    assert_accurate(inputs(device, shape, K, FP32, FP32, norm))


@in_both_modes
@pytest.mark.parametrize("unused", ["S_next", "c"])
@each_compressor
def test_an_unused_output_has_no_gradient(device, shape, K, unused, in_place):
    tensors = inputs(device, shape, K, FP32, FP32)
    tensors[6 if unused == "S_next" else 7] = None
    assert_accurate(tensors, in_place)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])  # in the interpreter programs run one after another
@in_both_modes
@each_compressor
def test_two_runs_agree_to_the_bit(device, shape, K, in_place):
    tensors = inputs(device, shape, K, BF16, BF16)
    first, second = run(*tensors, in_place=in_place), run(*tensors, in_place=in_place)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@each_compressor
def test_a_closed_gate_keeps_every_bit_of_the_state(device, shape, K):
    tensors = inputs(device, shape, K, BF16, BF16)
    tensors[3].zero_()
    assert torch.equal(run(*tensors)["S_next"], tensors[0])


def test_the_length_of_programs_changes_nothing_but_rounding(device, set_layout):
    tensors = inputs(device, (1, 35, 100, 4), 4, FP32, FP32)
    short = run(*tensors)
    set_layout(chunk=64, rows=16)
    long = run(*tensors)
    for name, exact in reference(torch.float64, *tensors).items():
        assert_as_accurate(name, long[name], short[name], exact)


@pytest.mark.parametrize(
    ("shape", "K", "message"),
    [((1, 2, 16, 3), 1, "d_v"), ((1, 2, 16, 4), 2, "taps"), ((1, 2, 16, 4), 0, "taps"), ((1, 1, 8193, 1), 0, "d:")],
)
def test_a_shape_without_a_kernel_is_refused(device, shape, K, message):
    with pytest.raises(ValueError, match=message):
        run(*inputs(device, shape, K, FP32, FP32))
