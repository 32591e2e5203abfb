"""Report the metrics of a run: metrics.jsonl, gradients.csv, a printed line, and event files for TensorBoard.

A record in metrics.jsonl contains step, tokens, seconds, train_loss, val_loss, lr, grad_norm and tok_per_s; values not
measured at a step are null. `seconds` is the training time up to this step, without validations and checkpoints.
`gradients.csv` has one row per record that follows a training step, and one column per part of the model: the norm of
the part's gradient before clipping. `grad_norm` is the norm over all parts.

Checkpoints include all records, and a resumed run rewrites them, so an interruption leaves no trace in the files.
"""

import csv
import json
import math
import shutil
from collections.abc import Iterable, Sequence
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
        records: records from the checkpoint, written first.
        tensorboard: whether to also write event files to `out/tensorboard`.

    Raises:
        ConfigError: TensorBoard is requested but not installed.
    """

    def __init__(self, out: Path, records: Iterable[Record], tensorboard: bool) -> None:
        self._events = event_writer(out / "tensorboard") if tensorboard else None
        self._lines = open(out / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._gradients = open(out / "gradients.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115 - as above
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Append one record; its `grad_norms`, part -> norm or None, become the row of gradients.csv."""
        norms = record.get("grad_norms")  # records from a checkpoint of an earlier version have none
        values = {name: value for name, value in record.items() if name != "grad_norms"}
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()
        if norms:
            rows = csv.writer(self._gradients, lineterminator="\n")
            if self._gradients.tell() == 0:
                rows.writerow(["step", *norms])
            rows.writerow([record["step"], *(f"{norm:.6g}" for norm in norms.values())])
            self._gradients.flush()
        if self._events:
            for name in CURVES:
                if record[name] is not None:
                    self._events.add_scalar(name, record[name], record["step"])
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        self._gradients.close()
        if self._events:
            self._events.close()


def part_of(parameter: str) -> str:
    """The part of the model that a parameter belongs to, e.g. "embedding" or "blocks.3.attention_rule"."""
    parts = parameter.split(".")
    return ".".join(parts[:3]) if parts[0] == "blocks" else parts[0]


def norms_by_part(parameters: Sequence[str], norms: Sequence[float]) -> dict[str, float]:
    """Part of the model -> norm over its parameters, in the order of the parameters.

    Args:
        parameters: names of parameters.
        norms: the norm of each parameter's gradient.
    """
    parts: dict[str, list[float]] = {}
    for name, norm in zip(parameters, norms, strict=True):
        parts.setdefault(part_of(name), []).append(norm)
    return {part: math.hypot(*found) for part, found in parts.items()}


def event_writer(folder: Path) -> Any:
    """Clear the folder and return a TensorBoard writer for it."""
    try:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"training.tensorboard: the package tensorboard is not installed ({error}): "
            'run `pip install -e ".[tensorboard]"`, or set training.tensorboard to false'
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    return writer(str(folder))


def line(record: Record, steps: int, seconds: float) -> str:
    """Format a record as one printed line.

    Args:
        steps: number of steps in the whole run.
        seconds: training time up to this record.
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
