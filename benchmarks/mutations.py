"""Test whether the notebooks detect errors: `python -m benchmarks.mutations --csv results/reference/mutations.csv`.

Each mutation below replaces a piece of code by a plausible mistake. The mutations are applied one at a time to a copy
of the project, where the derivation notebooks run as scripts until one of them fails. A mutation that no notebook
notices is a gap: such a mistake could go undetected.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ddl.layout import ROOT
from ddl.provenance import provenance

COPIED = ("config", "ddl", "notebooks", "paper")
# The notebook that compares whole models is the most likely to fail, so it comes first; the slowest come last.
NOTEBOOKS = (
    "05_gradient",
    "04_states",
    "01_delta_rule",
    "03_architecture",
    "02_spectrum",
    "07_history",
    "06_depth_and_time",
)


class MutationError(Exception):
    """A mutation does not match the code, or a notebook fails without a mutation."""


@dataclass(frozen=True)
class Mutation:
    """One mistake: replace `old`, which occurs exactly once in `file`, by `new`."""

    file: str
    breaks: str
    old: str
    new: str


FUSED, REWRITE, LEARNER = "ddl/ops/fused_rewrite_cpu.py", "ddl/ops/rewrite.py", "ddl/training/learner.py"
COMPRESS, EXPAND, LOSS = "ddl/ops/compress.py", "ddl/ops/expand.py", "ddl/ops/cross_entropy.py"
RULE, MODEL, CACHE = "ddl/model/residual.py", "ddl/model/language_model.py", "ddl/model/cache.py"

MUTATIONS = [
    # The fused rewrite, forward.
    Mutation(
        FUSED,
        "gate doubled",
        "write = (v - readout) * (beta * inverse).unsqueeze(-1)",
        "write = (v - readout) * (2 * beta * inverse).unsqueeze(-1)",
    ),
    Mutation(
        FUSED,
        "eps_k in place of its square",
        "torch.rsqrt(square_norm(h_wide) + eps_direction * eps_direction)",
        "torch.rsqrt(square_norm(h_wide) + eps_direction)",
    ),
    Mutation(
        FUSED,
        "readout along a direction that is not normalised",
        "readout = read(S, h_wide) * inverse.unsqueeze(-1)",
        "readout = read(S, h_wide)",
    ),
    Mutation(FUSED, "norm without its epsilon", "x.shape[-1] + eps_norm", "x.shape[-1] + 0 * eps_norm"),
    Mutation(
        FUSED,
        "taps of earlier tokens read the current token's weights",
        "x[:, s:].addcmul_(S[:, : T - s, j], taps[s, j])",
        "x[:, s:].addcmul_(S[:, : T - s, j], taps[0, j])",
    ),
    # The fused rewrite, backward.
    Mutation(
        FUSED,
        "sign of the gradient in h",
        "grad_S.to(S.dtype), grad_h.to(h.dtype), grad_v.to(v.dtype)",
        "grad_S.to(S.dtype), -grad_h.to(h.dtype), grad_v.to(v.dtype)",
    ),
    Mutation(
        FUSED,
        "gradient in h is not projected off the direction in full",
        "overlap = (back * (discrepancy - readout)).sum(-1) * inverse",
        "overlap = (back * discrepancy).sum(-1) * inverse",
    ),
    Mutation(
        FUSED,
        "gradient in the gate from the target alone",
        "grad_beta = (along * discrepancy).sum(-1)",
        "grad_beta = (along * v).sum(-1)",
    ),
    Mutation(
        FUSED,
        "sign of the rewrite of the gradient in the state",
        "grad_S = grad.addcmul_(back.unsqueeze(-1), direction, value=-1)",
        "grad_S = grad.addcmul_(back.unsqueeze(-1), direction)",
    ),
    Mutation(
        FUSED,
        "rebuilt state off by a thousandth of the rewrite",
        "S.addcmul_(write.unsqueeze(-1), direction, value=-1)",
        "S.addcmul_(write.unsqueeze(-1), direction, value=-0.999)",
    ),
    Mutation(FUSED, "power in the derivative of the norm", "rstd**3", "rstd**2"),
    Mutation(
        FUSED,
        "gradients in taps from later states",
        "(grad_x[:, s:] * S[:, : T - s]).sum((0, 1))",
        "(grad_x[:, : T - s] * S[:, s:]).sum((0, 1))",
    ),
    Mutation(
        FUSED,
        "gradient in the state by the wrong tap",
        "grad[:, : T - s].addcmul_(grad_x[:, s:], wide_taps[s])",
        "grad[:, : T - s].addcmul_(grad_x[:, s:], wide_taps[0])",
    ),
    # Single operations.
    Mutation(
        REWRITE,
        "gate x 1.01 in the rewrite on a CPU",
        "tensor.to(saved_dtype(S)) for tensor in (h, v, beta)",
        "tensor.to(saved_dtype(S)) for tensor in (h, v, 1.01 * beta)",
    ),
    Mutation(
        REWRITE,
        "gradient in the gate x 0.99",
        "grad_beta = (along * discrepancy).sum(-1)",
        "grad_beta = 0.99 * (along * discrepancy).sum(-1)",
    ),
    Mutation(
        REWRITE,
        "gradient in k_tilde not projected",
        "grad_h = inverse.unsqueeze(-1) * (grad_k - k * (k * grad_k).sum(-1, keepdim=True))",
        "grad_h = inverse.unsqueeze(-1) * grad_k",
    ),
    Mutation(
        REWRITE,
        "undone rewrite writes again",
        "torch.addcmul(X_next, k.unsqueeze(-1), delta.unsqueeze(-2), value=-1)",
        "torch.addcmul(X_next, k.unsqueeze(-1), delta.unsqueeze(-2))",
    ),
    Mutation(REWRITE, "derivative of the gate", "beta * (1 - beta / 2) * grad", "beta * (1 - beta) * grad"),
    Mutation(
        COMPRESS,
        "TC looks forwards in time",
        "kernel.permute(2, 1, 0) * read.unsqueeze(-1)",
        "kernel.permute(2, 1, 0).flip(0) * read.unsqueeze(-1)",
    ),
    Mutation(
        COMPRESS,
        "gradient in the state not shifted",
        "shift_back(wide, s) * weights[s]",
        "shift_back(wide, 0) * weights[s]",
    ),
    Mutation(EXPAND, "shift wraps around", "return F.pad(x, padding)[:, : x.shape[1]]", "return x.roll(steps, 1)"),
    Mutation(
        EXPAND,
        "gradient in the embedding is the channels' mean",
        "shift_back((wide * weights[s]).sum(-2), s)",
        "shift_back((wide * weights[s]).mean(-2), s)",
    ),
    Mutation(
        LOSS,
        "gradient of the target's logit",
        "losses.new_full(chosen.shape, -1.0)",
        "losses.new_full(chosen.shape, -0.9)",
    ),
    Mutation(
        LOSS,
        "gradient in the head from the last part of the batch only",
        "add_product(grad_weight, logits.T, h)",
        "add_product(grad_weight.zero_(), logits.T, h)",
    ),
    Mutation(
        LOSS,
        "mean over one token too few",
        "grad / len(ctx.saved_tensors[0])",
        "grad / (len(ctx.saved_tensors[0]) - 1)",
    ),
    # The residual rule and its generators.
    Mutation(RULE, "gate starts at the log, not the logit", "math.log(share / (1 - share))", "math.log(share)"),
    Mutation(RULE, "gates are clamped at another logit", "GATE_LOGIT_LIMIT = 15.0", "GATE_LOGIT_LIMIT = 12.0"),
    Mutation(
        RULE,
        "fused gate reads the sublayer's output",
        "v, beta = self.value(x_in, c, h), self.gate(c)",
        "v, beta = self.value(x_in, c, h), self.gate(h)",
    ),
    Mutation(
        RULE,
        "gate reads the state before its norm",
        "self.direction_of(X, h), self.value(x_in, c, h), self.gate(c)",
        "self.direction_of(X, h), self.value(x_in, c, h), self.gate(x_in)",
    ),
    Mutation(RULE, "hidden layer of the gate", "torch.tanh(self.hidden(c))", "F.silu(self.hidden(c))"),
    Mutation(RULE, "value of the output reads the input", '"output": h}', '"output": c}'),
    Mutation(RULE, "value of the compressed state reads its norm", '"compressed": x_in,', '"compressed": c,'),
    Mutation(RULE, "value up to 2, not 4", "4 * torch.sigmoid(v)", "2 * torch.sigmoid(v)"),
    Mutation(RULE, "pool is the sum", "X.mean(-1)", "X.sum(-1)"),
    Mutation(RULE, "pool in another order", "X.flatten(-2)", "X.mT.flatten(-2)"),
    Mutation(RULE, "activation of the direction", "F.silu(self.up(X))", "F.relu(self.up(X))"),
    Mutation(RULE, "value's bias starts at zero", "self.linear.bias, config.value_bias_init", "self.linear.bias, 0.0"),
    Mutation(
        RULE,
        "TC starts as a sum",
        "torch.full((config.value_channels,), 1 / config.value_channels)",
        "torch.full((config.value_channels,), 1.0)",
    ),
    Mutation(
        RULE,
        "CC starts as a sum",
        "torch.full((config.width, config.value_channels), 1 / config.value_channels)",
        "torch.full((config.width, config.value_channels), 1.0)",
    ),
    Mutation(RULE, "EC and TC start at the oldest token", "kernel[..., 0] = 1.0", "kernel[..., -1] = 1.0"),
    Mutation(RULE, "baseline subtracts", "return X + h", "return X - h"),
    # The model around it.
    Mutation(MODEL, "epsilon of the norms", "self.weight.to(x.dtype), self.eps)", "self.weight.to(x.dtype), None)"),
    Mutation(
        MODEL,
        "norm before the rotation",
        "self.query_norm(rotate(q, rotation))",
        "rotate(self.query_norm(q), rotation)",
    ),
    Mutation(MODEL, "sign in the rotation", "second * cos + first * sin", "second * cos - first * sin"),
    Mutation(MODEL, "angles", "-torch.arange(0, head_dim, 2,", "-torch.arange(1, head_dim + 1, 2,"),
    Mutation(MODEL, "queries and keys exchanged", "q, k, v = self.qkv(c)", "k, q, v = self.qkv(c)"),
    Mutation(MODEL, "silu on the wrong half", "F.silu(gate) * up", "gate * F.silu(up)"),
    Mutation(
        MODEL,
        "last state read by the first block's compressor",
        "readers += [(self.compress, self.norm)]",
        "readers += [(readers[0][0], self.norm)]",
    ),
    Mutation(
        MODEL,
        "norms of a block exchanged",
        "(block.compress, block.attention_norm), (block.compress, block.mlp_norm)",
        "(block.compress, block.mlp_norm), (block.compress, block.attention_norm)",
    ),
    Mutation(
        MODEL,
        "readout forgets the tokens in the cache",
        "self.compress(X, cache and cache.readout)",
        "self.compress(X)",
    ),
    Mutation(MODEL, "outputs start too small", "std /= config.layers**0.5", "std /= config.layers"),
    Mutation(CACHE, "cache keeps the oldest rows", "x[:, x.shape[1] - count :]", "x[:, :count]"),
    # The training step.
    Mutation(LEARNER, "everything decays", '"weight_decay": 0.0}', '"weight_decay": recipe.weight_decay}'),
    Mutation(
        LEARNER, "clipped at twice the length", "self.recipe.grad_clip, torch", "2 * self.recipe.grad_clip, torch"
    ),
    Mutation(
        LEARNER, "micro-batches are summed", "self.objective(ids, targets) / len(batch)", "self.objective(ids, targets)"
    ),
    Mutation(LEARNER, "gradients are kept", "self.optimizer.zero_grad(set_to_none=True)", "pass"),
    Mutation(LEARNER, "betas exchanged", "betas=(recipe.beta1, recipe.beta2)", "betas=(recipe.beta2, recipe.beta1)"),
    Mutation(LEARNER, "warm-up starts at zero", "recipe.learning_rate * (step + 1) /", "recipe.learning_rate * step /"),
    Mutation(
        LEARNER,
        "cosine ends a step late",
        "max(recipe.steps - 1 - recipe.warmup_steps, 1)",
        "(recipe.steps - recipe.warmup_steps)",
    ),
]


def mutated(mutation: Mutation, text: str) -> str:
    """Apply a mutation to the text of its file.

    Raises:
        MutationError: the text to replace does not occur exactly once.
    """
    if (count := text.count(mutation.old)) != 1:
        raise MutationError(f"{mutation.file}: expected {mutation.old!r} once, found it {count} times")
    return text.replace(mutation.old, mutation.new)


def first_failure(project: Path, notebooks: tuple[str, ...]) -> tuple[str, str]:
    """Name and error of the first notebook that fails in a copy of the project; ("none", "") if all pass."""
    environment = os.environ | {
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutation can leave the size and time of a file unchanged
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
    }
    for name in notebooks:
        command = [sys.executable, f"notebooks/{name}.py"]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
            return name, lines[-1] if lines else f"exit code {done.returncode}"
    return "none", ""


def copy_project(to: Path) -> None:
    """Copy the folders that the derivation notebooks need."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Break the package on purpose and find which notebook notices.")
    parser.add_argument("--csv", type=Path, required=True, help="the table to write")
    args = parser.parse_args(argv)
    source, rows = provenance(), []
    origin = {key: source[key] for key in ("commit", "dirty", "device", "utc")} | {"torch": source["versions"]["torch"]}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        name, error = first_failure(project, NOTEBOOKS)
        if name != "none":
            raise MutationError(f"{name}: fails without a mutation: {error}")
        print("all notebooks pass without a mutation", flush=True)
        for mutation in MUTATIONS:
            path, start = project / mutation.file, time.monotonic()
            text = path.read_text(encoding="utf-8")
            path.write_text(mutated(mutation, text), encoding="utf-8")
            name, error = first_failure(project, NOTEBOOKS)
            path.write_text(text, encoding="utf-8")
            rows.append({"file": mutation.file, "breaks": mutation.breaks, "noticed_by": name, "error": error} | origin)
            print(f"{mutation.file}: {mutation.breaks}: {name}  ({time.monotonic() - start:.0f} s)", flush=True)
    noticed = sum(row["noticed_by"] != "none" for row in rows)
    print(f"{noticed} of {len(rows)} mutations noticed")
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with open(args.csv, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
