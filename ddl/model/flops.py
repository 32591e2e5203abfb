"""What the twelve models are and what they cost, before anything is trained: `ddl describe --scale paper`."""

from ddl.config import ModelConfig, Scale
from ddl.model.language_model import parameter_count


def flops_per_token(config: ModelConfig) -> dict[str, int]:
    """Floating-point operations of one forward pass for one token, a multiply-add counting two.

    Attention is counted over half of the sequence, as the mean over causal positions. Norms and activations are left
    out, as is usual; the work on the residual state is not, because it is what the variants differ in.

    Returns:
        backbone: projections, attention and head. state: expansion, compressors, generators and rewrites.
    """
    d, d_v, T = config.width, config.value_channels, config.sequence_length
    block = 2 * (4 * d * d + 3 * d * config.mlp_hidden) + 2 * 2 * d * T // 2
    backbone = config.layers * block + 2 * d * config.vocab_size
    compress = {"none": 0, "cc": 2 * d * d_v, "tc": 2 * d * d_v * config.compressor_kernel}[config.compressor]
    expand = 2 * d * d_v * config.embed_conv_kernel if config.embed_conv else 0
    update = d  # an addition, unless the rule is known to do more
    if config.residual == "delta":
        update = 2 * d * d_v + 2 * d * d_v + 3 * d  # readout, rank-one write, norm of the direction
        update += 2 * d * d_v  # target
        update += 2 * d * config.gate_hidden + 2 * config.gate_hidden if config.gate == "mlp" else 2 * d
        if config.direction == "mlp":
            pooled = d * d_v if config.direction_pool == "flatten" else d
            update += 2 * pooled * d + 2 * d * d
    sublayers = 2 * config.layers
    return {
        "backbone": backbone,
        "state": sublayers * (update + compress) + compress + expand,
    }


def state_bytes_per_token(config: ModelConfig, bytes_per_number: int) -> dict[str, int]:
    """Bytes that the residual state of one token takes.

    Returns:
        state: one copy. stored: one copy a sublayer, as autograd keeps them for the backward pass.
    """
    state = config.width * config.value_channels * bytes_per_number
    return {"state": state, "stored": state * 2 * config.layers}


def describe(scale: Scale) -> str:
    """A table of all runs of a scale: parameters, FLOPs per token, state bytes per token, training cost."""
    recipe = scale.training
    tokens = recipe.steps * recipe.batch_sequences * scale.sequence_length
    width = 2 if recipe.dtype == "bfloat16" else 4
    lines = [
        f"scale {scale.name}: {len(scale.seeds)} seed(s), {recipe.steps:,} steps x {recipe.batch_sequences} sequences "
        f"x {scale.sequence_length} tokens = {tokens:,} tokens a run, {recipe.dtype}",
        f"{'size':7} {'variant':12} {'params':>12} {'embedding':>11} {'MFLOP/token':>12} {'of it state':>12} "
        f"{'state B/token':>14} {'stored B/token':>15} {'train FLOP':>12}",
    ]
    for size in scale.sizes:
        for variant in scale.variants:
            config = scale.model(size, variant)
            counts = parameter_count(config)
            flops = flops_per_token(config)
            forward = flops["backbone"] + flops["state"]
            memory = state_bytes_per_token(config, width)
            lines.append(
                f"{size:7} {variant:12} {counts['total']:12,} {counts['total'] - counts['non_embedding']:11,} "
                f"{forward / 1e6:12.2f} {flops['state'] / forward:12.2%} {memory['state']:14,} {memory['stored']:15,} "
                f"{3 * forward * tokens:12.2e}"
            )
    lines.append("FLOPs are of the forward pass; training counts three of them (forward, and twice that backward).")
    return "\n".join(lines)
