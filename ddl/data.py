"""Token data from a corpus: documents, tokenizer, shards and the manifest that names them all.

`python -m ddl.data --scale laptop --out results/laptop/data` reads the corpus of the scale, splits it by document,
makes the tokenizer and writes

    documents/{train,val}.jsonl    {"id", "source", "text"} a line; not for streamed corpora
    tokenizer.json
    {train,val}_000000.bin ...     shards in the format of llm.c and modded-nanogpt
    manifest.json                  what the others are, with their SHA-256; written last

Every document starts with the end-of-text token; a document may go on in the next shard.

Shards made elsewhere in this format (`ddl.shards`) can be used as they are: put them and the tokenizer.json they were
made with into the data folder and write a manifest.json with
`"tokenizer": {"name", "vocab_size", "file", "sha256"}` and
`"splits": {"train": {"tokens", "shards": [{"file", "tokens", "sha256"}, ...]}, "val": {...}}`.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ddl.config import ConfigError, CorpusConfig, Scale, load_scale, to_mapping
from ddl.corpus import CorpusError, Document, read_corpus, stream_dataset
from ddl.dedup import Split, StreamSplit, split_documents
from ddl.provenance import atomic, provenance, sha256_file, user_errors, write_json
from ddl.sequences import SPLITS
from ddl.shards import DataError, ShardWriter
from ddl.tokenizer import TokenizerError, download_gpt2, end_of_text_id, train_bpe

ENCODE_DOCUMENTS = 256  # documents a call of the tokenizer


@dataclass
class _Totals:
    """What the manifest says of a split."""

    writer: ShardWriter
    documents: int = 0
    bytes: int = 0

    def entry(self) -> dict[str, Any]:
        totals = {"documents": self.documents, "bytes": self.bytes, "tokens": self.writer.tokens}
        return totals | {"shards": self.writer.shards}


class _Progress:
    """Prints a line with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {line}", flush=True)


def build(scale: Scale, out: Path) -> dict[str, Any]:
    """Make the data of a scale in the folder `out`; returns the manifest.

    Raises:
        CorpusError: the corpus cannot be read or is not the expected one.
        TokenizerError: the tokenizer cannot be made.
        DataError: a split is empty.
    """
    say = _Progress()
    manifest_path = out / "manifest.json"
    manifest_path.unlink(missing_ok=True)  # until the new one is written, the folder is not a finished one
    say(f"reading {scale.corpus.name}: {_corpus_label(scale.corpus)}")
    split: Split | StreamSplit
    if scale.corpus.name == "fineweb-edu":
        if scale.tokenizer.name == "bpe":
            raise TokenizerError("tokenizer.name: 'bpe' is trained on a corpus in memory, a streamed one needs 'gpt2'")
        tokenizer, documents = download_gpt2(), None
        split = StreamSplit(stream_dataset(scale.corpus), scale.corpus.val_fraction)
    else:
        split = _read_and_split(scale, say)
        documents = {
            "train": _write_documents(out / "documents" / "train.jsonl", split.train),
            "val": _write_documents(out / "documents" / "val.jsonl", split.val),
        }
        tokenizer = _make_tokenizer(scale, split, say)
    tokenizer_path = out / "tokenizer.json"
    with atomic(tokenizer_path) as temporary:
        tokenizer.save(str(temporary))
    totals = _write_tokens(scale, out, split, tokenizer, say)
    manifest = {
        "corpus": to_mapping(scale.corpus),
        "tokenizer": {
            **to_mapping(scale.tokenizer),
            "file": tokenizer_path.name,
            "sha256": sha256_file(tokenizer_path),
            "end_of_text_id": end_of_text_id(tokenizer),
        },
        "splits": {name: totals[name].entry() for name in SPLITS},
        "deduplication": split.report(),
        "documents": documents,
        "provenance": provenance(),
    }
    write_json(manifest_path, manifest)
    sizes = [f"{name} {part.documents:,} documents, {part.writer.tokens:,} tokens" for name, part in totals.items()]
    say(f"wrote {manifest_path}: {'; '.join(sizes)}")
    return manifest


def _corpus_label(corpus: CorpusConfig) -> str:
    """What is read, for people."""
    return ", ".join(corpus.packages) or corpus.path or f"{corpus.dataset} {corpus.dataset_config}".strip()


def _read_and_split(scale: Scale, say: Callable[[str], None]) -> Split:
    documents = read_corpus(scale.corpus)
    size = sum(len(document.text.encode()) for document in documents)
    say(f"read {len(documents):,} documents, {size / 1e6:.1f} MB")
    split = split_documents(documents, scale.corpus.val_fraction)
    say(
        f"split: {len(split.train):,} training and {len(split.val):,} validation documents; "
        f"removed {split.exact_removed} exact and {split.near_removed} near duplicates"
    )
    for name, side in (("train", split.train), ("val", split.val)):
        if not side:
            raise DataError(f"the {name} split is empty: the corpus is too small for corpus.val_fraction")
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


def _write_tokens(
    scale: Scale, out: Path, split: Split | StreamSplit, tokenizer: Tokenizer, say: Callable[[str], None]
) -> dict[str, _Totals]:
    """Tokenise the documents into shards, until they end or `max_train_tokens` are written."""
    totals = {name: _Totals(ShardWriter(out, name, scale.corpus.shard_tokens)) for name in SPLITS}
    train = totals["train"].writer
    start = np.array([end_of_text_id(tokenizer)], dtype="<u2")
    limit = scale.corpus.max_train_tokens or sys.maxsize
    said = time.monotonic()
    pairs = iter(split)
    while train.tokens < limit and (chunk := list(itertools.islice(pairs, ENCODE_DOCUMENTS))):
        encodings = tokenizer.encode_batch_fast([document.text for _, document in chunk], add_special_tokens=False)
        for (name, document), encoding in zip(chunk, encodings, strict=True):
            if name == "train" and train.tokens == limit:
                continue
            tokens = np.concatenate([start, np.array(encoding.ids, dtype="<u2")])
            totals[name].writer.write(tokens[: limit - train.tokens] if name == "train" else tokens)
            totals[name].documents += 1
            totals[name].bytes += len(document.text.encode())
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"tokenised {train.tokens:,} training tokens")
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
