"""Build token data from a corpus: documents, tokenizer, shards, and the manifest that lists them.

`ddl data --scale laptop --out results/laptop/data` reads the corpus of the scale, splits it by document,
makes the tokenizer and writes

    documents/{train,val}.jsonl    one {"id", "source", "text"} per line; only for corpora that fit in memory
    tokenizer.json
    {train,val}_000000.bin ...     shards in the format of llm.c and modded-nanogpt
    journal.json                   the finished shards; an interrupted build continues after the last of them
    manifest.json                  documents, tokenizer and shards with their SHA-256; written last

Every document starts with the end-of-text token and may continue in the next shard. The shards depend only on the
settings and the documents: neither the number of processes nor interruptions change them.

The corpus `shards` consists of shards in this format that were made elsewhere. They are checked and listed, and stay
where they are.
"""

import glob
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddl.code_identity import code_identity
from ddl.config import DocumentCorpus, ParquetDataset, Scale, TokenShards, changed_settings, to_mapping
from ddl.data.documents import Document, given_validation, read_corpus
from ddl.data.parallel_encode import Batch, Texts, encode_in_order
from ddl.data.parquet_blocks import open_dataset
from ddl.data.shard_format import DataError, read_shard
from ddl.data.shard_writer import Journal, Place, SplitWriter
from ddl.data.tokenizer import TokenizerError, end_of_text_id, ready_tokenizer, train_bpe
from ddl.data.train_val_split import split_documents, text_key
from ddl.files import atomic, sha256_file, write_json, write_text
from ddl.layout import SPLITS
from ddl.provenance import provenance

BATCH_DOCUMENTS = 256  # documents per batch, for a corpus in memory
PROGRESS_SECONDS = 10
STREAM_DEFINITION = (
    "exact: documents that agree up to case and white space; the stream has a fixed random order and begins with "
    "validation, which keeps one copy of each; a training document that agrees with a validation document is removed "
    "(repeats within training are kept); near: none removed"
)


