"""The loss without the logits of the whole batch: the number and the gradients of F.cross_entropy at any precision."""

import pytest
import torch
import torch.nn.functional as F

from ddl.ops import cross_entropy
from ddl.ops.cross_entropy import cross_entropy_op, linear_cross_entropy, linear_cross_entropy_reference, parts
from tests.helpers.numerics import assert_as_accurate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inputs(tokens=70, width=24, vocabulary=61, dtype=torch.float64, device="cpu", seed=0):
    """Hidden rows, head and targets; some rows are confident, right or wrong."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    hidden[: tokens // 4] *= 2.5
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) / width**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.to(device, dtype), weight.to(device, dtype), targets.to(device)


def with_gradients(loss, hidden, weight, targets, upstream=30.0):
    """(loss, dhidden, dweight) on leaves of its own."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = loss(hidden, weight, targets)
    return value.detach(), *torch.autograd.grad(value, (hidden, weight), torch.full_like(value, upstream))


def wide_reference(hidden, weight, targets):
    """What the op computes, by autograd: products in the given dtype, everything after them in fp32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def check_against_fp64(tokens, width, vocabulary, dtype, device):
    rounded = inputs(tokens, width, vocabulary, dtype, device)
    exact = with_gradients(
        linear_cross_entropy_reference, *(x.double() if x.is_floating_point() else x for x in rounded)
    )
    eager = with_gradients(wide_reference, *rounded)
    got = with_gradients(linear_cross_entropy, *rounded)
    for name, *values in zip(("loss", "dhidden", "dweight"), got, eager, exact, strict=True):
        assert_as_accurate(name, *values)


@pytest.fixture
def few_rows(monkeypatch):
    """Many parts, the last one shorter."""
    monkeypatch.setattr(cross_entropy, "CPU_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "GPU_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "FEWEST_ROWS", 9)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_loss_and_its_gradients_are_as_accurate_as_those_of_pytorch(dtype, few_rows):
    check_against_fp64(70, 24, 61, dtype, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 5), (70, 61), (3, 4096), (11, 9001)])
def test_the_interpreted_kernel_is_as_accurate_as_pytorch(tokens, vocabulary, dtype, few_rows):
    check_against_fp64(tokens, 24, vocabulary, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 5), (70, 61), (1000, 50304)])
def test_the_kernel_is_as_accurate_as_pytorch(tokens, vocabulary, dtype):
    check_against_fp64(tokens, 256, vocabulary, dtype, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_the_parts_add_up_and_two_runs_are_equal_to_the_bit(few_rows):
    check_against_fp64(70, 24, 61, torch.bfloat16, "cuda")
    first, second = (with_gradients(linear_cross_entropy, *inputs(dtype=torch.bfloat16, device="cuda")) for _ in "12")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_in_fp64_it_is_exact_in_parts_of_any_size(few_rows):
    got, exact = (with_gradients(f, *inputs()) for f in (linear_cross_entropy, linear_cross_entropy_reference))
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    hidden, weight, targets = inputs(tokens=4, width=3, vocabulary=5)
    arguments = (hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert torch.autograd.gradcheck(linear_cross_entropy, arguments, check_undefined_grad=False)


@pytest.mark.parametrize("tokens", [0, 1, 8, 9, 10, 27, 28, 70])
def test_parts_cover_every_token_once_and_none_is_too_large(tokens, monkeypatch):
    monkeypatch.setattr(cross_entropy, "FEWEST_ROWS", 2)
    found = parts(tokens, 100, 950)
    assert [n for part in found for n in range(tokens)[part]] == list(range(tokens))
    assert all(len(range(tokens)[part]) <= 9 for part in found)
    assert len(found) == -(-tokens // 9)


def test_under_autocast_the_products_are_bf16_and_the_rest_is_fp32():
    hidden, weight, targets = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grad_hidden, grad_weight = with_gradients(linear_cross_entropy, hidden, weight, targets)
        plain, *plain_grads = with_gradients(wide_reference, hidden, weight, targets)
    assert loss.dtype == grad_hidden.dtype == grad_weight.dtype == torch.float32
    exact, *grads = with_gradients(linear_cross_entropy_reference, hidden.double(), weight.double(), targets)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)  # the same rounded logits
    assert abs(loss - exact) > 1e-6 * exact
    for name, got, eager, right in zip("hw", (grad_hidden, grad_weight), plain_grads, grads, strict=True):
        assert_as_accurate(name, got, eager, right)


def test_the_loss_is_not_rounded_to_the_dtype_of_the_model():
    hidden, weight, targets = inputs(dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert loss.bfloat16().float() != loss


def test_without_gradients_none_are_computed_and_the_loss_is_the_same():
    hidden, weight, targets = inputs(dtype=torch.float32)
    loss, grad_hidden, grad_weight = cross_entropy_op(hidden, weight, targets, torch.float32, False)
    assert grad_hidden.numel() == grad_weight.numel() == 0
    learning = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    assert torch.equal(loss, learning.detach())
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets), loss)


def test_the_largest_tensor_it_makes_is_a_part_of_the_logits(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_BYTES", 64 * 500 * 4)
    hidden, weight, targets = inputs(tokens=1000, width=8, vocabulary=500, dtype=torch.float32)
    seen = []
    row_losses = cross_entropy.row_losses
    monkeypatch.setattr(cross_entropy, "row_losses", lambda z, *rest: (seen.append(z.shape), row_losses(z, *rest))[1])
    with_gradients(linear_cross_entropy, hidden, weight, targets)
    assert len(seen) == 16
    assert max(rows for rows, _ in seen) <= 64


def test_leading_axes_are_tokens_and_a_strided_input_is_fine():
    hidden, weight, targets = inputs(tokens=24)
    wanted = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(linear_cross_entropy(hidden.view(4, 6, -1), weight, targets.view(4, 6)), wanted)
    turned = hidden.view(4, 6, -1).transpose(0, 1)
    assert torch.allclose(linear_cross_entropy(turned, weight, targets.view(4, 6).T), wanted)
    assert torch.allclose(linear_cross_entropy(hidden, weight.T.contiguous().T, targets), wanted)


def test_shapes_that_do_not_belong_together_are_refused():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"expected hidden \(\.\.\., 24\)"):
        linear_cross_entropy(hidden[:, :-1], weight, targets)
    with pytest.raises(ValueError, match=r"found \(70, 24\) and \(69,\)"):
        linear_cross_entropy(hidden, weight, targets[:-1])


def test_the_operation_is_registered_as_torch_wants_it():
    for learns in (True, False):
        hidden, weight, targets = inputs(dtype=torch.float32)
        leaves = (hidden.requires_grad_(learns), weight.requires_grad_(learns), targets)
        torch.library.opcheck(cross_entropy_op, (*leaves, torch.float32, learns))


def test_it_compiles_into_one_graph():
    hidden, weight, targets = inputs(dtype=torch.float32)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        *(with_gradients(f, hidden, weight, targets) for f in (compiled, linear_cross_entropy)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("learns", [True, False], ids=["training", "scoring"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_kernel_compiles_for_gpus_that_are_not_at_hand(target, learns, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="no triton on this platform")
    from triton.compiler import ASTSource, compile

    from benchmarks.compiled import TARGETS, resources
    from ddl.ops.cross_entropy_triton import BLOCK, WARPS, cross_entropy_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32", "vocabulary": "i32"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(types))}  # 50,304 is, as Triton sees
    constants = {"LEARNS": learns, "BLOCK": BLOCK}
    source = ASTSource(cross_entropy_kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    compiled = compile(source, target=TARGETS[target], options={"num_warps": WARPS})
    assert resources(compiled).spilled == 0
    if "ptx" in compiled.asm:
        per_pass = BLOCK // (32 * WARPS * 8)  # 16 bytes are 8 logits
        assert compiled.asm["ptx"].count("ld.global.v4.b32") == per_pass * (1 + learns)
        assert compiled.asm["ptx"].count("st.global.v4.b32") == per_pass * learns
