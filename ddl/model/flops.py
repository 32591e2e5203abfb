"""Count the parameters, FLOPs and state of the models of a scale: `ddl describe --scale paper`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddl.config import ModelConfig, Scale, load_variants
from ddl.layout import BASELINE
from ddl.model.language_model import parameter_count, without_numbers

DASH = "–"
TOKENS = 64  # of the sequence in which memory is counted


class Flops(NamedTuple):
    """FLOPs per token; `state` is None for a rule that does not count its operations."""

    backbone: int  # projections, attention and head
    state: int | None  # expansion, compressors, generators and rewrites


def flops_per_token(config: ModelConfig) -> Flops:
    """Floating-point operations per token in the forward pass; a multiply-add counts as two.

    Attention is counted over half of the sequence, the mean over causal positions. Norms and activations are omitted,
    as is usual. The work on the residual state is counted, because the variants differ in it.
    """
    d, T = config.width, config.sequence_length
    block = 2 * (4 * d * d + 3 * d * config.mlp_hidden) + 2 * 2 * d * T // 2
    backbone = config.layers * block + 2 * d * config.vocab_size
    model = without_numbers(config)
    rules = [rule.flops() for rule in model.rules()]
    counted = [flops for flops in rules if flops is not None]
    if len(counted) < len(rules):
        return Flops(backbone, None)
    reads = sum(reader.flops(model.compress.flops()) for reader in model.readers())
    values = 3 * d * (config.layers - 1) if config.value_residual else 0
    return Flops(backbone, sum(counted) + reads + values + model.expand.flops())


class Memory(NamedTuple):
    """Numbers per token."""

    live: int  # of the residual state between two sublayers, at most
    kept: int  # of all tensors that autograd keeps for the backward pass of blocks and readout, without the weights


def memory_per_token(config: ModelConfig) -> Memory:
    """Memory of the residual state in plain PyTorch, from a forward pass of a model without numbers.

    Fused operations keep less than `kept` counts, and so does activation recomputation.
    """
    plain = dataclasses.replace(config, kernels="reference", state_memory="stored", state_dtype="parameters")
    model, tokens = without_numbers(plain), min(TOKENS, config.sequence_length)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # views of one tensor count once
    live = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    def look(rule: nn.Module, inputs: tuple[Any, ...], X_next: Any) -> None:
        live.append(sum({id(tensor): tensor.numel() for tensor in tensors(X_next)}.values()))

    for rule in model.rules():
        rule.register_forward_hook(look)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(torch.zeros(1, tokens, dtype=torch.int64, device="meta"))
    size = model.embedding.weight.element_size()
    return Memory(max(live) // tokens, sum(storage.nbytes() for storage in kept.values()) // size // tokens)


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors of a state, which may be nested tuples."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from tensors(part)


def describe(scale: Scale, families: Sequence[str]) -> str:
    """A table of designs at a scale: parameters, FLOPs, state and training cost, beside the baseline.

    Args:
        families: of the designs, as in config/variants.yaml; the baseline is always in the table.
    """
    recipe, every = scale.recipe, load_variants()
    designs = [slug for slug, variant in every.items() if variant.family in families or slug == BASELINE]
    widest = max(map(len, designs))
    lines = [
        f"scale {scale.name}: {len(scale.seeds)} seed(s), {recipe.steps:,} steps x {recipe.batch_sequences} sequences "
        f"x {scale.sequence_length} tokens = {scale.tokens:,} tokens per run, {recipe.dtype}",
        f"{'size':7} {'variant':{widest}} {'params':>12} {'added':>11} {'MFLOP/token':>12} {'of it state':>12} "
        f"{'live/token':>11} {'kept/token':>11} {'added':>9} {'train FLOP':>12}",
    ]
    uncounted = set()
    for size in scale.sizes:
        baseline = scale.model(size, BASELINE)
        fewest, least = parameter_count(baseline)["total"], memory_per_token(baseline).kept
        for variant in designs:
            config = scale.model(size, variant)
            total, memory, flops = parameter_count(config)["total"], memory_per_token(config), flops_per_token(config)
            if flops.state is None:
                uncounted.add(config.residual)
                forward, share, training = DASH, DASH, DASH
            else:
                both = flops.backbone + flops.state
                forward, share = f"{both / 1e6:.2f}", f"{flops.state / both:.2%}"
                training = f"{3 * both * scale.tokens:.2e}"
            lines.append(
                f"{size:7} {variant:{widest}} {total:12,} {total - fewest:11,} {forward:>12} {share:>12} "
                f"{memory.live:11,} {memory.kept:11,} {memory.kept - least:9,} {training:>12}"
            )
    lines += [
        "added: beyond the baseline. FLOPs are those of the forward pass; training counts three times as many (the "
        "backward pass: twice).",
        "live: numbers of residual state between two sublayers. kept: numbers that plain PyTorch keeps for the "
        "backward pass, without the head; our fused operations keep fewer.",
    ]
    lines += [f"{DASH}: the rule {name!r} does not count its FLOPs (Rule.flops)." for name in sorted(uncounted)]
    return "\n".join(lines)
