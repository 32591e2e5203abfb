"""Tokenizers are lossless, repeatable and of exactly the requested size; errors name what is missing."""

import random
import re

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, models

from ddl.config import TokenizerConfig
from ddl.data import tokenizer as tokenizer_module
from ddl.data.tokenizer import (
    END_OF_TEXT,
    GPT2_REVISION,
    TokenizerError,
    end_of_text_id,
    load_tokenizer,
    read_tokenizer,
    ready_tokenizer,
    train_bpe,
)
from tests.helpers.fineweb import VOCAB, prose, write_gpt2_files


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(0)
    stems = ["direction", "gate", "value", "residual", "householder", "readout", "the", "of", "a"]
    return [" ".join(generator.choice(stems) for _ in range(60)) + f"\n    {row}." for row in range(40)]


def test_bpe_has_exactly_the_size_asked_for_and_end_of_text_first(texts):
    tokenizer = train_bpe(texts, 300)
    assert tokenizer.get_vocab_size() == 300
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    assert end_of_text_id(tokenizer) == 0


def test_bpe_round_trip_is_lossless_for_any_text(texts):
    tokenizer = train_bpe(texts, 300)
    for text in [*texts, "", "  two  spaces\t\r\n\n", "naïve Ω 漢字 🙂 \x00", "a" * 500, "UNSEEN {}[]"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_bpe_training_is_repeatable(texts):
    assert train_bpe(texts, 320).to_str() == train_bpe(iter(texts), 320).to_str()


def test_end_of_text_spelled_out_in_a_text_is_text(texts, tmp_path):
    made = train_bpe(texts, 300)
    made.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (made, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(f"a {END_OF_TEXT} b").ids
        assert end_of_text_id(tokenizer) not in ids
        assert tokenizer.decode(ids) == f"a {END_OF_TEXT} b"


def test_too_little_text_for_the_vocabulary_is_refused():
    with pytest.raises(TokenizerError, match=r"too small for tokenizer.vocab_size 4096: it gives \d+ tokens"):
        train_bpe(["few words"], 4096)


def test_unreadable_tokenizer_files_are_refused_by_name(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such tokenizer file"):
        load_tokenizer(path)
    path.write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_tokenizer(path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(TokenizerError, match=re.escape(f"expected a token {END_OF_TEXT}, found none")):
        load_tokenizer(path)


def test_gpt2_without_a_network_says_which_files_to_put_where(monkeypatch):
    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(TokenizerError) as error:
        ready_tokenizer(TokenizerConfig("gpt2", 50_304))
    assert str(error.value) == (
        "the GPT-2 tokenizer cannot be downloaded (LocalEntryNotFoundError): put tokenizer.json, or vocab.json and "
        f"merges.txt, of openai-community/gpt2 at revision {GPT2_REVISION} into a folder and set tokenizer.path to it"
    )


def test_gpt2_is_asked_for_at_its_revision_and_checked(monkeypatch, tmp_path):
    asked = []

    def served(repository, name, revision):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", served)
    words = {f"w{row}": row for row in range(tokenizer_module.GPT2_TOKENS - 1)} | {END_OF_TEXT: 50_256}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    assert end_of_text_id(ready_tokenizer(TokenizerConfig("gpt2", 50_304))) == 50_256
    assert asked == [("openai-community/gpt2", "tokenizer.json", GPT2_REVISION)]

    Tokenizer(models.WordLevel({END_OF_TEXT: 0}, unk_token=END_OF_TEXT)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="expected the 50257 tokens of GPT-2, found 1"):
        ready_tokenizer(TokenizerConfig("gpt2", 50_304))


def test_vocabulary_and_merges_give_the_same_tokens_as_the_tokenizer_they_are_of(tmp_path):
    original = train_bpe([prose(seed) for seed in range(30)], VOCAB)
    original.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(write_gpt2_files(tmp_path / "gpt2"))
    assert read.get_vocab_size() == VOCAB
    assert end_of_text_id(read) == VOCAB - 1
    assert read.decode([VOCAB - 1]) == original.decode([0]) == ""  # a special token
    for text in (prose(99), f" two  spaces\n{END_OF_TEXT} naïve 漢字"):
        assert [token - 1 for token in original.encode(text).ids] == read.encode(text).ids
        assert read.decode(read.encode(text).ids) == text
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert read_tokenizer(place).to_str() == original.to_str()


def test_tokenizer_files_of_ones_own_that_do_not_fit_are_refused_by_name(tmp_path):
    folder = write_gpt2_files(tmp_path / "gpt2")
    with pytest.raises(TokenizerError, match=r"gpt2: tokenizer\.vocab_size is 257, found 300 tokens"):
        ready_tokenizer(TokenizerConfig("bpe", 257, path=str(folder)))
    (folder / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(TokenizerError, match=r"gpt2: not a byte-level BPE: "):
        read_tokenizer(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match=re.escape(f"vocab.json: expected a token {END_OF_TEXT}, found none")):
        read_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"gpt2/tokenizer\.json: no such tokenizer file"):
        read_tokenizer(folder)
