"""What of the evaluation items a model may have seen: n-grams of tokens that occur in the training shards.

`ddl contamination --scale laptop --data results/laptop/data --out results/laptop` writes contamination.json,
the shares of each task, and contamination.parquet with a row an item, so that scores can be had of clean items alone.

An item counts with its right answer. Eight tokens in a row are often a turn of phrase; thirteen, the length that others
use for words, are rarely shared by accident. An item may still be known in other words, which no n-gram shows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddl.config import Scale
from ddl.data.ngrams import ngram_hashes
from ddl.data.sequences import load_manifest
from ddl.data.shard_format import open_shard
from ddl.data.tokenizer import load_tokenizer
from ddl.evaluation.lm_eval_tasks import open_tasks, prepare_environment, solved, task_folder
from ddl.files import atomic, write_json
from ddl.provenance import provenance

NGRAMS = (8, 13)
CHUNK = 1 << 22  # tokens of a shard at a time
TABLE_BITS = 24  # a first look at a table of bits spares nearly all n-grams of the corpus the search


class Seen:
    """Which of some n-grams occur in a corpus.

    Args:
        wanted: uint64 hashes of n-grams, in any order, repeated or not.
    """

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = np.unique(wanted)
        self.found = np.zeros(len(self.wanted), dtype=bool)
        self.shift = np.uint64(64 - TABLE_BITS)
        self.table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self.table[self.wanted >> self.shift] = True

    def look(self, corpus: np.ndarray) -> None:
        """Note which are among the hashes of a stretch of the corpus."""
        candidates = np.unique(corpus[self.table[corpus >> self.shift]])
        self.found |= np.isin(self.wanted, candidates, assume_unique=True)

    def of(self, item: np.ndarray) -> np.ndarray:
        """bool: whether each n-gram of an item was found."""
        return self.found[np.searchsorted(self.wanted, item)]


def measure(texts: dict[str, list[str]], data: Path) -> pd.DataFrame:
    """How much of each text occurs in the training split.

    Args:
        texts: task -> texts of its items.
        data: the folder of `ddl.data.build`.

    Returns:
        Rows of task, item (its place), and for each n `share_<n>` of its n-grams (NaN where it is shorter).

    Raises:
        DataError: a shard is missing or damaged.
        TokenizerError: the tokenizer is.
    """
    manifest = load_manifest(data / "manifest.json")
    tokenizer = load_tokenizer(data / manifest["tokenizer"]["file"])
    rows, grams = [], []
    for task, members in texts.items():
        for index, encoding in enumerate(tokenizer.encode_batch(members, add_special_tokens=False)):
            rows.append({"task": task, "item": index})
            grams.append(dict(ngram_hashes(np.array(encoding.ids), NGRAMS)))
    empty = np.zeros(0, dtype=np.uint64)
    seen = {n: Seen(np.concatenate([found.get(n, empty) for found in grams])) for n in NGRAMS}
    for shard in manifest["splits"]["train"]["shards"]:
        tokens = open_shard(data / shard["file"])
        for start in range(0, len(tokens), CHUNK):
            for n, corpus in ngram_hashes(tokens[start : start + CHUNK + max(NGRAMS) - 1], NGRAMS):
                seen[n].look(corpus)
    for row, found in zip(rows, grams, strict=True):
        row |= {f"share_{n}": float(seen[n].of(found[n]).mean()) if n in found else float("nan") for n in NGRAMS}
    return pd.DataFrame(rows)


def summarize(items: pd.DataFrame) -> dict[str, Any]:
    """Task -> n -> items long enough to have an n-gram, and the shares of them with any, and with all in training."""
    summary: dict[str, Any] = {}
    for task, found in items.groupby("task", sort=False):
        summary[str(task)] = {}
        for n in NGRAMS:
            shares = found[f"share_{n}"].dropna()
            touched = {"any": float((shares > 0).mean()), "all": float((shares == 1).mean())} if len(shares) else {}
            summary[str(task)][str(n)] = {"items": len(shares), **touched}
    return summary


def write_contamination(scale: Scale, data: Path, out: Path) -> None:
    """Measure the tasks of a scale, write contamination.json and contamination.parquet, and print one line per task.

    Args:
        data: results/<scale>/data.
        out: folder of the two files.

    Raises:
        DataError, TokenizerError, HarnessError: shards, tokenizer or items that are missing or changed.
    """
    prepare_environment()
    with open_tasks(task_folder(scale, data)) as tasks:
        texts = {name: [solved(task.task, doc) for doc in task.task.eval_docs] for name, task in tasks.items()}
    items = measure(texts, data)
    summary = summarize(items)
    with atomic(out / "contamination.parquet") as temporary:
        items.to_parquet(temporary, engine="pyarrow", compression="zstd", index=False)
    write_json(out / "contamination.json", {"tasks": summary, "provenance": provenance()})
    for task, found in summary.items():
        parts = [f"{n} tokens {100 * found[str(n)].get('any', 0):.1f} % of {found[str(n)]['items']}" for n in NGRAMS]
        print(f"{task}: items with an n-gram that is in training: {', '.join(parts)}")
