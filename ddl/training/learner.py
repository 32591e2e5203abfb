"""A model with its optimiser, and the training step that runs execute and cost measurements time."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ddl.config import TrainConfig
from ddl.model.language_model import Block, LanguageModel
from ddl.training.distributed import Processes, accumulating, shared_like, whole
from ddl.training.errors import TrainingError

Batch = Sequence[tuple[Tensor, Tensor]]  # micro-batches of one process: inputs and targets, each int64 (B, T)


class Learner:
    """Trains a model in fp32 or bf16, as the recipe specifies; weights and optimiser states are fp32.

    Args:
        model: already on its device; sharding over processes replaces its parameters in place.
    """

    def __init__(self, model: LanguageModel, recipe: TrainConfig, processes: Processes) -> None:
        set_numerics(recipe)
        self.model, self.recipe, self.processes = model, recipe, processes
        if recipe.compile:
            compile_layers(model)
        self.objective = processes.share(model, recipe.sharding)
        self.optimizer = make_optimizer(model, recipe)

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """Run one optimiser step without waiting for the device.

        Returns:
            Mean loss over this process' micro-batches, a scalar; and the norm of each parameter's gradient over the
            whole batch, before clipping, (parameters,).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.processes.device)
        for index, (ids, targets) in enumerate(batch):
            with accumulating(self.objective, last=index == len(batch) - 1):
                with self.autocast():
                    loss = self.objective(ids, targets) / len(batch)
                loss.backward()
            total += loss.detach()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(
            self.model.parameters(), self.recipe.grad_clip, torch.linalg.vector_norm(norms)
        )
        self.optimizer.step()
        return total, norms.full_tensor() if hasattr(norms, "full_tensor") else norms

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Sum of the loss over this process' sequences, in fp64; does not wait for the device."""
        objective = getattr(self.objective, "module", self.objective)  # DDP is not needed without gradients
        total = torch.zeros((), device=self.processes.device, dtype=torch.float64)
        for ids, targets in batch:
            with self.autocast():
                total += objective(ids, targets).double() * len(ids)
        return total

    def autocast(self) -> torch.autocast:
        """Context that sets the precision of forward passes."""
        return torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def state(self) -> dict[str, Any]:
        """Unsharded weights and optimiser states. All processes must call this; only the leading one gets tensors."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return whole(state, keep=self.processes.leads)

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the number of processes may differ.

        Raises:
            TrainingError: the state belongs to a model with different parameters.
        """
        own = self.model.state_dict()
        for name in sorted(own.keys() | state["model"].keys()):
            was, now = (list(held[name].shape) if name in held else "missing" for held in (state["model"], own))
            if was != now:
                raise TrainingError(
                    f"the checkpoint is from a model with different parameters: {name} was {was}, is {now}"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(shared_like(state["model"][name], tensor))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {key: shared_like(value, parameters[index]) for key, value in entry.items()}
            for index, entry in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})


def compile_layers(model: LanguageModel, backend: str = "inductor") -> None:
    """Compile the code between fused rewrites, or whole blocks if there are none; all layers share one graph."""
    for block in cast(Iterable[Block], model.blocks):
        if model.fused:
            block.attention.compile(backend=backend)
            block.mlp.compile(backend=backend)
            rules: Iterable[Any] = (block.attention_rule, block.mlp_rule)
            for rule in rules:
                rule.rewrite_and_read = torch.compile(rule.rewrite_and_read, backend=backend)
        else:
            block.compile(backend=backend)


def set_numerics(recipe: TrainConfig) -> None:
    """Make runs reproducible: fix the number of threads and require deterministic operations."""
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # would write all memory twice


def make_optimizer(model: LanguageModel, recipe: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on norms, biases or convolution taps."""
    matrices = [weight for _, weight in model.named_matrices()]
    chosen = {id(weight) for weight in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.embedding_rate_factor != 1:
        embedding = model.embedding.weight
        groups[0]["params"] = [weight for weight in matrices if weight is not embedding]
        own = {"weight_decay": recipe.weight_decay, "rate_factor": recipe.embedding_rate_factor}
        groups.append({"params": [embedding]} | own)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def learning_rate(step: int, recipe: TrainConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine decay from the peak to the floor at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    share = (step - recipe.warmup_steps) / max(recipe.steps - 1 - recipe.warmup_steps, 1)
    floor = recipe.min_learning_rate
    return floor + (recipe.learning_rate - floor) * 0.5 * (1 + math.cos(math.pi * share))
