"""What `snakemake` prints: how long it will take, one line per job while it runs, and at the end where everything is.

The Snakefile calls `Messages.start` and `Messages.finish`. Errors, warnings and the logs of failed jobs are printed by
Snakemake itself.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

# Snakemake's own progress takes five lines for a job, and one more for every file that `all` asks for.
HIDDEN_EVENTS = ("job_info", "job_started", "job_finished", "progress")
HIDDEN_TEXTS = ("Select jobs to execute", "Complete log", "Elapsed time")


class JobLines(logging.Handler):
    """A log handler that shows the start of a job as one line, with the number of jobs that are done.

    Args:
        total: jobs of the run.
        others: handles every record that is not about the progress of jobs.
    """

    def __init__(self, total: int, others: logging.Handler) -> None:
        super().__init__()
        self.done, self.total, self.others = 0, total, others

    def emit(self, record: Any) -> None:
        event = getattr(record, "event", None)
        if event == "progress":
            self.done = record.done
        elif event == "job_info" and record.rule_msg and self.others.filter(record):  # short names have no message
            done = f"{self.done:{len(str(self.total))}} of {self.total} done"
            say(f"{time.strftime('%H:%M:%S')}  {done}  {record.rule_msg}")
        elif event not in HIDDEN_EVENTS and not (event is None and record.getMessage().startswith(HIDDEN_TEXTS)):
            self.others.handle(record)


class Messages:
    """The messages of one call of `snakemake`.

    Args:
        scale: what `all` builds.
    """

    def __init__(self, scale: str) -> None:
        self.scale = scale
        self.jobs = 0
        self.started = time.monotonic()

    def start(self, jobs: int) -> None:
        """Say what is to be done, and show each job as one line from here on.

        Args:
            jobs: how many will run.
        """
        self.jobs = jobs
        logger = logging.getLogger("snakemake.logging")
        for handler in [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]:
            logger.removeHandler(handler)
            logger.addHandler(JobLines(jobs, handler))
        say(f"{counted(jobs)} to run. Their logs are in results/{self.scale}/logs/.")
        for path in sorted(Path("results/reference").glob(f"{self.scale}-*/times.json")):
            known = json.loads(path.read_text())
            say(
                f"The whole {self.scale} scale took {duration(known['wall_seconds'])} with {known['cores']} cores "
                f"in the run that is kept in {path.parent}."
            )
        say(f"`ddl progress results/{self.scale}` in another window shows how far each training is.")

    def finish(self, whole: bool) -> None:
        """Say how long it took and, if the whole scale was asked for, where its results are."""
        seconds = time.monotonic() - self.started
        plain = f"Done: {counted(self.jobs)} in {duration(seconds)}."
        say(closing_summary(self.scale, self.jobs, seconds) if whole else plain)


def closing_summary(scale: str, jobs: int, seconds: float) -> str:
    """Six lines: how long it took, and where paper, notebooks, figures, tables and runs are.

    Args:
        scale: that was built.
        jobs: how many ran.
        seconds: how long that took.
    """
    places = {
        "paper": "paper.pdf",
        "notebooks": "notebooks/",
        "figures": "figures/",
        "tables": "tables/",
        "models": "runs/",
    }
    lines = [f"The {scale} scale is built: {counted(jobs)} in {duration(seconds)}."]
    return "\n".join(lines + [f"  {name:10} results/{scale}/{place}" for name, place in places.items()])


def counted(jobs: int) -> str:
    """1 job, 2 jobs."""
    return f"{jobs} job" if jobs == 1 else f"{jobs} jobs"


def duration(seconds: float) -> str:
    """Seconds for people: 2 d 03 h, 1 h 05 min, 3 min 20 s, 12 s."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:02.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:02.0f} min"
    return f"{minutes:.0f} min {seconds % 60:02.0f} s" if minutes else f"{seconds:.0f} s"


def say(text: str) -> None:
    """Print to stderr, where Snakemake prints too."""
    print(text, file=sys.stderr, flush=True)
