"""The Triton kernels of single operations against fp64, in the interpreter or on a GPU.

Outputs are allocated full of NaN, so that a number which no program writes is found. In the interpreter bf16 is
truncated and not rounded, which doubles its error.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.numerics import assert_as_accurate

pytest.importorskip("triton", reason="no triton on this platform")

from ddl.ops import compress_triton, expand_triton
from ddl.ops.compress import compress_reference
from ddl.ops.compress_triton import compress_backward, compress_forward
from ddl.ops.expand import expand_reference
from ddl.ops.expand_triton import expand_backward, expand_forward
from ddl.ops.rewrite import normalize_direction, rewrite_reference
from ddl.ops.rewrite_triton import rewrite_backward, rewrite_forward

EPS = 1e-5
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Of the state, and of what comes with it: the direction, or the taps.
DTYPES = {
    "fp32": (FP32, FP32),
    "bf16": (BF16, BF16),
    "fp16": (FP16, FP16),
    "bf16-fp32": (BF16, FP32),
    "fp32-bf16": (FP32, BF16),
}
# (N, d, d_v): few powers of two, fewer tokens than a GPU has processors, d of one, some and many blocks.
ROWS = [(1, 16, 1), (1, 64, 4), (7, 96, 4), (5, 1024, 8), (63, 100, 4), (33, 768, 4), (257, 1000, 2)]
# (B, T, d, d_v): also fewer tokens than taps, and more than one program sums.
SEQUENCES = [(1, 1, 16, 1), (1, 2, 64, 4), (1, 5, 300, 8), (2, 9, 20, 2), (2, 6, 100, 4), (2, 257, 768, 4)]
INTERPRETED = 5


def shape_id(shape: tuple[int, ...]) -> str:
    names = ("N", "d", "dv") if len(shape) == 3 else ("B", "T", "d", "dv")
    return "-".join(f"{name}{size}" for name, size in zip(names, shape, strict=True))


def on_each_device(shapes: list[tuple[int, ...]]) -> pytest.MarkDecorator:
    """All shapes in all dtypes on a GPU; the smallest shapes in the interpreter, each in one of the dtypes, which is
    another one for each, unless `-m full` asks for all."""
    cases = []
    for (row, shape), (column, dtypes) in itertools.product(enumerate(shapes), enumerate(DTYPES)):
        name = f"{shape_id(shape)}-{dtypes}"
        cases.append(pytest.param("cuda", shape, dtypes, marks=pytest.mark.gpu, id=f"cuda-{name}"))
        if row < INTERPRETED:
            sampled = row % len(DTYPES) == column
            marks = [pytest.mark.interpreter] if sampled else [pytest.mark.interpreter, pytest.mark.full]
            cases.append(pytest.param("cpu", shape, dtypes, marks=marks, id=f"cpu-{name}"))
    return pytest.mark.parametrize(("device", "shape", "dtypes"), cases)


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """torch.empty and its relatives return NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


class Rewrite:
    names = ("S", "h", "v", "beta")

    @staticmethod
    def inputs(shape, dtype, other, norm=1.0):
        N, d, d_v = shape
        torch.manual_seed(N + d + d_v)
        beta = 2 * torch.rand(N, dtype=torch.float64)
        beta[: N // 2] = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).repeat(N)[: N // 2]
        h = norm * torch.nn.functional.normalize(randn(N, d), dim=-1)
        return randn(N, d_v, d).to(dtype), h.to(other), randn(N, d_v).to(FP32), beta.to(FP32)

    @staticmethod
    def reference(S, h, v, beta):
        h, v, beta = h.to(S.dtype), v.to(S.dtype), beta.to(S.dtype)
        return rewrite_reference(S.mT, normalize_direction(h, EPS), v, beta).mT

    @staticmethod
    def kernels(inputs, grad):
        S_next, inverse, readout = rewrite_forward(*inputs, EPS)
        return S_next, *rewrite_backward(*inputs, inverse, readout, grad)


class Compress:
    names = ("S", "taps")
    K: int

    @classmethod
    def inputs(cls, shape, dtype, other):
        B, T, d, d_v = shape
        torch.manual_seed(B + T + d + d_v)
        return randn(B, T, d_v, d).to(dtype), randn(cls.K, d_v, d).to(other)

    @staticmethod
    def reference(S, taps):
        return compress_reference(S.mT, taps.to(S.dtype))

    @staticmethod
    def kernels(inputs, grad):
        return compress_forward(*inputs), *compress_backward(*inputs, grad)


class CompressChannels(Compress):
    K = 1


class CompressTokens(Compress):
    K = 4


class Expand:
    names = ("x", "taps")

    @staticmethod
    def inputs(shape, dtype, other):
        B, T, d, d_v = shape
        torch.manual_seed(B + T + d + d_v)
        return randn(B, T, d).to(dtype), randn(4, d_v, d).to(other)

    @staticmethod
    def reference(x, taps):
        return expand_reference(x, taps.to(x.dtype).permute(2, 1, 0)).mT

    @staticmethod
    def kernels(inputs, grad):
        return expand_forward(*inputs), *expand_backward(*inputs, grad)


SEQUENCE_OPS = (CompressChannels, CompressTokens, Expand)


def differentiate(reference: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of all inputs, from autograd on leaves of their own."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = reference(*leaves)
    return result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))


