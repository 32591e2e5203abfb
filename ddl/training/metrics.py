"""What a run says while it runs: metrics.jsonl for programs, a line for people, event files for TensorBoard.

A record holds step, tokens, train_loss, val_loss, lr, grad_norm and tok_per_s; what is not known at a step is null. All
records of a run are kept in its checkpoints, and a start writes them anew, so an interruption leaves no trace.
"""

import json
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ddl.config import ConfigError

Record = dict[str, Any]
CURVES = ("train_loss", "val_loss", "lr", "grad_norm", "tok_per_s")


class Metrics:
    """Writes the records of one run.

    Args:
        out: folder of the run.
        records: those that are known already.
        tensorboard: whether to write event files into `out/tensorboard` too.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path, records: Iterable[Record], tensorboard: bool) -> None:
        self._events = event_writer(out / "tensorboard") if tensorboard else None
        self._lines = open(out / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Append one record."""
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        if self._events:
            for name in CURVES:
                if record[name] is not None:
                    self._events.add_scalar(name, record[name], record["step"])
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        if self._events:
            self._events.close()


def event_writer(folder: Path) -> Any:
    """A TensorBoard writer on an empty folder."""
    try:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"training.tensorboard: the package tensorboard is not installed ({error}): "
            'run `pip install -e ".[tensorboard]"`, or set it to false'
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    return writer(str(folder))


def line(record: Record, steps: int, seconds: float) -> str:
    """A record for people.

    Args:
        steps: of the whole run.
        seconds: of training so far.
    """
    done = record["step"]
    parts = [f"step {done}/{steps} {done / steps:.0%}"]
    if record["train_loss"] is not None:
        parts.append(f"loss {record['train_loss']:.4f}")
    if record["val_loss"] is not None:
        parts.append(f"val {record['val_loss']:.4f}")
    if record["tok_per_s"]:
        left = (steps - done) * seconds / max(done, 1)
        parts += [f"lr {record['lr']:.2e}", f"|g| {record['grad_norm']:.2f}", f"{record['tok_per_s']:,.0f} tok/s"]
        parts.append(f"ETA {int(left // 60)}m{int(left % 60):02d}s")
    return "  ".join(parts)
