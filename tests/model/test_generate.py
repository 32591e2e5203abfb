"""Incremental decoding gives the same logits as the whole sequence, for every variant; the command prints the text."""

import pytest
import torch

from ddl.data.tokenizer import save_tokenizer, train_bpe
from ddl.layout import ROOT
from ddl.model.cache import Cache, CacheError
from ddl.model.generate import WARM_UP, GenerationError, generate, report
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import save_model
from tests.helpers.command import ddl
from tests.model.test_language_model import GENERATORS, SLUGS, perturbed, random_ids

NEAR = {"rtol": 0, "atol": 1e-5}
DESIGNS = [(slug, generators) for slug in SLUGS for generators in (GENERATORS if slug != "baseline" else [{}])]


@pytest.fixture(scope="module")
def build(tiny_config):
    """A function that builds a model with perturbed weights; keyword arguments override the variant's settings."""

    def make(variant, **overrides):
        return perturbed(LanguageModel(tiny_config(variant, **overrides))).eval().requires_grad_(False)

    return make


def in_parts(model, ids, lengths, real=None):
    """The logits of ids that are read in parts of the given lengths, one call per part, with one cache."""
    cache = Cache(model.config.layers)
    masks = real.split(lengths, 1) if real is not None else [None] * len(lengths)
    hidden = [model.hidden(part, mask, cache) for part, mask in zip(ids.split(lengths, 1), masks, strict=True)]
    return model.logits(torch.cat(hidden, 1))


@pytest.mark.parametrize("variant", SLUGS)
def test_token_by_token_gives_the_logits_of_the_whole_sequence(build, variant):
    model = build(variant)
    ids = random_ids(model.config)
    torch.testing.assert_close(in_parts(model, ids, [1] * 16), model(ids), **NEAR)


@pytest.mark.parametrize("lengths", [[5, 1, 1, 7, 2], [2, 2, 12], [1, 15]], ids=str)
@pytest.mark.parametrize("variant", SLUGS)
def test_prompt_and_chunks_give_the_logits_of_the_whole_sequence(build, variant, lengths):
    model = build(variant)
    ids = random_ids(model.config)
    torch.testing.assert_close(in_parts(model, ids, lengths), model(ids), **NEAR)


@pytest.mark.parametrize(("variant", "generators"), DESIGNS, ids=str)
@pytest.mark.parametrize("lengths", [[16], [1] * 16, [6, 1, 4, 1, 4]], ids=["whole", "tokens", "chunks"])
def test_padding_on_the_left_changes_no_logits(build, variant, generators, lengths):
    model = build(variant, **generators)
    ids = random_ids(model.config)
    real = torch.arange(16) >= torch.tensor([[0], [3], [9]])
    expected = [model(row[mask].unsqueeze(0))[0] for row, mask in zip(ids, real, strict=True)]
    for padding in (0, 7):
        found = in_parts(model, ids.where(real, padding), lengths, real)
        for row, mask, logits in zip(found, real, expected, strict=True):
            torch.testing.assert_close(row[mask], logits, **NEAR)


def test_padding_without_a_cache_changes_no_logits_on_either_side(build):
    model = build("ddl-tc")
    ids = random_ids(model.config)
    for real in (torch.arange(16) >= torch.tensor([[0], [3], [9]]), torch.arange(16) < torch.tensor([[16], [5], [9]])):
        found = model.logits(model.hidden(ids, real))
        for row, mask, logits in zip(ids, real, found, strict=True):
            torch.testing.assert_close(logits[mask], model(row[mask].unsqueeze(0))[0], **NEAR)


def test_every_row_of_a_mask_attends_to_something():
    ids, real = torch.zeros(2, 6, dtype=torch.long), torch.arange(6) >= torch.tensor([[0], [4]])
    cache = Cache(1)
    for part, mask in zip(ids.split(2, 1), real.split(2, 1), strict=True):
        assert cache.advance(part, mask)[1].any(-1).all()  # some attention kernels give NaN otherwise, and NaN spreads


def test_no_mask_later_means_no_padding_later(build):
    model = build("ddl-tc")
    ids = random_ids(model.config)
    real = torch.arange(16) >= torch.tensor([[0], [3], [9]])
    cache = Cache(model.config.layers)
    model.hidden(ids[:, :12], real[:, :12], cache)
    later = model.hidden(ids[:, 12:], cache=cache)
    torch.testing.assert_close(later, model.hidden(ids, real)[:, 12:], **NEAR)


def test_tokens_after_padding_after_tokens_are_refused(build):
    model = build("ddl-tc")
    ids, cache = random_ids(model.config), Cache(model.config.layers)
    model.hidden(ids[:, :8], torch.arange(8) < torch.tensor([[8], [5], [8]]), cache)
    with pytest.raises(CacheError, match="padding: expected before the first token of a sequence"):
        model.hidden(ids[:, 8:9], cache=cache)


@pytest.mark.parametrize("variant", SLUGS)
def test_a_reordered_cache_continues_the_chosen_sequences(build, variant):
    model = build(variant)
    ids, rows = random_ids(model.config), torch.tensor([2, 0, 0])
    real = torch.arange(16) >= torch.tensor([[0], [3], [5]])
    cache = Cache(model.config.layers)
    model.hidden(ids[:, :10], real[:, :10], cache)
    cache.reorder(rows)
    found = model.hidden(ids[:, 10:], cache=cache)
    joined = torch.cat((ids[rows, :10], ids[:, 10:]), 1)
    torch.testing.assert_close(found, model.hidden(joined, real[rows])[:, 10:], **NEAR)


