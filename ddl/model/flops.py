"""Count the parameters, FLOPs and state memory of the models of a scale: `ddl describe --scale paper`."""

from typing import NamedTuple

from ddl.config import ModelConfig, Scale, load_variants
from ddl.model.language_model import parameter_count, without_numbers

DASH = "–"


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


def state_bytes_per_token(config: ModelConfig, bytes_per_number: int) -> dict[str, int]:
    """Bytes of residual state per token.

    Returns:
        state: one copy. stored: one copy per sublayer, as autograd keeps them for the backward pass.
    """
    state = config.width * config.value_channels * bytes_per_number
    return {"state": state, "stored": state * 2 * config.layers}


def describe(scale: Scale) -> str:
    """A table of all designs at a scale: parameters, FLOPs per token, state bytes per token, training cost."""
    recipe, designs = scale.recipe, load_variants()
    widest = max(map(len, designs))
    lines = [
        f"scale {scale.name}: {len(scale.seeds)} seed(s), {recipe.steps:,} steps x {recipe.batch_sequences} sequences "
        f"x {scale.sequence_length} tokens = {scale.tokens:,} tokens per run, {recipe.dtype}",
        f"{'size':7} {'variant':{widest}} {'params':>12} {'embedding':>11} {'MFLOP/token':>12} {'of it state':>12} "
        f"{'state B/token':>14} {'stored B/token':>15} {'train FLOP':>12}",
    ]
    uncounted = set()
    for size in scale.sizes:
        for variant in designs:
            config = scale.model(size, variant)
            counts = parameter_count(config)
            flops = flops_per_token(config)
            if flops.state is None:
                uncounted.add(config.residual)
                forward, share, training = DASH, DASH, DASH
            else:
                total = flops.backbone + flops.state
                forward, share = f"{total / 1e6:.2f}", f"{flops.state / total:.2%}"
                training = f"{3 * total * scale.tokens:.2e}"
            memory = state_bytes_per_token(config, 2 if config.state_dtype == "bfloat16" else 4)
            lines.append(
                f"{size:7} {variant:{widest}} {counts['total']:12,} {counts['total'] - counts['non_embedding']:11,} "
                f"{forward:>12} {share:>12} {memory['state']:14,} {memory['stored']:15,} {training:>12}"
            )
    lines.append("FLOPs are those of the forward pass; training counts three times as many (the backward pass: twice).")
    lines.append(f"Trained only if named: {', '.join(slug for slug in designs if slug not in scale.variants)}.")
    lines += [f"{DASH}: the rule {name!r} does not count its FLOPs (Rule.flops)." for name in sorted(uncounted)]
    return "\n".join(lines)
