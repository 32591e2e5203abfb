"""Tokenizers: lossless, repeatable, of exactly the size asked for, and clear about what is missing."""

import random
import re

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, models

from ddl import tokenizer as tokenizer_module
from ddl.tokenizer import (
    END_OF_TEXT,
    GPT2_REVISION,
    TokenizerError,
    download_gpt2,
    end_of_text_id,
    load_tokenizer,
    train_bpe,
)


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


def test_gpt2_without_a_network_says_which_file_to_put_where(monkeypatch):
    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(
        TokenizerError, match=f"hf download .*tokenizer.json --revision {GPT2_REVISION}.* to /.*"
    ) as error:
        download_gpt2()
    assert "\n" not in str(error.value)


def test_gpt2_is_asked_for_at_its_revision_and_checked(monkeypatch, tmp_path):
    asked = []

    def served(repository, name, revision):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", served)
    words = {f"w{row}": row for row in range(tokenizer_module.GPT2_TOKENS - 1)} | {END_OF_TEXT: 50_256}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    assert end_of_text_id(download_gpt2()) == 50_256
    assert asked == [("openai-community/gpt2", "tokenizer.json", GPT2_REVISION)]

    Tokenizer(models.WordLevel({END_OF_TEXT: 0}, unk_token=END_OF_TEXT)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="expected 50257 tokens, found 1"):
        download_gpt2()
