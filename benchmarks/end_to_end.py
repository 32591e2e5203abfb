"""Whole training steps and inference passes of the six variants, and what one step of a variant spends its time on.

Fast on both sides, or a ratio means nothing: torch.compile, flash attention, fused AdamW, the loss without the logits
of the whole batch, nothing that waits for the GPU within a step. What is compiled is a layer, not the model: all layers
are alike, so one graph serves them all and the twelve models compile in minutes.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Budget, Rows, first_line
from ddl.config import ModelConfig
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.ops.cross_entropy import linear_cross_entropy
from ddl.training.learner import compile_layers

COLUMNS = (
    *("size", "variant", "kernels", "state_memory", "state_dtype", "dtype", "compiler", "mode"),
    *("layers", "heads", "width", "vocab_size", "sequence_length", "batch_sequences", "params"),
    *("tok_per_s", "tok_per_s_p20", "tok_per_s_p80", "ratio", "ratio_p20", "ratio_p80", "rounds"),
    *("peak_mem_bytes", "peak_mem_factor"),
)
BASELINE = "baseline"
# config/variants.yaml, which a machine without a YAML package cannot read; a test compares the two.
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"residual": "additive"},
    "ddl-dv1": {"residual": "delta"},
    "ddl-tc-noec": {"residual": "delta", "value_channels": 4, "compressor": "tc"},
    "ddl-cc-noec": {"residual": "delta", "value_channels": 4, "compressor": "cc"},
    "ddl-tc": {"residual": "delta", "value_channels": 4, "compressor": "tc", "embed_conv": True},
    "ddl-cc": {"residual": "delta", "value_channels": 4, "compressor": "cc", "embed_conv": True},
}
PROFILED = (BASELINE, "ddl-cc")
# How models are computed, (kernels, state_memory): as config/scales/paper.yaml says, then what that is compared with.
CHOSEN = ("auto", "rebuilt")
GROUPS = tuple(
    (size, *execution)
    for execution in (CHOSEN, ("auto", "stored"), ("reference", "stored"))
    for size in ("small", "medium")
)
ROUNDS, FEWEST_ROUNDS = 10, 3
STEPS_PER_ROUND = 3  # between two looks at the clock
PROFILE_ROWS = 25


@dataclass(frozen=True)
class Shape:
    """Of a model and its batch; `dtype` is autocast's, and the state's if it is bfloat16."""

    layers: int
    heads: int
    width: int
    vocab_size: int
    sequence_length: int
    batch_sequences: int
    dtype: str

    def model(self, variant: str, kernels: str = CHOSEN[0], state_memory: str = CHOSEN[1]) -> ModelConfig:
        shape = {key: value for key, value in asdict(self).items() if key not in ("batch_sequences", "dtype")}
        state_dtype = "bfloat16" if self.dtype == "bfloat16" else "parameters"
        execution: Any = {"kernels": kernels, "state_dtype": state_dtype, "state_memory": state_memory}
        return ModelConfig(**shape, **VARIANTS[variant], **execution)


class Subject:
    """A model under measurement, with random tokens.

    Args:
        compiler: backend of torch.compile, or "" for none.
    """

    def __init__(self, config: ModelConfig, shape: Shape, compiler: str, device: torch.device) -> None:
        self.shape, self.device = shape, device
        allocated = self.allocated()
        self.model = LanguageModel(config).to(device)
        if compiler:
            compile_layers(self.model, compiler)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        size = (2, shape.batch_sequences, shape.sequence_length)
        generator = torch.Generator().manual_seed(0)
        self.ids, self.targets = torch.randint(shape.vocab_size, size, generator=generator).to(device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=shape.dtype == "bfloat16")
        self.train_step()  # compiles, and makes the state of the optimizer
        self.inference()
        self.own_bytes = self.allocated() - allocated

    def train_step(self) -> None:
        """Forward, backward and optimiser step of one batch."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def inference(self) -> None:
        """The loss of one batch without gradients, as in scoring and validation."""
        self.loss()

    def loss(self) -> Tensor:
        """By the same operation whatever the model's kernels are: its residual is what is compared."""
        with self.autocast:
            return linear_cross_entropy(self.model.hidden(self.ids), self.model.embedding.weight, self.targets)

    def tokens_per_second(self, work: Callable[[], None]) -> float:
        self.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS_PER_ROUND):
            work()
        self.synchronize()
        return STEPS_PER_ROUND * self.ids.numel() / (time.perf_counter() - start)

    def peak_bytes(self) -> int | None:
        """Most memory allocated on the GPU in a training step, model and optimiser with it, other subjects without."""
        if self.device.type == "cpu":
            return None
        others = self.allocated() - self.own_bytes
        torch.cuda.reset_peak_memory_stats(self.device)
        self.train_step()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - others

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# Shapes are fixed, and every size, variant and mode has graphs of its own.
@torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=1000, accumulated_recompile_limit=1000)
def measure(rows: Rows, shapes: dict[str, Shape], compiler: str, device: torch.device, budget: Budget) -> int:
    """Add rows of training and inference for every group, size and variant; without numbers what there is no time for.

    Returns:
        how many failed.
    """
    failed = 0
    dearest = {"small": 0.0, "medium": 0.0}  # seconds that a model of this size took to build and compile
    for number, (size, kernels, state_memory) in enumerate(GROUPS):
        shape, group = shapes[size], {"kernels": kernels, "state_memory": state_memory}
        print(f"{size} models, kernels {kernels}, states {state_memory}:", flush=True)
        subjects: dict[str, Subject] = {}
        reasons = {}
        for variant in VARIANTS:
            before = budget.left()
            if before < 2 * dearest[size]:
                reasons[variant] = "dropped: no time left"
            elif variant != BASELINE and BASELINE not in subjects:
                reasons[variant] = "no baseline to compare with"
            else:
                try:
                    subjects[variant] = Subject(shape.model(variant, **group), shape, compiler, device)
                except Exception as error:  # of one model: the others are measured, the command ends with an error
                    reasons[variant], failed = first_line(error), failed + 1
            dearest[size] = max(dearest[size], before - budget.left())
        rates = take_turns(subjects, budget.part(1 / (len(GROUPS) - number)))
        peaks = {variant: subject.peak_bytes() for variant, subject in subjects.items()}
        for variant in VARIANTS:
            key = describe(size, variant, shape, group, compiler)
            if variant in reasons:
                rows.add(**key, mode="train and inference", reason=reasons[variant])
                print(f"  {variant:12} {reasons[variant]}", flush=True)
            else:
                add_measured(rows, key, rates[variant], rates[BASELINE], peaks[variant], peaks[BASELINE])
    return failed


