"""Measure the overhead of the training loop over its steps: `python benchmarks/loop.py --csv loop.csv`.

A stub replaces the model, so that every step costs the same. `waits` sleeps, like a host whose GPU is working;
`computes` multiplies matrices on the same cores that read the data. Rounds of bare steps on one prepared batch
alternate with rounds of the loop, which draws, reads and moves batches, and checks and records every tenth step.
Validation and checkpoints are not included. One row per stub is appended to the CSV. On a machine with other load, use
its processor time.
"""

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from ddl.config import Scale, load_scale
from ddl.data.shard_format import write_shard
from ddl.files import sha256_file, write_json
from ddl.provenance import provenance
from ddl.training.cost import spread
from ddl.training.learner import Learner
from ddl.training.metrics import Metrics
from ddl.training.run import Progress, Run

STEPS = 100  # per round
STEP_SECONDS = 0.05
SEQUENCES, LENGTH = 16, 1024  # 330,000 tokens/s, about one of four GPUs at the paper's small size
VOCABULARY = 50_000


class Stub(nn.Module):
    """A model whose loss takes constant time.

    Args:
        kind: "waits" or "computes".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.eye(512))
        self.products = 1
        if kind == "computes":
            start = time.perf_counter()
            for _ in range(20):
                self.work()
            self.products = round(STEP_SECONDS / (time.perf_counter() - start) * 20)

    @torch.no_grad()
    def work(self) -> None:
        """Spend the time of one step."""
        if self.kind == "waits":
            time.sleep(STEP_SECONDS)
            return
        for _ in range(self.products):
            self.weight @ self.weight

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Spend the time of one step, and return a value with a gradient."""
        self.work()
        return self.weight.square().mean()

    def named_matrices(self) -> list[tuple[str, Tensor]]:
        return [("weight", self.weight)]


class BareSteps(Run):
    """A run of a stub without validation and checkpoints."""

    def __init__(self, scale: Scale, data: Path, out: Path, stub: Stub) -> None:
        super().__init__(scale, "small", "baseline", 0, data, out)
        self.learner = Learner(stub, self.recipe, self.processes)  # type: ignore[arg-type]

    def validate(self) -> float:
        return 0.0

    def save_checkpoint(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def loop(self) -> np.ndarray:
        """Time one round of the loop with `clocks`."""
        self.progress = Progress()
        start = clocks()
        with Metrics(self.out, [], tensorboard=False) as self.metrics:
            self.steps()
        return clocks() - start

    def bare(self) -> np.ndarray:
        """Time one round of bare steps with `clocks`."""
        batch = next(self.batches.stream(range(1)))
        start = clocks()
        for _ in range(STEPS):
            loss, _ = self.learner.step(batch, 1e-3)
        loss.item()  # waits for the device
        return clocks() - start


def clocks() -> np.ndarray:
    """Wall seconds, and processor seconds of all threads and of this thread."""
    return np.array([time.perf_counter(), time.process_time(), time.thread_time()])


def write_data(folder: Path) -> Path:
    """Write random tokens for four rounds, in the format of `ddl data`."""
    splits = {}
    for split, sequences in (("train", 4 * STEPS * SEQUENCES), ("val", 1)):
        path = folder / f"{split}_000000.bin"
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, sequences * LENGTH + 1)
        write_shard(path, tokens)
        splits[split] = {"shards": [{"file": path.name, "tokens": len(tokens), "sha256": sha256_file(path)}]}
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    digest = sha256_file(folder / "tokenizer.json")
    tokenizer = {"name": "gpt2", "vocab_size": VOCABULARY, "file": "tokenizer.json", "sha256": digest}
    write_json(folder / "manifest.json", {"tokenizer": tokenizer, "splits": splits})
    return folder / "manifest.json"


def measure(kind: str, rounds: int, folder: Path) -> dict[str, object]:
    """Measure one stub and return its row."""
    smoke = load_scale("smoke")
    recipe = dataclasses.replace(
        smoke.training,
        **{"steps": STEPS, "batch_sequences": SEQUENCES, "micro_batch_sequences": SEQUENCES, "val_sequences": 1},
        **{"log_interval": 10, "val_interval": STEPS, "checkpoint_interval": STEPS},
    )
    scale = dataclasses.replace(smoke, sequence_length=LENGTH, training=recipe)
    run = BareSteps(scale, write_data(folder), folder / "run", Stub(kind))
    run.out.mkdir()
    times = np.array([(run.bare(), run.loop()) for _ in range(rounds + 1)][1:])  # the first is a warm-up
    bare, loop = np.median(times, axis=0)
    share = spread(times[:, 1, 0] / times[:, 0, 0] - 1)
    origin = provenance()
    return {
        "stub": kind,
        "bare_step_ms": round(1e3 * float(bare[0]) / STEPS, 3),
        "loop_step_ms": round(1e3 * float(loop[0]) / STEPS, 3),
        "added_cpu_ms": round(1e3 * float(loop[1] - bare[1]) / STEPS, 3),
        "added_cpu_ms_of_the_loop": round(1e3 * float(loop[2] - bare[2]) / STEPS, 3),  # excludes the reading thread
        "added_share": round(share["median"], 5),
        "added_share_p20": round(share["p20"], 5),
        "added_share_p80": round(share["p80"], 5),
        "rounds": share["repeats"],
        "steps_a_round": STEPS,
        "batch_sequences": SEQUENCES,
        "sequence_length": LENGTH,
        "threads": origin["threads"],
        "device": origin["device"],
        "torch": origin["versions"]["torch"],
        "commit": origin["commit"],
        "dirty": origin["dirty"],
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Measure what the training loop adds to its steps.")
    parser.add_argument("--csv", required=True, type=Path, help="append the rows to this file")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up round (5)")
    args = parser.parse_args(argv)
    rows = []
    for kind in ("waits", "computes"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(kind, args.rounds, Path(folder)))
        row = rows[-1]
        print(
            f"{row['stub']:9} bare {row['bare_step_ms']} ms, loop {row['loop_step_ms']} ms: "
            f"adds {row['added_share']:.2%}, "
            f"{row['added_cpu_ms']} ms of CPU time, {row['added_cpu_ms_of_the_loop']} of them in the loop"
        )
    new = not args.csv.exists()
    with open(args.csv, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