def check(op, inputs: tuple[Tensor, ...], device: str) -> None:
    """Result and gradients from a random upstream gradient of unit scale against fp64."""
    grad = torch.randn_like(op.reference(*inputs))
    exact = differentiate(op.reference, tuple(tensor.double() for tensor in inputs), grad.double())
    inputs, grad = tuple(tensor.to(device) for tensor in inputs), grad.to(device)
    eager = differentiate(op.reference, inputs, grad)
    found = op.kernels(inputs, grad)
    names = ("result", *(f"gradient in {name}" for name in op.names))
    for name, *values in zip(names, found, eager, exact, strict=True):
        assert_as_accurate(f"{op.__name__}, {name}", *values)


def test_outputs_are_poisoned():
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.zeros(10, dtype=BF16)).isnan().all()
    assert torch.zeros(10).new_empty(10).isnan().all()


@on_each_device(ROWS)
def test_rewrite(device, shape, dtypes):
    check(Rewrite, Rewrite.inputs(shape, *DTYPES[dtypes]), device)


@on_each_device(SEQUENCES)
@pytest.mark.parametrize("op", SEQUENCE_OPS, ids=lambda op: op.__name__)
def test_compress_and_expand(op, device, shape, dtypes):
    check(op, op.inputs(shape, *DTYPES[dtypes]), device)


@pytest.mark.parametrize("op", SEQUENCE_OPS, ids=lambda op: op.__name__)
def test_tap_gradients_are_summed_over_programs(op, device, monkeypatch):
    for module in (compress_triton, expand_triton):
        monkeypatch.setattr(module, "CHUNK", 8)
    check(op, op.inputs((2, 19, 20, 2), FP32, FP32), device)


