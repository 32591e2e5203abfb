"""The shard format: tokens on disk as llm.c and modded-nanogpt store them.

A shard is a header of 256 little-endian int32 (20240520, version 1, number of tokens, zeros), followed by the tokens
as little-endian uint16.
"""

from pathlib import Path

import numpy as np

from ddl.errors import UserError
from ddl.files import atomic

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4


class DataError(UserError):
    """Token data that is missing, damaged or of the wrong type; the message names the file."""


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens, integers [n], as one shard.

    Raises:
        DataError: a token does not fit into 16 bits, or the file cannot be written; no partial file remains.
    """
    check_range(tokens, 1 << 16, path)
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            file.write(header.tobytes())
            file.write(np.ascontiguousarray(tokens, dtype="<u2").data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def open_shard(path: Path) -> np.ndarray:
    """Memory-map the tokens of a shard read-only, after checking its header and size.

    Returns:
        uint16 [tokens], on disk.

    Raises:
        DataError: the file is missing, truncated or damaged, or is not a shard of this version.
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
            f"{path}: damaged: the header states {count} tokens, the file holds {(size - HEADER_BYTES) / 2:g}"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def read_shard(path: Path, vocab_size: int) -> np.ndarray:
    """Open a shard as `open_shard` does, and check that every token is below `vocab_size`.

    Raises:
        DataError: as for `open_shard`, or a token is out of range.
    """
    tokens = open_shard(path)
    check_range(tokens, vocab_size, path)
    return tokens


def check_range(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    """Check that tokens, integers [n > 0], are below `vocab_size`.

    Raises:
        DataError: one is not; the message names the shard at `path`.
    """
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise DataError(f"{path}: expected tokens below the vocabulary size {vocab_size}, found {largest}")
