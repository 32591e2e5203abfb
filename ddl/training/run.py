"""Train one model: `ddl train --scale laptop --size small --variant ddl-cc --seed 0 ...`.

The same seed, machine and thread count give the same loss curve and weights to the bit, even if a run is interrupted.
The data order depends only on (seed, step), nothing else in training is random, and a checkpoint contains the remaining
state: weights, optimiser states, step and records. With `--processes N`, N processes share the same batches, and the
loss curve is the same up to rounding.
"""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor

from ddl.code_identity import code_identity
from ddl.config import ModelConfig, Scale, TrainConfig, to_mapping
from ddl.data.sequences import TokenSequences, load_manifest
from ddl.data.shard_format import DataError
from ddl.data.tokenizer import save_tokenizer
from ddl.files import finite, sha256_file, write_json, write_text
from ddl.layout import SNAPSHOT
from ddl.locks import only_writer
from ddl.model.flops import flops_per_token
from ddl.model.language_model import LanguageModel, parameter_count
from ddl.model.run_files import read_metadata, save_model, save_weights, snapshot_steps
from ddl.model_card import model_card
from ddl.provenance import peak_resident_bytes, provenance
from ddl.training.batches import TrainingBatches, validation_batch
from ddl.training.checkpoints import SHOWN, Checkpoints, Origin, Stale
from ddl.training.distributed import Processes
from ddl.training.errors import NotFiniteError, TrainingError, explain, explained, not_finite
from ddl.training.learner import Learner, learning_rate
from ddl.training.metrics import CURVES, Metrics, line, norms_by_part