@pytest.mark.parametrize(("variant", "states"), [("baseline", 0), ("ddl-cc", 0), ("ddl-tc-noec", 5), ("ddl-tc", 5)])
def test_a_cache_keeps_what_the_kernels_reach_and_no_more(build, variant, states):
    model = build(variant)
    config, cache = model.config, Cache(model.config.layers)
    model.hidden(random_ids(config), cache=cache)
    blocks = [window for block in cache.blocks for window in (block.attention_input, block.mlp_input)]
    kept = [window.rows for window in (*blocks, cache.readout) if window.rows is not None]
    assert len(kept) == states
    bytes_of_one = 3 * (config.compressor_kernel - 1) * config.width * config.value_channels * 4
    assert all(rows.untyped_storage().nbytes() == bytes_of_one for rows in kept)
    assert (cache.embedding.rows is not None) == config.embed_conv


def test_more_tokens_than_the_model_can_read_are_refused_with_a_cache_too(build):
    model = build("ddl-tc")
    ids, cache = random_ids(model.config), Cache(model.config.layers)
    model.hidden(ids, cache=cache)
    with pytest.raises(ValueError, match="expected at most 16 tokens, found 17"):
        model.hidden(ids[:, :1], cache=cache)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("variant", SLUGS)
def test_generation_is_the_same_with_and_without_the_cache(build, variant, temperature):
    model = build(variant)
    ids = random_ids(model.config)[:, :4]
    runs = [list(generate(model, ids, 13, temperature, seed=3, use_cache=use)) for use in (True, False)]
    assert torch.equal(torch.cat(runs[0], 1), torch.cat(runs[1], 1))


def test_draws_follow_the_seed_and_the_temperature(build):
    model = build("ddl-cc")
    ids = random_ids(model.config)[:, :4]

    def draw(temperature, seed):
        return torch.cat(list(generate(model, ids, 12, temperature, seed)), 1)

    assert torch.equal(draw(1.0, 0), draw(1.0, 0))
    assert not torch.equal(draw(1.0, 0), draw(1.0, 1))
    assert torch.equal(draw(1e-4, 0), draw(0.0, 0))


def test_generation_fills_the_sequence_and_no_more(build):
    model = build("ddl-cc")
    ids = random_ids(model.config)[:, :4]
    assert len(list(generate(model, ids, 13))) == 13
    with pytest.raises(GenerationError, match="tokens: expected at most 13 after a prompt of 4, found 14"):
        generate(model, ids, 14)
    with pytest.raises(GenerationError, match="prompt: expected at most 16 tokens, found 20"):
        generate(model, ids.repeat(1, 5), 1)


@pytest.fixture(scope="module")
def run(build, tmp_path_factory):
    """A run directory with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    train_bpe(["the return value, the shape and the dtype of an array"], 262).save(str(folder / "made.json"))
    save_tokenizer(folder / "made.json", folder)
    save_model(build("ddl-tc", vocab_size=262, sequence_length=64), folder)
    return folder


def test_the_command_prints_the_text_how_it_was_chosen_and_the_speed(run, capsys):
    printed = []
    for settings in ([], ["--seed", 1], ["--temperature", 0], ["--temperature", 0, "--no-cache"]):
        ddl("generate", "--run", run, "--prompt", "the é value", "--tokens", 20, *settings)
        printed.append(capsys.readouterr().out.splitlines())
        assert printed[-1][0].startswith("the é value")
    texts, said = [lines[:-1] for lines in printed], [lines[-1] for lines in printed]
    assert texts[2] == texts[3]
    assert len({str(text) for text in texts}) == 3
    assert all(" tokens, sampled at temperature 0.8 with seed " in line for line in said[:2])
    assert all(" tokens, the most likely ones; " in line for line in said[2:])
    assert said[2].endswith(f" tokens/s with the cache after the first {WARM_UP}]")
    assert said[3].endswith(f" tokens/s without the cache after the first {WARM_UP}]")


def test_the_speed_leaves_out_the_first_tokens_and_is_not_said_of_too_few():
    times = [9.0, 9.5, 9.6, 9.7, 10.0, 10.5, 11.0]
    assert report(times, 0, 0, True) == "7 tokens, the most likely ones; 2 tokens/s with the cache after the first 4"
    assert report(times[:5], 0.5, 3, True) == "5 tokens, sampled at temperature 0.5 with seed 3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", 0], "Invalid value for '--tokens': 0 is not in the range x>=1."),
        (["--tokens", 64], "tokens: expected at most 62 after a prompt of 3, found 64"),
        (["--temperature", -1], "Invalid value for '--temperature': -1.0 is not in the range x>=0."),
        (["--temperature", "inf"], "Invalid value for '--temperature': inf is not a finite number."),
        (["--run", "nowhere"], "Invalid value for '--run': Directory 'nowhere' does not exist."),
        (["--run", "tests"], "tests/config.json: not found, expected a trained model"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line(run, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    ddl("generate", "--run", run, "--prompt", "ab", *arguments, code=2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")
