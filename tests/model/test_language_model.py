"""The language model: parameter counts of the paper, causality, limits, initial behaviour, files."""

import dataclasses

import pytest
import torch

from ddl.config import ConfigError, load_scale
from ddl.model.flops import flops_per_token
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.model.residual import RULES, Additive, Delta, Rule, make_rule
from ddl.model.run_files import ModelFileError, load_model, save_model
from ddl.ops.rewrite import rewrite_reference

SLUGS = ["baseline", "ddl-dv1", "ddl-tc-noec", "ddl-cc-noec", "ddl-tc", "ddl-cc"]
GENERATORS = [
    {},
    {"gate": "mlp", "gate_hidden": 7},
    {"value_input": "compressed"},
    {"value_activation": "sigmoid4"},
    {"value_bias_init": None},
    {"direction": "mlp", "value_input": "output"},
    {"direction": "mlp", "direction_pool": "flatten", "value_input": "output"},
]


def random_ids(config, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (batch, config.sequence_length), generator=generator)


@torch.no_grad()
def perturbed(model, seed=1):
    """The model with perturbed weights: at the initial ones, compressors are means and variants agree."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("size", "variant", "millions"),
    [
        ("small", "baseline", 123.6),
        ("medium", "baseline", 353.5),
        ("small", "ddl-cc", 123.7),
        ("medium", "ddl-tc", 354.2),
    ],
)
def test_parameter_counts_are_the_papers(size, variant, millions):
    total = parameter_count(load_scale("paper").model(size, variant))["total"]
    assert round(total / 1e6, 1) == millions


def test_parameter_counts_agree_with_tables_4_and_5():
    scale = load_scale("paper")
    printed = {"small": dict.fromkeys(("baseline", "ddl-dv1", "ddl-tc", "ddl-cc"), 123)}
    printed["small"] |= {"ddl-tc-noec": 123, "ddl-cc-noec": 123}  # these and the next are in the revised text only
    printed["medium"] = {"baseline": 353, "ddl-tc": 354, "ddl-cc": 353, "ddl-tc-noec": 354, "ddl-cc-noec": 353}
    for size, models in printed.items():
        for variant, millions in models.items():
            assert parameter_count(scale.model(size, variant))["total"] // 1_000_000 == millions, (size, variant)


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS[1:])
def test_generators_add_the_parameters_of_their_formulas(tiny_config, variant, generators):
    config = tiny_config(variant, **generators)
    d, d_v, K = config.width, config.value_channels, 4
    gate = d * config.gate_hidden + config.gate_hidden + 1 if config.gate == "mlp" else d + 1
    value = d * d_v + (0 if config.value_bias_init is None else d_v)
    pooled = d * d_v if config.direction_pool == "flatten" else d
    direction = pooled * d + d * d if config.direction == "mlp" else 0
    compressor = {"none": 0, "cc": d * d_v, "tc": d * d_v * K + d_v}[config.compressor]
    expected = 2 * config.layers * (gate + value + direction) + (config.layers + 1) * compressor
    expected += d * d_v * K if config.embed_conv else 0
    added = parameter_count(config)["total"] - parameter_count(tiny_config("baseline"))["total"]
    assert added == expected
    assert parameter_count(config)["total"] == sum(p.numel() for p in LanguageModel(config).parameters())


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS[1:])
def test_generators_make_a_unit_direction_a_target_and_a_gate_of_the_right_shapes(tiny_config, variant, generators):
    config = tiny_config(variant, **generators)
    rule = perturbed(Delta(config))
    expanded = (config.value_channels,) if config.value_channels > 1 else ()
    X = torch.randn(2, 5, config.width, *expanded)
    x_in, c, h = torch.randn(3, 2, 5, config.width)
    k, v, beta = rule.generate(X, x_in, c, h)
    assert (k.shape, v.shape, beta.shape) == ((2, 5, config.width), (2, 5, config.value_channels), (2, 5))
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 5))
    assert 0 < beta.min() < beta.max() < 2
    assert rule(X, x_in, c, h).shape == X.shape


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS[1:])
def test_a_later_token_changes_no_earlier_output(tiny_config, variant, generators):
    config = tiny_config(variant, **generators)
    model = perturbed(LanguageModel(config)).double().eval()
    ids = random_ids(config)
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % config.vocab_size
    # Hidden states are compared, because the head casts to fp32.
    before, after = model.hidden(ids), model.hidden(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, 9], after[:, 9])


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS[1:])
def test_every_parameter_receives_a_gradient(tiny_config, variant, generators):
    config = tiny_config(variant, **generators)
    model = perturbed(LanguageModel(config))
    ids = random_ids(config)
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS[1:])
def test_closed_gates_leave_the_embedding_untouched(tiny_config, variant, generators):
    config = tiny_config(variant, gate_init=0.0, kernels="reference", **generators)
    model = LanguageModel(config)
    for block in model.blocks:
        for rule in (block.attention_rule, block.mlp_rule):
            torch.nn.init.zeros_(rule.gate.logit.weight)
            torch.nn.init.constant_(rule.gate.logit.bias, -torch.inf)
    ids = random_ids(config)
    expected = model.norm(model.compress(model.expand(model.embedding(ids))))
    assert torch.equal(model.hidden(ids), expected)


@pytest.mark.parametrize("gate_init", [0.25, 1.0, 1.75])
def test_gate_starts_at_its_configured_value(tiny_config, gate_init):
    config = tiny_config("ddl-cc", gate_init=gate_init)
    gate = LanguageModel(config).blocks[0].mlp_rule.gate
    torch.nn.init.zeros_(gate.logit.weight)
    torch.testing.assert_close(gate(torch.randn(2, 3, config.width)), torch.full((2, 3), gate_init))


def test_variants_start_from_one_backbone_and_one_function_of_the_embedding(tiny_config):
    models = {slug: LanguageModel(tiny_config(slug), seed=3) for slug in SLUGS}
    for name, weight in models["baseline"].state_dict().items():
        for slug, model in models.items():
            assert torch.equal(model.state_dict()[name], weight), (slug, name)
    ids = random_ids(models["baseline"].config)
    outputs = [models[slug](ids) for slug in SLUGS[2:]]  # initially EC repeats the embedding; TC and CC take the mean
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_initial_weights_depend_on_the_seed_and_have_the_papers_spread():
    config = load_scale("laptop").model("medium", "ddl-cc")
    model, other = LanguageModel(config, seed=0), LanguageModel(config, seed=1)
    block, d = model.blocks[0], config.width
    assert not torch.equal(block.mlp.out.weight, other.blocks[0].mlp.out.weight)
    assert model.embedding.weight.std().item() == pytest.approx(config.embedding_std, rel=0.02)
    assert load_scale("paper").model("medium", "ddl-cc").embedding_std == 0.02
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.5 / d**0.5, rel=0.02)
    assert block.mlp.out.weight.std().item() == pytest.approx(0.5 / d**0.5 / config.layers**0.5, rel=0.02)


def test_delta_rule_applies_the_rewrite_to_its_generated_values(tiny_config):
    config = tiny_config("ddl-tc")
    rule = perturbed(Delta(config))
    X = torch.randn(2, 5, config.width, config.value_channels)
    x_in, c, h = (torch.randn(2, 5, config.width) for _ in range(3))
    k, v, beta = rule.generate(X, x_in, c, h)
    assert torch.equal(rule(X, x_in, c, h), rewrite_reference(X, k, v, beta))
    torch.testing.assert_close(k, torch.nn.functional.normalize(h, dim=-1))


def test_a_new_rule_is_one_class_and_one_entry(tiny_config, monkeypatch):
    class Halved(Additive):
        def forward(self, X, x_in, c, h):
            return X + h / 2

    monkeypatch.setitem(RULES, "halved", Halved)
    base, config = LanguageModel(tiny_config("baseline")), tiny_config("baseline", residual="halved")
    model = LanguageModel(config)
    ids = random_ids(config)
    assert not torch.allclose(model(ids), base(ids))
    monkeypatch.delitem(RULES, "halved")
    with pytest.raises(ConfigError, match=f"residual: expected one of {', '.join(RULES)}, .*, found 'halved'"):
        make_rule(config)


def test_what_a_new_rule_draws_in_its_constructor_depends_on_the_seed_alone(tiny_config, monkeypatch):
    class Gated(Rule):
        def __init__(self, config):
            super().__init__()
            self.gate = torch.nn.Linear(config.width, 1)  # torch draws its bias
            self.scale = torch.nn.Parameter(torch.randn(config.width))

        def forward(self, X, x_in, c, h):
            return X + torch.sigmoid(self.gate(c)) * h * self.scale

    monkeypatch.setitem(RULES, "gated", Gated)
    config = tiny_config("baseline", residual="gated")
    state = torch.get_rng_state()
    first = LanguageModel(config, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = (LanguageModel(config, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("gate.bias", "scale"):
        drawn = [weights[f"blocks.{block}.mlp_rule.{name}"] for weights in (first, other) for block in (0, 1)]
        assert len({tuple(values.flatten().tolist()) for values in drawn}) == 4


@pytest.mark.parametrize("generators", GENERATORS, ids=str)
@pytest.mark.parametrize("variant", SLUGS)
def test_flops_of_the_state_are_those_of_its_formulas(tiny_config, variant, generators):
    config = tiny_config(variant, **(generators if variant != "baseline" else {}))
    d, d_v, K = config.width, config.value_channels, 4
    update = d
    if variant != "baseline":
        gate = 2 * d * config.gate_hidden + 2 * config.gate_hidden if config.gate == "mlp" else 2 * d
        pooled = d * d_v if config.direction_pool == "flatten" else d
        direction = 2 * pooled * d + 2 * d * d if config.direction == "mlp" else 0
        readout_write_target, norm = 3 * 2 * d * d_v, 3 * d
        update = readout_write_target + norm + gate + direction
    compress = {"none": 0, "cc": 2 * d * d_v, "tc": 2 * d * d_v * K}[config.compressor]
    expand = 2 * d * d_v * K if config.embed_conv else 0
    sublayers = 2 * config.layers
    assert flops_per_token(config).state == sublayers * update + (sublayers + 1) * compress + expand


def test_flops_of_a_rule_that_nobody_counted_are_none(tiny_config, monkeypatch):
    monkeypatch.setitem(RULES, "uncounted", type("Uncounted", (Additive,), {"flops": Rule.flops}))
    found = flops_per_token(tiny_config("baseline", residual="uncounted"))
    assert found.state is None
    assert found.backbone == flops_per_token(tiny_config("baseline")).backbone


def test_only_a_rule_with_a_fused_rewrite_runs_it(tiny_config, monkeypatch):
    class Plain(Delta):
        def __init__(self, config):
            super().__init__(config)
            self.fused = False

    monkeypatch.setitem(RULES, "plain", Plain)
    fused, plain = (LanguageModel(tiny_config("ddl-cc", residual=name)) for name in ("delta", "plain"))
    assert (fused.fused, plain.fused) == (True, False)
    ids = random_ids(fused.config)
    torch.testing.assert_close(plain(ids), fused(ids), rtol=1e-4, atol=1e-5)
    assert not LanguageModel(tiny_config("ddl-cc", kernels="reference")).fused


@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-cc"])
def test_a_value_without_bias_lacks_that_parameter_and_keeps_all_else(tiny_config, variant, tmp_path):
    config = tiny_config(f"{variant}-no-value-bias")
    ours, model = LanguageModel(tiny_config(variant), seed=3), LanguageModel(config, seed=3)
    weights, others = model.state_dict(), ours.state_dict()
    lacking = {name for name in others if name.endswith("rule.value.linear.bias")}
    assert len(lacking) == 2 * config.layers
    assert set(weights) == set(others) - lacking
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    zeros = LanguageModel(tiny_config(variant, value_bias_init=0.0), seed=3)
    assert torch.equal(model(random_ids(config)), zeros(random_ids(config)))
    save_model(model, tmp_path)
    assert load_model(tmp_path).config == config


def test_bfloat16_autocast_stays_near_fp32(tiny_config):
    config = tiny_config("ddl-cc")
    model = LanguageModel(config)
    ids = random_ids(config)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(ids[:, :-1], ids[:, 1:])
    assert low.item() == pytest.approx(model.loss(ids[:, :-1], ids[:, 1:]).item(), rel=5e-3)


def test_saved_model_loads_bitwise(tiny_config, tmp_path):
    model = perturbed(LanguageModel(tiny_config("ddl-tc")))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_damaged_or_mismatched_model_files_are_named(tiny_config, tmp_path):
    with pytest.raises(ModelFileError, match=r"config\.json: not found"):
        load_model(tmp_path)
    save_model(LanguageModel(tiny_config("ddl-tc")), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelFileError, match=r"model\.safetensors: not the weights"):
        load_model(tmp_path)
    save_model(LanguageModel(dataclasses.replace(tiny_config("ddl-tc"), width=48)), tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(
        ModelFileError,
        match=r"wide/model\.safetensors: not the weights of config\.json: size mismatch for [^\n]* \(and \d+ more\)$",
    ):
        load_model(tmp_path / "wide")


def test_too_long_a_sequence_is_refused(tiny_config):
    config = tiny_config("baseline")
    with pytest.raises(ValueError, match="expected at most 16 tokens, found 17"):
        LanguageModel(config)(torch.zeros(1, 17, dtype=torch.long))
