"""Checkpoints: the complete state of a run, protected by checksums.

A checkpoint is one file, `step00000128-<checksum>.pt`, where the checksum is the first 16 digits of the SHA-256 of its
contents. It is written under a temporary name, synced and renamed, so a process killed at any moment leaves either the
previous checkpoint or the complete new one. An unreadable file or one with a wrong checksum is reported and skipped.

Checkpoints are in `checkpoints/<fingerprint>/`, together with `origin.json`, which lists the settings, data and code
that produced them. A run resumes from checkpoints with its own fingerprint. If all checkpoints come from other
settings, data or code, the run stops, unless it is told to start over (the old checkpoints are kept) or to continue
from them anyway (its provenance then records this).
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import torch

from ddl.files import atomic, differing_keys, flat, write_json
from ddl.layout import KEPT_CHECKPOINTS
from ddl.training.errors import TrainingError

DIGITS = 16  # digits of a fingerprint or checksum in a file name
LISTED = 5  # differences listed in a message
SHOWN = 200  # characters of another library's message

Stale = Literal["refuse", "restart", "continue"]  # what to do if all checkpoints have another origin


class Difference(NamedTuple):
    """One entry in which two origins differ; a missing entry is None."""

    kind: str  # settings, data or code
    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.kind == "code":
            change = "was added" if self.was is None else "was removed" if self.now is None else "has changed"
            return f"code {self.key} {change}"
        was, now = ("not set" if value is None else _short(value) for value in (self.was, self.now))
        return f"{self.kind} {self.key} was {was}, is {now}"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What produced a checkpoint. Runs of equal origin can resume from each other's checkpoints.

    Args:
        settings: all settings that determine the result.
        data: file -> SHA-256, for the training and validation data.
        code: file -> SHA-256, for the code that training runs.
    """

    settings: dict[str, Any]
    data: dict[str, str]
    code: dict[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of settings, data and code."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Origin") -> list[Difference]:
        """Entries that have changed since `other`, the older origin."""
        found = []
        for kind in ("settings", "data", "code"):
            now, then = flat(getattr(self, kind)), flat(getattr(other, kind))
            found += [Difference(kind, key, then.get(key), now.get(key)) for key in differing_keys(now, then)]
        return found


def read_origin(path: Path) -> Origin:
    """Read an origin.json.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        origin = Origin(**json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(part, dict) for part in dataclasses.astuple(origin)):
            raise TypeError("expected three mappings")
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: damaged ({error}); remove its folder to start over") from None
    return origin


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: folder of the run; the checkpoints are in its subfolder `checkpoints/<fingerprint>`.
        origin: current settings, data and code of the run.
    """

    def __init__(self, run: Path, origin: Origin) -> None:
        self.run, self.origin = run, origin
        self.folder = run / "checkpoints" / origin.fingerprint[:DIGITS]
        self.loaded: Path | None = None  # the file that was read

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after a step, and delete all but the newest `KEPT_CHECKPOINTS`."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        if not (self.folder / "origin.json").is_file():
            write_json(self.folder / "origin.json", dataclasses.asdict(self.origin))
        new = self.folder / f"step{step:08d}-{_checksum(content)}.pt"
        with atomic(new) as temporary:
            temporary.write_bytes(content)
        before = [path for path in _files(self.folder) if _step(path) < step]  # any later ones were found damaged
        for path in {*_files(self.folder)} - {new, *before[1 - KEPT_CHECKPOINTS :]}:
            path.unlink()

    def find(self, stale: Stale, steps: int, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Load the state to continue from, on the CPU; None means to start from the first step.

        A state of another origin has an additional entry "origin" with its fingerprint and all differences.

        Args:
            stale: what to do if all checkpoints come from other settings, data or code.
            steps: number of steps in the whole run.
            say: prints a line.

        Raises:
            TrainingError: there are such checkpoints and `stale` is "refuse"; or `stale` is "continue", but they were
                trained on other data or for more steps, or none of them can be read.
        """
        if (state := self.newest(say)) is not None or (other := self._newest_other()) is None:
            return state
        origin = read_origin(other / "origin.json")
        differences = self.origin.differences(origin)
        step = _step(_files(other)[-1])
        listed = "; ".join(map(str, differences[:LISTED]))
        if len(differences) > LISTED:
            listed += f"; and {len(differences) - LISTED} more"
        if stale == "restart":
            say(f"{other}: not continued, because step {step} is from a different run: {listed}")
            return None
        other_data = any(difference.kind == "data" for difference in differences)
        if stale == "refuse" or other_data or step > steps:
            ways, keys = "start over with --restart, which keeps them", "stale=restart"
            if other_data:
                ways = f"restore that data to continue, or {ways}"
            elif step <= steps:
                ways, keys = f"resume from them with --continue-anyway, or {ways}", f"stale=continue or {keys}"
            raise TrainingError(
                f"{other}: these checkpoints, at step {step} of {steps}, are from a different run: {listed}; {ways} "
                f"(in the workflow: snakemake --config {keys})"
            )
        if (state := self.newest(say, other)) is None:
            raise TrainingError(f"{other}: none of these checkpoints can be read; start over with --restart")
        say(f"{other}: continued although this is a different run: {listed}")
        named = [difference._asdict() for difference in differences]
        state["origin"] = {"fingerprint": origin.fingerprint, "differences": named}
        return state

    def newest(self, say: Callable[[str], None], folder: Path | None = None) -> dict[str, Any] | None:
        """Load the newest intact checkpoint of a folder, on the CPU; None if there is none.

        Args:
            say: prints a line.
            folder: by default the folder of this origin.
        """
        for path in reversed(_files(folder or self.folder)):
            try:
                content = path.read_bytes()
                if _checksum(content) != path.stem.partition("-")[2]:
                    say(f"{path}: skipped, damaged: the contents do not match the checksum in the name")
                    continue
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
                reason = " ".join(str(error).split())[:SHOWN]
                say(f"{path}: skipped, cannot be read ({type(error).__name__}: {reason})")
                continue
            if not isinstance(state, dict):
                say(f"{path}: skipped, not the state of a run")
                continue
            say(f"resumed from step {_step(path)} ({path})")
            self.loaded = path
            return state
        return None

    def tidy(self) -> None:
        """Remove incomplete files that a killed process left behind."""
        for path in [*self.run.glob(".*.tmp"), *self.run.glob("*/.*.tmp"), *self.folder.parent.glob("*/.*.tmp")]:
            path.unlink()

    def _newest_other(self) -> Path | None:
        """The folder that contains the most recently written checkpoint of another origin."""
        written = [
            (files[-1].stat().st_mtime, path.parent)
            for path in self.folder.parent.glob("*/origin.json")
            if path.parent != self.folder and (files := _files(path.parent))
        ]
        return max(written)[1] if written else None


def _files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sorted by step."""
    return sorted(path for path in folder.glob("step*.pt") if re.fullmatch(r"step\d{8}-[0-9a-f]+", path.stem))


def _step(path: Path) -> int:
    return int(path.stem[4:12])


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _short(value: Any) -> str:
    """The first digits of a checksum; any other value in full."""
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
