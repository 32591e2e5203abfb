"""Copy the project, for tests that build something in it."""

import shutil
import subprocess
from pathlib import Path

from ddl.layout import ROOT


def copy_project(folder: Path) -> Path:
    """Copy the files that git tracks or would track, with their present contents, and return the folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder
