"""Tokenise documents with several processes, in document order.

Each result depends on one batch alone, and results arrive in the order of the batches. So the shards written from them
do not depend on the number of processes.
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

DOCUMENTS_AT_ONCE = 256  # documents per call of the tokenizer, which bounds its memory
BATCHES_AHEAD = 2  # batches per process: the most that workers may encode before their results are consumed


class Batch(Protocol):
    """Documents that a worker process can read; the batch is pickled and sent to the worker."""

    def texts(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Texts:
    """A batch of documents in memory."""

    documents: tuple[str, ...]

    def texts(self) -> Sequence[str]:
        return self.documents


@dataclass(frozen=True)
class Encoded:
    """One entry per document of a batch: `text_key`, bytes of UTF-8, and uint16 tokens after the end-of-text token."""

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
    """`encode` every batch, with at most `workers` processes (1: this process); `tokenizer` is a tokenizer.json.

    Raises:
        DataError: a worker process was killed.
    """
    if workers == 1 or len(batches) < 2:
        loaded = load_tokenizer(tokenizer)
        yield from (encode(batch, loaded) for batch in batches)
        return
    # Workers are spawned, not forked: a forked copy would lack the tokenizer's threads.
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
            "a tokenising process was killed, perhaps for lack of memory: fewer --workers need less; "
            "the next start continues after the last finished shard"
        ) from None
    finally:  # also runs when the consumer stops early
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer  # set once, when a worker process starts


def _start_worker(tokenizer: Path) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = load_tokenizer(tokenizer)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent: otherwise it would wait forever for its next batch."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: Batch) -> Encoded:
    return encode(batch, _worker_tokenizer)