class _Progress:
    """Prints a line with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {line}", flush=True)


def build(scale: Scale, out: Path, workers: int, restart: bool = False) -> dict[str, Any]:
    """Build the data of a scale in the folder `out` with `workers` processes, and return the manifest.

    Args:
        restart: whether finished shards of a large corpus may be replaced where settings, sources or code have changed;
            those of a small one always are.

    Raises:
        CorpusError: the corpus cannot be read or is not the expected one.
        TokenizerError: the tokenizer cannot be made.
        DataError: a split is empty, existing shards are missing, damaged or listed in both splits, or finished ones
            would be replaced without `restart`.
    """
    manifest_path = out / "manifest.json"
    if restart or not scale.corpus.large:  # otherwise `start` removes it, once no finished shard would be lost
        manifest_path.unlink(missing_ok=True)  # a folder without a manifest is unfinished
    for leftover in out.glob(".*.tmp"):  # left by a build that was killed
        leftover.unlink()
    work = _Build(scale, out, workers, restart, _Progress())
    work.say(f"reading {scale.corpus.name}: {scale.corpus.source}")
    parts = work.run()
    tokenizer_path = out / "tokenizer.json"
    manifest = {
        "corpus": to_mapping(scale.corpus),
        "tokenizer": {
            **to_mapping(scale.tokenizer),
            "file": tokenizer_path.name,
            "sha256": sha256_file(tokenizer_path),
            "end_of_text_id": work.end_of_text,
        },
        **parts,
        "provenance": provenance(),
    }
    write_json(manifest_path, manifest)
    splits = parts["splits"].items()
    sizes = [f"{name} {split['documents']:,} documents, {split['tokens']:,} tokens" for name, split in splits]
    work.say(f"wrote {manifest_path}: {'; '.join(sizes)}")
    return manifest


@dataclass
class _Build:
    """One build, from documents in memory, from a stream of documents, or from existing shards."""

    scale: Scale
    out: Path
    workers: int
    restart: bool
    say: Callable[[str], None]
    end_of_text: int = -1

    def run(self) -> dict[str, Any]:
        """Make the shards and return the manifest's entries "splits", "deduplication" and "documents"."""
        match self.scale.corpus:
            case DocumentCorpus() as corpus:
                return self.documents(corpus)
            case ParquetDataset() as corpus:
                return self.stream(corpus)
            case TokenShards() as corpus:
                return self.existing_shards(corpus)

    def documents(self, corpus: DocumentCorpus) -> dict[str, Any]:
        """Build from a corpus in memory: split by a hash, and remove near duplicates across the split."""
        documents = read_corpus(corpus)
        given = given_validation(corpus)
        size = sum(len(document.text.encode()) for document in [*documents, *(given or ())])
        self.say(f"read {len(documents) + len(given or ()):,} documents, {size / 1e6:.1f} MB")
        split = split_documents(documents, corpus.val_fraction, given)
        self.say(
            f"split: {len(split.train):,} training and {len(split.val):,} validation documents; "
            f"removed {split.exact_removed} exact and {split.near_removed} near duplicates"
        )
        sides = {"train": split.train, "val": split.val}
        for name, side in sides.items():
            if not side:
                how = f" with corpus.val_fraction {corpus.val_fraction:g}" if given is None else ""
                raise DataError(
                    f"the {name} split is empty: of {len(documents) + len(given or ()):,} documents{how}, "
                    f"{len(split.train):,} are left for training and {len(split.val):,} for "
                    f"validation, after {split.exact_removed:,} exact and {split.near_removed:,} near duplicates were "
                    "removed; expected one or more on both sides: use more documents, or cut long ones into several"
                    + (", and others in corpus.val_path than in corpus.path" if given is not None else "")
                )
        files = {name: _write_documents(self.out / "documents" / f"{name}.jsonl", sides[name]) for name in SPLITS}
        journal = self.start({"documents": files}, split.train)
        limits = {"train": corpus.max_train_tokens or sys.maxsize, "val": sys.maxsize}
        writers = {
            name: self.write(
                SplitWriter(journal, name, corpus.shard_tokens, limits[name], Place()),
                _batches(sides[name]),
                lambda key: True,
            )
            for name in SPLITS
        }
        return {
            "splits": {name: _entry(writers[name]) for name in SPLITS},
            "deduplication": split.report(),
            "documents": files,
        }

    def stream(self, corpus: ParquetDataset) -> dict[str, Any]:
        """Build from parquet files of any size: validation comes first, and training continues after it."""
        dataset = open_dataset(corpus)
        rows = sum(block.rows for block in dataset.blocks)
        self.say(f"found {rows:,} documents in {len(dataset.blocks):,} blocks")
        journal = self.start({"dataset": dataset.identity}, [])
        val = SplitWriter(journal, "val", corpus.shard_tokens, corpus.val_tokens, Place())
        held_out = _keys_before(dataset.blocks, val.place)

        def is_new(key: bytes) -> bool:
            known = key in held_out
            held_out.add(key)
            return not known

        self.write(val, dataset.blocks, is_new)
        after = Place(val.place.batch, val.place.document + 1)
        held_out = _keys_before(dataset.blocks, after)
        limit = corpus.max_train_tokens or sys.maxsize
        train = SplitWriter(journal, "train", corpus.shard_tokens, limit, after)
        self.write(train, dataset.blocks, lambda key: key not in held_out)
        removed = val.counts.removed + train.counts.removed
        return {
            "splits": {"train": _entry(train), "val": _entry(val)},
            "deduplication": {"near_definition": STREAM_DEFINITION, "exact_removed": removed, "near_removed": 0},
            "documents": None,
        }

    def existing_shards(self, corpus: TokenShards) -> dict[str, Any]:
        """List shards made elsewhere, after reading all their tokens once to check them."""
        self.start({}, [])
        paths = {}
        for name, pattern in (("train", corpus.train_shards), ("val", corpus.val_shards)):
            paths[name] = [Path(path).resolve() for path in sorted(glob.glob(pattern))]
            if not paths[name]:
                raise DataError(f"corpus.{name}_shards: no file matches {pattern}")
        if shared := set(paths["train"]).intersection(paths["val"]):
            raise DataError(f"{min(shared)}: listed in both corpus.train_shards and corpus.val_shards")
        splits = {}
        with ThreadPoolExecutor(self.workers) as pool:
            for name in SPLITS:
                found = list(pool.map(self._existing_shard, paths[name]))
                documents, shards = sum(count for count, _ in found), [shard for _, shard in found]
                tokens = sum(shard["tokens"] for shard in shards)
                splits[name] = {"documents": documents, "bytes": None, "tokens": tokens, "shards": shards}
                self.say(f"checked {len(shards)} {name} shards")
        return {"splits": splits, "deduplication": None, "documents": None}

    def _existing_shard(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Return the number of documents that start in a shard, and its manifest entry."""
        tokens = read_shard(path, self.scale.tokenizer.vocab_size)
        entry = {"file": str(path), "tokens": len(tokens), "sha256": sha256_file(path)}
        return int(np.count_nonzero(tokens == self.end_of_text)), entry

    def start(self, source: dict[str, Any], texts: Sequence[Document]) -> Journal:
        """Save the tokenizer, trained on `texts` if needed, and open the journal of the shards made from `source`."""
        config = self.scale.tokenizer
        tokenizer = ready_tokenizer(config)
        if tokenizer is None:
            if not texts:
                raise TokenizerError(
                    f"tokenizer.name: 'bpe' is trained on documents in memory: with the corpus "
                    f"{self.scale.corpus.name!r} expected 'gpt2', or a tokenizer.path to read a tokenizer from"
                )
            tokenizer = train_bpe((document.text for document in texts), config.vocab_size)
            self.say(f"trained a byte-level BPE of {config.vocab_size:,} tokens on the training documents")
        self.end_of_text = end_of_text_id(tokenizer)
        text = tokenizer.to_str(pretty=True)
        origin = {
            **source,
            "corpus": changed_settings(self.scale.corpus),
            "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
            "code": code_identity("ddl.data.build"),
        }
        journal = Journal(self.out / "journal.json", origin)
        if journal.conflict and self.scale.corpus.large and not self.restart:
            raise DataError(
                f"{journal.path}: {journal.conflict}; restore it to continue, or build all shards again with "
                "--restart (in the workflow: snakemake --config stale=restart)"
            )
        (self.out / "manifest.json").unlink(missing_ok=True)
        write_text(self.out / "tokenizer.json", text)
        return journal

    def write(self, writer: SplitWriter, batches: Sequence[Batch], wanted: Callable[[bytes], bool]) -> SplitWriter:
        """Tokenise the `wanted` documents into the shards of a split, until none are left or the split is full."""
        if writer.shards:
            self.say(f"{writer.split}: kept {len(writer.shards)} finished shards, {writer.tokens:,} tokens")
        first, kept, started = writer.place.batch, writer.tokens, time.monotonic()
        said = started
        todo = [] if writer.full else batches[first:]
        with closing(encode_in_order(todo, self.out / "tokenizer.json", self.workers)) as results:
            for number, encoded in enumerate(results, first):
                writer.write(number, encoded, wanted)
                if writer.full:
                    break
                now = time.monotonic()
                if now - said > PROGRESS_SECONDS:
                    said = now
                    done = max((number + 1 - first) / len(todo), (writer.tokens - kept) / (writer.limit - kept))
                    speed, left = (writer.tokens - kept) / (now - started), (now - started) * (1 / done - 1)
                    self.say(f"{writer.split}: {writer.tokens:,} tokens, {speed:,.0f}/s, {left / 60:.0f} min left")
        writer.close()
        return writer


def _entry(writer: SplitWriter) -> dict[str, Any]:
    """The manifest entry of a split."""
    counts = {"documents": writer.counts.documents, "bytes": writer.counts.bytes, "tokens": writer.tokens}
    return counts | {"shards": writer.shards}


def _batches(documents: list[Document]) -> list[Texts]:
    texts = [document.text for document in documents]
    return [Texts(tuple(texts[start : start + BATCH_DOCUMENTS])) for start in range(0, len(texts), BATCH_DOCUMENTS)]


def _keys_before(batches: Sequence[Batch], place: Place) -> set[bytes]:
    """The `text_key` of every document before the one at `place`."""
    keys: set[bytes] = set()
    for number, batch in enumerate(batches[: place.batch + 1]):
        texts = batch.texts()
        keys.update(map(text_key, texts if number < place.batch else texts[: place.document]))
    return keys


def _write_documents(path: Path, documents: list[Document]) -> dict[str, str]:
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            row = {"id": document.id, "source": document.source, "text": document.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"file": f"{path.parent.name}/{path.name}", "sha256": sha256_file(path)}
