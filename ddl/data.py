"""Token shards: make them from a corpus, check them, and cut them into training sequences.

`python -m ddl.data --scale laptop --out results/laptop/data` reads the corpus of the scale, splits it by document,
makes the tokenizer and writes

    documents/{train,val}.jsonl    {"id", "source", "text"} a line; not for streamed corpora
    tokenizer.json
    {train,val}_000000.bin ...     shards in the format of llm.c and modded-nanogpt
    manifest.json                  what the others are, with their SHA-256; written last

A shard is 256 little-endian int32 (20240520, version 1, number of tokens, zeros) and then the tokens as uint16. Every
document starts with the end-of-text token; a document may go on in the next shard.

Shards made elsewhere in this format can be used as they are: put them and the tokenizer.json they were made with into
the data folder and write a manifest.json with
`"tokenizer": {"name", "vocab_size", "file", "sha256"}`,
`"splits": {"train": {"tokens", "shards": [{"file", "tokens", "sha256"}, ...]}, "val": {...}}`.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from ddl.config import ConfigError, Scale, load_scale, to_mapping
from ddl.corpus import CorpusError, Document, read_corpus, stream_dataset
from ddl.dedup import NEAR_DEFINITION, STREAM_DEFINITION, Split, in_validation, split_documents, text_key
from ddl.provenance import atomic, provenance, sha256_file, user_errors, write_json
from ddl.tokenizer import TokenizerError, download_gpt2, end_of_text_id, load_tokenizer, train_bpe

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
SPLITS = ("train", "val")
ENCODE_DOCUMENTS = 256  # documents a call of the tokenizer
FULL_CHECK_BYTES = 2**30  # of one split


class DataError(ValueError):
    """Token data that is missing, damaged or of another kind: the message names the file."""


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens (integers in [0, 65535]) as one shard."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, dtype="<u2").data)


def open_shard(path: Path) -> np.ndarray:
    """Map the tokens of a shard read-only, after checking its header and size.

    Returns:
        uint16 [tokens], on disk.

    Raises:
        DataError: naming the shard and what is wrong with it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such shard")
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise DataError(f"{path}: truncated: expected a header of {HEADER_BYTES} bytes, found {size} bytes")
    magic, version, count = (int(value) for value in np.fromfile(path, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{path}: not a token shard: expected magic number {MAGIC}, found {magic}")
    if version != VERSION:
        raise DataError(f"{path}: unsupported shard version: expected {VERSION}, found {version}")
    if count < 1 or size != HEADER_BYTES + 2 * count:
        raise DataError(
            f"{path}: damaged: the header counts {count} tokens, the file holds {(size - HEADER_BYTES) / 2:g}"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def read_shard(path: Path, vocab_size: int) -> np.ndarray:
    """`open_shard`, and every token is checked to be below `vocab_size`.

    Raises:
        DataError: naming the shard and what is wrong with it.
    """
    tokens = open_shard(path)
    _check_range(tokens, vocab_size, path)
    return tokens


def _check_range(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise DataError(f"{path}: expected tokens below the vocabulary size {vocab_size}, found {largest}")


class ShardWriter:
    """Collects tokens and writes `<split>_000000.bin`, ... of exactly `shard_tokens` tokens, the last one shorter."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.tokens = 0
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0

    def write(self, tokens: np.ndarray) -> None:
        """Add tokens, uint16 [n]."""
        self.tokens += len(tokens)
        while len(tokens):
            part, tokens = np.split(tokens, [self.shard_tokens - self._pending_tokens])
            self._pending.append(part)
            self._pending_tokens += len(part)
            if self._pending_tokens == self.shard_tokens:
                self._flush()

    def close(self) -> None:
        """Write the last shard and remove higher-numbered ones of an earlier build.

        Raises:
            DataError: there are no tokens at all.
        """
        if self._pending:
            self._flush()
        if not self.shards:
            raise DataError(f"the {self.split} split is empty: the corpus is too small for corpus.val_fraction")
        for path in self.folder.glob(f"{self.split}_*.bin"):
            if re.fullmatch(r".*_\d{6}\.bin", path.name) and path.name > self.shards[-1]["file"]:
                path.unlink()

    def _flush(self) -> None:
        tokens = np.concatenate(self._pending)
        path = self.folder / f"{self.split}_{len(self.shards):06d}.bin"
        write_shard(path, tokens)
        self.shards.append({"file": path.name, "tokens": len(tokens), "sha256": sha256_file(path)})
        self._pending, self._pending_tokens = [], 0


# ---------------------------------------------------------------------------------------------------------------------
# Sequences


def load_manifest(path: Path) -> dict[str, Any]:
    """Read and check the structure of a data manifest; see the module for what it holds.

    Raises:
        DataError: no such file, or a key that is missing.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["tokenizer"]["vocab_size"], manifest["tokenizer"]["file"], manifest["tokenizer"]["sha256"]
        for split in SPLITS:
            for shard in manifest["splits"][split]["shards"]:
                shard["file"], shard["tokens"], shard["sha256"]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: `python -m ddl.data` makes it") from None
    except KeyError as error:
        raise DataError(f"{path}: missing key {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a data manifest: {error}") from None
    return manifest


class TokenSequences:
    """The sequences of one split: windows of `sequence_length + 1` tokens that start every `sequence_length` tokens.

    Input and target of a window are its tokens without the last and without the first. Windows do not cross shards;
    up to `sequence_length` tokens at the end of a shard are not used.
    """

    def __init__(self, manifest_path: Path, split: str, sequence_length: int) -> None:
        """Open the shards and check them against the manifest.

        A split of up to `FULL_CHECK_BYTES` is read once: checksum and token range of every shard. Of a larger one
        only headers and sizes are checked here, because reading 100 GB would delay every start by minutes; the token
        range is then checked batch by batch.

        Raises:
            DataError: a shard is missing, damaged or not the one of the manifest, or there is no whole sequence.
        """
        manifest = load_manifest(manifest_path)
        if split not in SPLITS:
            raise DataError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.sequence_length = sequence_length
        entries = manifest["splits"][split]["shards"]
        full = sum(2 * entry["tokens"] for entry in entries) <= FULL_CHECK_BYTES
        self._paths = [manifest_path.parent / entry["file"] for entry in entries]
        self._shards = [
            _open_listed(path, entry, self.vocab_size, full) for path, entry in zip(self._paths, entries, strict=True)
        ]
        self._ends = np.cumsum([(len(shard) - 1) // sequence_length for shard in self._shards])
        if not len(self):
            raise DataError(f"{manifest_path}: the {split} split has no sequence of {sequence_length} + 1 tokens")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the sequences `indices`, each int64 [len(indices), sequence_length].

        Raises:
            IndexError: an index outside [0, len(self)).
            DataError: a token outside the vocabulary.
        """
        windows = [self._window(int(index)) for index in indices]
        tokens = torch.from_numpy(np.array(windows, dtype=np.int64).reshape(-1, self.sequence_length + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _window(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = index - (int(self._ends[shard - 1]) if shard else 0)
        start = first * self.sequence_length
        window = self._shards[shard][start : start + self.sequence_length + 1]
        _check_range(window, self.vocab_size, self._paths[shard])
        return window


def _open_listed(path: Path, entry: dict[str, Any], vocab_size: int, full: bool) -> np.ndarray:
    """Open a shard that a manifest lists and check that it is the listed one."""
    tokens = open_shard(path)
    if len(tokens) != entry["tokens"]:
        raise DataError(f"{path}: expected {entry['tokens']} tokens (manifest.json), found {len(tokens)}")
    if full:
        _check_range(tokens, vocab_size, path)
        found = sha256_file(path)
        if found != entry["sha256"]:
            raise DataError(f"{path}: expected SHA-256 {entry['sha256']} (manifest.json), found {found}")
    return tokens


def sequence_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on the arguments and nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(count)


def token_counts(manifest_path: Path) -> np.ndarray:
    """How often each token occurs in the training split, int64 [vocab_size].

    Raises:
        DataError: a shard is missing, damaged or not the one of the manifest.
    """
    manifest = load_manifest(manifest_path)
    vocab_size = manifest["tokenizer"]["vocab_size"]
    counts = np.zeros(vocab_size, dtype=np.int64)
    for entry in manifest["splits"]["train"]["shards"]:
        tokens = _open_listed(manifest_path.parent / entry["file"], entry, vocab_size, full=True)
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# Making them


@dataclass
class _SplitTotals:
    """What the manifest says of a split."""

    writer: ShardWriter
    documents: int = 0
    bytes: int = 0

    def entry(self) -> dict[str, Any]:
        totals = {"documents": self.documents, "bytes": self.bytes, "tokens": self.writer.tokens}
        return totals | {"shards": self.writer.shards}


@dataclass
class _Progress:
    """Prints lines with the seconds since the start."""

    start: float = field(default_factory=time.monotonic)

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self.start:6.1f} s] {line}", flush=True)


def build(scale: Scale, out: Path) -> dict[str, Any]:
    """Make the data of a scale in the folder `out`; returns the manifest.

    Raises:
        CorpusError, TokenizerError, DataError: see there.
    """
    say = _Progress()
    manifest_path = out / "manifest.json"
    manifest_path.unlink(missing_ok=True)  # until the new one is written, the folder is not a finished one
    corpus = scale.corpus
    if corpus.name == "fineweb-edu":
        if scale.tokenizer.name == "bpe":
            raise CorpusError("tokenizer.name: 'bpe' is trained on a corpus in memory, a streamed one needs 'gpt2'")
        tokenizer = download_gpt2()
        documents, deduplication = None, {"near_definition": STREAM_DEFINITION, "exact_removed": 0, "near_removed": 0}
        pairs = _split_stream(stream_dataset(corpus), corpus.val_fraction, deduplication)
    else:
        split = _read_and_split(scale, say)
        documents = {
            name: _write_documents(out / "documents" / f"{name}.jsonl", side)
            for name, side in (("train", split.train), ("val", split.val))
        }
        deduplication = {
            "near_definition": NEAR_DEFINITION,
            "exact_removed": split.exact_removed,
            "near_removed": split.near_removed,
        }
        tokenizer = _make_tokenizer(scale, split, say)
        # Validation first: the loop below ends when the training split is full.
        pairs = itertools.chain((("val", doc) for doc in split.val), (("train", doc) for doc in split.train))
    tokenizer_path = out / "tokenizer.json"
    with atomic(tokenizer_path) as temporary:
        tokenizer.save(str(temporary))
    totals = _write_tokens(scale, out, pairs, load_tokenizer(tokenizer_path), say)
    manifest = {
        "corpus": to_mapping(corpus),
        "tokenizer": {
            **to_mapping(scale.tokenizer),
            "file": tokenizer_path.name,
            "sha256": sha256_file(tokenizer_path),
            "end_of_text_id": end_of_text_id(tokenizer),
        },
        "splits": {name: totals[name].entry() for name in SPLITS},
        "deduplication": deduplication,
        "documents": documents,
        "provenance": provenance(),
    }
    write_json(manifest_path, manifest)
    say(
        f"{manifest_path}: "
        + ", ".join(f"{name} {part.documents:,} documents, {part.writer.tokens:,} tokens" for name, part in totals.items())
    )
    return manifest


def _read_and_split(scale: Scale, say: Callable[[str], None]) -> Split:
    say(f"reading {scale.corpus.name}: {', '.join(scale.corpus.packages) or scale.corpus.path}")
    documents = read_corpus(scale.corpus)
    size = sum(len(document.text.encode()) for document in documents)
    say(f"read {len(documents):,} documents, {size / 1e6:.1f} MB")
    split = split_documents(documents, scale.corpus.val_fraction)
    say(
        f"split: {len(split.train):,} training and {len(split.val):,} validation documents; "
        f"removed {split.exact_removed} exact and {split.near_removed} near duplicates"
    )
    for name, side in (("training", split.train), ("validation", split.val)):
        if not side:
            raise DataError(f"the {name} split has no documents: the corpus is too small for corpus.val_fraction")
    return split


def _make_tokenizer(scale: Scale, split: Split, say: Callable[[str], None]) -> Tokenizer:
    if scale.tokenizer.name == "gpt2":
        return download_gpt2()
    tokenizer = train_bpe((document.text for document in split.train), scale.tokenizer.vocab_size)
    say(f"trained a byte-level BPE of {scale.tokenizer.vocab_size:,} tokens on the training documents")
    return tokenizer


def _write_documents(path: Path, documents: list[Document]) -> dict[str, str]:
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            row = {"id": document.id, "source": document.source, "text": document.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"file": f"{path.parent.name}/{path.name}", "sha256": sha256_file(path)}


def _split_stream(
    documents: Iterable[Document], val_fraction: float, deduplication: dict[str, Any]
) -> Iterator[tuple[str, Document]]:
    """Split by hash as documents come; repeats in validation are dropped and counted in `deduplication`."""
    seen = set()
    for document in documents:
        key = text_key(document.text)
        if not in_validation(key, val_fraction):
            yield "train", document
        elif key in seen:
            deduplication["exact_removed"] += 1
        else:
            seen.add(key)
            yield "val", document


def _write_tokens(
    scale: Scale, out: Path, pairs: Iterable[tuple[str, Document]], tokenizer: Tokenizer, say: Callable[[str], None]
) -> dict[str, _SplitTotals]:
    """Tokenise (split, document) pairs into shards, until they end or `max_train_tokens` are written."""
    totals = {name: _SplitTotals(ShardWriter(out, name, scale.corpus.shard_tokens)) for name in SPLITS}
    start = np.array([end_of_text_id(tokenizer)], dtype="<u2")
    limit = scale.corpus.max_train_tokens or float("inf")
    said = time.monotonic()
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, ENCODE_DOCUMENTS)):
        encodings = tokenizer.encode_batch_fast([document.text for _, document in chunk], add_special_tokens=False)
        for (name, document), encoding in zip(chunk, encodings, strict=True):
            part = totals[name]
            tokens = np.concatenate([start, np.array(encoding.ids, dtype="<u2")])
            if name == "train":
                tokens = tokens[: int(min(len(tokens), limit - part.writer.tokens))]
            if len(tokens):
                part.writer.write(tokens)
                part.documents += 1
                part.bytes += len(document.text.encode())
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"tokenised {totals['train'].writer.tokens:,} training tokens")
        if totals["train"].writer.tokens >= limit:
            break
    for part in totals.values():
        part.writer.close()
    return totals


def main(argv: list[str] | None = None) -> None:
    """Make the documents, the tokenizer and the token shards of a scale."""
    parser = argparse.ArgumentParser(prog="python -m ddl.data", description=main.__doc__)
    parser.add_argument("--scale", required=True, help="name of a file in config/scales")
    parser.add_argument("--out", required=True, type=Path, help="the data folder")
    arguments = parser.parse_args(argv)
    with user_errors(ConfigError, CorpusError, TokenizerError, DataError):
        build(load_scale(arguments.scale), arguments.out)


if __name__ == "__main__":
    main()
