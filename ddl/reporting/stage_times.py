"""The stages of the workflow, how long their jobs took, and how long a job may be expected to take.

Snakemake writes the seconds of a job to `results/<scale>/benchmarks/<job>.tsv`, for example `train/small-ddl-cc-seed0`.
`ddl keep` keeps them in `times.json`.
"""

import csv
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ddl.layout import ROOT

STAGES = {  # pattern of jobs -> stage, in the order of the workflow
    "data": "corpus, tokenizer, shards",
    "tasks": "offline tasks",
    "train/*": "trainings",
    "validate/*": "validations",
    "evaluate/*": "evaluations",
    "mechanism/*": "observations and interventions",
    "contamination": "contamination check",
    "cost/*": "cost measurements",
    "notebooks/*": "notebooks, figures, tables",
    "numbers": "numbers",
    "paper": "paper",
    "site": "site",
}


def stage_of(job: str) -> str:
    """The stage of a job; empty if it belongs to none, like the runs of a study."""
    return next((stage for pattern, stage in STAGES.items() if fnmatch(job, pattern)), "")


def job_seconds(results: Path) -> dict[str, float]:
    """Job -> wall seconds, for the finished jobs of a scale."""
    folder = results / "benchmarks"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.tsv"))}
    return {job: _seconds(path) for job, path in files.items()}


def by_stage(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Number, summed and longest seconds of the jobs of each stage, in the order of the workflow."""
    found = []
    for pattern, stage in STAGES.items():
        own = [taken for job, taken in seconds.items() if fnmatch(job, pattern)]
        found.append({"stage": stage, "jobs": len(own), "seconds": sum(own), "longest": max(own, default=0)})
    return found


def kept_times(scale: str, root: Path = ROOT) -> tuple[Path, dict[str, Any]] | None:
    """The folder of a kept run of a scale and its times.json; None if no run is kept."""
    for path in sorted(root.glob(f"results/reference/{scale}-*/times.json")):
        return path.parent, json.loads(path.read_text(encoding="utf-8"))
    return None


def expected_seconds(kept: dict[str, Any], job: str) -> float | None:
    """Seconds of a job in a kept run, or the mean of its stage there; None if the run had no such stage."""
    if job in kept.get("job_seconds", {}):
        return float(kept["job_seconds"][job])
    stages = {row["stage"]: row for row in kept["stages"]}
    row = stages.get(stage_of(job))
    return row["seconds"] / row["jobs"] if row and row["jobs"] else None


def _seconds(path: Path) -> float:
    with open(path, newline="") as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"])
