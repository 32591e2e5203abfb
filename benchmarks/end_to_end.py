"""Time whole training steps and inference passes of all variants, and profile one training step.

The code is that of `ddl cost` (`ddl.training.cost`), so the timed work is the same: the training step of a run, with
its precision, compiled layers, clipping and weight-decay groups, and the forward pass of a batch with all logits.
"""

import dataclasses
import gc
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Budget, Rows, first_line
from ddl.config import ExecutionConfig, ModelConfig, Scale
from ddl.layout import BASELINE
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.ops.cross_entropy import linear_cross_entropy
from ddl.training.cost import Rates, Subject, by_variant, measure_round, spread

COLUMNS = (
    *("size", "variant", "kernels", "state_memory", "state_dtype", "dtype", "compiler", "mode"),
    *("layers", "heads", "width", "vocab_size", "sequence_length", "batch_sequences", "params"),
    *("tok_per_s", "tok_per_s_p20", "tok_per_s_p80", "ratio", "ratio_p20", "ratio_p80", "rounds"),
    *("peak_mem_bytes", "peak_mem_factor"),
)
PROFILED = (BASELINE, "ddl-cc")
FEWEST_ROUNDS = 3
PROFILE_ROWS = 25


class OneLossModel(LanguageModel):
    """A model with the same loss operation for all kernel settings, so that comparisons cover only the residual."""

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(self.hidden(ids), self.embedding.weight, targets)


class Candidate(Subject):
    """A warmed-up subject that shares the device with others and knows how much memory it holds itself."""

    def __init__(self, scale: Scale, config: ModelConfig) -> None:
        before = allocated()
        super().__init__(scale, OneLossModel(config))
        self.train_step()  # compiles the layers and creates the optimiser state
        self.inference()
        self.own_bytes = allocated() - before

    def peak_bytes(self) -> int | None:
        """Peak memory allocated on the GPU in a training step, minus that of the other subjects; None on a CPU."""
        if self.device.type == "cpu":
            return None
        others = allocated() - self.own_bytes
        torch.cuda.reset_peak_memory_stats(self.device)
        self.train_step()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - others


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 without a GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def executions(scale: Scale) -> tuple[ExecutionConfig, ...]:
    """The execution settings of the scale, and two others for comparison."""
    stored = dataclasses.replace(scale.execution, state_memory="stored")
    rebuilt = dataclasses.replace(scale.execution, state_memory="rebuilt")
    other = rebuilt if scale.execution == stored else stored
    return scale.execution, other, dataclasses.replace(stored, kernels="reference")


# Shapes are static, and each size, variant and mode needs separate graphs.
@torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=1000, accumulated_recompile_limit=1000)
def measure(rows: Rows, scale: Scale, budget: Budget) -> int:
    """Add rows for training and inference with every execution, size and variant.

    If time runs out, the remaining rows have a reason instead of numbers.


    Returns:
        Number of models that failed.
    """
    failed = 0
    longest = dict.fromkeys(scale.sizes, 0.0)  # longest time to build and compile a model of this size, in seconds
    groups = [
        (dataclasses.replace(scale, execution=execution), size)
        for execution in executions(scale)
        for size in scale.sizes
    ]
    for number, (group, size) in enumerate(groups):
        print(f"{size} models, kernels {group.execution.kernels}, states {group.execution.state_memory}:", flush=True)
        subjects: dict[str, Candidate] = {}
        gc.collect()  # compiled layers have reference cycles, so free the previous models now
        reasons = {}
        for variant in group.variants:
            before = budget.left()
            if before < 2 * longest[size]:
                reasons[variant] = "dropped: no time left"
            elif variant != BASELINE and BASELINE not in subjects:
                reasons[variant] = "no baseline to compare with"
            else:
                try:
                    subjects[variant] = Candidate(group, group.model(size, variant))
                except Exception as error:  # continue with the other models; the command exits with an error
                    reasons[variant], failed = first_line(error), failed + 1
            longest[size] = max(longest[size], before - budget.left())
        rates = take_turns(group, subjects, budget.part(1 / (len(groups) - number)))
        peaks = {variant: subject.peak_bytes() for variant, subject in subjects.items()}
        for variant in group.variants:
            key = describe(group, size, variant)
            if variant in reasons:
                rows.add(**key, mode="train and inference", reason=reasons[variant])
                print(f"  {variant:12} {reasons[variant]}", flush=True)
            else:
                add_measured(rows, key, rates[variant], rates[BASELINE], peaks[variant], peaks[BASELINE])
    return failed


