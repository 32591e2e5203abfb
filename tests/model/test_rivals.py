"""The rival designs of config/variants.yaml: each computes the equations of its paper, and those of public code.

An equation here is a whole model in fp64, written again with lists and loops: `run(s, x_in)` is sublayer s of the model
with its norm, and `W(s)` holds the parameters of the reader and the rule there; place 2L is the readout. Compared are
the input of every sublayer, the readout, and the gradient of every parameter of readers and rules.
"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
from transformers.models.hy_v4 import modeling_hy_v4 as hunyuan
from transformers.models.muse_spark import modeling_muse_spark as muse

from ddl.config import ConfigError, load_variants
from ddl.model.flops import flops_per_token
from ddl.model.language_model import LanguageModel, parameter_count, rotary
from ddl.model.readers import READERS, make_reader
from ddl.model.residual import RULES, Streams, Sums, make_rule
from tests.model.test_language_model import random_ids

RIVALS = [slug for slug, variant in load_variants().items() if variant.family == "rival"]
LAYERS = 4
EXACT = {"rtol": 1e-10, "atol": 1e-10}
STREAMS = [slug for slug in RIVALS if "value_channels" in load_variants()[slug].model]


@torch.no_grad()
def perturbed(module, size=0.3):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


# The equations.


def sigmoid(z):
    return 1 / (1 + torch.exp(-z))


def rms_normed(x, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def unit(h):
    return h / (h.square().sum(-1, keepdim=True) + 1e-5**2).sqrt()


def highway(x, run, W):
    for s in range(2 * LAYERS):
        c, h = run(s, x)
        t = sigmoid(c @ W(s)["gate.logit.weight"].T + W(s)["gate.logit.bias"])
        x = (1 - t) * x + t * h
    return x


def norm_preserving(x, run, W):
    x = rms_normed(x)
    for s in range(2 * LAYERS):
        _, h = run(s, x)
        b = sigmoid(W(s)["gain"] / 0.3)
        x = (1 - b**2).sqrt() * x + b * rms_normed(h)
    return x


def laurel_rw(x, run, W):
    for s in range(2 * LAYERS):
        _, h = run(s, x)
        x = W(s)["weights"][0] * h + W(s)["weights"][1] * x
    return x


def laurel_lr(x, run, W):
    for s in range(2 * LAYERS):
        _, h = run(s, x)
        x = h + x + x @ (W(s)["up.weight"] @ W(s)["down.weight"]).T
    return x


def first_state(x, run, W):
    x_0 = x
    for s in range(2 * LAYERS):
        if s % 2 == 0:
            x = W(s)["weights"][0] * x + W(s)["weights"][1] * x_0
        x = x + run(s, x)[1]
    return x


def value_residual(x, run, W):
    for s in range(2 * LAYERS):
        x = x + run(s, x)[1]
    return x


def denseformer(x, run, W):
    Y = [x]
    for block in range(LAYERS):
        for s in (2 * block, 2 * block + 1):
            x = x + run(s, x)[1]
        Y.append(x)
        x = sum(W(2 * block + 2)["weights"][j] * Y[j] for j in range(block + 2))
    return x


def attended(sources, query):
    weights = torch.stack([torch.exp((rms_normed(v) * query).sum(-1)) for v in sources])
    return sum(weights[i, ..., None] * v for i, v in enumerate(sources)) / weights.sum(0)[..., None]


def attnres(x, run, W):
    V = [x]
    for s in range(2 * LAYERS):
        V.append(run(s, V[0] if s == 0 else attended(V, W(s)["query"]))[1])
    return attended(V, W(2 * LAYERS)["query"])


def attnres_block(x, run, W):
    blocks = [x]
    for block in range(LAYERS):
        s = 2 * block
        first = run(s, attended(blocks, W(s)["query"]) if block else x)[1]
        second = run(s + 1, attended([*blocks, first], W(s + 1)["query"]))[1]
        blocks.append(first + second)
    return attended(blocks, W(2 * LAYERS)["query"])


def delta_attnres(x, run, W):
    sources = [x]
    for s in range(2 * LAYERS):
        h = run(s, x + attended(sources, W(s)["query"]) if s else x)[1]
        sources.append(h)
        x = x + h
    return x


def delta_attnres_block(x, run, W):
    sources = [x]
    for block in range(LAYERS):
        start = x
        for s in (2 * block, 2 * block + 1):
            query = W(s).get("query", 0 * x[0, 0])  # not needed where there is one source
            x = x + run(s, x + attended(sources, query) if s else x)[1]
        sources.append(x - start)
    return x


def hyper_connections(x, run, W, generated=True):
    H = [x] * 4
    for s in range(2 * LAYERS):
        a, b = [], []
        for i in range(4):
            a.append(W(s)["read_and_mix"][i] + 0 * H[i][..., :5])
            b.append(W(s)["write"][i] + 0 * H[i][..., 0])
            if generated:
                N = rms_normed(H[i]) * W(s)["norm_weight"]
                a[i] = a[i] + W(s)["read_and_mix_scale"] * torch.tanh(N @ W(s)["read_and_mix_map"])
                b[i] = b[i] + W(s)["write_scale"] * torch.tanh(N @ W(s)["write_map"])
        h = run(s, sum(a[i][..., :1] * H[i] for i in range(4)))[1]
        H = [sum(a[i][..., 1 + j, None] * H[i] for i in range(4)) + b[j][..., None] * h for j in range(4)]
    return sum(H)


def static_hyper_connections(x, run, W):
    return hyper_connections(x, run, W, generated=False)


def generated(W, H):
    """The logits of all coefficients from the concatenated streams, before scales and biases."""
    return rms_normed(torch.cat(H, dim=-1)) @ W["map"].T


def sinkhorn(logits):
    R = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True) + 1e-6
    for turn in range(39):
        R = R / (R.sum(-2 if turn % 2 == 0 else -1, keepdim=True) + 1e-6)
    return R


def identity_mixing(x, run, W, write=lambda h: h, mixes=False):
    H = [x] * 4
    for s in range(2 * LAYERS):
        raw, scales, bias = generated(W(s), H), W(s)["scales"], W(s)["bias"]
        p = sigmoid(scales[0] * raw[..., :4] + bias[:4]) + 1e-6
        q = 2 * sigmoid(scales[1] * raw[..., 4:8] + bias[4:8]) + (0 if mixes else 1e-6)
        h = write(run(s, sum(p[..., i, None] * H[i] for i in range(4)))[1])
        if mixes:
            R = sinkhorn((scales[2] * raw[..., 8:] + bias[8:]).reshape(*x.shape[:2], 4, 4))
            H = [sum(R[..., i, j, None] * H[i] for i in range(4)) for j in range(4)]
        H = [H[j] + q[..., j, None] * h for j in range(4)]
    last = W(2 * LAYERS)
    p = sigmoid(last["scales"] * generated(last, H) + last["bias"]) + 1e-6
    return sum(p[..., i, None] * H[i] for i in range(4))


def manifold_connections(x, run, W):
    return identity_mixing(x, run, W, mixes=True)


def normalised_identity_mixing(x, run, W):
    return identity_mixing(x, run, W, write=unit)


def delta_with_generated_read(x, run, W):
    H = [x] * 4
    for s in range(2 * LAYERS):
        p = sigmoid(W(s)["scales"][0] * generated(W(s), H)[..., :4] + W(s)["bias"][:4]) + 1e-6
        c, h = run(s, sum(p[..., i, None] * H[i] for i in range(4)))
        beta = 2 * sigmoid(c @ W(s)["gate.logit.weight"].T + W(s)["gate.logit.bias"])
        v = c @ W(s)["value.linear.weight"].T + W(s)["value.linear.bias"]
        k = unit(h)
        H = [H[j] + beta * k * (v[..., j, None] - (k * H[j]).sum(-1, keepdim=True)) for j in range(4)]
    last = W(2 * LAYERS)
    p = sigmoid(last["scales"] * generated(last, H) + last["bias"]) + 1e-6
    return sum(p[..., i, None] * H[i] for i in range(4))


EQUATIONS = {
    "highway": highway,
    "highway-vector": highway,
    "norm-preserving": norm_preserving,
    "laurel-rw": laurel_rw,
    "laurel-lr": laurel_lr,
    "first-state": first_state,
    "value-residual": value_residual,
    "denseformer": denseformer,
    "attnres": attnres,
    "attnres-block": attnres_block,
    "delta-attnres": delta_attnres,
    "delta-attnres-block": delta_attnres_block,
    "hc-static": static_hyper_connections,
    "hc": hyper_connections,
    "mhc": manifold_connections,
    "ihc": identity_mixing,
    "ihc-normalised": normalised_identity_mixing,
    "ddl-ihc-read": delta_with_generated_read,
}


def test_every_rival_has_its_equations():
    assert list(EQUATIONS) == RIVALS


@pytest.mark.parametrize("slug", RIVALS)
def test_inputs_of_all_sublayers_and_gradients_are_those_of_the_equations(tiny_config, slug):
    config = tiny_config(slug, layers=LAYERS, kernels="reference")
    model = perturbed(LanguageModel(config).double())
    ids = random_ids(config, batch=2)[:, :6]
    blocks, rotation = model.blocks, rotary(torch.arange(6), config.head_dim, config.rope_base)
    norms = [norm for block in blocks for norm in (block.attention_norm, block.mlp_norm)] + [model.norm]
    places = [*zip(model.readers(), model.rules(), strict=False), (model.reader,)]
    found, expected = [], []
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for norm in norms]
    model.hidden(ids)
    for hook in hooks:
        hook.remove()

    values = []

    def run(s, x_in):
        expected.append(x_in)
        c, block = norms[s](x_in), blocks[s // 2]
        if s % 2:
            return c, block.mlp(c)
        return c, attention(block.attention, c, rotation, values) if config.value_residual else block.attention(
            c, rotation
        )

    expected.append(EQUATIONS[slug](model.embedding(ids), run, lambda s: named(places[s])))
    for s, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, s=s: f"place {s}: {text}")
    parts = dict(model.named_parameters())
    own = {
        name: weight for name, weight in parts.items() if "reader" in name or "rule" in name or "value_weights" in name
    }
    assert own
    projection = torch.randn(found[-1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((each[-1] * projection).sum(), own.values())
                 for each in (found, expected)]  # fmt: skip
    for name, one, other in zip(own, *gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def named(modules):
    return {name: weight for module in modules for name, weight in module.named_parameters()}


def attention(module, c, rotation, values):
    """Causal attention with mixed values, from a matrix of weights."""
    B, T, d = c.shape
    q, k, v = (part.reshape(B, T, module.heads, -1).transpose(1, 2) for part in module.qkv(c).chunk(3, -1))
    cos, sin = (part.double() for part in rotation)
    half = q.shape[-1] // 2

    def rotated(x):
        one, two = x[..., :half], x[..., half:]
        return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)

    q, k = module.query_norm(rotated(q)), module.key_norm(rotated(k))
    values.append(v)
    if module.value_weights is not None:
        v = module.value_weights[0] * v + module.value_weights[1] * values[0]
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(torch.ones(T, T).tril() == 0, -math.inf)
    return module.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(B, T, d))


# Public code, which computes in fp32.


def oracle(kind, **settings):
    """A module of transformers for four streams of width 24, with random weights."""
    made = kind(SimpleNamespace(hidden_size=24, hc_mult=4, hc_eps=1e-6, rms_norm_eps=1e-5, **settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def streams(seed=0):
    return torch.randn(2, 5, 24, 4, generator=torch.Generator().manual_seed(seed))


def with_weights(reader, map_, scales, bias):
    """The reader with the oracle's weights, and pairs of parameters."""
    pairs = [(reader.map, map_), (reader.scales, scales), (reader.bias, bias)]
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(other)
    return pairs


