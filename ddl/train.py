"""Train one of the twelve models: `python -m ddl.train --scale laptop --size small --variant ddl-cc --seed 0 ...`.

The same seed, machine and thread count give the same loss curve to the bit, also across an interruption: the order of
the data is a function of (seed, step), and a checkpoint holds everything else. Checkpoints lie under a fingerprint of
the settings, the data and the code that is running, so that none is ever resumed by another model than its own.
"""

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddl.config import ConfigError, Scale, TrainConfig, load_scale, to_mapping
from ddl.model import LanguageModel, parameter_count, save_model
from ddl.provenance import atomic, fingerprint, finite, peak_resident_bytes, provenance, user_errors, write_json
from ddl.sequences import TokenSequences, load_manifest, sequence_order
from ddl.shards import DataError
from ddl.tokenizer import TokenizerError, save_tokenizer

KEPT_CHECKPOINTS = 2


class TrainingError(ValueError):
    """Training cannot go on: the message says why and at which step."""


@dataclasses.dataclass
class Progress:
    """What a run has done so far; together with model and optimiser, the whole of its state."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last record
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Run:
    """One training run: `Run(...).train()`.

    Args:
        scale, size, variant, seed: which run.
        data: manifest of the token shards.
        out: folder of the run; checkpoints lie in `out/checkpoints/<fingerprint>/`.

    Raises:
        ConfigError, DataError: settings or data that do not fit.
    """

    def __init__(self, scale: Scale, size: str, variant: str, seed: int, data: Path, out: Path) -> None:
        self.scale, self.size, self.variant, self.seed, self.out = scale, size, variant, seed, out
        self.config = scale.model(size, variant)
        self.recipe: TrainConfig = scale.training
        torch.set_num_threads(self.recipe.threads)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train_data = TokenSequences(data, "train", scale.sequence_length)
        self.val_data = TokenSequences(data, "val", scale.sequence_length)
        self.model = LanguageModel(self.config, seed).to(self.device)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.progress = Progress()
        self.settings = {
            "scale": scale.name,
            "size": size,
            "variant": variant,
            "seed": seed,
            "model": to_mapping(self.config),
            "training": to_mapping(self.recipe),
        }
        manifest = load_manifest(data)
        self.tokenizer = data.parent / manifest["tokenizer"]["file"]
        tokens = {name: [shard["sha256"] for shard in split["shards"]] for name, split in manifest["splits"].items()}
        self.fingerprint = fingerprint({"settings": self.settings, "data": tokens}, running_code())
        self.checkpoints = out / "checkpoints" / self.fingerprint[:16]
        self.stop_signal: int | None = None

    def train(self) -> bool:
        """Train from the newest checkpoint, or from the start; write the run's files once the last step is done.

        Returns:
            Whether it is done; False after SIGINT or SIGTERM, with the step that it reached saved.
        """
        recipe = self.recipe
        print(
            f"{self.size}/{self.variant}/seed{self.seed} on {self.device}: "
            f"{parameter_count(self.config)['total']:,} parameters, {recipe.steps} steps of "
            f"{recipe.batch_sequences} x {self.scale.sequence_length} tokens, fingerprint {self.fingerprint[:16]}",
            flush=True,
        )
        self.resume()
        save_tokenizer(self.tokenizer, self.out)  # first: without one there is nothing to train for
        previous = {name: signal.signal(name, self.request_stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            with open(self.out / "metrics.jsonl", "w", encoding="utf-8") as metrics:
                metrics.writelines(json.dumps(record) + "\n" for record in self.progress.records)
                self.steps(metrics)
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
        if self.progress.step < self.recipe.steps:
            print(f"stopped after step {self.progress.step}; the next start continues there", flush=True)
            return False
        self.finish()
        return True

    def steps(self, metrics: Any) -> None:
        """The loop over optimiser steps; one record every `log_interval` and at every validation."""
        recipe, progress = self.recipe, self.progress
        if progress.step == 0:
            self.record(metrics, train_loss=None, val_loss=self.validate(), lr=0.0, grad_norm=None, tok_per_s=None)
        losses = [torch.tensor(loss, device=self.device) for loss in progress.losses]
        clock = time.perf_counter()
        logged_step, logged_seconds = progress.step, progress.seconds
        while progress.step < recipe.steps and not self.stop_signal:
            lr = learning_rate(progress.step, recipe)
            loss, grad_norm = self.step(lr)
            losses.append(loss)
            progress.step += 1
            validates = progress.step % recipe.val_interval == 0 or progress.step == recipe.steps
            if progress.step % recipe.log_interval == 0 or validates:
                train_loss = torch.stack(losses).mean().item()
                if not math.isfinite(train_loss) or not math.isfinite(grad_norm.item()):
                    raise TrainingError(
                        f"step {progress.step}: loss {train_loss}, gradient norm {grad_norm.item()}: not finite; "
                        f"the last good checkpoint is in {self.checkpoints}"
                    )
                progress.seconds += time.perf_counter() - clock
                tokens = (progress.step - logged_step) * recipe.batch_sequences * self.scale.sequence_length
                self.record(
                    metrics,
                    train_loss=train_loss,
                    val_loss=self.validate() if validates else None,
                    lr=lr,
                    grad_norm=grad_norm.item(),
                    tok_per_s=tokens / max(progress.seconds - logged_seconds, 1e-9),
                )
                losses = []
                logged_step, logged_seconds = progress.step, progress.seconds
                clock = time.perf_counter()
            if progress.step % recipe.checkpoint_interval == 0 or progress.step == recipe.steps or self.stop_signal:
                progress.seconds += time.perf_counter() - clock
                progress.losses = [loss.item() for loss in losses]
                self.save_checkpoint()
                clock = time.perf_counter()

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """One optimiser step: mean loss of the batch and gradient norm before clipping, both on the device."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        indices = self.batch_indices(self.progress.step)
        parts = indices.reshape(-1, recipe.micro_batch_sequences)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            with self.autocast():
                loss = self.model.loss(*self.tensors(self.train_data, part)) / len(parts)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.grad_clip)
        self.optimizer.step()
        return total, norm

    def batch_indices(self, step: int) -> np.ndarray:
        """The sequences of one batch: epochs are permutations, laid end to end."""
        count, size = len(self.train_data), self.recipe.batch_sequences
        if count < size:
            raise DataError(f"training split: expected at least {size} sequences, found {count}")
        first = step * size
        epochs = range(first // count, (first + size - 1) // count + 1)
        order = np.concatenate([sequence_order(count, self.seed, epoch) for epoch in epochs])
        offset = first - epochs[0] * count
        return order[offset : offset + size]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss in nats over the fixed validation sequences, spread evenly over the split."""
        count = min(self.recipe.val_sequences, len(self.val_data))
        indices = np.linspace(0, len(self.val_data) - 1, count).astype(np.int64)
        total = 0.0
        for part in np.array_split(indices, math.ceil(count / self.recipe.micro_batch_sequences)):
            with self.autocast():
                total += self.model.loss(*self.tensors(self.val_data, part)).item() * len(part)
        return total / count

    def tensors(self, data: TokenSequences, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs, targets = data.batch(indices)
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def record(self, metrics: Any, **values: float | None) -> None:
        """Append one record to the metrics and print it for people."""
        progress, recipe = self.progress, self.recipe
        tokens = progress.step * recipe.batch_sequences * self.scale.sequence_length
        record = {"step": progress.step, "tokens": tokens, **values}
        progress.records.append(record)
        metrics.write(json.dumps(record) + "\n")
        metrics.flush()
        parts = [f"{self.size}/{self.variant}  step {progress.step}/{recipe.steps} {progress.step / recipe.steps:.0%}"]
        if record["train_loss"] is not None:
            parts.append(f"loss {record['train_loss']:.4f}")
        if record["val_loss"] is not None:
            parts.append(f"val {record['val_loss']:.4f}")
        if record["tok_per_s"]:
            left = (recipe.steps - progress.step) * progress.seconds / max(progress.step, 1)
            parts += [f"lr {record['lr']:.2e}", f"|g| {record['grad_norm']:.2f}", f"{record['tok_per_s']:,.0f} tok/s"]
            parts.append(f"ETA {int(left // 60)}m{int(left % 60):02d}s")
        print("  ".join(parts), flush=True)

    def save_checkpoint(self) -> None:
        """Write the state whole, keep the newest `KEPT_CHECKPOINTS`."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        with atomic(self.checkpoints / f"step{self.progress.step:08d}.pt") as temporary:
            torch.save(state, temporary)
        for old in sorted(self.checkpoints.glob("step*.pt"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def resume(self) -> None:
        """Load the newest checkpoint of this fingerprint; a damaged one is named and the one before it is taken."""
        for path in sorted(self.checkpoints.glob("step*.pt"), reverse=True):
            try:
                state = torch.load(path, map_location=self.device, weights_only=True)
            except (RuntimeError, OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
                print(f"{path}: damaged, left out ({type(error).__name__})", flush=True)
                continue
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            print(f"resumed from step {self.progress.step} ({path})", flush=True)
            return

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: stop at the end of this step; a second signal stops at once."""
        if self.stop_signal:
            raise KeyboardInterrupt
        self.stop_signal = number

    def finish(self) -> None:
        """Write model, summary and provenance."""
        save_model(self.model, self.out)
        counts = parameter_count(self.config)
        last = self.progress.records[-1]
        write_json(
            self.out / "summary.json",
            {
                "scale": self.scale.name,
                "size": self.size,
                "variant": self.variant,
                "seed": self.seed,
                "val_loss": last["val_loss"],
                "val_perplexity": finite(math.exp(min(last["val_loss"], 700.0))),
                "params": counts["total"],
                "params_non_embedding": counts["non_embedding"],
                "steps": last["step"],
                "tokens": last["tokens"],
                "seconds": self.progress.seconds,
                "peak_mem_bytes": peak_memory(self.device),
            },
        )
        write_json(
            self.out / "provenance.json",
            {"settings": self.settings, "fingerprint": self.fingerprint, **provenance()},
        )


def make_optimizer(model: LanguageModel, recipe: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only: not on norms, biases, gates' biases and convolution taps."""
    matrices = [weight for _, weight in model.named_matrices()]
    chosen = {id(weight) for weight in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def learning_rate(step: int, recipe: TrainConfig) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine from the peak to the floor at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    share = (step - recipe.warmup_steps) / max(recipe.steps - 1 - recipe.warmup_steps, 1)
    floor = recipe.min_learning_rate
    return floor + (recipe.learning_rate - floor) * 0.5 * (1 + math.cos(math.pi * share))


def running_code() -> list[Path]:
    """The files of this package that are loaded now."""
    modules = [module for name, module in sys.modules.items() if name == "ddl" or name.startswith("ddl.")]
    files = {Path(module.__file__) for module in modules if module.__file__} | {Path(__file__)}
    return sorted(file.resolve() for file in files)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the GPU, else the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first line."""
    parser = argparse.ArgumentParser(prog="python -m ddl.train", description="Train one model.")
    parser.add_argument("--scale", required=True, help="name of a file in config/scales")
    parser.add_argument("--size", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--data", required=True, type=Path, help="folder with the manifest of the token shards")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    args = parser.parse_args(argv)
    with user_errors(ConfigError, DataError, TokenizerError, TrainingError):
        run = Run(load_scale(args.scale), args.size, args.variant, args.seed, args.data / "manifest.json", args.out)
        if not run.train():
            raise SystemExit(130)


if __name__ == "__main__":
    main()
