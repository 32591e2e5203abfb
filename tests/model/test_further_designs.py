"""Controls and rivals as whole models: cached decoding, padding, saved weights, half precision and training."""

import dataclasses

import pytest
import torch

from ddl.config import load_scale, load_variants
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model, save_model
from ddl.model.transformers_model import DDLForCausalLM
from tests.model.test_generate import NEAR, in_parts
from tests.model.test_language_model import perturbed, random_ids

DESIGNS = [slug for slug, variant in load_variants().items() if variant.family != "paper"]


@pytest.mark.parametrize("lengths", [[1] * 16, [5, 1, 1, 7, 2]], ids=["tokens", "chunks"])
@pytest.mark.parametrize("slug", DESIGNS)
def test_decoding_in_parts_and_padding_on_the_left_change_no_logits(tiny_config, slug, lengths):
    model = perturbed(LanguageModel(tiny_config(slug))).double().requires_grad_(False)
    ids = random_ids(model.config)
    torch.testing.assert_close(in_parts(model, ids, lengths), model(ids), **NEAR)
    real = torch.arange(16) >= torch.tensor([[0], [3], [9]])
    found = in_parts(model, ids.where(real, 7), lengths, real)
    for row, mask, logits in zip(ids, real, found, strict=True):
        torch.testing.assert_close(logits[mask], model(row[mask].unsqueeze(0))[0], **NEAR)


@pytest.mark.parametrize("slug", DESIGNS)
def test_a_design_shares_its_backbone_and_is_saved_and_loaded_bitwise(tiny_config, slug, tmp_path):
    model, baseline = LanguageModel(tiny_config(slug), seed=3), LanguageModel(tiny_config("baseline"), seed=3)
    weights = model.state_dict()
    for name, weight in baseline.state_dict().items():
        if "mlp" not in name or not model.config.mlp_extra:
            assert torch.equal(weights[name], weight), name
    save_model(perturbed(model), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("slug", DESIGNS)
def test_a_design_in_half_precision_keeps_gates_and_readers_in_single(tiny_config, slug, tmp_path):
    save_model(perturbed(LanguageModel(tiny_config(slug))), tmp_path)
    model, ids = DDLForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), torch.arange(10).reshape(1, 10)
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if "reader." in name or "gate.logit." in name}
    low, high = (m.log_softmax(-1) for m in (model(ids).logits, load_model(tmp_path)(ids)))
    assert (low - high).abs().mean() < 0.2


@pytest.mark.parametrize("memory", ["stored", "rebuilt"])
@pytest.mark.parametrize("slug", DESIGNS)
def test_a_design_trains_with_the_execution_settings_of_the_paper_scale(tiny_config, slug, memory):
    execution = dataclasses.asdict(load_scale("paper").execution) | {"state_memory": memory}
    config = tiny_config(slug, **execution)
    model, ids = perturbed(LanguageModel(config)), random_ids(config)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model.loss(ids[:, :-1], ids[:, 1:]))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
