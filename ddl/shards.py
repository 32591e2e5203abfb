"""The shard format: tokens on disk as llm.c and modded-nanogpt keep them.

A shard is 256 little-endian int32 (20240520, version 1, number of tokens, zeros) and then the tokens as uint16.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ddl.provenance import atomic, sha256_file

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4


class DataError(ValueError):
    """Token data that is missing, damaged or of another kind: the message names the file."""


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens, integers [n], as one shard.

    Raises:
        DataError: a token does not fit into 16 bits.
    """
    check_range(tokens, 1 << 16, path)
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
    check_range(tokens, vocab_size, path)
    return tokens


def check_range(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    """Refuse tokens, integers [n > 0], that are not below `vocab_size`, in the name of the shard at `path`."""
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