@pytest.mark.parametrize(
    ("op", "shape"),
    [(Rewrite, (33, 100, 4)), *((op, (3, 300, 100, 4)) for op in SEQUENCE_OPS)],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.gpu
def test_two_runs_agree_bitwise(op, shape):
    inputs = tuple(tensor.cuda() for tensor in op.inputs(shape, BF16, BF16))
    grad = torch.randn_like(op.reference(*inputs))
    for first, second in zip(op.kernels(inputs, grad), op.kernels(inputs, grad), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("norm", [1e-3, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_rewrite_guards_short_directions_as_the_reference_does(device, norm, dtype):
    check(Rewrite, Rewrite.inputs((7, 96, 4), dtype, dtype, norm), device)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_rewrite_of_small_and_large_states(device, scale):
    S, h, v, beta = Rewrite.inputs((7, 96, 4), FP32, FP32)
    check(Rewrite, (scale * S, h, scale * v, beta), device)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_rewrite_reads_target_and_gate_in_their_own_dtype(device, dtype):
    S, h, v, beta = Rewrite.inputs((7, 96, 4), FP32, FP32)
    check(Rewrite, (S, h, v.to(dtype), beta.to(dtype)), device)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_a_closed_gate_returns_the_state_bitwise(device, dtype):
    S, h, v, beta = (tensor.to(device) for tensor in Rewrite.inputs((7, 100, 4), dtype, dtype))
    assert torch.equal(rewrite_forward(S, h, v, torch.zeros_like(beta), EPS)[0], S)


def test_an_open_gate_writes_the_target(device):
    S, h, v, beta = (tensor.to(device) for tensor in Rewrite.inputs((7, 100, 4), FP32, FP32))
    after = rewrite_forward(S, h, v, torch.ones_like(beta), EPS)[0].double()
    k = normalize_direction(h.double(), EPS)
    error = (torch.einsum("ni,nji->nj", k, after) - v).norm() / after.norm()
    assert error < torch.finfo(FP32).eps


def test_a_reflection_keeps_the_norm_of_every_channel(device):
    S, h, v, beta = (tensor.to(device) for tensor in Rewrite.inputs((7, 100, 4), FP32, FP32))
    after = rewrite_forward(S, h, torch.zeros_like(v), torch.full_like(beta, 2.0), EPS)[0]
    torch.testing.assert_close(after.double().norm(dim=-1), S.double().norm(dim=-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", SEQUENCE_OPS, ids=lambda op: op.__name__)
def test_a_sequence_does_not_see_another(op, device):
    inputs = tuple(tensor.to(device) for tensor in op.inputs((3, 6, 40, 2), FP32, FP32))
    grad = torch.randn_like(op.reference(*inputs))
    result, grad_state, _ = op.kernels(inputs, grad)
    alone, grad_alone, _ = op.kernels((inputs[0][1:2].contiguous(), inputs[1]), grad[1:2].contiguous())
    assert torch.equal(result[1:2], alone)
    assert torch.equal(grad_state[1:2], grad_alone)


def test_what_has_no_kernel_is_refused():
    N = B = T = 2
    with pytest.raises(ValueError, match=r"dtype: .* found torch\.float64"):
        compress_forward(torch.empty(B, T, 4, 16, dtype=torch.float64), torch.empty(1, 4, 16))
    for d_v, d, message in ((3, 16, "d_v: .* found 3"), (4, 8193, "d: .* found 8193")):
        S, h, v, beta = torch.empty(N, d_v, d), torch.empty(N, d), torch.empty(N, d_v), torch.empty(N)
        with pytest.raises(ValueError, match=message):
            rewrite_forward(S, h, v, beta, EPS)
        with pytest.raises(ValueError, match=message):
            rewrite_backward(S, h, v, beta, beta, v, S)
    for K, d_v, d, message in (
        (4, 3, 16, "d_v: .* found 3"),
        (4, 4, 8193, "d: .* found 8193"),
        (2, 4, 16, "taps: .* found 2"),
    ):
        S, x, taps = torch.empty(B, T, d_v, d), torch.empty(B, T, d), torch.empty(K, d_v, d)
        for launch in (
            lambda S=S, taps=taps: compress_forward(S, taps),
            lambda S=S, taps=taps, x=x: compress_backward(S, taps, x),
            lambda x=x, taps=taps: expand_forward(x, taps),
            lambda x=x, taps=taps, S=S: expand_backward(x, taps, S),
        ):
            with pytest.raises(ValueError, match=message):
                launch()


@pytest.fixture
def large_gpu():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    yield
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_rewrite_beyond_2_31_elements(large_gpu):
    N, d_v, d, last = 2**18 + 3, 8, 1024, 5
    inputs = (
        torch.randn(N, d_v, d, device="cuda", dtype=BF16),
        torch.randn(N, d, device="cuda", dtype=BF16),
        torch.randn(N, d_v, device="cuda"),
        2 * torch.rand(N, device="cuda"),
    )
    assert inputs[0].numel() > 2**31
    grad = torch.randn_like(inputs[0])
    tails = Rewrite.kernels(tuple(tensor[-last:] for tensor in inputs), grad[-last:])
    for whole, tail in zip(Rewrite.kernels(inputs, grad), tails, strict=True):
        assert torch.equal(whole[-last:], tail)


@pytest.mark.gpu
@pytest.mark.parametrize("op", [CompressTokens, Expand], ids=lambda op: op.__name__)
def test_compress_and_expand_beyond_2_31_elements(op, large_gpu):
    T, d_v, d, last = 2**18 + 3, 8, 1024, 67
    state = torch.randn(1, T, d_v, d, device="cuda", dtype=BF16)
    assert state.numel() > 2**31
    vector, taps = torch.randn(1, T, d, device="cuda", dtype=BF16), torch.randn(4, d_v, d, device="cuda")
    first, grad = (state, vector) if op is CompressTokens else (vector, state)
    tails = op.kernels((first[:, -last:].contiguous(), taps), grad[:, -last:].contiguous())
    result, grad_first, _ = op.kernels((first, taps), grad)
    assert torch.equal(result[:, 3 - last :], tails[0][:, 3:]), "the first three tokens of the tail have no past there"
    assert torch.equal(grad_first[:, -last:], tails[1])
