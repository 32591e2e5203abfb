"""Parallel tokenisation gives equal results in equal order for any number of workers, and leaves none running."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddl.data.parallel_encode import Texts, encode_in_order
from ddl.data.shard_format import DataError
from ddl.data.tokenizer import load_tokenizer, train_bpe
from ddl.data.train_val_split import text_key
from tests.helpers.fineweb import VOCAB, prose

BATCHES = [Texts(tuple(prose(100 * batch + row, 5) for row in range(batch % 3))) for batch in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe([prose(seed) for seed in range(20)], VOCAB).save(str(path))
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_those_of_each_text_alone_in_order(tokenizer, workers):
    loaded = load_tokenizer(tokenizer)
    results = list(encode_in_order(BATCHES, tokenizer, workers))
    assert len(results) == len(BATCHES)
    for batch, result in zip(BATCHES, results, strict=True):
        texts = batch.texts()
        assert result.keys == [text_key(text) for text in texts]
        assert result.sizes == [len(text.encode()) for text in texts]
        assert {tokens.dtype for tokens in result.tokens} <= {np.dtype("<u2")}
        assert [tokens.tolist() for tokens in result.tokens] == [[0, *loaded.encode(text).ids] for text in texts]


def test_more_documents_than_fit_a_call_of_the_tokenizer(tokenizer):
    texts = tuple(prose(seed, 2) for seed in range(600))
    (result,) = encode_in_order([Texts(texts)], tokenizer, 1)
    assert result.keys == [text_key(text) for text in texts]


@dataclass(frozen=True)
class Fatal:
    """A batch that kills the process that reads it."""

    def texts(self) -> list[str]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_a_worker_that_dies_ends_the_build_with_a_sentence(tokenizer):
    with pytest.raises(DataError, match="a tokenising process was killed"):
        list(encode_in_order([*BATCHES[:2], Fatal(), *BATCHES], tokenizer, 2))


def test_workers_end_when_their_parent_is_killed(tokenizer):
    script = (
        "import os, signal, pathlib\n"
        "from ddl.data.parallel_encode import Texts, encode_in_order\n"
        f"for _ in encode_in_order([Texts(('a b',))] * 99, pathlib.Path({str(tokenizer)!r}), 2):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    assert process.wait(60) == -signal.SIGKILL
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)  # raises when the group has no members left
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers were left behind")
