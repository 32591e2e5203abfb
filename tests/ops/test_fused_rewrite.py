"""The operations as models call them: registration, gradients, the fused rewrite in models, states that are rebuilt.

The kernels behind them have tests of their own: test_kernels.py, test_fused_rewrite_kernel.py,
test_fused_rewrite_cpu.py.
"""

import pytest
import torch

from ddl.config import ConfigError
from ddl.model.language_model import LanguageModel
from ddl.ops.compress import compress, compress_op, compress_reference
from ddl.ops.expand import expand_embedding, expand_op, expand_reference
from ddl.ops.fused_rewrite import (
    Rebuilding,
    fused_rewrite,
    fused_rewrite_in_place,
    fused_rewrite_op,
    fused_rewrite_reference,
)
from ddl.ops.rewrite import normalize_direction, rewrite, rewrite_op, rewrite_reference
from tests.helpers.numerics import relative_error

EPS = (1e-5, 1e-5)
COMPRESSORS = {"none": None, "cc": 1, "tc": 4}
VARIANTS = ["ddl-dv1", "ddl-tc-noec", "ddl-cc-noec", "ddl-tc", "ddl-cc"]
B, T, D = 2, 6, 10


def leaves(compressor, dtype=torch.float64, seed=0):
    """X, k_tilde, v, beta, taps, weight of a fused rewrite, each a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    K = COMPRESSORS[compressor]
    d_v = 1 if K is None else 4

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    X = random(B, T, D) if K is None else random(B, T, d_v, D).detach().mT.requires_grad_()
    beta = (2 * torch.rand(B, T, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    return X, random(B, T, D), random(B, T, d_v), beta, None if K is None else random(K, d_v, D), random(D)


def gradients(function, inputs, seed=1):
    """Outputs and gradients of all inputs from random gradients of the outputs."""
    inputs = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    outputs = [y for y in function(*inputs) if y is not None]
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    wanted = [x for x in inputs if x is not None]
    found = [y.detach().clone() for y in outputs]  # the backward pass overwrites a state that is rebuilt
    return found, torch.autograd.grad(outputs, wanted, upstream)


def rebuilt_rewrite(X, *arguments):
    """`fused_rewrite_in_place` of a copy of the state, with the arguments of `fused_rewrite`."""
    *others, with_x_in = arguments
    return fused_rewrite_in_place(X.clone(), *others, Rebuilding(), with_x_in)


MEMORIES = {"stored": fused_rewrite, "rebuilt": rebuilt_rewrite}


def test_the_rewrite_has_the_gradients_of_its_reference():
    X, k_tilde, v, beta, *_ = leaves("cc")

    def reference(X, k_tilde, v, beta):
        return (rewrite_reference(X, normalize_direction(k_tilde, 1e-5), v, beta),)

    got = gradients(lambda *inputs: (rewrite(*inputs, 1e-5),), (X, k_tilde, v, beta))
    expected = gradients(reference, (X, k_tilde, v, beta))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compressor", ["cc", "tc"])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_compression_has_the_gradients_of_its_reference(compressor, tokens):
    X, _, _, _, taps, _ = leaves(compressor)
    inputs = (X[:, :tokens], taps)
    got, expected = (gradients(lambda *a, f=f: (f(*a),), inputs) for f in (compress, compress_reference))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_expansion_has_the_gradients_of_its_reference(tokens):
    x, kernel = torch.randn(2, tokens, D, dtype=torch.float64), torch.randn(D, 4, 4, dtype=torch.float64)
    got, expected = (gradients(lambda *a, f=f: (f(*a),), (x, kernel)) for f in (expand_embedding, expand_reference))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("with_x_in", [False, True], ids=["", "with x_in"])
def test_the_fused_rewrite_has_the_gradients_of_its_reference(compressor, memory, with_x_in):
    functions = MEMORIES[memory], fused_rewrite_reference
    got, expected = (gradients(lambda *a, f=f: f(*a, *EPS, with_x_in), leaves(compressor)) for f in functions)
    assert len(got[0]) == (3 if with_x_in else 2)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)], ids=["state", "c", "x_in", "state and x_in"])
def test_an_output_that_nothing_reads_adds_nothing_to_gradients(compressor, memory, used):
    inputs, functions = leaves(compressor), (MEMORIES[memory], reference_that_uses_all)
    got, expected = (gradients(lambda *a, f=f: [f(*a, *EPS, True)[i] for i in used], inputs) for f in functions)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-11, atol=1e-12)


def reference_that_uses_all(*arguments):
    """`fused_rewrite_reference` whose unused inputs have a gradient of zero, as those of one operation have."""
    nothing = sum((x * 0).sum() for x in arguments[:6] if x is not None)
    return tuple(y + nothing for y in fused_rewrite_reference(*arguments))


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_operators_are_registered_as_torch_demands(compressor):
    X, k_tilde, v, beta, taps, weight = leaves(compressor, torch.float32)
    S = (X.detach().unsqueeze(2) if taps is None else X.detach().mT).requires_grad_()
    for with_x_in in (False, True):
        torch.library.opcheck(fused_rewrite_op, (S, k_tilde, v, beta, taps, weight, *EPS, with_x_in))
    flat = [tensor.detach().flatten(0, 1).requires_grad_() for tensor in (S, k_tilde, v, beta)]
    torch.library.opcheck(rewrite_op, (*flat, 1e-5))
    if taps is not None:
        torch.library.opcheck(compress_op, (S, taps))
        torch.library.opcheck(expand_op, (k_tilde, taps))


@pytest.mark.parametrize(
    ("index", "name", "shape"),
    [
        (0, "X", (B, T, 4, D, 1)),
        (1, "k_tilde", (B, T, D + 1)),
        (2, "v", (B, T, 3)),
        (3, "beta", (B, T, 1)),
        (4, "taps", (4, D, 4)),
        (5, "weight", (4,)),
    ],
)
def test_arguments_that_do_not_belong_together_are_named(index, name, shape):
    inputs = list(leaves("cc"))
    inputs[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        fused_rewrite(*inputs, *EPS)


def ids_of(config):
    return torch.randint(0, config.vocab_size, (2, config.sequence_length), generator=torch.Generator().manual_seed(0))


def trained_a_little(config):
    """The model away from its initial point, where compressors are means and gates are all alike."""
    model, generator = LanguageModel(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double()


def loss_and_gradients(model, ids):
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    return loss, torch.autograd.grad(loss, list(model.parameters()))


GENERATORS = [{}, {"value_input": "compressed"}, {"direction": "mlp", "value_input": "output"}, {"gate": "mlp"}]


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_is_the_same_with_the_fused_rewrite_as_written_out(tiny_config, variant, generators):
    results = []
    for kernels in ("reference", "auto"):
        config = tiny_config(variant, kernels=kernels, **generators)
        results.append(loss_and_gradients(trained_a_little(config), ids_of(config)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("generators", GENERATORS[:2], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_is_the_same_with_rebuilt_states_as_with_stored_ones(tiny_config, variant, generators):
    results = []
    for memory in ("stored", "rebuilt"):
        config = tiny_config(variant, state_memory=memory, **generators)
        results.append(loss_and_gradients(trained_a_little(config), ids_of(config)))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layers", [2, 5])
def test_rebuilt_states_take_memory_that_does_not_grow_with_depth(tiny_config, layers):
    """States that autograd keeps: the first one, beside the one that is overwritten, against one for each rewrite."""

    def stored_states(memory):
        config = tiny_config("ddl-cc", state_memory=memory, layers=layers)
        ids, kept = ids_of(config), {}
        shape = (*ids.shape, config.value_channels, config.width)

        def pack(tensor):
            if tensor.shape == shape:
                kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            LanguageModel(config).loss(ids, ids)
        return len(kept)

    assert stored_states("rebuilt") == 1
    assert stored_states("stored") == 2 * layers  # the first readout and the first rewrite keep the same one


def chain_of_rewrites(length=3):
    X, k_tilde, v, beta, taps, weight = leaves("cc")
    rebuilding, state = Rebuilding(), X.clone()
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(length):
        state, c, _ = fused_rewrite_in_place(state, k_tilde, v, beta, taps, weight, *EPS, rebuilding)
        total = total + c.square().sum()
    return total


def test_a_second_backward_pass_over_rebuilt_states_is_refused():
    total = chain_of_rewrites()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="rebuilt states: expected the backward pass of rewrite 0"):
        total.backward()


def test_a_state_that_cannot_be_overwritten_is_refused():
    _, k_tilde, v, beta, taps, weight = leaves("cc")
    X = torch.zeros(B, T, D, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="features innermost"):
        fused_rewrite_in_place(X, k_tilde, v, beta, taps, weight, *EPS, Rebuilding())


@pytest.mark.parametrize(
    "settings",
    [{"kernels": "reference"}, {"direction": "mlp", "value_input": "output"}],
    ids=str,
)
def test_rebuilt_states_that_something_else_still_needs_are_a_config_error(tiny_config, settings):
    with pytest.raises(ConfigError, match="state_memory: 'rebuilt' overwrites the state, which"):
        tiny_config("ddl-cc", state_memory="rebuilt", **settings)


def test_asking_for_triton_without_a_gpu_is_a_config_error(tiny_config):
    config = tiny_config("ddl-cc", kernels="triton")
    with pytest.raises(ConfigError, match="kernels: 'triton' needs a GPU, found cpu"):
        LanguageModel(config)(ids_of(config))


@pytest.mark.parametrize("memory", ["stored", "rebuilt"])
@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-tc"])
def test_a_compiled_model_has_the_same_gradients(tiny_config, variant, memory):
    """In one graph with stored states; rebuilt ones break the graph at every rewrite."""
    config = tiny_config(variant, state_memory=memory)
    model, ids = trained_a_little(config).float(), ids_of(config)
    expected = loss_and_gradients(model, ids)
    compiled = torch.compile(model.loss, fullgraph=memory == "stored", backend="aot_eager")
    loss = compiled(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close((loss, torch.autograd.grad(loss, list(model.parameters()))), expected)


@pytest.mark.parametrize("memory", ["stored", "rebuilt"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_in_bfloat16_costs_the_accuracy_of_bfloat16(tiny_config, variant, memory):
    config = tiny_config(variant, state_dtype="bfloat16", state_memory=memory)
    exact = LanguageModel(tiny_config(variant, kernels="reference")).double()
    model, ids = LanguageModel(config), ids_of(config)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(ids)
    error, _ = relative_error(hidden, exact.hidden(ids))
    assert 1e-4 < error < 0.03
