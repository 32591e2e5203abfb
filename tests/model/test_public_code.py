"""What docs/public-code.md says about the authors' public code, derived again; none of their code is used."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F

from ddl.config import ModelConfig, from_mapping, load_scale, load_variants
from ddl.layout import ROOT
from ddl.model.expanded_state import ChannelCompressor, TokenCompressor
from ddl.model.language_model import LanguageModel, rotary, rotate
from ddl.model.residual import Gate
from ddl.ops.compress import compress_channels, compress_reference, token_taps
from ddl.ops.rewrite import normalize_direction

PAGE = (ROOT / "docs" / "public-code.md").read_text(encoding="utf-8")
CHANNELS = TAPS = 4


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def laptop_model(variant, **settings):
    config = dataclasses.replace(load_scale("laptop"), backbone="paper").model("medium", variant)
    plain = {"kernels": "reference", "state_memory": "stored"}  # every module is called, so that hooks see it
    return LanguageModel(dataclasses.replace(config, **plain, **settings)).double()


def random_ids(model, random):
    return torch.randint(0, model.config.vocab_size, (2, 64), generator=random)


def convolve_and_read(X, W, read):
    """Convolve the channels of X (..., d, d_v) with W (d, d_v), padded to equal length; then weight them by `read`."""
    d = W.shape[0]
    padded = F.pad(X.reshape(-1, d, CHANNELS), (1, 2))
    return (F.conv1d(padded, W.unsqueeze(1), groups=d) @ read).reshape(X.shape[:-1])


def equivalent_kernel(W, read):
    """w[i, j] = sum_k read[k] W[i, j - k + 1]."""
    w = torch.zeros_like(W)
    for j in range(CHANNELS):
        for k in range(CHANNELS):
            if 0 <= j - k + 1 < CHANNELS:
                w[:, j] += read[k] * W[:, j - k + 1]
    return w


def test_convolution_over_channels_with_a_read_vector_is_one_kernel_of_cc(random):
    X = torch.randn(2, 5, 7, CHANNELS, dtype=torch.float64, generator=random)
    W = torch.randn(7, CHANNELS, dtype=torch.float64, generator=random)
    read = torch.randn(CHANNELS, dtype=torch.float64, generator=random)
    torch.testing.assert_close(
        compress_channels(X, equivalent_kernel(W, read)), convolve_and_read(X, W, read), rtol=1e-13, atol=1e-13
    )


def test_every_kernel_of_cc_can_be_reached_where_the_read_vector_starts():
    uniform = torch.full((CHANNELS,), 1 / CHANNELS, dtype=torch.float64)
    images = equivalent_kernel(torch.eye(CHANNELS, dtype=torch.float64), uniform)  # of the basis kernels
    assert torch.linalg.matrix_rank(images) == CHANNELS


@pytest.mark.parametrize(("size", "more"), [("small", 52), ("medium", 100)])
def test_read_vectors_of_cc_would_add_the_parameters_that_the_page_names(size, more):
    with torch.device("meta"):
        model = LanguageModel(load_scale("paper").model(size, "ddl-cc"))
    compressors = [module for module in model.modules() if isinstance(module, ChannelCompressor)]
    assert CHANNELS * len(compressors) == more
    assert f"{more} more at the {size} size" in PAGE


def first_input(model, ids):
    """The input of the first sublayer (B, T, d)."""
    block = model.blocks[0]
    return block.attention_norm(block.compress(model.expand(model.embedding(ids))))


def rms(x):
    return x.square().mean().sqrt().item()


def public_compressors(d, random):
    """Taps of CC and TC with kernels from N(0, (0.5 / sqrt(d))^2) and a uniform read vector."""
    std, read = 0.5 / math.sqrt(d), torch.full((CHANNELS,), 1 / CHANNELS)
    cc = equivalent_kernel(std * torch.randn(d, CHANNELS, generator=random), read)
    tc = std * torch.randn(d, CHANNELS, TAPS, generator=random)
    return {"CC": cc.T.unsqueeze(0), "TC": token_taps(tc, read)}


@pytest.mark.parametrize("width", [128, 768, 1024])
def test_random_compressors_make_the_first_normed_input_as_small_as_the_page_says(width, random):
    found = {"CC": [], "TC": []}
    for _ in range(50):
        x = 0.02 * torch.randn(1, 64, width, generator=random)
        X = x.unsqueeze(-1).expand(-1, -1, -1, CHANNELS)
        for name, taps in public_compressors(width, random).items():
            found[name].append(rms(F.rms_norm(compress_reference(X, taps), (width,), eps=1e-5)))
    row = re.search(rf"^\| {width:,} \| ([\d.]+) \| ([\d.]+) \| 0.99 \|$", PAGE, re.MULTILINE)
    drawn = [torch.tensor(found[name]) for name in ("CC", "TC")]
    assert [float(number) for number in row.groups()] == pytest.approx([v.mean().item() for v in drawn], abs=0.006)
    assert max(values.std() for values in drawn) < 0.02
    if width == 128:  # the numbers of the comparison outside of this repository fit this width
        for other, values in zip((0.37, 0.26), drawn, strict=True):
            assert abs(other - values.mean()) < 2 * values.std()


@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-tc-noec", "ddl-cc-noec", "ddl-tc", "ddl-cc"])
def test_our_first_normed_input_has_an_rms_close_to_one(variant, random):
    model = laptop_model(variant)
    assert rms(first_input(model, random_ids(model, random))) == pytest.approx(0.99, abs=0.005)


def test_the_design_on_the_page_starts_its_values_at_two_from_an_input_that_is_not_normed(random):
    (slug,) = re.findall(r"a design in `config/variants.yaml`, `([\w-]+)`", PAGE)
    shape = {"vocab_size": 997, "sequence_length": 64, "layers": 4, "width": 128, "heads": 4}
    model = LanguageModel(from_mapping(ModelConfig, shape | load_variants()[slug].model, "page"))
    x_in = model.blocks[0].compress(model.expand(model.embedding(random_ids(model, random))))
    assert rms(x_in) == pytest.approx(0.02, rel=0.05)
    v = model.blocks[0].attention_rule.value(x_in, torch.full_like(x_in, math.nan), torch.full_like(x_in, math.nan))
    torch.testing.assert_close(v, torch.full_like(v, 2.0), rtol=0, atol=0.1)


def test_a_gate_that_starts_closed_has_another_bias_than_a_clamped_probability(tiny_config):
    clamped = math.log(1e-6 / (1 - 1e-6))
    assert f"±{-clamped:.1f}" in PAGE
    for start, bias in ((0.0, -15.0), (1.0, 0.0), (2.0, 15.0)):
        assert Gate(tiny_config("ddl-cc", gate_init=start)).logit.bias.item() == pytest.approx(bias)


def test_gates_with_logits_in_bf16_differ_by_what_the_page_says(tiny_config, random):
    gate = Gate(tiny_config("ddl-cc", width=768, heads=6))
    c = torch.randn(20_000, 768, generator=random).bfloat16()
    torch.nn.init.normal_(gate.logit.weight, std=0.5 / math.sqrt(768), generator=random)
    low = 2 * torch.sigmoid(F.linear(c, gate.logit.weight.bfloat16(), gate.logit.bias.bfloat16()).float()).squeeze(-1)
    assert f"d = 768 change by {rms(gate(c) - low):.4f} (rms)" in PAGE


def test_rotation_with_rounded_angles_has_the_error_that_the_page_says(random):
    cos, sin = rotation = rotary(torch.arange(1024), 128, 10_000.0)
    q = torch.randn(1, 4, 1024, 128, generator=random).bfloat16()
    first, second = q.float().chunk(2, dim=-1)
    theirs = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).bfloat16()
    exact = rotate(q.double(), (cos.double(), sin.double()))
    there, here = ((y.double() - exact).norm() / exact.norm() for y in (theirs, rotate(q, rotation)))
    assert f"{there:.2%} there, {here:.2%} here" in PAGE


def test_guard_that_grows_with_the_width_shortens_directions_only_near_its_own_length():
    d, eps = 768, 1e-5
    guard = eps * math.sqrt(d)
    assert f"`direction_eps: {guard:.1e}`".replace("e-0", "e-") in PAGE
    k_tilde = torch.ones(d, dtype=torch.float64) / math.sqrt(d)
    lengths = [normalize_direction(guard * k_tilde, used).norm().item() for used in (eps, guard)]
    assert lengths == pytest.approx([1 / math.sqrt(1 + 1 / d), 1 / math.sqrt(2)])
    assert f"{lengths[1]:.2f} instead of nearly 1" in PAGE
    assert lengths[0] > 0.999
    assert normalize_direction(1000 * guard * k_tilde, guard).norm() > 1 - 1e-6


@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-tc", "ddl-cc"])
@torch.no_grad()
def test_guard_that_grows_with_the_width_leaves_our_first_models_as_they_are(variant, random):
    model = laptop_model(variant)
    guard = model.config.direction_eps * math.sqrt(model.config.width)
    shortest = []
    for block in model.blocks:
        for sublayer in (block.attention, block.mlp):
            sublayer.register_forward_hook(lambda _, __, h: shortest.append(h.norm(dim=-1).min().item()))
    ids = random_ids(model, random)
    hidden, other = model.hidden(ids), laptop_model(variant, direction_eps=guard).hidden(ids)
    assert min(shortest) > 1000 * guard
    assert 0 < ((hidden - other) @ model.embedding.weight.T).abs().max() < 1e-6


def test_compressors_here_start_as_the_mean_over_channels(tiny_config, random):
    X = torch.randn(1, 6, 24, CHANNELS, generator=random)
    for variant, kind in (("ddl-cc", ChannelCompressor), ("ddl-tc", TokenCompressor)):
        torch.testing.assert_close(kind(tiny_config(variant))(X), X.mean(-1))
