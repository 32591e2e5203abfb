"""Hashes of n-grams are equal for equal n-grams and differ for different ones."""

import numpy as np

from ddl.data.ngrams import LONGEST, ngram_hashes


def test_hashes_tell_every_ngram_apart_and_depend_on_nothing_else():
    tokens = np.random.default_rng(0).integers(0, 50, 4000)
    found = dict(ngram_hashes(tokens, (8, 13)))
    for n, hashes in found.items():
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        assert len(hashes) == len(grams)
        assert len(np.unique(hashes)) == len(set(grams)) == len(set(zip(grams, hashes.tolist(), strict=True)))
        assert dict(ngram_hashes(tokens[100:], [n]))[n].tolist() == hashes[100:].tolist()


def test_a_short_sequence_has_the_ngrams_that_fit():
    tokens = np.arange(10, dtype=np.uint16)
    assert [(n, len(hashes)) for n, hashes in ngram_hashes(tokens, (8, 13))] == [(8, 3)]
    assert list(ngram_hashes(tokens[:7], (8, 13))) == []
    assert [len(hashes) for _, hashes in ngram_hashes(np.arange(LONGEST), [LONGEST])] == [1]
