"""Reference results: keep the small files of a real run, and show them in the README.

    ddl keep --results results/laptop --name laptop-epyc
    ddl readme --name laptop-epyc

`keep` copies what a reader wants to see without running anything into results/reference/<name>/. `readme` writes the
parts of README.md between its `begin`/`end` marks: the results, the times, and the picture of the workflow.
"""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ddl.errors import UserError
from ddl.files import write_json
from ddl.layout import ROOT

REFERENCE = ROOT / "results" / "reference"
KEPT = (
    "numbers.json",
    "data/manifest.json",
    "data/tasks/manifest.json",
    "runs/*/*/seed*/summary.json",
    "runs/*/*/seed*/metrics.jsonl",
    "runs/*/*/seed*/provenance.json",
    "evals/**/*.json",
    "contamination.json",
    "cost/*/*.json",
    "tables/*.csv",
    "figures/figure2.png",
)
STAGES = {  # benchmark files -> stage, in the order of the workflow
    "data.tsv": "corpus, tokenizer, shards",
    "tasks.tsv": "offline tasks",
    "train/*.tsv": "trainings",
    "evaluate/*.tsv": "evaluations",
    "contamination.tsv": "contamination check",
    "cost/*.tsv": "cost measurements",
    "notebooks/*.tsv": "notebooks, figures, tables",
    "numbers.tsv": "numbers",
    "paper.tsv": "paper",
}


class KeepError(UserError):
    """Results that are not complete enough to be kept, or a README without its marks."""


def keep(results: Path, name: str) -> None:
    """Copy the small files of a finished run to results/reference/<name>/, whole or not at all.

    Raises:
        KeepError: the run has no paper.pdf yet, or was made from changed files.
    """
    if not (results / "paper.pdf").is_file():
        raise KeepError(f"{results}/paper.pdf: not found; expected the results of a finished run")
    dirty = [path for path in results.glob("runs/*/*/seed*/provenance.json") if json.loads(path.read_text())["dirty"]]
    if dirty:
        raise KeepError(f"{dirty[0]}: trained from files that no commit holds; commit, then run again")
    target = REFERENCE / name
    partial = target.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for pattern in KEPT:
        for source in sorted(results.glob(pattern)):
            copy = partial / source.relative_to(results)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    write_json(partial / "times.json", times(results))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    print(f"kept {sum(path.is_file() for path in target.rglob('*'))} files in {target}")


def times(results: Path) -> dict[str, Any]:
    """Seconds of each stage from Snakemake's benchmark files, of the whole run by the clock, and the disk it takes."""
    stages = []
    for pattern, label in STAGES.items():
        seconds = [_seconds(path) for path in sorted((results / "benchmarks").glob(pattern))]
        stages.append(
            {"stage": label, "jobs": len(seconds), "seconds": sum(seconds), "longest": max(seconds, default=0)}
        )
    started = min(path.stat().st_mtime - _seconds(path) for path in (results / "benchmarks").rglob("*.tsv"))
    wall = (results / "paper.pdf").stat().st_mtime - started
    sizes = {"results_bytes": folder_bytes(results), "environment_bytes": folder_bytes(Path(sys.prefix))}
    return {"wall_seconds": wall, "cores": os.cpu_count(), "stages": stages, **sizes}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _seconds(path: Path) -> float:
    with open(path, newline="") as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"])
