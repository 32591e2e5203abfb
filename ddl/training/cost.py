"""Measure speed and memory of every variant of one size: `ddl cost --scale laptop --size small --out ...`.

In each round, one process times all variants in turn, so that a slow phase of the machine affects all of them. Ratios
to the baseline are computed within each round. Peak memory is measured in a separate process for each variant.
"""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddl.config import Scale
from ddl.files import write_json
from ddl.layout import BASELINE
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.provenance import peak_resident_bytes, provenance
from ddl.training.distributed import Processes
from ddl.training.learner import Learner


class Subject:
    """One model to measure, with random tokens for training steps and inference passes.

    Args:
        model: moved to the device of this process.
    """

    def __init__(self, scale: Scale, model: LanguageModel) -> None:
        processes = Processes()
        self.device = processes.device
        self.model = model.to(self.device)
        self.learner = Learner(self.model, scale.recipe, processes)
        shape = (scale.cost.batch_sequences, scale.sequence_length)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, scale.tokenizer.vocab_size, shape, generator=generator).to(self.device)

    def train_step(self) -> None:
        """One training step, the same as in a run."""
        self.learner.step([(self.ids, self.ids)], self.learner.recipe.learning_rate)

    @torch.no_grad()
    def inference(self) -> None:
        """Forward pass of one batch that computes all logits, as in scoring and prefill."""
        with self.learner.autocast():
            self.model(self.ids)

    def move(self, device: torch.device) -> None:
        """Move model and optimiser, without gradients."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        self.model.to(device)
        self.learner.optimizer.load_state_dict(self.learner.optimizer.state_dict())  # follows the parameters

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Occupy the memory of the device during the block only."""
        self.move(self.device)
        yield
        self.move(torch.device("cpu"))

    def seconds(self, work: Any) -> float:
        """Wall time of one call, synchronising the device before and after."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Round = dict[str, dict[str, float]]  # tokens/s: variant -> "train" or "inference" -> rate
Rates = dict[str, dict[str, np.ndarray]]  # tokens/s as in `Round`, one entry per round


def measure_round(scale: Scale, subjects: Mapping[str, Subject], together: bool = True) -> Round:
    """Time one training step and one inference pass of every subject, one subject after another.

    Args:
        together: whether all subjects stay on the device; otherwise each is there only while it is measured.
    """
    tokens = scale.cost.batch_sequences * scale.sequence_length
    rates = {}
    for variant, subject in subjects.items():
        present: AbstractContextManager[None] = nullcontext() if together else subject.on_device()
        with present:
            if not together:
                subject.train_step()  # untimed: it allocates anew
            rates[variant] = {
                "train": tokens / subject.seconds(subject.train_step),
                "inference": tokens / subject.seconds(subject.inference),
            }
    return rates


def by_variant(rounds: Sequence[Round]) -> Rates:
    """Rearrange the rates of one or more rounds by variant and mode."""
    return {
        variant: {mode: np.array([each[variant][mode] for each in rounds]) for mode in modes}
        for variant, modes in rounds[0].items()
    }


def throughput(scale: Scale, size: str, together: bool) -> Rates:
    """Rates of all variants, without the warm-up rounds; `together` as for `measure_round`."""
    subjects = {}
    for variant in scale.variants:
        subjects[variant] = Subject(scale, LanguageModel(scale.model(size, variant)))
        if not together:
            subjects[variant].move(torch.device("cpu"))
    total, rounds = scale.cost.warmup_rounds + scale.cost.rounds, []
    for number in range(total):
        rounds.append(measure_round(scale, subjects, together))
        print(f"{size}: round {number + 1}/{total}", flush=True)
    return by_variant(rounds[scale.cost.warmup_rounds :])


def peak_memory(scale: Scale, size: str, variant: str) -> dict[str, Any]:
    """Peak bytes of two training steps, measured in this process, which must be fresh."""
    if torch.cuda.is_available():
        subject = Subject(scale, LanguageModel(scale.model(size, variant)))
        subject.train_step()
        subject.train_step()
        return {"bytes": torch.cuda.max_memory_allocated(), "kind": "peak allocated GPU memory of a training step"}
    torch.nn.Linear(64, 64)(torch.randn(64, 64)).sum().backward()  # what PyTorch allocates at its first use
    before = peak_resident_bytes()
    subject = Subject(scale, LanguageModel(scale.model(size, variant)))
    subject.train_step()
    subject.train_step()
    after = peak_resident_bytes()
    kind = "growth of the peak resident set of a fresh process over two training steps, model and optimiser included"
    return {"bytes": after - before, "kind": kind}


def peak_memory_apart(scale: Scale, size: str, variant: str) -> dict[str, Any]:
    """Run `peak_memory` in a new process, forked from a server that has imported the code and done nothing else.

    What a model needs is then measured without what the imports need, which would bring all ratios nearer to 1.
    """
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(
        [__name__, "torch._dynamo"]
    )  # PyTorch imports the latter at the first custom operation
    with ProcessPoolExecutor(1, fresh) as process:
        return process.submit(peak_memory, scale, size, variant).result()


def fits(needed: int) -> bool:
    """Whether a GPU, if there is one, has this many bytes: a safe bound for the sum of peaks."""
    return not torch.cuda.is_available() or needed <= torch.cuda.get_device_properties(0).total_memory


def spread(values: np.ndarray) -> dict[str, float | int]:
    """Median, 20th and 80th percentile, and number of values."""
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return {"median": float(median), "p20": float(p20), "p80": float(p80), "repeats": len(values)}


def measure(scale: Scale, size: str, out: Path) -> None:
    """Measure all variants of one size and write one JSON file each into `out`."""
    memory = {variant: peak_memory_apart(scale, size, variant) for variant in scale.variants}
    together = fits(sum(peak["bytes"] for peak in memory.values()))
    rates = throughput(scale, size, together)
    source = provenance()
    for variant, modes in rates.items():
        base = rates[BASELINE]
        row: dict[str, Any] = {
            "size": size,
            "variant": variant,
            "params": parameter_count(scale.model(size, variant))["total"],
            "device": source["device"],
            "dtype": scale.training.dtype,
            "batch_sequences": scale.cost.batch_sequences,
            "sequence_length": scale.sequence_length,
            "threads": scale.training.threads,
            "train_tok_per_s": spread(modes["train"]),
            "inference_tok_per_s": spread(modes["inference"]),
            "train_ratio": spread(modes["train"] / base["train"]),
            "inference_ratio": spread(modes["inference"] / base["inference"]),
            "together": together,  # whether all models stayed on the device
            "peak_mem_bytes": memory[variant]["bytes"],
            "peak_mem_kind": memory[variant]["kind"],
            "peak_mem_factor": memory[variant]["bytes"] / memory[BASELINE]["bytes"],
            "provenance": source,
        }
        write_json(out / f"{variant}.json", row)
        train, inference = row["train_tok_per_s"], row["inference_tok_per_s"]
        print(
            f"{size}/{variant}: train {train['median']:,.0f} tok/s ({row['train_ratio']['median']:.2f} of baseline), "
            f"inference {inference['median']:,.0f} tok/s, "
            f"peak {row['peak_mem_bytes'] / 2**20:,.0f} MiB ({row['peak_mem_factor']:.2f})",
            flush=True,
        )