def describe(size: str, variant: str, shape: Shape, group: dict[str, str], compiler: str) -> dict[str, Any]:
    """The columns of a row that say what was measured."""
    config = shape.model(variant, **group)
    counted = {"params": parameter_count(config)["total"], "state_dtype": config.state_dtype}
    return {"size": size, "variant": variant, "compiler": compiler or "none", **group, **asdict(shape), **counted}


def take_turns(subjects: dict[str, Subject], budget: Budget) -> dict[str, dict[str, torch.Tensor]]:
    """Tokens a second, variant -> mode -> one number a round; the variants take turns in every round."""
    rates: dict[str, dict[str, list[float]]] = {variant: {"train": [], "inference": []} for variant in subjects}
    done = 0
    while subjects and done < ROUNDS and (done < FEWEST_ROUNDS or budget.left() > 0):
        for variant, subject in subjects.items():
            for mode, work in {"train": subject.train_step, "inference": subject.inference}.items():
                rates[variant][mode].append(subject.tokens_per_second(work))
        done += 1
    if subjects and done < ROUNDS:
        print(f"  {done} rounds instead of {ROUNDS}: no time left", flush=True)
    return {v: {mode: torch.tensor(x, dtype=torch.float64) for mode, x in modes.items()} for v, modes in rates.items()}


def add_measured(
    rows: Rows,
    key: dict[str, Any],
    rates: dict[str, torch.Tensor],
    baseline: dict[str, torch.Tensor],
    peak: int | None,
    baseline_peak: int | None,
) -> None:
    """A row for training and one for inference; a ratio is formed within each round."""
    for mode, speed in rates.items():
        row: dict[str, Any] = {**key, "mode": mode, "rounds": len(speed)}
        for name, values in (("tok_per_s", speed), ("ratio", speed / baseline[mode])):
            low, middle, high = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
            row |= {name: middle, f"{name}_p20": low, f"{name}_p80": high}
        if mode == "train" and peak and baseline_peak:
            row |= {"peak_mem_bytes": peak, "peak_mem_factor": peak / baseline_peak}
        rows.add(**row)
        print(
            f"  {key['variant']:12} {mode:9} {row['tok_per_s']:>11,.0f} tok/s, {row['ratio']:.3f} of the baseline"
            + (f", peak {peak / 2**30:.2f} GiB" if mode == "train" and peak else ""),
            flush=True,
        )


def profile_step(variant: str, shape: Shape, compiler: str, device: torch.device) -> str:
    """Where the time of one training step goes, as a table of the dearest kernels (on a CPU: operations)."""
    subject = Subject(shape.model(variant), shape, compiler, device)
    subject.train_step()
    subject.synchronize()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        subject.train_step()
        subject.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == wanted]
    events = [
        event for event in events if not (on_gpu and event.is_user_annotation)
    ]  # which repeat their kernels' time
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
