"""The sublayers compute their formulas, written out here once more without the package's functions."""

import dataclasses
import math

import pytest
import torch

from ddl.model.language_model import Attention, LanguageModel, RMSNorm, SwiGLU, rotary


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def rotated(x, position, base=10_000.0):
    """Rotate a vector: feature i and feature i + half are a complex number, turned by position / base^(2i / size)."""
    half = len(x) // 2
    numbers = torch.complex(x[:half], x[half:])
    angles = position * base ** (-torch.arange(half) * 2 / len(x))
    numbers = numbers * torch.polar(torch.ones(half), angles)
    return torch.cat([numbers.real, numbers.imag])


def normed(x, weight, eps=1e-5):
    return weight * x / math.sqrt(float((x * x).mean()) + eps)


def test_a_norm_divides_by_the_root_mean_square_with_its_guard():
    norm, x = RMSNorm(24, eps=1e-5), 0.003 * draw(24)  # as small as the guard
    with torch.no_grad():
        norm.weight.copy_(draw(24))
    torch.testing.assert_close(norm(x), normed(x, norm.weight))


@torch.no_grad()
def test_attention_rotates_then_normalises_and_reads_the_past(tiny_config):
    attention, c = Attention(tiny_config("baseline")), draw(1, 5, 24)
    attention.query_norm.weight.copy_(draw(12))
    attention.key_norm.weight.copy_(2 * draw(12))
    positions = torch.arange(5)
    found = attention(c, rotary(positions, 12, 10_000.0))
    outputs = []
    for t in range(5):
        heads = []
        for head in range(2):
            rows = [attention.qkv.weight[24 * part + 12 * head : 24 * part + 12 * (head + 1)] for part in range(3)]
            query = normed(rotated(rows[0] @ c[0, t], t), attention.query_norm.weight)
            keys = [normed(rotated(rows[1] @ c[0, s], s), attention.key_norm.weight) for s in range(t + 1)]
            scores = torch.stack([query @ key for key in keys]) / math.sqrt(12)
            values = torch.stack([rows[2] @ c[0, s] for s in range(t + 1)])
            heads.append(torch.softmax(scores, 0) @ values)
        outputs.append(attention.out.weight @ torch.cat(heads))
    torch.testing.assert_close(found[0], torch.stack(outputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_mlp_multiplies_a_gated_half_by_the_other(tiny_config):
    mlp, c = SwiGLU(tiny_config("baseline")), draw(2, 5, 24)
    gate, up = mlp.gate_up.weight[:64], mlp.gate_up.weight[64:]
    gated = c @ gate.T
    torch.testing.assert_close(mlp(c), (gated * torch.sigmoid(gated) * (c @ up.T)) @ mlp.out.weight.T)


def test_outputs_start_smaller_by_the_root_of_the_number_of_layers(tiny_config):
    model = LanguageModel(tiny_config("ddl-cc", layers=16, width=96))
    deviations = {"qkv": 0.5 / math.sqrt(96), "attention.out": 0.5 / math.sqrt(96) / 4, "embedding": 0.02}
    for part, deviation in deviations.items():
        weights = torch.cat([weight.flatten() for name, weight in model.named_matrices() if part in name])
        assert weights.std().item() == pytest.approx(deviation, rel=0.03), part


@torch.no_grad()
def test_the_fused_model_reads_each_state_with_its_own_compressor_and_norm(tiny_config):
    fused, plain = (LanguageModel(tiny_config("ddl-tc", kernels=kernels)) for kernels in ("auto", "reference"))
    for name, parameter in fused.named_parameters():
        if "norm" in name or "kernel" in name or "read" in name:
            parameter.add_(0.3 * draw(*parameter.shape, len(name))[..., 0])
    plain.load_state_dict(fused.state_dict())
    ids = torch.arange(12)[None] % 7
    assert (fused.fused, plain.fused) == (True, False)
    torch.testing.assert_close(fused(ids), plain(ids), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["baseline", "ddl-cc"])
def test_a_normalised_embedding_enters_the_state_with_root_mean_square_one(tiny_config, variant):
    model, entered = LanguageModel(dataclasses.replace(tiny_config(variant), embedding_norm=True)), []
    model.expand.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    model(torch.tensor([[3, 5, 7]]))
    embedded = model.embedding.weight[[3, 5, 7]]
    torch.testing.assert_close(entered[0][0], torch.stack([normed(row, torch.ones(24)) for row in embedded]))


@torch.no_grad()
def test_sublayers_that_start_at_zero_leave_the_embedding_of_the_baseline(tiny_config):
    config = dataclasses.replace(tiny_config("baseline"), output_std_factor=0.0)
    model, ids = LanguageModel(config), torch.tensor([[3, 5, 7]])
    expected = torch.stack([normed(row, torch.ones(24)) for row in model.embedding.weight[ids[0]]])
    torch.testing.assert_close(model.hidden(ids)[0], expected)


@pytest.mark.parametrize("variant", ["baseline", "ddl-cc"])  # without and with the fused step
def test_a_learned_factor_scales_the_logits_and_starts_at_one(tiny_config, variant):
    config = tiny_config(variant)
    plain, scaled = LanguageModel(config), LanguageModel(dataclasses.replace(config, logit_scale=True))
    ids, targets = torch.tensor([[3, 5, 7]]), torch.tensor([[5, 7, 1]])
    torch.testing.assert_close(scaled(ids), plain(ids), rtol=0, atol=0)
    with torch.no_grad():
        scaled.logit_scale.fill_(1.5)
    torch.testing.assert_close(scaled(ids), 1.5 * plain(ids))
    scaled.loss(ids, targets).backward()
    probabilities = (1.5 * plain(ids)).softmax(-1).detach()
    by_token = (probabilities * plain(ids)).sum(-1) - plain(ids).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(scaled.logit_scale.grad[0], by_token.mean().detach(), rtol=1e-4, atol=1e-6)