def describe(scale: Scale, size: str, variant: str) -> dict[str, Any]:
    """The columns of a row that describe the measured model."""
    config = scale.model(size, variant)
    shape = {name: getattr(config, name) for name in ("layers", "heads", "width", "vocab_size", "sequence_length")}
    shape |= {"batch_sequences": scale.cost.batch_sequences, "params": parameter_count(config)["total"]}
    compiler = "inductor" if scale.training.compile else "none"
    how = {**dataclasses.asdict(scale.execution), "dtype": scale.training.dtype, "compiler": compiler}
    return {"size": size, "variant": variant, **how, **shape}


def take_turns(scale: Scale, subjects: dict[str, Candidate], budget: Budget) -> Rates:
    """Rates of as many rounds as the time allows, without the warm-up rounds."""
    if not subjects:
        return {}
    warmup, rounds = scale.cost.warmup_rounds, []
    while len(rounds) < warmup + scale.cost.rounds and (len(rounds) < warmup + FEWEST_ROUNDS or budget.left() > 0):
        rounds.append(measure_round(scale, subjects))
    measured = rounds[warmup:]
    if len(measured) < scale.cost.rounds:
        print(f"  {len(measured)} rounds instead of {scale.cost.rounds}: no time left", flush=True)
    return by_variant(measured)


def add_measured(
    rows: Rows,
    key: dict[str, Any],
    rates: dict[str, np.ndarray],
    baseline: dict[str, np.ndarray],
    peak: int | None,
    baseline_peak: int | None,
) -> None:
    """Add one row for training and one for inference; ratios are computed within each round."""
    for mode, speed in rates.items():
        row: dict[str, Any] = {**key, "mode": mode, "rounds": len(speed)}
        for name, values in (("tok_per_s", speed), ("ratio", speed / baseline[mode])):
            found = spread(values)
            row |= {name: found["median"], f"{name}_p20": found["p20"], f"{name}_p80": found["p80"]}
        if mode == "train" and peak and baseline_peak:
            row |= {"peak_mem_bytes": peak, "peak_mem_factor": peak / baseline_peak}
        rows.add(**row)
        print(
            f"  {key['variant']:12} {mode:9} {row['tok_per_s']:>11,.0f} tok/s, {row['ratio']:.3f} of the baseline"
            + (f", peak {peak / 2**30:.2f} GiB" if mode == "train" and peak else ""),
            flush=True,
        )


def profile_step(scale: Scale, size: str, variant: str) -> str:
    """Profile one training step: a table of the slowest kernels (on a CPU: operations)."""
    subject = Candidate(scale, scale.model(size, variant))
    subject.train_step()
    subject.synchronize()
    on_gpu = subject.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        subject.train_step()
        subject.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == wanted]
    if on_gpu:
        events = [
            event for event in events if not event.is_user_annotation
        ]  # annotations repeat the time of their kernels
    spent = [
        ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count, event.key)
        for event in events
    ]
    spent.sort(reverse=True)
    total, rest = sum(ms for ms, *_ in spent), spent[PROFILE_ROWS:]
    spent[PROFILE_ROWS:] = [
        (sum(ms for ms, *_ in rest), sum(calls for _, calls, _ in rest), "all others"),
        (total, sum(calls for _, calls, _ in spent), "sum"),
    ]
    head = f"{'ms':>9}  {'%':>5}  {'calls':>5}  {'kernel' if on_gpu else 'operation'}"
    return "\n".join(
        [head, *(f"{ms:9.3f}  {100 * ms / total:5.1f}  {calls:5}  {name[:90]}" for ms, calls, name in spent)]
    )
