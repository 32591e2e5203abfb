"""Tokenizers, in the JSON format of the `tokenizers` library.

- `bpe`: byte-level byte-pair encoding trained on the training split only. Id 0 is the end-of-text token.
- `gpt2`: the published tokenizer, from the Hugging Face hub at a pinned revision; its end-of-text token is 50256.

Either may be read from local files instead (`tokenizer.path`).

`save_tokenizer` writes the tokenizer beside a model, in the files that `AutoTokenizer` of transformers reads.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ddl.config import TokenizerConfig
from ddl.errors import UserError
from ddl.files import atomic, write_json

END_OF_TEXT = "<|endoftext|>"
GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_TOKENS = 50_257


class TokenizerError(UserError):
    """A tokenizer that cannot be made or read; the message names the fault."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` tokens: the end-of-text token, the 256 bytes, the merges.

    Raises:
        TokenizerError: the texts contain too few different pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"the training text is too small for tokenizer.vocab_size {vocab_size}: "
            f"it gives {tokenizer.get_vocab_size()} tokens"
        )
    return _plain(tokenizer)


def ready_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer at `config.path`, or the published one for "gpt2"; None if it has to be trained.

    Raises:
        TokenizerError: the tokenizer cannot be found or read, or does not have the expected size.
    """
    if config.path:
        where, tokenizer = config.path, read_tokenizer(Path(config.path))
    elif config.name == "gpt2":
        downloaded = download_gpt2()
        where, tokenizer = str(downloaded), load_tokenizer(downloaded)
    else:
        return None
    found = tokenizer.get_vocab_size()
    if config.name == "gpt2" and found != GPT2_TOKENS:
        raise TokenizerError(f"{where}: expected the {GPT2_TOKENS} tokens of GPT-2, found {found}")
    if found > config.vocab_size:
        raise TokenizerError(f"{where}: tokenizer.vocab_size is {config.vocab_size}, found {found} tokens")
    return tokenizer


def download_gpt2() -> Path:
    """Path of GPT-2's tokenizer.json at the pinned revision, from the hub's cache or downloaded.

    Raises:
        TokenizerError: it is not cached and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(GPT2_REPOSITORY, "tokenizer.json", revision=GPT2_REVISION))
    except OSError as error:
        raise TokenizerError(
            f"the GPT-2 tokenizer cannot be downloaded ({type(error).__name__}): put tokenizer.json, or vocab.json and "
            f"merges.txt, of {GPT2_REPOSITORY} at revision {GPT2_REVISION} into a folder and set tokenizer.path to it"
        ) from None


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or a folder that holds one or the vocab.json and merges.txt of a byte-level BPE.

    Raises:
        TokenizerError: as for `load_tokenizer`.
    """
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    if not path.is_dir():
        return load_tokenizer(path)
    if not vocabulary.is_file() or not merges.is_file():
        return load_tokenizer(path / "tokenizer.json")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{path}: not a byte-level BPE: {' '.join(str(error).split())}") from None
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise TokenizerError(f"{vocabulary}: expected a token {END_OF_TEXT}, found none")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return _plain(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        TokenizerError: the file is missing, is not a tokenizer, or has no end-of-text token.
    """
    if not path.is_file():
        raise TokenizerError(f"{path}: no such tokenizer file")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from None
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise TokenizerError(f"{path}: expected a token {END_OF_TEXT}, found none")
    return _plain(tokenizer)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id of the token that starts each document."""
    identifier = tokenizer.token_to_id(END_OF_TEXT)
    assert identifier is not None, "load_tokenizer and train_bpe ensure this token"
    return identifier


def save_tokenizer(path: Path, directory: Path) -> None:
    """Copy a tokenizer.json into a folder, and write the configuration files that transformers reads beside it.

    The end-of-text token begins, ends and pads a document. Padding is on the left, as generation needs it.

    Args:
        path: the tokenizer.json.
        directory: where `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` are written.

    Raises:
        TokenizerError: as for `load_tokenizer`.
    """
    identifier = end_of_text_id(load_tokenizer(path))
    with atomic(directory / "tokenizer.json") as temporary:
        temporary.write_bytes(path.read_bytes())
    roles = ("bos_token", "eos_token", "pad_token")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(roles, END_OF_TEXT),
            "padding_side": "left",
            "split_special_tokens": True,  # like `_plain`: a text that spells out the token stays text
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    write_json(directory / "generation_config.json", {f"{role}_id": identifier for role in roles})


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Encode a text that spells out the end-of-text token, as documentation does, as text and not as that token."""
    tokenizer.encode_special_tokens = True
    return tokenizer
