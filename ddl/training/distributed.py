"""The processes that train one model together: this process alone, or several started by torchrun on one or more nodes.

Every process holds the whole model (`ddp`) or a shard of each parameter, which is split over all processes (`fsdp`) or
over those of a node, so that every node holds the whole model (`hsdp`). Each computes the gradient on its share of the
batch, and all apply the mean of these gradients.
"""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ddl.config import ConfigError, TrainConfig
from ddl.errors import INTERRUPTED
from ddl.model.language_model import Attention, LanguageModel, SwiGLU
from ddl.training.errors import TrainingError

PEER_TIMEOUT = timedelta(minutes=10)  # how long to wait for the others, e.g. while one writes a checkpoint


class Objective(nn.Module):
    """The training loss as a module: DDP, FSDP and torch.compile hook into `forward`, not into other methods."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the targets (B, T), a scalar in fp32."""
        return self.model.loss(ids, targets)


class Processes:
    """The rank of this process, the number of processes in all and on each node, and the device of this one."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.on_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=PEER_TIMEOUT)

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Prefix of error messages; empty for a single process."""
        return "" if self.count == 1 else f"process {self.rank} of {self.count}: "

    def mean(self, values: Tensor) -> Tensor:
        """The elementwise mean over the processes."""
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over the processes."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Values from all processes, in order of rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, model: LanguageModel, sharding: str) -> nn.Module:
        """Wrap the model so that its backward pass averages gradients over the processes.

        Parameter names do not change.

        Args:
            sharding: "ddp", "fsdp" or "hsdp".
        """
        objective = Objective(model)
        if self.count == 1:
            return objective
        if sharding != "ddp":
            from torch.distributed.fsdp import fully_shard

            # The last dimension of a mesh is that of the shards, one before it that of the copies.
            shape = (self.count,) if sharding == "fsdp" else (self.count // self.on_node, self.on_node)
            mesh = dist.init_device_mesh(self.device.type, shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
            # Attention and MLP modules hold most parameters and are gathered one at a time; the rest at the start.
            parts = [module for module in model.modules() if isinstance(module, (Attention, SwiGLU))]
            for module in (*parts, objective):
                fully_shard(module, mesh=mesh)
            return objective
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def check_devices(recipe: TrainConfig, processes: int) -> None:
    """Check that this machine has the GPUs that a run of this recipe takes.

    Raises:
        ConfigError: it has none although the recipe asks for them, or fewer than processes.
    """
    found = torch.cuda.device_count()
    if recipe.gpus and not found:
        raise ConfigError(
            f"training.gpus: {recipe.gpus} per run, but this machine has no GPU that PyTorch can use; "
            "set it to 0 to train on the CPU"
        )
    if found and processes > found:
        raise ConfigError(f"{processes} processes need a GPU each, found {found}")


@dataclass(frozen=True)
class Nodes:
    """The machines that train one model together.

    Args:
        count: how many; each of them runs the same command.
        processes: how many processes each of them runs.
        rendezvous: host:port at which they find each other; the host is one of them. Not used for a single node.
    """

    count: int
    processes: int
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        if self.count == 1:
            return
        host, _, port = (self.rendezvous or "").rpartition(":")
        if not re.fullmatch(r"[^\s:]+", host) or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16:
            raise ConfigError(
                f"--rendezvous: {self.count} nodes need the name or IPv4 address of one of them and a port, e.g. "
                f"node01:29500, found {self.rendezvous or 'none'}"
            )
        try:
            socket.getaddrinfo(host, int(port))
        except OSError as error:
            raise ConfigError(f"--rendezvous: {host} cannot be resolved: {error.strerror}") from None

    def start(self, arguments: list[str]) -> None:
        """If there is more than one process, run this command in each by torchrun, and exit when they have ended.

        torchrun stops all of this node if one fails or if this process gets a signal. The other nodes notice at their
        next exchange with it: at once on CPUs, and on GPUs after up to `PEER_TIMEOUT`.

        Args:
            arguments: the words after `ddl` in this command.

        Raises:
            TrainingError: a process failed and has printed why, or another node cannot be reached.
        """
        if self.count * self.processes == 1 or dist.is_torchelastic_launched():
            return
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.run import main as torchrun

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the errors below say the same
        where = ["--standalone"]
        if self.count > 1:
            where = ["--nnodes", str(self.count), "--rdzv-backend", "c10d", "--rdzv-endpoint", str(self.rendezvous)]
        try:
            torchrun([*where, "--nproc-per-node", str(self.processes), "-m", "ddl", *arguments])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == INTERRUPTED:  # a signal to another node, after which all have written a checkpoint
                raise KeyboardInterrupt from None
            count = self.count * self.processes
            raise TrainingError(f"process {rank} of {count} ended with exit code {failure.exitcode}") from None
        except (RendezvousError, dist.DistError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise TrainingError(
                f"the {self.count} nodes do not find each other at {self.rendezvous}, or one was lost ({reason}); "
                "run the command again on all of them to continue from the last checkpoint"
            ) from None
        except SignalException:
            raise KeyboardInterrupt from None
        sys.exit()


@contextmanager
def accumulating(objective: nn.Module, last: bool) -> Iterator[None]:
    """Wrap the passes of one micro-batch so that gradients are reduced across processes only in the last one."""
    if isinstance(objective, DistributedDataParallel):
        if last:
            yield
        else:
            with objective.no_sync():
                yield
        return
    if _sharded(objective):
        objective.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def whole(state: Any, keep: bool) -> Any:
    """Gather every sharded tensor of a nested state; all processes must call this.

    Args:
        keep: whether this process gets the result, on the CPU; tensors are None elsewhere.
    """

    def put_together(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        full = value.full_tensor() if _is_shared(value) else value  # type: ignore[attr-defined]
        return full.detach().cpu() if keep else None

    return tree_map(put_together, state)


def shared_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor in the same way as `like`; unchanged if `like` is not sharded."""
    if not _is_shared(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def _is_shared(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")


def _sharded(objective: nn.Module) -> bool:
    return hasattr(objective, "set_requires_gradient_sync")
