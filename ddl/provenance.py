"""The provenance that is written next to every result: commit, versions, device and time."""

import platform
import re
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.layout import ROOT

PACKAGES = ("torch", "triton", "numpy", "tokenizers", "transformers", "lm_eval")


def provenance() -> dict[str, Any]:
    """Commit, whether the working tree has changes, versions, device and UTC time."""
    import torch

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None  # triton is not available on every platform
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": versions,
        "device": device_name(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def device_name() -> str:
    """The name of the GPU, or of the processor if there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: use the generic name below
    return platform.processor() or platform.machine()


def peak_resident_bytes() -> int:
    """Peak resident set size of this process.

    On Linux it is read from /proc, because the value from getrusage starts at the size of the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive is not a repository
    return done.stdout.strip()