def compare(found, expected, pairs, X, H):
    """Compare outputs, and the gradients of the coefficients and of the streams for a random projection."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    directions = [torch.randn(one.shape, generator=torch.Generator().manual_seed(3)) for one in expected]
    sums = [sum((one * way).sum() for one, way in zip(each, directions, strict=True)) for each in (found, expected)]
    own = torch.autograd.grad(sums[0], [pair[0] for pair in pairs] + [X])
    other = torch.autograd.grad(sums[1], [pair[1] for pair in pairs] + [H])
    for one, expected_gradient in zip(own, (*other[:-1], other[-1].mT), strict=True):
        torch.testing.assert_close(one, expected_gradient, rtol=1e-4, atol=1e-4)


ORACLES = {
    "ihc": (hunyuan.HYV4HyperConnection, {"hc_magnitude": 2}, hunyuan.HYV4HyperHead),
    "mhc": (deepseek.DeepseekV4HyperConnection, {"hc_sinkhorn_iters": 20}, deepseek.DeepseekV4HyperHead),
}


@pytest.mark.parametrize("slug", ORACLES)
def test_reading_weighing_and_mixing_streams_are_those_of_public_code(tiny_config, slug):
    kind, settings, _ = ORACLES[slug]
    theirs, reader = oracle(kind, **settings), make_reader(tiny_config(slug), 1)
    pairs = with_weights(reader, theirs.fn, theirs.scale, theirs.base)
    X = streams().requires_grad_()
    H = X.detach().mT.contiguous().requires_grad_()
    x_in, handed_on = reader(X, None)
    weights, *mix, expected = theirs(H)
    mixed = mix[0].mT @ H if mix else H
    assert not mix or (mix[0] - mix[0].mT).abs().max() > 0.1  # a symmetric matrix would not tell its indices apart
    compare((x_in, handed_on.weights, handed_on.state.mT), (expected, weights, mixed), pairs, X, H)


@pytest.mark.parametrize("slug", ORACLES)
def test_the_readout_of_streams_is_that_of_public_code(tiny_config, slug):
    config, theirs = tiny_config(slug), oracle(ORACLES[slug][2])
    reader = make_reader(config, 2 * config.layers)
    pairs = with_weights(reader, theirs.hc_fn, theirs.hc_scale, theirs.hc_base)
    X = streams().requires_grad_()
    H = X.detach().mT.contiguous().requires_grad_()
    compare((reader(X, None)[0],), (theirs(H),), pairs, X, H)


def test_the_norm_preserving_gate_is_that_of_muse(tiny_config):
    theirs = muse.MuseSparkResidualGate(SimpleNamespace(hidden_size=24, residual_gate_temperature=0.3))
    rule = make_rule(tiny_config("norm-preserving"))
    torch.nn.init.normal_(theirs.gate, std=1.0)
    rule.gain.data.copy_(theirs.gate)
    X, h = torch.randn(2, 2, 5, 24, generator=torch.Generator().manual_seed(0)).unbind()
    found, expected = rule(X, h, h, h), theirs(X, rms_normed(h))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    own, other = (torch.autograd.grad(each.sin().sum(), w) for each, w in ((found, rule.gain), (expected, theirs.gate)))
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


# Starts and special cases.

STARTS = {
    **dict.fromkeys(("laurel-rw", "laurel-lr", "first-state", "value-residual", "denseformer", "hc-static", "hc"), 0),
    **dict.fromkeys(("attnres", "attnres-block", "delta-attnres"), 0),
    **dict.fromkeys(("ihc", "mhc"), 1e-5),  # the small constants in their coefficients
}


@pytest.mark.parametrize("slug", STARTS)
def test_these_designs_start_as_the_baseline_without_the_small_constants_of_norms(tiny_config, slug):
    model = LanguageModel(tiny_config(slug, layers=LAYERS, norm_eps=1e-13)).double()
    for reader in model.readers():
        if hasattr(reader, "map"):
            torch.nn.init.zeros_(reader.map)
    baseline = LanguageModel(tiny_config("baseline", layers=LAYERS, norm_eps=1e-13)).double()
    ids = random_ids(model.config)
    torch.testing.assert_close(model.hidden(ids), baseline.hidden(ids), rtol=0, atol=max(STARTS[slug], 1e-9))


@pytest.mark.parametrize("slug", sorted(set(RIVALS) - set(STARTS)))
def test_the_other_designs_start_elsewhere(tiny_config, slug):
    model, baseline = (LanguageModel(tiny_config(name, layers=LAYERS)) for name in (slug, "baseline"))
    ids = random_ids(model.config)
    assert (model(ids) - baseline(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("slug", ["hc-static", "hc", "mhc", "ihc"])
def test_the_delta_rule_gets_the_mixed_streams_without_weights(tiny_config, slug):
    config = tiny_config(slug)
    reader = perturbed(make_reader(config, 1).double())
    other = make_reader(dataclasses.replace(config, residual="delta"), 1).double()
    weights = dict(reader.named_parameters())
    for name in {"map", "bias"} & weights.keys():  # coefficients of the write come after the four of the read
        weights[name] = torch.cat((weights[name][:4], weights[name][8:]))
    if "scales" in weights:
        weights["scales"] = torch.cat((weights["scales"][:1], weights["scales"][2:]))
    weights = {name: weight.detach() for name, weight in weights.items() if not name.startswith("write")}
    other.load_state_dict(weights)
    X = streams().double()
    (x_in, handed_on), (expected_x_in, expected) = other(X, None), reader(X, None)
    torch.testing.assert_close(x_in, expected_x_in, **EXACT)
    torch.testing.assert_close(handed_on, expected.state, **EXACT)


def test_sinkhorn_matrices_have_rows_and_columns_that_sum_to_one(tiny_config):
    reader = perturbed(make_reader(tiny_config("mhc"), 0).double())
    H = torch.eye(4, dtype=torch.float64).expand(1, 1, 4, 4)  # four streams of width 4 are told apart
    X = torch.zeros(1, 1, 24, 4, dtype=torch.float64)
    X[:, :, :4] = H
    mixed = reader(X, None)[1].state[:, :, :4]
    assert mixed.min() > 0
    for axis, error in ((-2, 1e-4), (-1, 1e-2)):  # the sums over sources are normalised last
        torch.testing.assert_close(mixed.sum(axis), torch.ones(1, 1, 4, dtype=torch.float64), rtol=0, atol=error)


@torch.no_grad()
def test_manifold_connections_that_mix_nothing_are_identity_mixing(tiny_config):
    X = streams().double()
    mixing, plain = (make_reader(tiny_config(slug), 1).double() for slug in ("mhc", "ihc"))
    plain.map.copy_(mixing.map[:8])
    mixing.bias[8:] = (40 * torch.eye(4) - 40).flatten()
    for one, other in zip((x := mixing(X, None))[1], (y := plain(X, None))[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    torch.testing.assert_close(x[0], y[0])


@torch.no_grad()
def test_depth_attention_with_one_large_logit_reads_that_source(tiny_config):
    reader = make_reader(tiny_config("attnres"), 3).double()
    sources = torch.randn(4, 2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sources[:, :, :, 0] = torch.tensor([-3.0, -3.0, 3.0, -3.0])[:, None, None]
    reader.query[0] = 1000.0
    x_in, _ = reader(Sums((sources[3],), tuple(sources[:3])), None)
    torch.testing.assert_close(x_in, sources[2])


@torch.no_grad()
def test_a_closed_highway_keeps_the_state_and_an_open_one_takes_the_output(tiny_config):
    rule = make_rule(tiny_config("highway")).double()
    torch.nn.init.zeros_(rule.gate.logit.weight)
    X, c, h = torch.randn(3, 2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    for logit, expected in ((-80.0, X), (80.0, h)):
        rule.gate.logit.bias.fill_(logit)
        torch.testing.assert_close(rule(X, c, c, h), expected)


@torch.no_grad()
def test_ddl_without_erase_is_identity_mixing_with_a_normalised_branch(tiny_config):
    delta = perturbed(make_rule(tiny_config("write-only-cc")).double())
    rule = make_rule(tiny_config("ihc-normalised")).double()
    X = streams().double()
    c, h = torch.randn(2, 2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    weights = delta.gate(c)[..., None] * delta.value(None, c, h)
    torch.testing.assert_close(rule(Streams(X, weights), c, c, h), delta(X, c, c, h), **EXACT)


# Whole models.


@pytest.mark.parametrize("slug", STREAMS)
def test_streams_become_different_in_twenty_steps(tiny_config, slug):
    model = LanguageModel(tiny_config(slug, layers=LAYERS))
    ids, found = random_ids(model.config), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    model.reader.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    model.hidden(ids)
    units = torch.nn.functional.normalize(found[0], dim=-2)
    cosines = (units.mT @ units).mean((0, 1))
    assert cosines[~torch.eye(4, dtype=torch.bool)].max() < 1 - 1e-5


@pytest.mark.parametrize("slug", [slug for slug in RIVALS if slug != "value-residual"])
def test_gradients_of_readers_and_rules_are_those_of_finite_differences(tiny_config, slug):
    config = tiny_config(slug, width=8, layers=1, heads=1)
    readers = [perturbed(make_reader(config, place).double()) for place in range(3)]
    rules = [perturbed(make_rule(config).double()) for _ in range(2)]
    modules = [*readers, *rules]
    weights = {(module, name): weight for module in modules for name, weight in module.named_parameters()}

    def readout(X, c, h, *changed):
        own = {module: {} for module in modules}
        for (module, name), weight in zip(weights, changed, strict=True):
            own[module][name] = weight
        call = torch.func.functional_call
        state = readers[0].begin(X)
        for place, rule in enumerate(rules):
            x_in, state = call(readers[place], own[readers[place]], (state, lambda X, window: X))
            state = call(rule, own[rule], (state, x_in, c[place], h[place]))
        return call(readers[2], own[readers[2]], (state, lambda X, window: X))[0]

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1, 2, 8, *([4] if slug in STREAMS else []), dtype=torch.float64, generator=generator)
    c, h = torch.randn(2, 2, 1, 2, 8, dtype=torch.float64, generator=generator).unbind()
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (X, c, h, *weights.values())]
    assert torch.autograd.gradcheck(readout, inputs, fast_mode=True)


@pytest.mark.parametrize("slug", RIVALS)
def test_flops_and_parameters_of_a_rival_are_those_of_its_formulas(tiny_config, slug):
    config = tiny_config(slug, layers=LAYERS)
    d, n, S = config.width, 4, 2 * LAYERS
    state = n * d
    expected = {  # parameters beyond the baseline's, FLOPs on the state
        "highway": (S * (d + 1), S * (2 * d + 3 * d)),
        "highway-vector": (S * (d * d + d), S * (2 * d * d + 3 * d)),
        "norm-preserving": (S * d, S * 6 * d),
        "laurel-rw": (2 * S, S * 3 * d),
        "laurel-lr": (S * 8 * d, S * (16 * d + 2 * d)),
        "first-state": (S, S * d + LAYERS * 3 * d),
        "value-residual": (2 * (LAYERS - 1), S * d + 3 * d * (LAYERS - 1)),
        "denseformer": (14, S * d + 2 * d * 14),
        "attnres": (S * d, S * d + 7 * d * sum(range(2, S + 2))),
        "attnres-block": (S * d, S * d + 7 * d * sum((2, 2, 3, 3, 4, 4, 5, 5))),
        "delta-attnres": ((S - 1) * d, S * d + 7 * d * sum(range(2, S + 1)) + (S - 1) * d),
        "delta-attnres-block": ((S - 2) * d, S * d + 7 * d * sum((2, 2, 3, 3, 4, 4)) + (S - 1) * d),
        "hc-static": (S * (n * (n + 1) + n), S * (2 * state + 2 * state * (1 + n)) + state),
        "hc": (
            S * (d + n * (n + 1) + d * (n + 1) + 1 + n + d + 1),
            S * (2 * state + 4 * state + 2 * state * (2 + n) + 2 * state * (1 + n)) + state,
        ),
        "mhc": (
            S * (state * (n * n + 2 * n) + n * n + 2 * n + 3) + state * n + n + 1,
            S * (2 * state + 6 * state + 2 * state * (n * n + 2 * n) + 80 * n * n + 2 * n * state)
            + 6 * state
            + 2 * state * n,
        ),
        "ihc": (
            S * (state * 2 * n + 2 * n + 2) + state * n + n + 1,
            S * (2 * state + 6 * state + 2 * state * 2 * n) + 6 * state + 2 * state * n,
        ),
        "ihc-normalised": (
            S * (state * 2 * n + 2 * n + 2) + state * n + n + 1,
            S * (3 * d + 2 * state + 6 * state + 2 * state * 2 * n) + 6 * state + 2 * state * n,
        ),
        "ddl-ihc-read": (
            S * ((d + 1) + (d + 1) * n + state * n + n + 1) + state * n + n + 1,
            S * (4 * state + 3 * d + 2 * d + 2 * d * n + 6 * state + 2 * state * n) + 6 * state + 2 * state * n,
        ),
    }
    parameters, flops = expected[slug]
    baseline = tiny_config("baseline", layers=LAYERS)
    assert parameter_count(config)["total"] - parameter_count(baseline)["total"] == parameters
    assert flops_per_token(config).state == flops
    assert not LanguageModel(config).fused


# Combinations that do not fit.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader": "hc"}, f"reader: expected one of {', '.join(READERS)}, .*, found 'hc'"),
        ({"residual": "streams"}, "reader: 'compressor' needs residual additive, .*, found 'streams'"),
        ({"reader": "first-state"}, "reader: 'first-state' needs residual carry, found 'additive'"),
        (
            {"residual": "streams", "reader": "identity-mixing"},
            "value_channels: expected several streams with reader 'identity-mixing', found 1",
        ),
        (
            {"residual": "carry", "reader": "depth-attention", "value_channels": 4},
            "value_channels: expected 1 with reader 'depth-attention', found 4",
        ),
        (
            {"residual": "streams", "reader": "identity-mixing", "value_channels": 4, "compressor": "mean"},
            "compressor: expected 'none' with reader 'identity-mixing', found 'mean'",
        ),
        ({"residual": "highway", "value_channels": 4, "compressor": "mean"}, "the highway rule has a scalar state"),
        ({"residual": "highway"}, "gate_limit: a highway's gate is at most 1, found 2.0"),
        ({"residual": "laurel-lr"}, "laurel_rank: expected a positive integer, found 0"),
        ({"laurel_rank": 4}, "laurel_rank: 4 needs residual 'laurel-lr', found 'additive'"),
        ({"sources_every": 2}, "sources_every: 2 needs reader 'depth-attention' or 'added-depth-attention'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_combination_that_does_not_fit_is_refused(tiny_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        LanguageModel(tiny_config("baseline", **settings))


def test_every_reader_and_rule_of_the_rivals_is_used_by_a_design():
    designs = [variant.model for variant in load_variants().values()]
    assert {design.get("reader", "compressor") for design in designs} == set(READERS)
    assert {design["residual"] for design in designs} == set(RULES)
