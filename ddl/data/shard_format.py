"""The shard format: tokens on disk as llm.c and modded-nanogpt keep them.

A shard is 256 little-endian int32 (20240520, version 1, number of tokens, zeros) and then the tokens as uint16.
"""

from pathlib import Path

import numpy as np

from ddl.errors import UserError
from ddl.files import atomic

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4


class DataError(UserError):
    """Token data that is missing, damaged or of another kind: the message names the file."""


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens, integers [n], as one shard.

    Raises:
        DataError: a token does not fit into 16 bits, or the file cannot be written whole; then there is none.
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
