"""The transformers interface: the same model, files that both sides read, and generation with the cache."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ddl.config import ConfigError
from ddl.data.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_bpe
from ddl.model.generate import generate
from ddl.model.language_model import LanguageModel
from ddl.model.residual import RULES, Rule
from ddl.model.run_files import ModelFileError, load_model, save_model
from ddl.model.transformers_model import DDLCache, DDLConfig, DDLForCausalLM
from tests.model.test_language_model import SLUGS, perturbed

TEXT = "the return value, the shape and the dtype of an array"
VOCABULARY = 262


@pytest.fixture(scope="session")
def runs(tiny_config, tmp_path_factory):
    """Run directories as training writes them, one per variant."""
    folder = tmp_path_factory.mktemp("runs")
    train_bpe([TEXT], VOCABULARY).save(str(folder / "tokenizer.json"))
    for variant in SLUGS:
        save_tokenizer(folder / "tokenizer.json", folder / variant)
        config = tiny_config(variant, vocab_size=VOCABULARY, sequence_length=48)
        save_model(perturbed(LanguageModel(config)), folder / variant)
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run directory, for a test to damage."""
    for path in (runs / "ddl-tc").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def same_weights(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("variant", SLUGS)
def test_a_run_directory_loads_to_the_same_model(runs, variant):
    ours, theirs = load_model(runs / variant), AutoModelForCausalLM.from_pretrained(runs / variant)
    assert isinstance(theirs, DDLForCausalLM)
    assert same_weights(ours.state_dict(), theirs.model.state_dict())
    ids = torch.arange(2 * 20).reshape(2, 20)
    assert torch.equal(theirs(ids).logits, ours(ids))


@pytest.mark.parametrize("variant", SLUGS)
def test_saved_by_either_side_loads_bitwise_on_the_other(runs, variant, tmp_path):
    ours, theirs = load_model(runs / variant), AutoModelForCausalLM.from_pretrained(runs / variant)
    theirs.save_pretrained(tmp_path / "saved")
    back = load_model(tmp_path / "saved")
    assert back.config == ours.config
    assert same_weights(back.state_dict(), ours.state_dict())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.settings() == ours.config
    assert same_weights(again.model.state_dict(), ours.state_dict())
    save_model(back, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (runs / variant / "model.safetensors").read_bytes()


def test_a_new_model_starts_as_ours_does(runs):
    config = AutoConfig.from_pretrained(runs / "ddl-tc")
    model = AutoModelForCausalLM.from_config(config)
    assert same_weights(model.model.state_dict(), LanguageModel(config.settings()).state_dict())


def test_config_answers_to_the_usual_names_and_writes_every_setting(runs, tmp_path):
    config = AutoConfig.from_pretrained(runs / "ddl-tc")
    assert isinstance(config, DDLConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 2)
    assert (config.max_position_embeddings, config.vocab_size) == (48, VOCABULARY)
    config.save_pretrained(tmp_path)
    written, trained = (json.loads((path / "config.json").read_text()) for path in (tmp_path, runs / "ddl-tc"))
    assert trained.items() <= written.items()
    assert config == AutoConfig.from_pretrained(runs / "ddl-tc")
    assert config != AutoConfig.from_pretrained(runs / "ddl-cc")


def test_what_users_of_transformers_set_on_a_config_does_not_spoil_the_file(runs, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-tc")
    model.config.pad_token_id, model.config.use_cache = 0, True
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path).config == AutoModelForCausalLM.from_pretrained(tmp_path).config.settings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 96}, r"config\.json: unknown key widht"),
        ({"width": "96"}, r"config\.json: width: expected int, found '96'"),
        ({"heads": 5}, r"config\.json: heads: 5 does not divide width 24"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_both_sides(copied, change, message):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=message):
        load_model(copied)
    for auto in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ConfigError, match=message):
            auto.from_pretrained(copied)


def test_weights_that_are_missing_or_left_over_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    kernel = weights.pop("compress.kernel")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match=r"missing_keys.*compress\.kernel"):
        AutoModelForCausalLM.from_pretrained(copied)
    weights |= {"compress.kernel": kernel, "other": kernel.clone()}
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match=r"unexpected_keys.*other"):
        AutoModelForCausalLM.from_pretrained(copied)