@dataclasses.dataclass
class Progress:
    """Progress of a run. Together with weights and optimiser states it is the complete state."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # losses of the steps since the last record
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    continued: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # times it continued from another origin

    @classmethod
    def read(cls, values: dict[str, Any], steps: int) -> Self:
        """From the entries of a checkpoint of a run of `steps` steps.

        Raises:
            AttributeError, KeyError, TypeError: an entry is missing, unknown or not what a run writes.
        """
        found = cls(**values)
        numbers = [found.seconds, *found.losses]
        for record in found.records:
            numbers += [record["step"], record["tokens"], *(record[name] or 0 for name in CURVES)]
            numbers += (record.get("grad_norms") or {}).values()
        fingerprints = [origin["fingerprint"] for origin in found.continued]
        if type(found.step) is not int or not 0 <= found.step <= steps:
            raise TypeError(f"progress: step: expected 0 to {steps}, found {found.step!r}")
        if (
            not found.records
            or {type(number) for number in numbers} - {int, float}
            or {*map(type, fingerprints)} - {str}
        ):
            raise TypeError("progress: records are missing, or not numbers")
        return found


class Run:
    """One training run: `Run(...).train()`.

    Args:
        scale, size, variant, seed: identify the run.
        data: manifest of the token shards.
        out: folder of the run; checkpoints are in `out/checkpoints/<fingerprint>/`.
        stale: what to do if all checkpoints come from other settings or code: stop, start over, or continue from the
            newest.

    Raises:
        ConfigError, DataError: settings or data are invalid or do not match.
    """

    def __init__(
        self, scale: Scale, size: str, variant: str, seed: int, data: Path, out: Path, stale: Stale = "refuse"
    ) -> None:
        self.scale, self.size, self.variant, self.seed, self.out = scale, size, variant, seed, out
        self.stale: Stale = stale
        self.config = scale.model(size, variant)
        self.recipe: TrainConfig = scale.recipe
        self.processes = Processes()
        manifest = load_manifest(data)
        self.tokenizer = data.parent / manifest["tokenizer"]["file"]
        if not self.tokenizer.is_file() or sha256_file(self.tokenizer) != manifest["tokenizer"]["sha256"]:
            raise DataError(f"{self.tokenizer}: not the tokenizer listed in {data.name}: run ddl data")
        train, val = (TokenSequences(data, split, scale.sequence_length) for split in ("train", "val"))
        if train.vocab_size != self.config.vocab_size:
            raise DataError(
                f"{data}: expected tokenizer.vocab_size {self.config.vocab_size}, as in the scale {scale.name}, "
                f"found {train.vocab_size}"
            )
        self.batches = TrainingBatches(train, self.recipe, seed, self.processes)
        self.validation, self.validation_sequences = validation_batch(val, self.recipe, self.processes)
        model = LanguageModel(self.config, seed).to(self.processes.device)
        self.learner = Learner(model, self.recipe, self.processes)
        self.progress = Progress()
        self.settings = {
            "scale": scale.name,
            "size": size,
            "variant": variant,
            "seed": seed,
            "model": to_mapping(self.config),
            "training": to_mapping(self.recipe),
        }
        shards = {shard["file"]: shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]}
        origin = Origin(self.settings | scale.determining(size, variant), shards, code_identity("ddl.training.run"))
        self.checkpoints = Checkpoints(out, origin)
        self.metrics: Metrics | None = None
        self.unchecked: list[tuple[Tensor, Tensor]] = []  # losses and gradient norms, still on the device
        self.grad_norm = math.nan
        self.grad_norms: dict[str, float] = {}  # of the parts of the model
        self.stop_signal: int | None = None

    def train(self) -> bool:
        """Train from the newest checkpoint or from the start, and write the run's files after the last step.

        Returns:
            Whether the run is complete. After SIGINT or SIGTERM it saves a checkpoint and returns False.

        Raises:
            TrainingError: the run cannot continue; earlier checkpoints are kept.
            LockError: another process is training in this folder.
        """
        recipe, count = self.recipe, self.processes.count
        self.say(
            f"{self.size}/{self.variant}/seed{self.seed} on {count} x {self.processes.device.type}: "
            f"{parameter_count(self.config)['total']:,} parameters, {recipe.steps} steps of "
            f"{recipe.batch_sequences} x {self.scale.sequence_length} tokens, "
            f"fingerprint {self.checkpoints.folder.name}"
        )
        if self.batches.passes > 1:
            self.say(
                f"warning: the run passes over its training data {self.batches.passes:.1f} times: "
                f"{len(self.batches.data):,} sequences of {self.scale.sequence_length} tokens"
            )
        previous = {name: signal.signal(name, self.request_stop) for name in (signal.SIGINT, signal.SIGTERM)}
        lock = self.out / "checkpoints" / ".lock"
        try:
            with (
                explained(self.checkpoints.folder, self.processes.name),
                only_writer(lock) if self.processes.leads else nullcontext(),
            ):
                self.resume()
                if not self.processes.leads:
                    self.steps()
                else:
                    save_tokenizer(self.tokenizer, self.out)  # first, so that a tokenizer error stops the run early
                    with Metrics(self.out, self.progress.records, recipe.tensorboard) as self.metrics:
                        self.steps()
                done = self.progress.step == recipe.steps
                if done:
                    self.finish()
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
        if done:
            self.say(f"the model is in {self.out}; `ddl generate --run {self.out} --prompt TEXT` continues a text")
        else:
            self.say(f"stopped after step {self.progress.step}; run the command again to continue from there")
        return done

    def steps(self) -> None:
        """Run the remaining optimiser steps, writing a record every `log_interval` steps and at every validation.

        The host waits for the device only at records, validations, checkpoints and snapshots.
        """
        recipe, progress = self.recipe, self.progress
        if progress.step == 0:
            self.record(
                train_loss=None, val_loss=self.validate(), lr=0.0, grad_norm=None, tok_per_s=None, grad_norms=None
            )
            if 0 in recipe.snapshots:
                self.save_snapshot()
        logged_step, logged_seconds = progress.step, progress.seconds
        clock = time.perf_counter()
        for batch in self.batches.stream(range(progress.step, recipe.steps)):
            lr = learning_rate(progress.step, recipe)
            self.unchecked.append(self.learner.step(batch, lr))
            progress.step += 1
            validates = progress.step % recipe.val_interval == 0 or progress.step == recipe.steps
            records = progress.step % recipe.log_interval == 0 or validates
            stops = self.stops(agreed=records)
            saves = progress.step % recipe.checkpoint_interval == 0 or progress.step == recipe.steps or stops
            snapshot = progress.step in recipe.snapshots
            if records or saves or snapshot:
                self.check()
                progress.seconds += time.perf_counter() - clock
            if records:
                tokens = (progress.step - logged_step) * self.scale.tokens_per_step
                self.record(
                    train_loss=torch.tensor(progress.losses).mean().item(),
                    val_loss=self.validate() if validates else None,
                    lr=lr,
                    grad_norm=self.grad_norm,
                    tok_per_s=tokens / max(progress.seconds - logged_seconds, 1e-9),
                    grad_norms=self.grad_norms,
                )
                progress.losses = []
                logged_step, logged_seconds = progress.step, progress.seconds
            if snapshot:
                self.save_snapshot()
            if saves:
                self.save_checkpoint()
            if stops:
                return
            if records or saves or snapshot:
                clock = time.perf_counter()

    def check(self) -> None:
        """Copy the losses since the last call to the host, and stop if a step was not finite.

        Raises:
            NotFiniteError: names the first such step; no checkpoint has been written since then.
        """
        losses = self.processes.mean(torch.stack([loss for loss, _ in self.unchecked])).tolist()
        norms = torch.stack([norms for _, norms in self.unchecked])
        totals = torch.linalg.vector_norm(norms, dim=1).tolist()
        named = self.learner.model.named_parameters()
        names = [name for name, parameter in named if parameter.grad is not None]
        for index, (loss, total) in enumerate(zip(losses, totals, strict=True)):
            if not math.isfinite(loss) or not math.isfinite(total):
                step = self.progress.step - len(losses) + index + 1
                by_name = dict(zip(names, norms[index].tolist(), strict=True))
                raise NotFiniteError(
                    f"{not_finite(step, loss, by_name)}; the checkpoints in {self.checkpoints.folder} are from "
                    "earlier steps; a lower training.learning_rate or more training.warmup_steps may help"
                )
        self.progress.losses += losses
        self.grad_norm, self.grad_norms = totals[-1], norms_by_part(names, norms[-1].tolist())
        self.unchecked = []

    def validate(self) -> float:
        """Mean loss in nats over the fixed validation sequences."""
        loss = self.processes.sum(self.learner.evaluate(self.validation)).item() / self.validation_sequences
        if not math.isfinite(loss):
            raise NotFiniteError(f"step {self.progress.step}: validation loss {loss} is not finite")
        return loss

    def record(self, **values: float | dict[str, float] | None) -> None:
        """Append one record to the metrics and print it."""
        progress = self.progress
        place = {"step": progress.step, "tokens": progress.step * self.scale.tokens_per_step}
        record = {**place, "seconds": progress.seconds, **values}
        progress.records.append(record)
        if self.metrics:
            self.metrics.write(record)
        self.say(f"{self.size}/{self.variant}  {line(record, self.recipe.steps, progress.seconds)}")

    def say(self, text: str) -> None:
        """Print a line from the leading process only."""
        if self.processes.leads:
            print(text, flush=True)

    def save_checkpoint(self) -> None:
        """Write a checkpoint with the state of the run."""
        state = self.learner.state()
        if self.processes.leads:
            self.checkpoints.save(self.progress.step, {**state, "progress": dataclasses.asdict(self.progress)})

    def save_snapshot(self) -> None:
        """Write the current weights, marked with the fingerprint of this run."""
        state = self.learner.state()
        if self.processes.leads:
            path = self.out / SNAPSHOT.format(step=self.progress.step)
            save_weights(state["model"], path, fingerprint=self.checkpoints.origin.fingerprint)

    def remove_other_snapshots(self) -> None:
        """Remove snapshots of another run in this folder, e.g. one before a `--restart`."""
        own = [self.checkpoints.origin.fingerprint, *(origin["fingerprint"] for origin in self.progress.continued)]
        for step in snapshot_steps(self.out):
            path = self.out / SNAPSHOT.format(step=step)
            if read_metadata(path).get("fingerprint") not in own:
                path.unlink()

    def resume(self) -> None:
        """Load the newest checkpoint that this run may continue from, if there is one."""
        if self.processes.leads:
            self.checkpoints.tidy()
        state, refused, progress = None, None, self.progress
        try:
            state = self.checkpoints.find(self.stale, self.recipe.steps, self.say)
            if state is not None:
                with self.of_this_run():
                    progress = Progress.read(state["progress"], self.recipe.steps)
        except TrainingError as error:
            refused = error
        start = str(refused) if refused else progress.step
        starts = self.processes.gather((self.checkpoints.folder.name, start))
        if len(set(starts)) > 1:
            raise TrainingError(f"the processes would start from different checkpoints: {starts}")
        if refused:
            raise refused
        if state is not None:
            with self.of_this_run():
                self.learner.load(state)
            self.progress = progress
            if "origin" in state:
                self.progress.continued.append({"step": self.progress.step, **state["origin"]})
        if self.processes.leads:
            self.remove_other_snapshots()

    @contextmanager
    def of_this_run(self) -> Iterator[None]:
        """Turn errors from a checkpoint that contains something else than a run writes into a `TrainingError`."""
        try:
            yield
        except TrainingError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if explain(error):  # of the machine, not of the checkpoint
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
            raise TrainingError(
                f"{self.checkpoints.loaded}: not a checkpoint of this run ({reason}); remove it to continue"
            ) from None

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: stop at the end of this step; a second signal stops at once."""
        if self.stop_signal and self.processes.count == 1:  # torchrun forwards a second signal itself
            raise KeyboardInterrupt
        self.stop_signal = number

    def stops(self, agreed: bool) -> bool:
        """Whether a signal asked to stop after this step. Several processes agree on this only at records."""
        asked = self.stop_signal is not None
        return any(self.processes.gather(asked)) if agreed else asked and self.processes.count == 1

    def finish(self) -> None:
        """Write model, summary, model card and provenance."""
        state = self.learner.state()
        if not self.processes.leads:
            return
        with torch.device("meta"):
            model = LanguageModel(self.config)
        model.load_state_dict(state["model"], assign=True)
        save_model(model, self.out)
        counts = parameter_count(self.config)
        last = self.progress.records[-1]
        summary = {
            "scale": self.scale.name,
            "size": self.size,
            "variant": self.variant,
            "seed": self.seed,
            "val_loss": last["val_loss"],
            "val_perplexity": finite(math.exp(min(last["val_loss"], 700.0))),
            "params": counts["total"],
            "params_non_embedding": counts["non_embedding"],
            "train_flops_per_token": train_flops_per_token(self.config),
            "steps": last["step"],
            "tokens": last["tokens"],
            "seconds": self.progress.seconds,
            "peak_mem_bytes": peak_memory(self.processes.device),
        }
        write_json(self.out / "summary.json", summary)
        write_text(self.out / "README.md", model_card(self.scale, summary))
        source = {
            "fingerprint": self.checkpoints.origin.fingerprint,
            "continued": self.progress.continued,
            "processes": self.processes.count,
        }
        write_json(self.out / "provenance.json", {"settings": self.settings, **source, **provenance()})


def train_flops_per_token(config: ModelConfig) -> int | None:
    """FLOPs of a training step per token: the backward pass counts as two forward passes.

    None if the residual rule does not count its operations.
    """
    flops = flops_per_token(config)
    return None if flops.state is None else 3 * (flops.backbone + flops.state)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the GPU, or peak resident set size of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
