"""A run that trains in a second, on random tokens of a 64-entry vocabulary with a few thousand parameters."""

import dataclasses
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from ddl.config import Scale, load_scale
from ddl.data.shard_format import write_shard
from ddl.data.tokenizer import END_OF_TEXT
from ddl.files import sha256_file, write_json

STEPS = 12
# The server imports everything once and forks a process for each run.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ddl.training.run", "ddl.data.build", "torch._dynamo", "torch.distributed.fsdp"])


def write_data(folder: Path, vocab_size: int = 64, val_tokens: int = 500) -> Path:
    """Write shards, tokenizer and manifest, and return the path of the manifest; all tokens are below 64."""
    folder.mkdir()
    splits = {}
    for split, tokens in (("train", 2000), ("val", val_tokens)):
        path = folder / f"{split}_000000.bin"
        write_shard(path, np.random.default_rng(len(split)).integers(0, 64, tokens))
        shard = {"file": path.name, "tokens": tokens, "sha256": sha256_file(path)}
        splits[split] = {"documents": 1, "bytes": tokens, "tokens": tokens, "shards": [shard]}
    Tokenizer(models.WordLevel({END_OF_TEXT: 0}, END_OF_TEXT)).save(str(folder / "tokenizer.json"))
    tokenizer = {"name": "bpe", "vocab_size": vocab_size, "file": "tokenizer.json"}
    tokenizer["sha256"] = sha256_file(folder / "tokenizer.json")
    write_json(folder / "manifest.json", {"tokenizer": tokenizer, "splits": splits, "documents": None})
    return folder / "manifest.json"


def tiny_scale(**recipe) -> Scale:
    """A smaller version of the smoke scale; keyword arguments change the training recipe."""
    smoke = load_scale("smoke")
    settings = {"steps": STEPS, "batch_sequences": 4, "micro_batch_sequences": 2, "warmup_steps": 2}
    intervals = {"val_interval": 5, "val_sequences": 8, "log_interval": 3, "checkpoint_interval": 4, "snapshots": ()}
    training = dataclasses.replace(smoke.training, **settings | intervals | recipe)
    tokenizer = dataclasses.replace(smoke.tokenizer, name="gpt2", vocab_size=50257)
    object.__setattr__(tokenizer, "vocab_size", 64)  # smaller than any tokenizer that could be trained
    return dataclasses.replace(smoke, sequence_length=16, training=training, tokenizer=tokenizer)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become(rank: int, count: int, port: int, nodes: int = 1) -> None:
    """Set the environment variables that torchrun sets for this process, one of `count` on so many nodes."""
    place = {
        "RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_RANK": rank % (count // nodes),
        "LOCAL_WORLD_SIZE": count // nodes,
    }
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
