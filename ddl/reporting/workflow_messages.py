"""Messages of `snakemake`: the expected time, one line per job, and finally where the results are.

The Snakefile calls `Messages.start` and `Messages.finish`. Snakemake itself prints errors, warnings and the logs of
failed jobs.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

# Snakemake's own progress messages take five lines per job, and one more for every input file of `all`.
HIDDEN_EVENTS = ("job_info", "job_started", "job_finished", "progress")
HIDDEN_TEXTS = ("Select jobs to execute", "Complete log", "Elapsed time")


class JobLines(logging.Handler):
    """A log handler that prints one line when a job starts, with the number of finished jobs.

    Args:
        total: number of jobs to run.
        others: handler for all records that are not about the progress of jobs.
    """

    def __init__(self, total: int, others: logging.Handler) -> None:
        super().__init__()
        self.done, self.total, self.others = 0, total, others

    def emit(self, record: Any) -> None:
        event = getattr(record, "event", None)
        if event == "progress":
            self.done = record.done
        elif event == "job_info" and record.rule_msg and self.others.filter(record):  # empty for the short target names
            done = f"{self.done:{len(str(self.total))}} of {self.total} done"
            say(f"{time.strftime('%H:%M:%S')}  {done}  {record.rule_msg}")
        elif event not in HIDDEN_EVENTS and not (event is None and record.getMessage().startswith(HIDDEN_TEXTS)):
            self.others.handle(record)


class Messages:
    """The messages of one `snakemake` command.

    Args:
        scale: name of the scale that `all` builds.
    """

    def __init__(self, scale: str) -> None:
        self.scale = scale
        self.jobs = 0
        self.started = time.monotonic()

    def start(self, jobs: int, whole: bool) -> None:
        """Print what will run and the expected time, and from then on show each job as one line.

        Args:
            jobs: number of jobs that will run.
            whole: whether the whole scale was asked for, not single files or another scale's.
        """
        self.jobs = jobs
        logger = logging.getLogger("snakemake.logging")
        for handler in [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]:
            logger.removeHandler(handler)
            logger.addHandler(JobLines(jobs, handler))
        if not whole:
            say(f"{counted(jobs)} to run. Their logs are in results/<scale>/logs/.")
            return
        say(f"{counted(jobs)} to run. Their logs are in results/{self.scale}/logs/.")
        for path in sorted(Path("results/reference").glob(f"{self.scale}-*/times.json")):
            known = json.loads(path.read_text())
            say(
                f"The whole {self.scale} scale took {duration(known['wall_seconds'])} with {known['cores']} cores "
                f"in the run kept in {path.parent}."
            )
        say(f"`ddl progress results/{self.scale}` in another terminal shows the progress of each run.")

    def finish(self, whole: bool) -> None:
        """Print how long it took and, if the whole scale was built, where its results are."""
        seconds = time.monotonic() - self.started
        plain = f"Done: {counted(self.jobs)} in {duration(seconds)}."
        say(closing_summary(self.scale, self.jobs, seconds) if whole else plain)


def closing_summary(scale: str, jobs: int, seconds: float) -> str:
    """Seven lines: how long it took, and where site, paper, notebooks, figures, tables and runs are.

    Args:
        scale: name of the scale that was built.
        jobs: number of jobs that ran.
        seconds: time that they took.
    """
    places = {
        "site": "site/index.html",
        "paper": "paper.pdf",
        "notebooks": "notebooks/",
        "figures": "figures/",
        "tables": "tables/",
        "models": "runs/",
    }
    lines = [f"The {scale} scale is built: {counted(jobs)} in {duration(seconds)}."]
    return "\n".join(lines + [f"  {name:10} results/{scale}/{place}" for name, place in places.items()])


def counted(jobs: int) -> str:
    """The number of jobs with its noun: 1 job, 2 jobs."""
    return f"{jobs} job" if jobs == 1 else f"{jobs} jobs"


def duration(seconds: float) -> str:
    """Format seconds: 2 d 03 h, 1 h 05 min, 3 min 20 s, 12 s."""
    seconds = round(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:02.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:02.0f} min"
    return f"{minutes:.0f} min {seconds % 60:02.0f} s" if minutes else f"{seconds:.0f} s"


def say(text: str) -> None:
    """Print to stderr, as Snakemake does."""
    print(text, file=sys.stderr, flush=True)
