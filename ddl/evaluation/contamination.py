"""Measure contamination: which token n-grams of the evaluation items occur in the training shards.

`ddl contamination --scale laptop --data results/laptop/data --out results/laptop` writes contamination.json, with the
fractions for each task, and contamination.parquet, with one row per item, from which clean items can be scored alone.

The text of an item includes its correct answer. Eight tokens in a row are often a common phrase. Thirteen, a length
that is often used with words, are rarely shared by chance. Paraphrases of an item are not detected by n-grams.
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
CHUNK = 1 << 22  # tokens of a shard that are hashed at a time
TABLE_BITS = 24  # a table with 2^24 entries rejects nearly all n-grams of the corpus before the exact lookup


class Seen:
    """A record of which of the `wanted` n-grams occur in a corpus.

    Args:
        wanted: uint64 hashes of n-grams, in any order, possibly with repeats.
    """

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = np.unique(wanted)
        self.found = np.zeros(len(self.wanted), dtype=bool)
        self.shift = np.uint64(64 - TABLE_BITS)
        self.table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self.table[self.wanted >> self.shift] = True

    def look(self, corpus: np.ndarray) -> None:
        """Record the wanted n-grams that occur in `corpus`, the uint64 hashes of one part of the corpus."""
        candidates = np.unique(corpus[self.table[corpus >> self.shift]])
        self.found |= np.isin(self.wanted, candidates, assume_unique=True)

    def of(self, item: np.ndarray) -> np.ndarray:
        """For each n-gram of an item, which must be among the wanted ones, whether it was found; bool."""
        return self.found[np.searchsorted(self.wanted, item)]


def measure(texts: dict[str, list[str]], data: Path) -> pd.DataFrame:
    """Measure how much of each text occurs in the training split.

    Args:
        texts: task -> texts of its items.
        data: the folder that `ddl.data.build` wrote.

    Returns:
        One row per item: task, item (its index), and for each n `share_<n>`, the fraction of its n-grams that occur in
        training (NaN if the text has fewer than n tokens).

    Raises:
        DataError: a shard is missing or damaged.
        TokenizerError: the tokenizer is missing or damaged.
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
    """Summarise each task for each n.

    Returns:
        Task -> n -> items (those with at least one n-gram), any and all: the fractions of these items with any and with
        all of their n-grams in training.
    """
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
        DataError, TokenizerError, HarnessError: shards, tokenizer or items are missing or damaged.
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
        print(f"{task}: items with an n-gram that occurs in training: {', '.join(parts)}")
