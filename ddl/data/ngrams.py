"""Hash n-grams, to compare the words of documents and the tokens of shards."""

from collections.abc import Collection, Iterator

import numpy as np

LONGEST = 16
# The hash of an n-gram is the sum of its values, each times its factor, modulo 2^64. Two different n-grams have the
# same hash with probability about 2^-64. The factors are odd, so that no bit of a value is lost.
FACTORS = np.random.default_rng(0).integers(0, 1 << 64, size=LONGEST, dtype=np.uint64) | np.uint64(1)


def ngram_hashes(values: np.ndarray, lengths: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Hash all n-grams of a sequence, for several n in one pass.

    Args:
        values: non-negative integers [N].
        lengths: the values of n, at most `LONGEST`.

    Returns:
        an iterator over pairs (n, uint64 hashes [N - n + 1] in order), by increasing n; an n above N is skipped.
    """
    wide = values.astype(np.uint64)
    total = np.zeros(len(wide), dtype=np.uint64)
    for place, factor in enumerate(FACTORS[: min(max(lengths), len(wide))]):
        total = total[: len(wide) - place]
        total += wide[place:] * factor
        if place + 1 in lengths:
            yield place + 1, total.copy()
