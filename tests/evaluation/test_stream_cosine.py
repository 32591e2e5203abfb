"""The similarity of streams at the readout."""

import pytest
import torch

from ddl.evaluation.stream_cosine import stream_cosine
from ddl.model.language_model import LanguageModel
from tests.model.test_language_model import perturbed, random_ids


@pytest.mark.parametrize("variant", ["ddl-cc", "ihc"])
def test_it_is_the_mean_cosine_over_tokens_and_pairs(tiny_config, variant):
    model = perturbed(LanguageModel(tiny_config(variant, kernels="reference")))
    ids, states = random_ids(model.config), []
    hook = model.reader.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    model.hidden(ids)
    hook.remove()
    found = [
        torch.cosine_similarity(states[0][..., one], states[0][..., other], dim=-1).mean()
        for one in range(4)
        for other in range(one)
    ]
    assert stream_cosine(model, ids) == pytest.approx(float(sum(found) / 6), abs=1e-5)


def test_equal_streams_have_a_cosine_of_one_and_one_stream_has_none(tiny_config):
    model = LanguageModel(tiny_config("ihc", layers=1))
    for rule in model.rules():
        rule.forward = lambda X, x_in, c, h: X.state  # nothing is written
    assert stream_cosine(model, random_ids(model.config)) == pytest.approx(1.0, abs=1e-5)
    assert stream_cosine(LanguageModel(tiny_config("baseline")), random_ids(model.config)) is None


def test_a_fused_model_is_measured_through_its_readers(tiny_config):
    fused, plain = (
        perturbed(LanguageModel(tiny_config("ddl-tc", kernels=kernels))) for kernels in ("auto", "reference")
    )
    ids = random_ids(fused.config)
    assert fused.fused
    assert stream_cosine(fused, ids) == pytest.approx(stream_cosine(plain, ids), abs=1e-5)
