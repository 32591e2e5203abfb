"""The processes that train one model together: none but this one, or those that torchrun started.

Every process holds the whole model (`ddp`) or a share of each of its parameters (`fsdp`), computes the gradient of its
share of the batch, and all apply the mean of these gradients. Nothing else of a run knows how many there are.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ddl.model.language_model import Attention, LanguageModel, SwiGLU

PEER_TIMEOUT = timedelta(minutes=10)  # for the others to arrive, while one of them writes a checkpoint for instance


class Objective(nn.Module):
    """The training loss as a forward pass: DDP, FSDP and torch.compile act on a forward pass, not on a method."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the targets (B, T), a scalar in fp32."""
        return self.model.loss(ids, targets)


class Processes:
    """Which process this is, of how many, and on which device it works."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=PEER_TIMEOUT)

    @property
    def leads(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """How messages begin."""
        return "" if self.count == 1 else f"process {self.rank} of {self.count}: "

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, by element."""
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, by element."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A value of every process, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, model: LanguageModel, sharding: str) -> nn.Module:
        """The objective whose backward pass leaves the mean gradient over the processes; parameters keep their names.

        Args:
            sharding: "ddp" or "fsdp".
        """
        objective = Objective(model)
        if self.count == 1:
            return objective
        if sharding == "fsdp":
            from torch.distributed.fsdp import fully_shard

            mesh = dist.init_device_mesh(self.device.type, (self.count,))
            # Attentions and MLPs, most of the parameters, are put together one after another; the rest at the start.
            parts = [module for module in model.modules() if isinstance(module, (Attention, SwiGLU))]
            for module in (*parts, objective):
                fully_shard(module, mesh=mesh)
            return objective
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def start_processes(count: int, arguments: list[str]) -> None:
    """Become torchrun, which starts this command in as many processes and ends all when one fails; or go on if 0 or 1.

    Args:
        arguments: the command, as in `ddl *arguments`.
    """
    if count > 1 and not dist.is_torchelastic_launched():
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "ddl", *arguments])


@contextmanager
def accumulating(objective: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch: gradients meet those of other processes in the last one only."""
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
    """A nested state with every shared tensor put together; all processes must call it.

    Args:
        keep: whether this process wants the result, on the CPU.
    """

    def put_together(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        full = value.full_tensor() if _is_shared(value) else value  # type: ignore[attr-defined]
        return full.detach().cpu() if keep else None

    return tree_map(put_together, state)


def shared_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut up as `like` is, if it is."""
    if not _is_shared(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def _is_shared(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")


def _sharded(objective: nn.Module) -> bool:
    return hasattr(objective, "set_requires_gradient_sync")
