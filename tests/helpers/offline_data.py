"""A data folder like that of `ddl data`, made in a second from the documentation of three installed packages."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from ddl.config import Scale, load_scale
from ddl.data.documents import Document, module_documentation, read_package
from ddl.data.shard_format import write_shard
from ddl.data.tokenizer import END_OF_TEXT, train_bpe
from ddl.files import sha256_file, write_json, write_text

VOCAB_SIZE = 1024
SHARD_TOKENS = 700


@functools.cache
def documents() -> dict[str, list[Document]]:
    """The documents of three packages; every fourth module is held out."""
    found = [
        document
        for package in ("networkx", "nltk", "numpy")
        for document in read_package(package, module_documentation)
    ]
    return {
        "train": [document for index, document in enumerate(found) if index % 4],
        "val": found[::4],
    }


def offline_scale(items: int) -> Scale:
    """The smoke scale with `items` items per task."""
    scale = load_scale("smoke")
    return dataclasses.replace(scale, evaluation=dataclasses.replace(scale.evaluation, items_per_task=items))


def write_data(folder: Path, splits: dict[str, list[Document]]) -> Path:
    """Write documents, tokenizer, manifest, and the first tokens of each split as a shard."""
    tokenizer = train_bpe([document.text for document in splits["train"][::4]], VOCAB_SIZE)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    files, shards = {}, {}
    for split, members in splits.items():
        path = folder / "documents" / f"{split}.jsonl"
        write_text(path, "".join(json.dumps(dataclasses.asdict(document)) + "\n" for document in members))
        files[split] = {"file": f"documents/{path.name}", "sha256": sha256_file(path)}
        text = "\n".join(document.text for document in members[:20])
        tokens = tokenizer.encode(END_OF_TEXT + text).ids[:SHARD_TOKENS]
        shard = folder / f"{split}_000000.bin"
        write_shard(shard, np.array(tokens, dtype=np.uint16))
        entry = {"file": shard.name, "tokens": len(tokens), "sha256": sha256_file(shard)}
        shards[split] = {
            "documents": len(members),
            "bytes": sum(len(document.text.encode()) for document in members),
            "tokens": len(tokens),
            "shards": [entry],
        }
    digest = sha256_file(folder / "tokenizer.json")
    write_json(
        folder / "manifest.json",
        {
            "tokenizer": {"name": "bpe", "vocab_size": VOCAB_SIZE, "file": "tokenizer.json", "sha256": digest},
            "splits": shards,
            "documents": files,
        },
    )
    return folder
