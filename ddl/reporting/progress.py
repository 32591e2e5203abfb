"""Show the progress of the runs of a scale: `ddl progress results/laptop`.

Everything is read from files that the workflow writes, so the command can start and stop at any time. The line below
the table estimates the time left for the whole workflow. An unfinished job is assumed to take the mean time of the
finished jobs of its stage or, if there are none, of that stage in the kept reference run of the same scale. The number
of parallel jobs is assumed to be the number of runs training now.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddl.config import Scale, load_scale, load_study, study_names
from ddl.layout import CURVES, ROOT, RUN
from ddl.reporting.stage_times import expected_seconds, job_seconds, kept_times
from ddl.reporting.workflow_messages import duration

REFRESH_SECONDS = 2.0
PATIENCE = 5  # a run counts as stopped after this many usual intervals without a record
LEAST_PATIENCE = 60.0  # seconds; lower bound on that time
STYLES = {"done": "green", "running": "bold yellow", "stopped": "red", "waiting": "dim"}


@dataclass(frozen=True)
class Status:
    """Progress of one run; unknown values are None."""

    name: str
    state: str  # a key of STYLES
    step: int
    steps: int
    train_loss: float | None
    val_loss: float | None
    tok_per_s: float | None
    seconds_left: float | None


def runs(scale: Scale, results: Path) -> Iterator[Status]:
    """The runs of a scale in the order of the tables, followed by the points of studies that have started."""
    for size in scale.sizes:
        for variant in scale.variants:
            for seed in scale.seeds:
                folder = RUN.format(size=size, variant=variant, seed=seed)
                yield status(folder.removeprefix("runs/"), results / folder, scale, scale.training.steps)
    studies = [study for study in map(load_study, study_names()) if study.scale == scale.name]
    for point in dict.fromkeys(point for study in studies for point in study.points()):
        if (results / point.folder).is_dir():
            yield status(point.folder, results / point.folder, scale, point.steps)


def status(name: str, folder: Path, scale: Scale, steps: int) -> Status:
    """Determine the status of one run from its records."""
    metrics = folder / "metrics.jsonl"
    records = read_records(metrics)
    if not records:
        return Status(name, "waiting", 0, steps, None, None, None, None)
    last, step = records[-1], records[-1]["step"]
    tokens_left = (steps - step) * scale.tokens_per_step
    rates = [record["tok_per_s"] for record in records if record["tok_per_s"]]
    left = tokens_left * len(rates) / sum(rates) if rates else None
    if (folder / "summary.json").is_file() or (folder / "point.json").is_file():
        state, left = "done", 0.0
    else:
        usual = (last["tokens"] - records[-2]["tokens"]) / rates[-1] if rates and len(records) > 1 else 0.0
        silent = time.time() - metrics.stat().st_mtime
        state = "running" if silent < max(LEAST_PATIENCE, PATIENCE * usual) else "stopped"
    validated = [record["val_loss"] for record in records if record["val_loss"] is not None]
    val_loss = validated[-1] if validated else None
    return Status(name, state, step, steps, last["train_loss"], val_loss, last["tok_per_s"], left)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl, skipping an incomplete last line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def stages(scale: Scale) -> dict[str, int]:
    """Pattern of a stage's jobs (a key of `STAGES`) -> their number in the whole workflow."""
    trainings = len(scale.sizes) * len(scale.variants) * len(scale.seeds)
    return {
        "data": 1,
        "tasks": int(scale.evaluation.tasks == "offline"),
        "contamination": 1,
        "train/*": trainings,
        "validate/*": trainings,
        "evaluate/*": trainings + 1,
        "mechanism/*": trainings,
        "cost/*": len(scale.sizes),
        # Without the notebook of the studies, but with the figures that have jobs of their own.
        "notebooks/*": len(list((ROOT / "notebooks").glob("[01]*.py"))) - 1 + len(CURVES),
        "numbers": 1,
        "paper": 1,
        "site": 1,
    }


def work_left(scale: Scale, results: Path, statuses: list[Status]) -> tuple[float, list[str]]:
    """Seconds of work left in the workflow, and the stages whose time is unknown."""
    total, unknown = 0.0, []
    finished, kept = job_seconds(results), kept_times(scale.name)
    running = [run for run in statuses if run.state == "running" and not run.name.startswith("points/")]
    known = [run.seconds_left for run in running if run.seconds_left is not None]
    for pattern, jobs in stages(scale).items():
        done = [seconds for job, seconds in finished.items() if fnmatch(job, pattern)]
        waiting = max(jobs - len(done), 0)
        if pattern.startswith("train/"):
            waiting = max(waiting - len(known), 0)
            total += sum(known)
        mean = sum(done) / len(done) if done else expected_seconds(kept[1], pattern) if kept else None
        if mean is not None:
            total += waiting * mean
        elif waiting:
            unknown.append(pattern.partition("/")[0])
    return total, unknown


def view(scale: Scale, results: Path) -> Group:
    """The table of runs with the summary below it."""
    statuses = list(runs(scale, results))
    table = Table(title=f"{scale.title}: {results}", title_justify="left")
    for heading in ("run", "state", "step", "", "loss", "validation", "tokens/s", "time left"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", no_wrap=True)
    for run in statuses:
        table.add_row(
            run.name,
            Text(run.state, STYLES[run.state]),
            f"{run.step:,}/{run.steps:,}",
            f"{run.step / run.steps:.0%}",
            *("" if value is None else f"{value:.4f}" for value in (run.train_loss, run.val_loss)),
            "" if run.tok_per_s is None else f"{run.tok_per_s:,.0f}",
            duration(run.seconds_left) if run.state in ("running", "stopped") and run.seconds_left is not None else "",
        )
    return Group(table, summary(scale, results, statuses))


def summary(scale: Scale, results: Path, statuses: list[Status]) -> str:
    """One line: runs done, and the estimated time left for the whole workflow."""
    counted = [run for run in statuses if not run.name.startswith("points/")]
    done, running = (sum(run.state == state for run in counted) for state in ("done", "running"))
    text = f"{done} of {len(counted)} runs done, {running} running."
    if (results / "site/index.html").is_file():
        return f"{text} The workflow is done."
    seconds, unknown = work_left(scale, results, statuses)
    if not seconds and unknown:
        return f"{text} The time left is not known yet for: {', '.join(unknown)}."
    longest = max((run.seconds_left or 0.0 for run in counted if run.state == "running"), default=0.0)
    text += f" The whole workflow needs about {duration(max(seconds / max(running, 1), longest))}"
    text += f" more, {max(running, 1)} at a time"
    return text + (f"; excluding stages of unknown duration: {', '.join(unknown)}." if unknown else ".")


def watch(results: Path) -> None:
    """Show the progress of results/<scale>: live in a terminal until Ctrl-C, otherwise once.

    Raises:
        ConfigError: the folder is not named after a scale.
    """
    scale = load_scale(results.resolve().name)
    console = Console()
    if not console.is_terminal:
        Console(width=120).print(view(scale, results))
        return
    try:
        with Live(view(scale, results), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_SECONDS)
                live.update(view(scale, results), refresh=True)
    except KeyboardInterrupt:
        pass  # the normal way to quit
