"""Messages of `snakemake`: the expected time, one line per job, and finally where the results are.

The Snakefile calls `Messages.start` and `Messages.finish`. Snakemake itself prints errors, warnings and the logs of
failed jobs.
"""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddl.reporting.stage_times import STAGES, expected_seconds, kept_times, stage_of

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

    def start(self, jobs: int, measured: Sequence[tuple[str, int]], cores: int | None, whole: bool) -> None:
        """Print what will run and the expected time, and from then on show each job as one line.

        Args:
            jobs: number of jobs that will run.
            measured: benchmark file and threads of each of them that has such a file, e.g.
                results/laptop/benchmarks/train/small-ddl-cc-seed0.tsv.
            cores: that Snakemake may use on this machine; None on a cluster.
            whole: whether the whole scale was asked for, not single files or another scale's.
        """
        self.jobs = jobs
        logger = logging.getLogger("snakemake.logging")
        for handler in [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]:
            logger.removeHandler(handler)
            logger.addHandler(JobLines(jobs, handler))
        if not whole:
            for line in forecast(jobs, measured, cores):
                say(line)
            return
        say(f"{counted(jobs)} to run. Their logs are in results/{self.scale}/logs/.")
        if kept := kept_times(self.scale, Path()):
            say(
                f"The whole {self.scale} scale took {duration(kept[1]['wall_seconds'])} with {kept[1]['cores']} cores "
                f"in the run kept in {kept[0]}."
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


def forecast(jobs: int, measured: Sequence[tuple[str, int]], cores: int | None) -> list[str]:
    """What a part of the workflow runs, and how long that takes by the run that is kept of its scale, if there is one.

    For the arguments see `Messages.start`.
    """
    found = [(re.fullmatch(r"results/([^/]+)/benchmarks/(.+)\.tsv", path), threads) for path, threads in measured]
    scales = list(dict.fromkeys(each[1] for each, _ in found if each and each[1] != "notebooks"))
    logs = f" Their logs are in {' and '.join(f'results/{scale}/logs/' for scale in scales)}." if scales else ""
    lines = [f"{counted(jobs)} to run.{logs}"]
    # A derivation runs once for all scales, in a folder of its own.
    named = [(f"notebooks/{each[2]}" if each[1] == "notebooks" else each[2], n) for each, n in found if each]
    count = Counter(stage for name, _ in named if (stage := stage_of(name)))
    if count:
        lines.append(", ".join(f"{stage}: {count[stage]}" for stage in STAGES.values() if stage in count) + ".")
    kept = kept_times(scales[0], Path()) if len(scales) == 1 else None
    if kept and cores and len(named) == len(measured):
        times = [(stage_of(name), expected_seconds(kept[1], name), min(threads, cores)) for name, threads in named]
        known = [(seconds, threads) for _, seconds, threads in times if seconds is not None]
        unknown = ", ".join(dict.fromkeys(stage for stage, seconds, _ in times if seconds is None))
        work = sum(seconds * threads for seconds, threads in known) / cores
        least = max([work, *(seconds for seconds, _ in known)])
        without = f", without these, which it did not measure: {unknown}" if unknown else ""
        lines.append(f"About {duration(least)} on {cores} cores, by the run kept in {kept[0]}{without}.")
    return lines


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
