"""Whole models on the Triton kernels agree with the reference; kernels run on a GPU, or interpreted on the CPU."""

import pytest
import torch

from ddl.model.language_model import LanguageModel
from tests.helpers.numerics import relative_error


def make_model(tiny_config, variant, device, **settings):
    """A model with perturbed weights: at the initial ones, compressors are means and all gates are equal."""
    config = tiny_config(variant, sequence_length=6, **settings)  # short, because the interpreter is slow
    model, generator = LanguageModel(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(device)


def batch(config, device):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (2, config.sequence_length), generator=generator).to(device)


def gradients(model):
    ids = batch(model.config, model.embedding.weight.device)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("variant", "memory"),
    [
        ("ddl-dv1", "stored"),
        ("ddl-tc-noec", "stored"),
        ("ddl-cc", "rebuilt"),
        ("ddl-tc", "rebuilt"),
        ("baseline-ec", "stored"),
        ("ddl-cc-fixed-gate", "rebuilt"),
        ("ddl-cc-dynamic-read", "stored"),
        ("write-only-cc", "rebuilt"),
    ],
)
def test_loss_and_every_gradient_of_a_model_are_those_of_plain_autograd(tiny_config, variant, memory, device):
    model = make_model(tiny_config, variant, device, kernels="triton", state_memory=memory)
    exact = make_model(tiny_config, variant, device, kernels="reference").double()
    (loss, got), (exact_loss, expected) = gradients(model), gradients(exact)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-6)
    for name, gradient in expected.items():
        assert relative_error(got[name], gradient)[0] < 1e-4, name


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-cc", "ddl-tc"])
def test_a_short_training_on_kernels_follows_the_one_written_out(tiny_config, variant):
    curves = []
    for kernels in ("reference", "triton"):
        model = make_model(tiny_config, variant, "cuda", kernels=kernels)
        optimizer, curve = torch.optim.SGD(model.parameters(), lr=0.3), []
        for _ in range(20):
            ids = batch(model.config, "cuda")
            optimizer.zero_grad()
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < curves[0][0] - 0.5
    torch.testing.assert_close(*curves, rtol=1e-3, atol=0)
