"""A training step is AdamW on the clipped mean gradient, written out here once more in plain numbers."""

import dataclasses
import math

import pytest
import torch

from ddl.config import load_scale
from ddl.model.language_model import LanguageModel
from ddl.training.distributed import Processes
from ddl.training.learner import Learner, learning_rate

RECIPE = dataclasses.replace(load_scale("smoke").training, compile=False)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(61, (4, 17), generator=generator)
    return [(part[:, :-1], part[:, 1:]) for part in ids.split(2)]


@pytest.mark.parametrize("grad_clip", [1e9, 0.05])
def test_steps_are_those_of_adamw_with_decay_of_matrices_on_the_clipped_mean_gradient(tiny_config, grad_clip):
    recipe = dataclasses.replace(RECIPE, grad_clip=grad_clip, beta1=0.7, beta2=0.95, weight_decay=0.1)
    config = tiny_config("ddl-tc")
    learner, plain = Learner(LanguageModel(config), recipe, Processes()), LanguageModel(config)
    matrices = {id(weight) for _, weight in plain.named_matrices()}
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in plain.named_parameters()}
    for step in range(3):
        lr = 0.01 / (step + 1)
        plain.zero_grad()
        loss = torch.stack([plain.loss(*part) for part in batch(step)]).mean()
        loss.backward()
        norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in plain.parameters()))
        found, norms = learner.step(batch(step), lr)
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        assert norms.norm().item() == pytest.approx(norm, rel=1e-4)
        with torch.no_grad():
            for name, weight in plain.named_parameters():
                gradient = weight.grad * min(1, grad_clip / norm)
                first, second = moments[name]
                first.mul_(0.7).add_(0.3 * gradient)
                second.mul_(0.95).add_(0.05 * gradient.square())
                if id(weight) in matrices:
                    weight.mul_(1 - lr * 0.1)
                mean, square = first / (1 - 0.7 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
                weight.sub_(lr * mean / (square.sqrt() + 1e-8))
    expected = dict(plain.named_parameters())
    for name, weight in learner.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=2e-5, msg=name)


def test_the_learning_rate_rises_from_its_first_share_and_ends_at_its_floor():
    recipe = dataclasses.replace(RECIPE, steps=10, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.1)
    rates = [learning_rate(step, recipe) for step in range(10)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[5:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * n / 5)) for n in range(1, 6)])


def test_the_embedding_can_have_a_learning_rate_of_its_own(tiny_config):
    config, rate = tiny_config("baseline"), 0.01
    changed = {}
    for factor in (1.0, 4.0):
        recipe = dataclasses.replace(RECIPE, embedding_rate_factor=factor, weight_decay=0.0)
        learner, before = Learner(LanguageModel(config), recipe, Processes()), LanguageModel(config)
        learner.step(batch(0), rate)
        after = dict(learner.model.named_parameters())
        changed[factor] = {name: after[name] - weight for name, weight in before.named_parameters()}
    for name, step in changed[1.0].items():
        torch.testing.assert_close(changed[4.0][name], 4 * step if name == "embedding.weight" else step)
