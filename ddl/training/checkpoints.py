"""Checkpoints: the whole state of a run, found again whole or not at all.

A checkpoint is one file, `step00000128-<SHA-256>.pt` (the first 16 digits of the checksum of its bytes). It is written
under a temporary name, synced and renamed, so a process that is killed at any moment leaves the checkpoint before it
or the new one. What cannot be read or has another checksum is named and passed over.

Checkpoints lie in `checkpoints/<fingerprint>/`, beside `origin.json`, which names their settings, data and code. A run
resumes its own. Where it finds only those of other settings, data or code it stops, unless it is told to start over
(they stay where they are) or to continue from them all the same (which its provenance then records).
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

from ddl.files import atomic, write_json
from ddl.layout import KEPT_CHECKPOINTS
from ddl.training.errors import TrainingError

DIGITS = 16  # of a fingerprint or checksum in a name
LISTED = 5  # differences in a message

Stale = Literal["refuse", "restart", "continue"]  # what to do where all checkpoints are of another origin


class Difference(NamedTuple):
    """One entry in which two origins differ; None on a side that does not have it."""

    kind: str  # settings, data or code
    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.kind == "code":
            change = "is new" if self.was is None else "is gone" if self.now is None else "has changed"
            return f"code {self.key} {change}"
        was, now = ("not set" if value is None else _short(value) for value in (self.was, self.now))
        return f"{self.kind} {self.key} was {was}, is {now}"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a checkpoint comes from; two of equal origin may serve each other.

    Args:
        settings: what determines the run.
        data: file -> SHA-256 of the training and validation data.
        code: file -> SHA-256 of the code that trains.
    """

    settings: dict[str, Any]
    data: dict[str, str]
    code: dict[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all three."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Origin") -> list[Difference]:
        """What is not the same in `other`, the older one."""
        found = []
        for kind in ("settings", "data", "code"):
            now, then = _flat(getattr(self, kind)), _flat(getattr(other, kind))
            changed = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
            found += [Difference(kind, key, then.get(key), now.get(key)) for key in changed]
        return found


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: its folder; they lie in `checkpoints/<fingerprint>` there.
        origin: of the run as it is now.
    """

    def __init__(self, run: Path, origin: Origin) -> None:
        self.run, self.origin = run, origin
        self.folder = run / "checkpoints" / origin.fingerprint[:DIGITS]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after a step, and keep the newest `KEPT_CHECKPOINTS`."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        if not (self.folder / "origin.json").is_file():
            write_json(self.folder / "origin.json", dataclasses.asdict(self.origin))
        new = self.folder / f"step{step:08d}-{_checksum(content)}.pt"
        with atomic(new) as temporary:
            temporary.write_bytes(content)
        before = [path for path in _files(self.folder) if _step(path) < step]  # later ones were found damaged
        for path in {*_files(self.folder)} - {new, *before[1 - KEPT_CHECKPOINTS :]}:
            path.unlink()

    def find(self, stale: Stale, steps: int, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The state to go on from, on the CPU; None to start with the first step.

        A state of another origin comes with an entry "origin": its fingerprint, and all differences.

        Args:
            stale: what to do where all checkpoints are of other settings, data or code.
            steps: of the whole run.

        Raises:
            TrainingError: `stale` is "refuse" and there are such checkpoints; or it is "continue", and they saw other
                data or more steps.
        """
        if (state := self.newest(say)) is not None or (other := self._newest_other()) is None:
            return state
        origin = Origin(**json.loads((other / "origin.json").read_text()))
        differences = self.origin.differences(origin)
        step = _step(_files(other)[-1])
        listed = "; ".join(map(str, differences[:LISTED]))
        if len(differences) > LISTED:
            listed += f"; and {len(differences) - LISTED} more"
        if stale == "restart":
            say(f"{other}: not continued, step {step} of another run: {listed}")
            return None
        other_data = any(difference.kind == "data" for difference in differences)
        if stale == "refuse" or other_data or step > steps:
            ways, keys = "start over with --restart, which leaves them where they are", "stale=restart"
            if other_data:
                ways = f"put that data back to continue, or {ways}"
            elif step <= steps:
                ways, keys = f"resume from them with --continue-anyway, or {ways}", f"stale=continue or {keys}"
            raise TrainingError(
                f"{other}: these checkpoints, of step {step} of {steps}, are of another run: {listed}; {ways} "
                f"(in the workflow: snakemake --config {keys})"
            )
        say(f"{other}: continued although it is another run: {listed}")
        if (state := self.newest(say, other)) is not None:
            named = [difference._asdict() for difference in differences]
            state["origin"] = {"fingerprint": origin.fingerprint, "differences": named}
        return state

    def newest(self, say: Callable[[str], None], folder: Path | None = None) -> dict[str, Any] | None:
        """The state of the newest checkpoint in a folder, by default that of this origin, that is whole; None without.

        Tensors are on the CPU.
        """
        for path in reversed(_files(folder or self.folder)):
            try:
                content = path.read_bytes()
                if _checksum(content) != path.stem.partition("-")[2]:
                    say(f"{path}: damaged, its contents do not have the checksum in its name: left out")
                    continue
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, UnpicklingError) as error:
                say(f"{path}: cannot be read, left out ({type(error).__name__}: {error})")
                continue
            say(f"resumed from step {_step(path)} ({path})")
            return state
        return None

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for path in [*self.run.glob(".*.tmp"), *self.folder.parent.glob("*/.*.tmp")]:
            path.unlink()

    def _newest_other(self) -> Path | None:
        """The folder with the checkpoint of another origin that was written last."""
        written = [
            (files[-1].stat().st_mtime, path.parent)
            for path in self.folder.parent.glob("*/origin.json")
            if path.parent != self.folder and (files := _files(path.parent))
        ]
        return max(written)[1] if written else None


def _files(folder: Path) -> list[Path]:
    """Checkpoints by step."""
    return sorted(path for path in folder.glob("step*.pt") if re.fullmatch(r"step\d{8}-[0-9a-f]+", path.stem))


def _step(path: Path) -> int:
    return int(path.stem[4:12])


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    """A checksum by its first digits, anything else whole."""
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
