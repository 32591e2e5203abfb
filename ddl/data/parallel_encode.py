"""Documents to tokens, by several processes, in the order of the documents.

Every result is that of one batch alone, and results come in the order of the batches: what is written from them does
not depend on the number of processes.
"""

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from ddl.data.shard_format import DataError
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.data.train_val_split import text_key

DOCUMENTS_AT_ONCE = 256  # in one call of the tokenizer, which bounds its memory
BATCHES_AHEAD = 2  # a process; so far do the processes run ahead of what is consumed


class Batch(Protocol):
    """Some documents that a process can get at; it is sent there by pickle."""

    def texts(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Texts:
    """A batch of documents in memory."""

    documents: tuple[str, ...]

    def texts(self) -> Sequence[str]:
        return self.documents


@dataclass(frozen=True)
class Encoded:
    """The documents of a batch: `text_key`, bytes of UTF-8, and tokens, uint16, behind the end-of-text token."""

    keys: list[bytes]
    sizes: list[int]
    tokens: list[np.ndarray]


def encode(batch: Batch, tokenizer: Tokenizer) -> Encoded:
    """Read and tokenise one batch."""
    start = np.array([end_of_text_id(tokenizer)], dtype="<u2")
    encoded = Encoded([], [], [])
    texts = iter(batch.texts())
    while chunk := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for text, encoding in zip(chunk, tokenizer.encode_batch_fast(chunk, add_special_tokens=False), strict=True):
            encoded.keys.append(text_key(text))
            encoded.sizes.append(len(text.encode()))
            encoded.tokens.append(np.concatenate([start, np.array(encoding.ids, dtype="<u2")]))
    return encoded


def encode_in_order(batches: Sequence[Batch], tokenizer: Path, workers: int) -> Generator[Encoded]:
    """`encode` every batch with the tokenizer.json at `tokenizer`, by at most `workers` processes (1: this one).

    Raises:
        DataError: a process was ended from outside.
    """
    if workers == 1 or len(batches) < 2:
        loaded = load_tokenizer(tokenizer)
        yield from (encode(batch, loaded) for batch in batches)
        return
    # Processes are not forked: the tokenizer's threads would not be there in the copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(batches)), context, initializer=_start_worker, initargs=(tokenizer,))
    pending: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(_encode_in_worker, batch))
            if len(pending) > BATCHES_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a tokenising process was ended from outside, perhaps for lack of memory: fewer --workers take less; "
            "the next start goes on behind the last finished shard"
        ) from None
    finally:  # also when the consumer has enough
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer  # of a worker process, set once when it starts


def _start_worker(tokenizer: Path) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = load_tokenizer(tokenizer)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next batch for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: Batch) -> Encoded:
    return encode(batch, _worker_tokenizer)
