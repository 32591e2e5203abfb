"""The controls of config/variants.yaml: each computes its equation and differs from its reference in one thing."""

import dataclasses

import pytest
import torch

from ddl.config import load_scale, load_variants
from ddl.model.expanded_state import COMPRESSORS, Expand
from ddl.model.flops import flops_per_token
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.model.residual import make_rule
from tests.model.test_language_model import perturbed

CONTROLS = [slug for slug, variant in load_variants().items() if variant.family == "control"]
GUARD = 1e-5  # direction_eps
# control -> the design that it is compared with, and the settings in which the two differ
REFERENCES = {
    "ddl-dv1-no-value-bias": ("ddl-dv1", {"value_bias_init"}),
    "ddl-cc-no-value-bias": ("ddl-cc", {"value_bias_init"}),
    "ddl-cc-public-value": ("ddl-cc", {"value_input", "value_activation", "value_bias_init"}),  # one reading of code
    "normalised-branch": ("baseline", {"residual"}),
    "peri-ln-small": ("normalised-branch", {"branch_gain"}),
    "peri-ln": ("peri-ln-small", {"branch_norm"}),
    "dynamic-strength": ("write-only", {"write"}),
    "erase-only": ("baseline", {"residual"}),
    "baseline-ec": ("baseline", {"embed_conv"}),
    "normalised-branch-ec": ("normalised-branch", {"embed_conv"}),
    "write-only-ec": ("write-only", {"embed_conv"}),
    "ddl-dv1-ec": ("ddl-dv1", {"embed_conv"}),
    "baseline-equal-parameters": ("baseline", {"mlp_extra"}),
    "baseline-equal-flops": ("baseline", {"mlp_extra"}),
    "baseline-wider": ("baseline", {"mlp_extra"}),
    "write-only": ("ddl-dv1", {"erase"}),
    "write-only-cc": ("ddl-cc", {"erase"}),
    "write-only-cc-noec": ("ddl-cc-noec", {"erase"}),
    "baseline-embedding-norm": ("baseline", {"embedding_norm"}),
    "peri-ln-embedding-norm": ("peri-ln", {"embedding_norm"}),
    "separate-gates": ("ddl-dv1", {"erase"}),
    "separate-gates-cc": ("ddl-cc", {"erase"}),
    "ddl-dv1-fixed-gate": ("ddl-dv1", {"gate"}),
    "ddl-cc-fixed-gate": ("ddl-cc", {"gate"}),
    "ddl-dv1-unit-gate": ("ddl-dv1", {"gate_limit", "gate_init"}),  # the same logits
    "ddl-cc-unit-gate": ("ddl-cc", {"gate_limit", "gate_init"}),
    "ddl-dv1-value-bias-0": ("ddl-dv1", {"value_bias_init"}),
    "ddl-cc-value-bias-0": ("ddl-cc", {"value_bias_init"}),
    "ddl-dv1-sigmoid4": ("ddl-dv1", {"value_activation", "value_bias_init"}),  # the same initial value
    "ddl-cc-sigmoid4": ("ddl-cc", {"value_activation", "value_bias_init"}),
    "ddl-dv1-raw-value": ("ddl-dv1", {"value_input"}),
    "ddl-cc-raw-value": ("ddl-cc", {"value_input"}),
    "ddl-cc-2-channels": ("ddl-cc", {"value_channels", "compressor_kernel"}),  # CC's kernel spans the channels
    "ddl-cc-8-channels": ("ddl-cc", {"value_channels", "compressor_kernel"}),
    "ddl-cc-mean-read": ("ddl-cc", {"compressor"}),
    "ddl-cc-dynamic-read": ("ddl-cc", {"compressor"}),
    "write-only-cc-mean-read": ("write-only-cc", {"compressor"}),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sublayer(config):
    """A state with features innermost, as models have it, and x_in, c and h, in fp64."""
    channels = (config.value_channels,) if config.value_channels > 1 else ()
    X = draw(2, 5, *channels, config.width, seed=1)
    return (X.mT if channels else X), *draw(3, 2, 5, config.width, seed=2)


def test_every_control_differs_from_the_design_it_is_compared_with_in_these_settings():
    scale, differences = load_scale("laptop"), {}
    for slug in CONTROLS:
        control, reference = (scale.model("small", name) for name in (slug, REFERENCES[slug][0]))
        fields = [field.name for field in dataclasses.fields(control)]
        differences[slug] = {name for name in fields if getattr(control, name) != getattr(reference, name)}
    assert differences == {slug: names for slug, (_, names) in REFERENCES.items()}


# The equations. A scalar state has one value channel here; W holds the parameters of the rule by name.


def sigmoid(z):
    return 1 / (1 + torch.exp(-z))


def unit(h):
    return h / ((h * h).sum(-1, keepdim=True) + GUARD**2).sqrt()


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def gate(W, c, name="gate"):
    return 2 * sigmoid(c @ W[f"{name}.logit.weight"][0] + W[f"{name}.logit.bias"])[..., None]


def value(W, source):
    return source @ W["value.linear.weight"].T + W["value.linear.bias"]


def readout(k, X):
    return torch.einsum("bti,btij->btj", k, X)


def normalised(W, X, x_in, c, h):
    return X + (W["gain"] * unit(h))[..., None]


def peri_ln(W, X, x_in, c, h):
    return X + (W["gain"] * h / ((h * h + GUARD**2 / h.shape[-1]).mean(-1, keepdim=True)).sqrt())[..., None]


def dynamic_strength(W, X, x_in, c, h):
    return X + outer(h, gate(W, c) * value(W, c))


def erase_only(W, X, x_in, c, h):
    k = unit(h)
    return X + h[..., None] - outer(k, gate(W, c) * readout(k, X))


def write_only(W, X, x_in, c, h):
    return X + outer(unit(h), gate(W, c) * value(W, c))


def separate_gates(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, gate(W, c) * value(W, c)) - outer(k, gate(W, c, "erase_gate") * readout(k, X))


def fixed_gate(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, value(W, c) - readout(k, X))


def unit_gate(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, gate(W, c) / 2 * (value(W, c) - readout(k, X)))


def bounded_value(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, gate(W, c) * (4 * sigmoid(value(W, c)) - readout(k, X)))


def raw_value(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, gate(W, c) * (value(W, x_in) - readout(k, X)))


def delta(W, X, x_in, c, h):
    k = unit(h)
    return X + outer(k, gate(W, c) * (value(W, c) - readout(k, X)))


EQUATIONS = {
    "normalised-branch": normalised,
    "peri-ln-small": normalised,
    "peri-ln": peri_ln,
    "dynamic-strength": dynamic_strength,
    "erase-only": erase_only,
    "write-only": write_only,
    "write-only-cc": write_only,
    "write-only-cc-mean-read": write_only,
    "separate-gates": separate_gates,
    "separate-gates-cc": separate_gates,
    "ddl-dv1-fixed-gate": fixed_gate,
    "ddl-cc-fixed-gate": fixed_gate,
    "ddl-dv1-unit-gate": unit_gate,
    "ddl-cc-unit-gate": unit_gate,
    "ddl-dv1-value-bias-0": delta,
    "ddl-cc-value-bias-0": delta,
    "ddl-dv1-sigmoid4": bounded_value,
    "ddl-cc-sigmoid4": bounded_value,
    "ddl-dv1-raw-value": raw_value,
    "ddl-cc-raw-value": raw_value,
    "ddl-cc-2-channels": delta,
    "ddl-cc-8-channels": delta,
    "ddl-cc-mean-read": delta,
    "ddl-cc-dynamic-read": delta,
}


@torch.no_grad()
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("variant", EQUATIONS)
def test_the_next_state_is_that_of_the_equation(tiny_config, variant, kernels):
    config = tiny_config(variant, kernels=kernels)
    rule, (X, *inputs) = perturbed(make_rule(config).double()), sublayer(config)
    state = X if X.dim() == 4 else X[..., None]
    expected = EQUATIONS[variant](dict(rule.named_parameters()), state, *inputs)
    found = rule(X, *inputs)
    torch.testing.assert_close(found, expected if X.dim() == 4 else expected[..., 0], rtol=1e-12, atol=1e-12)
    assert found.stride() == X.stride()


@torch.no_grad()
def test_an_unnormalised_write_and_an_erase_term_add_up(tiny_config):
    config = tiny_config("ddl-cc", write="unnormalised")
    rule, (X, x_in, c, h) = perturbed(make_rule(config).double()), sublayer(config)
    W, k = dict(rule.named_parameters()), unit(h)
    expected = X + outer(h, gate(W, c) * value(W, c)) - outer(k, gate(W, c) * readout(k, X))
    torch.testing.assert_close(rule(X, x_in, c, h), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "variant",
    ["normalised-branch", "peri-ln", "dynamic-strength", "erase-only", "write-only-cc", "separate-gates-cc"],
)
def test_gradients_of_a_control_are_those_of_finite_differences(tiny_config, variant):
    config = tiny_config(variant, width=8)
    rule = perturbed(make_rule(config).double())
    inputs = [tensor[:1, :2].clone().requires_grad_() for tensor in sublayer(config)]
    assert torch.autograd.gradcheck(lambda *arguments: rule(*arguments), inputs)


@torch.no_grad()
@pytest.mark.parametrize("variant", [slug for slug in EQUATIONS if not slug.startswith("ddl")])
def test_a_state_in_bfloat16_is_changed_in_fp32(tiny_config, variant):
    config = tiny_config(variant)
    rule, (X, *inputs) = perturbed(make_rule(config)), sublayer(config)
    low, X = [tensor.bfloat16() for tensor in inputs], X.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = rule(X, *low)
    assert (found.dtype, found.stride()) == (torch.bfloat16, X.stride())
    exact = rule.double()(X.double(), *(tensor.double() for tensor in low))
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("slug", [slug for slug in CONTROLS if "gate" in slug])
def test_gates_start_at_their_settings(tiny_config, slug):
    config = tiny_config(slug)
    rule, c = make_rule(config), torch.randn(2, 5, config.width)
    gates = [module for name, module in rule.named_children() if name.endswith("gate")]
    assert len(gates) == (2 if config.erase == "own" else 1)
    for module in gates:
        if config.gate == "fixed":
            assert not list(module.parameters())
        else:
            assert module.logit.bias == 0.0  # the logit of both 1 in (0, 2) and 1/2 in (0, 1)
            torch.nn.init.zeros_(module.logit.weight)
        torch.testing.assert_close(module(c), torch.full((2, 5), 0.5 if "unit" in slug else 1.0))


@pytest.mark.parametrize("slug", ["ddl-dv1-sigmoid4", "ddl-cc-sigmoid4", "ddl-dv1", "ddl-cc"])
def test_bounded_and_linear_values_start_at_one(tiny_config, slug):
    config = tiny_config(slug)
    rule, c = make_rule(config), torch.randn(2, 5, config.width)
    torch.nn.init.zeros_(rule.value.linear.weight)
    torch.testing.assert_close(rule.value(c, c, c), torch.ones(2, 5, config.value_channels))


@pytest.mark.parametrize(("slug", "length"), [("normalised-branch", 1), ("peri-ln-small", 1), ("peri-ln", 24**0.5)])
def test_normalised_branches_start_with_writes_of_these_lengths(tiny_config, slug, length):
    config = tiny_config(slug)
    X, x_in, c, h = sublayer(config)
    written = make_rule(config)(X, x_in, c, 0.01 * h) - X
    torch.testing.assert_close(written.norm(dim=-1), length * torch.ones(2, 5, dtype=torch.float64))


# The reads, the embedding convolution and the wider MLPs.


@torch.no_grad()
def test_the_mean_and_the_dynamic_read_weigh_the_channels(tiny_config):
    config = tiny_config("ddl-cc-dynamic-read")
    X, *_ = sublayer(config)
    mean, dynamic = (COMPRESSORS[name](config).double() for name in ("mean", "dynamic"))
    average = (X[..., 0] + X[..., 1] + X[..., 2] + X[..., 3]) / 4
    assert not list(mean.parameters())
    for compressor in (mean, dynamic):
        torch.testing.assert_close(compressor(X), average)
    dynamic.map.copy_(draw(4, 24, seed=3))
    normed = average / (average.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    weights = [0.25 + (normed * dynamic.map[j]).sum(-1, keepdim=True) for j in range(4)]
    expected = sum(weights[j] * X[..., j] for j in range(4))
    torch.testing.assert_close(dynamic(X), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_dynamic_read_are_those_of_finite_differences(tiny_config):
    config = tiny_config("ddl-cc-dynamic-read", width=8)
    dynamic = COMPRESSORS["dynamic"](config).double()
    X = sublayer(config)[0][:1, :2].clone().requires_grad_()
    call = torch.func.functional_call
    W = draw(4, 8, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda X, W: call(dynamic, {"map": W}, X), (X, W))


@torch.no_grad()
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_the_embedding_convolution_of_a_scalar_state_reads_earlier_tokens(tiny_config, kernels):
    expand, x = Expand(tiny_config("baseline-ec", kernels=kernels)).double(), draw(2, 5, 24)
    torch.testing.assert_close(expand(x), x)  # it starts as the identity
    expand.kernel.copy_(draw(24, 1, 4, seed=4))
    expected = torch.zeros_like(x)
    for t in range(5):
        for s in range(min(t, 3) + 1):
            expected[:, t] += expand.kernel[:, 0, s] * x[:, t - s]
    torch.testing.assert_close(expand(x), expected)


@pytest.mark.parametrize("count", ["parameters", "flops"])
def test_wider_baselines_reach_ddl_cc_with_the_fewest_units_that_do_at_both_sizes(count):
    def cost(config):
        return parameter_count(config)["total"] if count == "parameters" else sum(flops_per_token(config))

    scale, enough = load_scale("laptop"), []
    for size in scale.sizes:
        wider, target = scale.model(size, f"baseline-equal-{count}"), cost(scale.model(size, "ddl-cc"))
        one_less = dataclasses.replace(wider, mlp_extra=wider.mlp_extra - 1)
        assert cost(wider) >= target
        enough.append(cost(one_less) >= target)
        assert cost(wider) - target < 0.01 * target
    assert not all(enough)


def test_the_wider_baseline_has_as_many_parameters_as_mhc_at_the_medium_size():
    counts = [
        parameter_count(load_scale("laptop").model("medium", slug))["total"] for slug in ("baseline-wider", "mhc")
    ]
    assert 0 <= counts[0] - counts[1] < 3 * 128 * 4  # one hidden unit in every block


@pytest.mark.parametrize("variant", CONTROLS)
def test_flops_and_parameters_of_a_control_are_those_of_its_formulas(tiny_config, variant):
    config = tiny_config(variant)
    d, d_v, sublayers = config.width, config.value_channels, 2 * config.layers
    gates = {"fixed": 0, "linear": 1}[config.gate] * (2 if config.erase == "own" else 1)
    bias = config.value_bias_init is not None
    if config.residual == "additive":
        flops, parameters = d, 0
    elif config.residual == "normalised":
        flops, parameters = 3 * d + 2 * d, d if config.branch_gain == "vector" else 1
    elif config.residual == "additive-erase":
        flops, parameters = 3 * d + 2 * d + 2 * d + d + 2 * d, d + 1
    else:
        read, written, norm = 2 * d * d_v, 2 * d * d_v, 3 * d
        if config.erase == "none":
            read, norm = 0, norm if config.write == "normalised" else 0
        flops = read + written + norm + 2 * d * gates + 2 * d * d_v
        parameters = (d + 1) * gates + (d + bias) * d_v
    compressor = {"none": (0, 0), "cc": (2, 1), "mean": (2, 0), "dynamic": (6, 1)}[config.compressor]
    compress_flops, compress_parameters = (number * d * d_v for number in compressor)
    embed = d * d_v * 4 if config.embed_conv else 0
    mlp = 3 * d * config.mlp_extra * config.layers
    assert flops_per_token(config).state == sublayers * flops + (sublayers + 1) * compress_flops + 2 * embed
    added = parameter_count(config)["total"] - parameter_count(tiny_config("baseline"))["total"]
    assert added == sublayers * parameters + (config.layers + 1) * compress_parameters + embed + mlp
    assert flops_per_token(config).backbone == flops_per_token(tiny_config("baseline")).backbone + 2 * mlp


# Whole models.


@pytest.mark.parametrize("variant", CONTROLS)
def test_only_plain_delta_rules_with_taps_are_fused(tiny_config, variant):
    config = tiny_config(variant)
    plain = config.residual == "delta" and (config.erase, config.write) == ("shared", "normalised")
    assert LanguageModel(config).fused == (plain and config.compressor not in ("mean", "dynamic"))
