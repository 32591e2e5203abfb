"""Errors that stop a run, each reported in one sentence that suggests a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ddl.errors import OUT_OF_MEMORY, UserError, refused


class TrainingError(UserError):
    """Training cannot continue; the message gives the reason."""


class NotFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite; the message names the step and the parameters."""


@contextmanager
def explained(checkpoints: Path, process: str) -> Iterator[None]:
    """Turn errors caused by the machine into a `TrainingError`; other exceptions pass unchanged.

    Args:
        checkpoints: folder of the checkpoints from which the run will resume.
        process: prefix of messages, which names this process.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        reason = explain(error)
        if reason is None:
            raise
        raise TrainingError(
            f"{process}{reason}; run the command again to continue from the last checkpoint in {checkpoints}"
        ) from None


def explain(error: Exception) -> str | None:
    """Describe an error caused by the machine; None for any other error."""
    text = " ".join(str(error).split())
    reason = refused(error)
    if reason == OUT_OF_MEMORY:
        return (
            f"{reason}: lower training.micro_batch_sequences (the batch stays the same), set state_memory: rebuilt, or "
            "shard the model over more processes with training.sharding: fsdp or hsdp"
        )
    if reason:
        return reason
    if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
        return f"another process of this run has stopped or cannot be reached ({text.removesuffix('.')})"
    return None


def not_finite(step: int, loss: float, norms: dict[str, float]) -> str:
    """Describe a step whose loss or gradient is not finite.

    Args:
        norms: parameter name -> norm of its gradient.
    """
    bad = [name for name, norm in norms.items() if not torch.tensor(norm).isfinite()]
    groups = dict.fromkeys(".".join(name.split(".")[:3]) for name in bad)
    where = "all parameters" if len(bad) == len(norms) else f"{len(bad)} of {len(norms)} parameters"
    named = f" ({', '.join(list(groups)[:6])}{', ...' if len(groups) > 6 else ''})" if 0 < len(bad) < len(norms) else ""
    gradient = f"gradient not finite in {where}{named}" if bad else "gradient finite"
    return f"step {step}: loss {loss:g}, {gradient}"
