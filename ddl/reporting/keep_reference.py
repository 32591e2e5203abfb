"""Reference results: keep the small files of a real run, so that the README can show them.

    ddl keep --results results/laptop --name laptop-epyc
    ddl readme --name laptop-epyc

`keep` copies the files that a reader may want to see without running anything to results/reference/<name>/, and writes
the notebooks there as Markdown. `readme` writes the parts of README.md and docs/*.md between `begin` and `end` marks,
e.g. results, times and the workflow graph.
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
from ddl.layout import ANY_RUN, COST, DATA_MANIFEST, ROOT
from ddl.reporting.notebook_markdown import write_markdown

REFERENCE = ROOT / "results" / "reference"
KEPT = (
    "numbers.json",
    DATA_MANIFEST,
    "data/tasks/manifest.json",
    f"{ANY_RUN}/summary.json",
    f"{ANY_RUN}/metrics.jsonl",
    f"{ANY_RUN}/gradients.csv",
    f"{ANY_RUN}/provenance.json",
    "evals/**/*.json",
    "mechanism/**/*.json",
    "contamination.json",
    COST.format(size="*", variant="*"),
    "tables/*.csv",
    "figures/figure2.png",
)
STAGES = {  # pattern of Snakemake's benchmark files -> stage, in the order of the workflow
    "data.tsv": "corpus, tokenizer, shards",
    "tasks.tsv": "offline tasks",
    "train/*.tsv": "trainings",
    "evaluate/*.tsv": "evaluations",
    "mechanism/*.tsv": "observations and interventions",
    "contamination.tsv": "contamination check",
    "cost/*.tsv": "cost measurements",
    "notebooks/*.tsv": "notebooks, figures, tables",
    "numbers.tsv": "numbers",
    "paper.tsv": "paper",
}


class KeepError(UserError):
    """Results that cannot be kept, or pages whose marks do not match the generated parts."""


def keep(results: Path, name: str) -> None:
    """Copy the small files of a finished run to results/reference/<name>/, all or none.

    Raises:
        KeepError: the run has no paper.pdf yet, or was trained from uncommitted changes.
    """
    if not (results / "paper.pdf").is_file():
        raise KeepError(f"{results}/paper.pdf: not found; expected the results of a finished run")
    dirty = [path for path in results.glob(f"{ANY_RUN}/provenance.json") if json.loads(path.read_text())["dirty"]]
    if dirty:
        raise KeepError(f"{dirty[0]}: trained from uncommitted changes; commit them, then run again")
    target = REFERENCE / name
    partial = target.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for pattern in KEPT:
        for source in sorted(results.glob(pattern)):
            copy = partial / source.relative_to(results)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    executed = {path.stem: path for path in sorted((results / "notebooks").glob("[0-9]*.ipynb"))}
    write_markdown(executed, partial / "notebooks")
    write_json(partial / "times.json", times(results))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    print(f"kept {sum(path.is_file() for path in target.rglob('*'))} files in {target}")


def times(results: Path) -> dict[str, Any]:
    """Seconds per stage (from Snakemake's benchmark files), wall seconds of the whole run, and bytes on disk."""
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
