"""Run `snakemake --lint`, ignoring its demand for one conda environment per rule: all rules share one environment."""

import re
import subprocess
import sys
from pathlib import Path

ACCEPTED = "Specify a conda environment or container for each rule."


def remarks() -> list[str]:
    """Remarks of the linter on the Snakefile and its rules, except the accepted one."""
    command = [str(Path(sys.executable).parent / "snakemake"), "--lint"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    found, where = [], None
    for line in report.splitlines():
        if line.startswith("Lints for "):
            where = line.removeprefix("Lints for ").rstrip(":")
        elif (title := re.match(r"    \* (.+?):?$", line)) and title[1] != ACCEPTED:
            found.append(f"{where}: {title[1]}")
    return found if where else [report]  # no rule is listed: the linter itself failed


if __name__ == "__main__":
    found = remarks()
    print("\n".join(found) or "Snakefile: no remarks")
    raise SystemExit(bool(found))
