"""Split documents into training and validation, and remove duplicates across the split.

The split hashes the normalised text of a document, unless the validation documents are given. Exact duplicates are
therefore always on the same side, and a document stays on its side when the corpus grows. Near duplicates across the
split are found exactly, not by sketches: a validation document is removed if too many of its word shingles occur
anywhere in training.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl.data.documents import Document
from ddl.data.ngrams import ngram_hashes

SHINGLE_WORDS = 8
MAX_SHARED = 0.5  # a validation document that shares this fraction of its distinct shingles with training is removed

EXACT_DEFINITION = (
    "exact: documents that agree up to case and white space; one of them is kept, so none are on both sides"
)
NEAR_DEFINITION = (
    f"{EXACT_DEFINITION}; near: a validation document of whose distinct {SHINGLE_WORDS}-word shingles (lower-case "
    f"runs of letters, digits and underscores) at least {MAX_SHARED:.0%} occur in the training documents is removed"
)

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Split:
    """The two sides of the split, and the numbers of removed documents."""

    train: list[Document]
    val: list[Document]
    exact_removed: int
    near_removed: int

    def report(self) -> dict[str, Any]:
        """The manifest's record of what was removed."""
        return {
            "near_definition": NEAR_DEFINITION,
            "exact_removed": self.exact_removed,
            "near_removed": self.near_removed,
        }


def text_key(text: str) -> bytes:
    """A 16-byte hash of the lower-case text with single spaces: equal for exact duplicates."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()


def in_validation(key: bytes, val_fraction: float) -> bool:
    """Whether a document with this `text_key` is held out, which is so for `val_fraction` of all keys."""
    return int.from_bytes(key[:8], "big") < val_fraction * 2**64


def split_documents(
    documents: Sequence[Document], val_fraction: float, given: Sequence[Document] | None = None
) -> Split:
    """Split by hash and remove duplicates; see `NEAR_DEFINITION`. The order of the documents is kept.

    A corpus so small that no hash falls below the fraction has its document with the lowest hash held out.

    Args:
        val_fraction: expected fraction of documents in validation, in (0, 1), before near duplicates are removed.
        given: the validation documents, if they are known; `val_fraction` is then not used.
    """
    seen: dict[bytes, None] = {}  # the keys of the documents, in their order
    val = [document for _, document in _unseen(given or (), seen)]
    train: list[Document] = []
    for key, document in _unseen(documents, seen):
        held_out = given is None and in_validation(key, val_fraction)
        (val if held_out else train).append(document)
    if len(train) > 1 and not val:
        val.append(train.pop(list(seen).index(min(seen))))
    shared = shared_fractions([document.text for document in val], [document.text for document in train])
    kept = [document for document, fraction in zip(val, shared, strict=True) if fraction < MAX_SHARED]
    exact_removed = len(documents) + len(given or ()) - len(seen)
    return Split(train, kept, exact_removed, len(val) - len(kept))


def _unseen(documents: Iterable[Document], seen: dict[bytes, None]) -> Iterator[tuple[bytes, Document]]:
    """The documents whose keys are not among those seen, with their keys, which are then seen."""
    for document in documents:
        key = text_key(document.text)
        if key not in seen:
            seen[key] = None
            yield key, document


def shared_fractions(texts: list[str], reference: list[str]) -> np.ndarray:
    """For each text, the fraction of its distinct shingles that occur in any reference text, float64 [len(texts)]."""
    hasher = _ShingleHasher()
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *(hasher(text) for text in reference)]))
    fractions = np.zeros(len(texts))
    for row, text in enumerate(texts):
        shingles = np.unique(hasher(text))
        if known.size:
            places = np.searchsorted(known, shingles).clip(max=known.size - 1)
            fractions[row] = np.mean(known[places] == shingles)
    return fractions


class _ShingleHasher:
    """Maps a text to the uint64 hashes of its shingles, with repeats.

    A text with fewer than `SHINGLE_WORDS` words is one shingle of all its words.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}  # Python's own `hash` differs between runs

    def __call__(self, text: str) -> np.ndarray:
        words = np.fromiter((self._word(word) for word in _WORD.findall(text.lower())), dtype=np.uint64)
        if not len(words):
            return np.zeros(1, np.uint64)
        ((_, hashes),) = ngram_hashes(words, [min(SHINGLE_WORDS, len(words))])
        return hashes

    def _word(self, word: str) -> int:
        value = self._hashes.get(word)
        if value is None:
            value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")
            self._hashes[word] = value
        return value