@pytest.mark.parametrize("variant", SLUGS)
def test_greedy_generation_gives_the_same_text_with_and_without_the_cache_and_padding(runs, variant):
    model = AutoModelForCausalLM.from_pretrained(runs / variant)
    tokenizer = AutoTokenizer.from_pretrained(runs / variant)
    prompts = ["the", "the shape and the dtype", "array value"]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    texts = [
        tokenizer.batch_decode(model.generate(**batch, **settings, use_cache=use)[:, batch["input_ids"].shape[1] :])
        for use in (True, False)
    ]
    alone = [list(generate(model.model, tokenizer(text, return_tensors="pt")["input_ids"], 12)) for text in prompts]
    assert texts[0] == texts[1] == tokenizer.batch_decode([torch.cat(tokens, 1)[0] for tokens in alone])


def test_generation_ends_at_the_end_of_text_without_being_told(runs):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-cc")
    assert model.generation_config.eos_token_id == 0
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are equal, and argmax takes the first, token 0
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=9, do_sample=False).tolist() == [[5, 6, 0]]


def test_sampling_and_beams_give_the_same_with_and_without_the_cache(runs):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-tc")
    ids = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])
    for settings in ({"do_sample": True, "top_k": 20}, {"do_sample": False, "num_beams": 3}):
        found = []
        for use in (True, False):
            torch.manual_seed(0)
            found.append(model.generate(ids, max_new_tokens=12, eos_token_id=None, use_cache=use, **settings))
        assert torch.equal(*found)


def test_a_returned_cache_continues(runs):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-tc").eval()
    ids = torch.arange(30).reshape(1, 30)
    first = model(ids[:, :20], use_cache=True)
    assert first.past_key_values.get_seq_length() == 20
    later = model(ids[:, 20:], past_key_values=first.past_key_values, logits_to_keep=3).logits
    torch.testing.assert_close(later, model(ids).logits[:, -3:], rtol=0, atol=1e-5)
    assert model(ids).past_key_values is None


def test_what_the_cache_cannot_do_is_refused_in_a_sentence(runs):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-tc")
    ids = torch.tensor([[0, 5, 6]])
    with pytest.raises(TypeError, match="past_key_values: expected a DDLCache, found a DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids, assistant_model=model, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(B, T\)"):
        model(ids, attention_mask=torch.ones(1, 1, 3, 3))
    assert not hasattr(DDLCache(1), "crop")


def test_loss_is_the_models(runs):
    model = AutoModelForCausalLM.from_pretrained(runs / "ddl-cc")
    ids = torch.arange(2 * 20).reshape(2, 20)
    found = model(ids, labels=ids)
    torch.testing.assert_close(found.loss, model.model.loss(ids[:, :-1], ids[:, 1:]))
    as_tuple = model(ids, labels=ids, return_dict=False)
    assert torch.equal(as_tuple[0], found.loss)


@pytest.mark.parametrize("variant", SLUGS)
def test_half_precision_keeps_the_gates_in_single(runs, variant):
    model = AutoModelForCausalLM.from_pretrained(runs / variant, dtype=torch.bfloat16)
    single = AutoModelForCausalLM.from_pretrained(runs / variant)
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if ".gate.logit." in name}
    ids = torch.arange(20).reshape(1, 20)
    low, high = (m(ids).logits.log_softmax(-1) for m in (model, single))
    assert (low - high).abs().mean() < 0.2


def test_half_precision_keeps_those_parts_of_a_new_rule_in_single_that_it_names(tiny_config, tmp_path, monkeypatch):
    class Gated(Rule):
        fp32 = ("scale",)

        def __init__(self, config):
            super().__init__()
            self.gate, self.scale = (torch.nn.Linear(config.width, 1) for _ in range(2))

        def forward(self, X, x_in, c, h):
            return X + (torch.sigmoid(self.gate(c)) * self.scale(c.float())).to(X.dtype) * h

    monkeypatch.setitem(RULES, "gated", Gated)
    save_model(LanguageModel(tiny_config("baseline", residual="gated")), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if ".scale." in name}
    assert model(torch.arange(10).reshape(1, 10)).logits.isfinite().all()


def test_the_tokenizer_of_a_run_is_the_one_it_was_trained_with(runs):
    theirs, ours = AutoTokenizer.from_pretrained(runs / "ddl-cc"), load_tokenizer(runs / "tokenizer.json")
    for text in (TEXT, f"a text that spells {END_OF_TEXT} out", "déjà  vu\n\n\tx"):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 0)
    assert theirs.padding_side == "left"


def test_importing_the_module_registers_the_model_with_transformers(runs):
    """The import runs in a new process, where nothing else has imported the module."""
    code = (
        "import sys, transformers, ddl.model.run_files, ddl.training.run\n"
        "assert 'ddl' not in transformers.models.auto.configuration_auto.CONFIG_MAPPING\n"
        "import ddl.model.transformers_model\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(runs / 'ddl-tc')!r})\n"
        "assert type(model).__name__ == 'DDLForCausalLM'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
