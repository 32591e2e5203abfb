"""Reference results: keep the small files of a real run, so that the README can show them.

    ddl keep --results results/laptop --name laptop-epyc
    ddl readme --name laptop-epyc

`keep` copies the files that a reader may want to see without running anything to results/reference/<name>/, and writes
the notebooks there as Markdown. `readme` writes the parts of README.md and docs/*.md between `begin` and `end` marks,
e.g. results, times and the workflow graph.
"""

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
from ddl.reporting.stage_times import by_stage, job_seconds

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
    """Seconds of each stage and job, wall seconds from the first job's start to the last one's end, bytes on disk."""
    seconds = job_seconds(results)
    ends = {job: (results / "benchmarks" / f"{job}.tsv").stat().st_mtime for job in seconds}
    return {
        "wall_seconds": max(ends.values()) - min(end - seconds[job] for job, end in ends.items()),
        "cores": os.cpu_count(),
        "stages": by_stage(seconds),
        "job_seconds": seconds,
        "results_bytes": folder_bytes(results),
        "environment_bytes": folder_bytes(Path(sys.prefix)),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())
