"""Why a run stops before its end, in one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ddl.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class TrainingError(UserError):
    """Training cannot go on: the message says why."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is not a number: the message names the step and the parameters."""


@contextmanager
def explained(checkpoints: Path, process: str) -> Iterator[None]:
    """Turn what a machine does to a run into a `TrainingError`; anything else passes as it is.

    Args:
        checkpoints: the folder that the next start continues from.
        process: how messages call this process.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        reason = explain(error)
        if reason is None:
            raise
        raise TrainingError(
            f"{process}{reason}; the next start continues from the last checkpoint in {checkpoints}"
        ) from None


def explain(error: Exception) -> str | None:
    """The sentence for an error that is the machine's, or None."""
    text = " ".join(str(error).split())
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return (
            "out of memory: lower training.micro_batch_sequences, which leaves the batch as it is, set state_memory: "
            "rebuilt, or share the model among more processes by training.sharding: fsdp"
        )
    if isinstance(error, OSError):
        return f"disk full: {error.filename or 'a file of the run'}" if error.errno in DISK_FULL else None
    if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
        return f"another process of this run has ended or is out of reach ({text.removesuffix('.')})"
    return None


def not_finite(step: int, loss: float, norms: dict[str, float]) -> str:
    """The first lines of the report on a step whose loss or gradient is not finite.

    Args:
        norms: gradient norm of every parameter by name.
    """
    bad = [name for name, norm in norms.items() if not torch.tensor(norm).isfinite()]
    groups = dict.fromkeys(".".join(name.split(".")[:3]) for name in bad)
    where = "all parameters" if len(bad) == len(norms) else f"{len(bad)} of {len(norms)} parameters"
    named = f" ({', '.join(list(groups)[:6])}{', ...' if len(groups) > 6 else ''})" if 0 < len(bad) < len(norms) else ""
    gradient = f"gradient not finite in {where}{named}" if bad else "gradient finite"
    return f"step {step}: loss {loss:g}, {gradient}"
