"""Measure how fast a large corpus becomes token shards, and whether memory grows with it.

    python -m benchmarks.tokenising --data results/laptop/data --csv results/reference/tokenising.csv

The documents of a small corpus, cut to the length of web pages and numbered so that none is a duplicate, are written as
parquet files, which are then built as the scales `h200` and `paper` build theirs. Each build is a process of its own;
`peak_mb` is the most resident memory of it and its workers together. One row per build is appended.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow
import torch
from pyarrow import parquet

from benchmarks.measure import Rows, origin
from ddl.config import ParquetDataset, TokenizerConfig, load_scale
from ddl.data.build import build

FOLDER = "sample"
PAGE = 4500  # bytes of a document: about the mean of FineWeb-Edu
FILE_DOCUMENTS, GROUP_DOCUMENTS = 10_000, 1000  # of a parquet file and of a row group in it
MEASURED = ((10_000, 1), (10_000, 2), (100_000, 2))  # documents and processes of each build
COLUMNS = ("documents", "bytes", "tokens", "processes", "seconds", "tok_per_s_per_process", "peak_mb")


def pages(source: Path) -> Iterator[str]:
    """Numbered pages from the documents of a JSON-lines file, without end."""
    with open(source, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    cuts = [text[start : start + PAGE] for text in texts for start in range(0, len(text), PAGE)]
    for number, text in enumerate(itertools.cycle(cuts)):
        yield f"Page {number}. {text}"


def write_dataset(folder: Path, source: Path, documents: int) -> None:
    """Write parquet files with that many documents."""
    texts = itertools.islice(pages(source), documents)
    for number in itertools.count():
        if not (some := list(itertools.islice(texts, FILE_DOCUMENTS))):
            return
        path = folder / FOLDER / f"{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"text": some}), path, row_group_size=GROUP_DOCUMENTS)


class Peak:
    """The most resident memory of this process and its children together, looked at ten times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            now, found = 0, [os.getpid()]
            for process in found:
                with suppress(OSError):  # it has ended
                    folder = Path(f"/proc/{process}")
                    now += int((folder / "statm").read_text().split()[1]) * resource.getpagesize()
                    for children in folder.glob("task/*/children"):
                        found += map(int, children.read_text().split())
            self.bytes = max(self.bytes, now)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def measure(dataset: Path, tokenizer: Path, processes: int) -> dict[str, float]:
    """Build the shards of a dataset in this process, which must be fresh."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    paper = load_scale("paper")
    corpus = ParquetDataset(dataset=str(dataset), folder=FOLDER, revision="local", val_tokens=100_000)
    config = TokenizerConfig(name="bpe", vocab_size=len(vocabulary), path=str(tokenizer))
    peak = Peak()
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        splits = build(dataclasses.replace(paper, corpus=corpus, tokenizer=config), Path(out), processes)["splits"]
        seconds = time.perf_counter() - start
    peak.stop()
    tokens = sum(split["tokens"] for split in splits.values())
    return {
        "bytes": sum(split["bytes"] for split in splits.values()),
        "tokens": tokens,
        "seconds": seconds,
        "tok_per_s_per_process": tokens / seconds / processes,
        "peak_mb": peak.bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that `ddl data` wrote")
    parser.add_argument("--csv", type=Path, required=True, help="file that rows are appended to")
    options = parser.parse_args()
    rows = Rows(options.csv, COLUMNS, origin(torch.device("cpu"), commit=None))
    fresh = multiprocessing.get_context("spawn")
    for documents, processes in MEASURED:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, fresh) as process:
            write_dataset(Path(folder), options.data / "documents/train.jsonl", documents)
            found = process.submit(measure, Path(folder), options.data / "tokenizer.json", processes).result()
        rows.add(documents=documents, processes=processes, **found)
        print(documents, processes, found, flush=True)


if __name__ == "__main__":
    main()
