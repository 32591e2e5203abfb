"""Checkpoints: the whole state of a run, found again whole or not at all.

A checkpoint is one file, `step00000128-<SHA-256>.pt` (the first 16 digits of the checksum of its bytes). It is written
under a temporary name, synced and renamed, so a process that is killed at any moment leaves the checkpoint before it
or the new one. What cannot be read or has another checksum is named and passed over.

Checkpoints lie in `checkpoints/<fingerprint>/`, beside `origin.json`, which says of which settings, data and code: none
is ever resumed by another model than its own.
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
from typing import Any, Literal

import torch

from ddl.files import atomic, write_json
from ddl.layout import KEPT_CHECKPOINTS
from ddl.training.errors import TrainingError

DIGITS = 16  # of a fingerprint or checksum in a name

Stale = Literal["refuse", "restart", "continue"]  # what to do where all checkpoints are of another origin


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

    def differences(self, other: "Origin") -> list[str]:
        """What is not the same in `other`, the older one: the setting or file, what it was and what it is."""
        found = []
        for kind in ("settings", "data", "code"):
            now, then = _flat(getattr(self, kind)), _flat(getattr(other, kind))
            for key in sorted(now.keys() | then.keys()):
                if now.get(key) != then.get(key):
                    was, is_ = (_short(values[key]) if key in values else "missing" for values in (then, now))
                    found.append(f"{kind} {key} was {was}, is {is_}")
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

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole, None without one; on the CPU."""
        for path in reversed(_files(self.folder)):
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

    def compare_others(self, steps: int, say: Callable[[str], None]) -> None:
        """Where a start finds no checkpoint of its own: say what the others differ in.

        Args:
            steps: of a whole run.

        Raises:
            TrainingError: an unfinished run of the same settings and code saw other data.
        """
        for path in sorted(self.folder.parent.glob("*/origin.json")):
            if path.parent == self.folder or not (files := _files(path.parent)):
                continue
            differences = self.origin.differences(Origin(**json.loads(path.read_text())))
            listed = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
            step = _step(files[-1])
            if step < steps and all(text.startswith("data ") for text in differences):
                raise TrainingError(
                    f"{path.parent}: a run that has reached step {step} of {steps} saw other data: {listed}; "
                    "put that data back to continue, or remove this folder to start over"
                )
            say(f"{path.parent}: not continued, step {step} of another run: {listed}")


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
