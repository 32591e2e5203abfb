"""Write the shards of a split so that an interrupted build keeps its finished shards.

A journal records, for each finished shard, where the next one starts in the documents. A build that finds a journal
made from the same documents, tokenizer, settings and code keeps the intact shards and continues after them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.parallel_encode import Encoded
from ddl.data.shard_format import DataError, write_shard
from ddl.files import differing_keys, flat, sha256_file, write_json

LISTED = 5  # differences in a message


@dataclass(frozen=True, order=True)
class Place:
    """Position of the next token of a split: batch, document within the batch, token within the document."""

    batch: int = 0
    document: int = 0
    token: int = 0


@dataclass(frozen=True)
class Counts:
    """Counts for a split: documents (one cut at the limit included), their bytes of text, and removed duplicates."""

    documents: int = 0
    bytes: int = 0
    removed: int = 0


class Journal:
    """`journal.json` of a data folder: the origin of its shards, and the finished shards of each split in order."""

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        """Open the journal at `path`, or start a new one if its `origin` (settings, sources and code) differs.

        `conflict` is empty unless a new one was started in place of a journal with finished shards; then it says how
        many shards there are and in which entries the two origins differ.
        """
        self.path = path
        self.conflict = ""
        self.record: dict[str, Any] = {"origin": origin, "splits": {}}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # there is none, or it is damaged
        if found.get("origin") == origin:
            self.record = found
            return
        shards = sum(len(entries) for entries in found.get("splits", {}).values())
        if shards:
            changed = differing_keys(flat(origin), flat(found.get("origin", {})))
            more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
            self.conflict = f"{shards} finished shards were made with a different {', '.join(changed[:LISTED])}{more}"

    def finished(self, split: str) -> list[dict[str, Any]]:
        """The entries of a split, up to the first whose shard is missing or changed."""
        entries: list[dict[str, Any]] = self.record["splits"].get(split, [])
        for number, entry in enumerate(entries):
            path = self.path.parent / entry["file"]
            if not path.is_file() or sha256_file(path) != entry["sha256"]:
                return entries[:number]
        return entries

    def keep(self, split: str, entries: list[dict[str, Any]]) -> None:
        """Record `entries` as the finished shards of a split."""
        self.record["splits"][split] = entries
        write_json(self.path, self.record)


class SplitWriter:
    """Writes shards `<split>_000000.bin`, ... of exactly `shard_tokens` tokens; the last may be shorter.

    Args:
        limit: largest number of tokens in the split.
        start: where the split starts if the journal lists no shard of it.
    """

    def __init__(self, journal: Journal, split: str, shard_tokens: int, limit: int, start: Place) -> None:
        self.split, self.shard_tokens, self.limit = split, shard_tokens, limit
        self.counts, self.place = Counts(), start
        self._journal, self._folder = journal, journal.path.parent
        self._entries = journal.finished(split)
        if self._entries:
            last = self._entries[-1]
            self.counts, self.place = Counts(**last["counts"]), Place(*last["place"])
        self.tokens = sum(entry["tokens"] for entry in self._entries)
        self._first = self.place
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.tokens == self.limit

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The manifest entries of the finished shards."""
        return [{key: entry[key] for key in ("file", "tokens", "sha256")} for entry in self._entries]

    def write(self, batch: int, encoded: Encoded, wanted: Callable[[bytes], bool]) -> None:
        """Add the documents of batch number `batch` for which `wanted`, called with the `text_key`, returns true.

        Documents before the writer's start and after the limit are skipped.
        """
        first = self._first
        rows = zip(encoded.keys, encoded.sizes, encoded.tokens, strict=True)
        for document, (key, size, tokens) in enumerate(rows):
            if self.full:
                return
            if (batch, document) < (first.batch, first.document):
                continue
            if wanted(key):
                resumed = (batch, document) == (first.batch, first.document)
                self._write_document(first if resumed else Place(batch, document), tokens, size)
            else:
                self.counts = replace(self.counts, removed=self.counts.removed + 1)

    def _write_document(self, place: Place, tokens: np.ndarray, size: int) -> None:
        """Add the tokens, uint16 [n], of a document of `size` bytes, from `place.token` to the limit."""
        if not place.token:
            self.counts = replace(self.counts, documents=self.counts.documents + 1, bytes=self.counts.bytes + size)
        while place.token < len(tokens) and not self.full:
            room = min(self.shard_tokens - self._pending_tokens, self.limit - self.tokens)
            part = tokens[place.token : place.token + room]
            self._pending.append(part)
            self._pending_tokens += len(part)
            self.tokens += len(part)
            self.place = place = replace(place, token=place.token + len(part))
            if self._pending_tokens == self.shard_tokens:
                self._finish_shard()

    def close(self) -> None:
        """Write the last shard, and remove higher-numbered shards that an earlier build left.

        Raises:
            DataError: the split has no tokens.
        """
        if self._pending:
            self._finish_shard()
        if not self._entries:
            raise DataError(f"the {self.split} split is empty: the corpus is too small")
        for path in self._folder.glob(f"{self.split}_*.bin"):
            if re.fullmatch(r".*_\d{6}\.bin", path.name) and path.name > self._entries[-1]["file"]:
                path.unlink()

    def _finish_shard(self) -> None:
        tokens = np.concatenate(self._pending)
        path = self._folder / f"{self.split}_{len(self._entries):06d}.bin"
        write_shard(path, tokens)
        entry = {
            "file": path.name,
            "tokens": len(tokens),
            "sha256": sha256_file(path),
            "place": [self.place.batch, self.place.document, self.place.token],
            "counts": vars(self.counts),
        }
        self._entries = [*self._entries, entry]
        self._journal.keep(self.split, self._entries)
        self._pending, self._pending_tokens = [], 0
