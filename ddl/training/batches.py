"""Select the sequences of each step and read their tensors in advance.

The order depends only on (seed, step): each epoch is a permutation of the training split, and the concatenated epochs
are cut into batches. A batch is cut into micro-batches, which the processes take in turn. So batches do not depend on
the number of processes, as long as it divides the number of micro-batches.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ddl.config import ConfigError, TrainConfig
from ddl.data.sequences import TokenSequences, sequence_order
from ddl.data.shard_format import DataError
from ddl.training.distributed import Processes
from ddl.training.learner import Batch

AHEAD = 2  # batches to read in advance while a step runs


class TrainingBatches:
    """The batches of one process.

    Raises:
        ConfigError: the micro-batches of a batch cannot be divided equally among the processes.
        DataError: the split is smaller than a batch.
    """

    def __init__(self, data: TokenSequences, recipe: TrainConfig, seed: int, processes: Processes) -> None:
        check_shares(recipe, processes.count)
        if len(data) < recipe.batch_sequences:
            raise DataError(f"training split: expected at least {recipe.batch_sequences} sequences, found {len(data)}")
        self.data, self.recipe, self.seed, self.processes = data, recipe, seed, processes
        self._orders: dict[int, np.ndarray] = {}

    @property
    def passes(self) -> float:
        """How often a run sees each sequence of the split, on average."""
        return self.recipe.steps * self.recipe.batch_sequences / len(self.data)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the sequences in one batch, over all processes."""
        count, size = len(self.data), self.recipe.batch_sequences
        first = step * size
        epochs = range(first // count, (first + size - 1) // count + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        order = (
            np.concatenate([self._orders[epoch] for epoch in epochs]) if len(epochs) > 1 else self._orders[epochs[0]]
        )
        offset = first - epochs[0] * count
        return order[offset : offset + size]

    def _order(self, epoch: int) -> np.ndarray:
        # Cached, because a permutation of 50 million sequences takes seconds.
        return self._orders[epoch] if epoch in self._orders else sequence_order(len(self.data), self.seed, epoch)

    def stream(self, steps: range) -> Iterator[Batch]:
        """Yield the micro-batches of this process for each step, on its device; a thread reads ahead.

        Raises:
            DataError: a token is outside the vocabulary.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
            try:
                ahead = deque(reader.submit(self._read, step) for step in steps[:AHEAD])
                for step in steps:
                    batch = ahead.popleft().result()
                    if step + AHEAD < steps.stop:
                        ahead.append(reader.submit(self._read, step + AHEAD))
                    yield [to_device(part, self.processes.device) for part in batch]
            finally:
                reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, step: int) -> Batch:
        parts = self.indices(step).reshape(-1, self.recipe.micro_batch_sequences)
        mine = parts[self.processes.rank :: self.processes.count]
        return [pinned(self.data.batch(part), self.processes.device) for part in mine]


def check_shares(recipe: TrainConfig, processes: int) -> None:
    """Check that the processes can share a batch equally.

    Raises:
        ConfigError: they cannot; the message lists the numbers that can.
    """
    parts = recipe.batch_sequences // recipe.micro_batch_sequences
    if parts % processes:
        fitting = [str(count) for count in range(1, parts + 1) if parts % count == 0]
        raise ConfigError(
            f"{processes} processes cannot share a batch of {parts} micro-batches (training.batch_sequences "
            f"{recipe.batch_sequences}, training.micro_batch_sequences {recipe.micro_batch_sequences}) equally: "
            f"expected {', '.join(fitting)}"
        )


def validation_batch(data: TokenSequences, recipe: TrainConfig, processes: Processes) -> tuple[Batch, int]:
    """This process' share of the fixed validation sequences, and the total number of sequences.

    The sequences are spread evenly over the validation split and stay on the device. Every process has the same number
    of micro-batches, because the processes of a sharded model must run each forward pass together.
    """
    count = min(recipe.val_sequences, len(data))
    if count < processes.count:
        raise ConfigError(
            f"training.val_sequences: expected at least one for each of {processes.count} processes, found {count}"
        )
    indices = np.linspace(0, len(data) - 1, count).astype(np.int64)
    rounds = -(-count // (recipe.micro_batch_sequences * processes.count))
    mine = np.array_split(indices, rounds * processes.count)[processes.rank :: processes.count]
    return [to_device(data.batch(part), processes.device) for part in mine], count


def pinned(tensors: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Copy the tensors to pinned memory if the device is a GPU, so that transfers can be asynchronous."""
    return (tensors[0].pin_memory(), tensors[1].pin_memory()) if device.type == "cuda" else tensors


def to_device(tensors: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Copy the tensors to the device; copies from pinned memory are asynchronous."""
    return tensors[0].to(device, non_blocking=True), tensors[1].to(device, non_blocking=True)
