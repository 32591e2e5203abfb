"""Read token data: the manifest that `ddl data` writes, and the sequences that models see."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddl.data.shard_format import DataError, check_range, open_shard, read_shard
from ddl.files import sha256_file
from ddl.layout import SPLITS

FULL_CHECK_BYTES = 2**30  # a split of up to this size is read and checked when it is opened


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a data manifest, as `ddl.data.build` writes it, and check its structure.

    Raises:
        DataError: the file is missing or not JSON, or a key is missing or has the wrong type.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _typed(manifest["tokenizer"], vocab_size=int, file=str, sha256=str)
        for split in SPLITS:
            for shard in manifest["splits"][split]["shards"]:
                _typed(shard, file=str, tokens=int, sha256=str)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: `ddl data` creates it") from None
    except KeyError as error:
        raise DataError(f"{path}: missing key {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a data manifest: {error}") from None
    return manifest


def _typed(entry: dict[str, Any], **types: type) -> None:
    for key, kind in types.items():
        if not isinstance(entry[key], kind):
            raise TypeError(f"{key}: expected {kind.__name__}, found {entry[key]!r}")


class TokenSequences:
    """The sequences of one split: windows of `sequence_length + 1` tokens that start every `sequence_length` tokens.

    The input of a window is all its tokens but the last; the target is all but the first. Windows do not cross shards,
    so up to `sequence_length` tokens at the end of a shard are unused.
    """

    def __init__(self, manifest_path: Path, split: str, sequence_length: int) -> None:
        """Open the shards and check them against the manifest.

        A split of up to `FULL_CHECK_BYTES` is read once, to check the checksum and token range of every shard. For a
        larger split, only headers and sizes are checked here, because reading 100 GB would delay every start by
        minutes; its token range is checked batch by batch.

        Raises:
            DataError: a shard is missing, damaged or not the listed one, or no shard holds a whole sequence.
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
        check_range(window, self.vocab_size, self._paths[shard])
        return window


def _open_listed(path: Path, entry: dict[str, Any], vocab_size: int, full: bool) -> np.ndarray:
    """Open a shard and check that it is the one that the manifest lists."""
    tokens = read_shard(path, vocab_size) if full else open_shard(path)
    if len(tokens) != entry["tokens"]:
        raise DataError(f"{path}: expected {entry['tokens']} tokens (manifest.json), found {len(tokens)}")
    if full and (found := sha256_file(path)) != entry["sha256"]:
        raise DataError(f"{path}: expected SHA-256 {entry['sha256']} (manifest.json), found {found}")
    return tokens


def sequence_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on the arguments alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(count)
