"""Kill the whole workflow at random moments, from the corpus to the paper: `make kill-test`.

Two copies of the project build the smoke scale. In the second, Snakemake and all processes that it started get SIGKILL
after a random time, and the same command is started again, until it ends by itself. Its weights, scores, tables and
figures must be those of the first copy to the byte, except for what shows measured times. Kills go on in further builds
from nothing until there are as many as wanted. Each prints a row: the seconds until the kill, and the last job that had
started.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

from ddl.files import sha256_file
from ddl.layout import DRAWN, drawn_files
from tests.helpers.project import copy_project

SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
MARK = "DDL_KILL_TEST"  # an environment variable that all processes of a build inherit
COMPARED = ("runs/**/model.safetensors", "evals/**/*.parquet", "tables/*.csv", "figures/*.svg")
TIMED = {Path(file).name for name in DRAWN["12_cost"] for file in drawn_files(name)}
COLUMNS = ("build", "kill", "seconds", "last job")


def start(folder: Path, mark: str, cores: int) -> subprocess.Popen:
    """Start the build of the smoke scale; its messages are appended to `messages` in the folder."""
    command = [SNAKEMAKE, "--cores", str(cores), "--config", "scale=smoke"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SOURCE_DATE_EPOCH": "0", MARK: mark}
    with open(folder / "messages", "a") as messages:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=messages, stderr=messages)


def kill(mark: str) -> None:
    """Kill every process with the mark, until there is none."""
    while found := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if marked(pid, mark)]:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def marked(pid: int, mark: str) -> bool:
    """Whether a living process has inherited the mark."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def last_job(folder: Path) -> str:
    """The last job that the messages show, e.g. "train small/ddl-cc/seed0 (smoke)"."""
    lines = [line for line in (folder / "messages").read_text().splitlines() if " done  " in line]
    return lines[-1].partition(" done  ")[2] if lines else "none yet"


def checksums(folder: Path) -> dict[str, str]:
    """File -> SHA-256, for all results that do not depend on measured times."""
    results = folder / "results/smoke"
    files = (file for pattern in COMPARED for file in sorted(results.glob(pattern)))
    return {str(file.relative_to(results)): sha256_file(file) for file in files if file.name not in TIMED}


def build(
    folder: Path, cores: int, draws: random.Random, longest: float, most: int, number: int, rows: list[dict]
) -> None:
    """Build with kills, adding a row per kill, until there are `most`."""
    while True:
        mark, seconds = uuid.uuid4().hex, draws.uniform(1, longest)
        running = start(folder, mark, cores)
        try:
            code = running.wait(seconds if len(rows) < most else None)
        except subprocess.TimeoutExpired:
            kill(mark)
            running.wait()
            row = dict(zip(COLUMNS, (number, len(rows) + 1, f"{seconds:.1f}", last_job(folder)), strict=True))
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
            continue
        if code:
            sys.exit(f"build {number} failed after {len(rows)} kills; see {folder / 'messages'}")
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="empty folder for both copies")
    parser.add_argument("--kills", type=int, default=30, help="how many at least (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--longest", type=float, default=60, help="longest time until a kill, in seconds (default 60)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="cores of a build (default all)")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    options = parser.parse_args()
    whole, killed = (copy_project(options.folder.resolve() / name) for name in ("whole", "killed"))
    if start(whole, "", options.cores).wait():
        sys.exit(f"the build without kills failed; see {whole / 'messages'}")
    expected = checksums(whole)
    assert expected
    draws, rows, number = random.Random(options.seed), [], 0
    while len(rows) < options.kills:
        number += 1
        for made in ("results/smoke", "results/notebooks", ".snakemake"):
            shutil.rmtree(killed / made, ignore_errors=True)
        (killed / "messages").unlink(missing_ok=True)
        build(killed, options.cores, draws, options.longest, options.kills, number, rows)
        found = checksums(killed)
        different = sorted(file for file in expected | found if expected.get(file) != found.get(file))
        print(
            f"build {number}: {len(rows)} kills so far; {len(expected) - len(different)} of {len(expected)} files equal"
        )
        if different:
            sys.exit(f"different: {', '.join(different)}")
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
