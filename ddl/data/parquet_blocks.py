"""Read the parquet files of a dataset: on the Hugging Face hub at a pinned revision, at another URL, or in a folder.

The same code reads all three, through fsspec. Its unit of work is a block: some consecutive row groups of one file. Any
process can read a block on its own, so the work is parallel and resumable. Files such as FineWeb-Edu's are sorted by
the date of their crawl. The blocks are therefore taken in a fixed random order, so that any first part of the stream is
a sample of the whole.
"""

import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddl.config import ParquetDataset
from ddl.data.documents import CorpusError

BLOCK_ROWS = 4096  # a block ends with the row group that brings it to at least this many documents
ORDER_SEED = 0
FOOTERS_AT_ONCE = 16
RETRY_SECONDS = (10, 60, 300)  # pauses before a block is tried again; the hub's client also retries after shorter ones


@dataclass(frozen=True)
class Block:
    """The row groups `first` (inclusive) to `last` (exclusive) of the parquet file at `url`: `rows` documents."""

    url: str
    first: int
    last: int
    rows: int

    def texts(self) -> list[str]:
        """Read the documents; a remote read that fails is repeated after pauses.

        Raises:
            CorpusError: the documents cannot be read, or a row has no text.
        """
        remote = not self.url.startswith("file://")
        for pause in (*(RETRY_SECONDS if remote else ()), None):
            try:
                texts = self._read()
                break
            except CorpusError:
                raise
            except Exception as error:  # each of fsspec's file systems raises its own exceptions
                if pause is None:
                    raise CorpusError(f"{self.url}: cannot be read: {_line(error)}") from None
                time.sleep(pause)
        if not all(isinstance(text, str) for text in texts):
            raise CorpusError(f"{self.url}: every row needs a string under the key 'text'")
        return texts

    def _read(self) -> list[Any]:
        import fsspec
        from pyarrow import ArrowException, parquet

        with fsspec.open(self.url, "rb") as file:
            try:
                table = parquet.ParquetFile(file).read_row_groups(range(self.first, self.last), columns=["text"])
            except ArrowException as error:
                raise CorpusError(f"{self.url}: cannot be read: {_line(error)}") from None
        if not table.column_names:
            raise CorpusError(f"{self.url}: every row needs a string under the key 'text'")
        return table.column("text").to_pylist()


@dataclass(frozen=True)
class Dataset:
    """All blocks in the order of use, and a SHA-256 that changes when the files do."""

    blocks: list[Block]
    identity: str


def address(corpus: ParquetDataset) -> str:
    """URL of the files: `corpus.dataset` is an existing folder, a URL, or a dataset on the hub, tried in this order."""
    if Path(corpus.dataset).is_dir():
        root = Path(corpus.dataset).resolve().as_uri()
    elif "://" in corpus.dataset:
        root = corpus.dataset.rstrip("/")
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", corpus.dataset):
        root = f"hf://datasets/{corpus.dataset}@{corpus.revision}"
    else:
        raise CorpusError(f"corpus.dataset: expected owner/name, a URL or an existing folder, found {corpus.dataset!r}")
    return f"{root}/{corpus.folder}".rstrip("/")


def open_dataset(corpus: ParquetDataset) -> Dataset:
    """List the files and read their footers; no text is read yet.

    Raises:
        CorpusError: no files are found, or the address is not reachable; the message then gives a download command.
    """
    root = address(corpus)
    urls = _list(root, corpus)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        footers = list(pool.map(_footer, urls))
    blocks = [block for url, (rows, _) in zip(urls, footers, strict=True) for block in _blocks(url, rows)]
    names = [url.removeprefix(root) for url in urls]
    described = json.dumps([[name, digest] for name, (_, digest) in zip(names, footers, strict=True)])
    order = np.random.Generator(np.random.PCG64(ORDER_SEED)).permutation(len(blocks))
    return Dataset([blocks[place] for place in order], hashlib.sha256(described.encode()).hexdigest())


def _list(root: str, corpus: ParquetDataset) -> list[str]:
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(root)
        # A web server lists a folder only if the path ends with a slash.
        found = files.find(f"{path}/" if root.startswith("http") else path)
    except Exception as error:  # each of fsspec's file systems raises its own exceptions
        include = f"{corpus.folder}/*" if corpus.folder else "*.parquet"
        fetch = f"hf download {corpus.dataset} --repo-type dataset --revision {corpus.revision} --include '{include}'"
        raise CorpusError(
            f"{root}: not reachable ({_line(error)}): on a machine with a network, fetch its files with "
            f"`{fetch} --local-dir DIR`, then set corpus.dataset to DIR"
        ) from None
    urls = sorted(files.unstrip_protocol(name) for name in found if name.endswith(".parquet"))
    if not urls:
        raise CorpusError(f"{root}: no .parquet files found")
    return urls


def _footer(url: str) -> tuple[list[int], str]:
    """Number of documents in each row group of a file, and a SHA-256 of its footer (counts, sizes, ranges)."""
    import fsspec
    from pyarrow import parquet

    try:
        with fsspec.open(url, "rb") as file:
            metadata = parquet.ParquetFile(file).metadata
    except Exception as error:  # each of fsspec's file systems raises its own exceptions
        raise CorpusError(f"{url}: cannot be read: {_line(error)}") from None
    described = json.dumps(metadata.to_dict(), default=str, sort_keys=True)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return rows, hashlib.sha256(described.encode()).hexdigest()


def _blocks(url: str, rows: list[int]) -> list[Block]:
    """Cut the row groups of a file into blocks."""
    blocks, first, count = [], 0, 0
    for group, size in enumerate(rows):
        count += size
        if count >= BLOCK_ROWS or group == len(rows) - 1:
            blocks.append(Block(url, first, group + 1, count))
            first, count = group + 1, 0
    return blocks


def _line(error: Exception) -> str:
    """The class and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
