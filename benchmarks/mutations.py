"""Test whether the notebooks and tests detect errors:

    python -m benchmarks.mutations --csv results/reference/mutations.csv

Each mutation below replaces a piece of code by a plausible mistake. The mutations are applied one at a time to a clone
of the last commit. There the derivation notebooks run as scripts until one of them fails, and then test files run until
a test fails: first those in `TESTS`, which are the most likely to fail, then all others except those that run Snakemake
(marked `dag`). A mutation that neither notices is a gap: such a mistake could go undetected. One that hangs is noticed.

The first row of the table belongs to a control, which changes nothing and must pass everything. Each row is written as
soon as it is known. The next start skips the rows that were made with the same code, settings, notebooks and tests.
"""

import argparse
import csv
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddl.code_identity import code_identity
from ddl.files import atomic
from ddl.layout import ROOT
from ddl.provenance import provenance

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
LIMIT = 900  # seconds for a notebook or a test file; each takes less than two minutes of one core
LIMIT_OF_REST = 7200  # seconds for all other tests, in one process
NONE, NOT_RUN = "none", "not run"
COLUMNS = ("file", "breaks", "notebook", "notebook_error", "test", "test_error", "seconds", "code")
ORIGIN = ("commit", "device", "torch", "utc")


class MutationError(Exception):
    """A mutation does not match the code, or a notebook or test fails without a mutation."""


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
EXPANDED, READER = "ddl/model/expanded_state.py", "ddl/model/readers.py"
FUSED_KERNEL, REWRITE_KERNEL = "ddl/ops/fused_rewrite_triton.py", "ddl/ops/rewrite_triton.py"
COMPRESS_KERNEL, EXPAND_KERNEL = "ddl/ops/compress_triton.py", "ddl/ops/expand_triton.py"
LOSS_KERNEL = "ddl/ops/cross_entropy_triton.py"
GENERATE, FLOPS = "ddl/model/generate.py", "ddl/model/flops.py"
RUN, BATCHES, PROCESSES = "ddl/training/run.py", "ddl/training/batches.py", "ddl/training/distributed.py"
CHECKPOINTS, COST = "ddl/training/checkpoints.py", "ddl/training/cost.py"
SCORER, VALIDATION = "ddl/evaluation/loglikelihood.py", "ddl/evaluation/validation.py"
TASKS, TABLE_COLUMNS = "ddl/evaluation/lm_eval_tasks.py", "ddl/evaluation/columns.py"
OVERLAP = "ddl/evaluation/contamination.py"
SEQUENCES, SPLIT, ENCODE = "ddl/data/sequences.py", "ddl/data/train_val_split.py", "ddl/data/parallel_encode.py"
STATISTICS, ACCURACIES = "ddl/reporting/statistics.py", "ddl/reporting/accuracy_tables.py"

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
        EXPANDED,
        "TC starts as a sum",
        "torch.full((config.value_channels,), 1 / config.value_channels)",
        "torch.full((config.value_channels,), 1.0)",
    ),
    Mutation(
        EXPANDED,
        "CC starts as a sum",
        "torch.full((config.width, config.value_channels), 1 / config.value_channels)",
        "torch.full((config.width, config.value_channels), 1.0)",
    ),
    Mutation(EXPANDED, "EC and TC start at the oldest token", "kernel[..., 0] = 1.0", "kernel[..., -1] = 1.0"),
    Mutation(RULE, "baseline subtracts", "return X + h", "return X - h"),
    # The readers of other designs.
    Mutation(READER, "x0 skip from the state", "b * first).to(x.dtype)", "b * x).to(x.dtype)"),
    Mutation(READER, "DenseFormer keeps the weighted sums", "Sums((mean,), kept)", "Sums((mean,), (*kept[:-1], mean))"),
    Mutation(READER, "depth attention completes blocks late", "if self.place % self.every or", "if self.place % 2 or"),
    Mutation(READER, "every sublayer reads the first stream", "identity[:, place % n, None]", "identity[:, 0, None]"),
    Mutation(READER, "mHC's matrix transposed", "(mix.mT @ H)", "(mix @ H)"),
    Mutation(READER, "iHC writes half", '2 * torch.sigmoid(logits["write"])', 'torch.sigmoid(logits["write"])'),
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
        "self.reader(state, self.compress, cache and cache.readout)",
        "self.reader(state, self.compress)",
    ),
    Mutation(
        MODEL,
        "outputs start too small",
        "config.output_std_factor / config.layers**0.5",
        "config.output_std_factor / config.layers",
    ),
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
    # The fused kernels, forward.
    Mutation(
        FUSED_KERNEL,
        "eps_k in place of its square",
        "tl.sum(h * h, 0) + eps_direction * eps_direction",
        "tl.sum(h * h, 0) + eps_direction",
    ),
    Mutation(
        FUSED_KERNEL,
        "readout along a direction that is not normalised",
        "readout = inverse * tl.sum(h[None, :] * X, 1)",
        "readout = tl.sum(h[None, :] * X, 1)",
    ),
    Mutation(
        FUSED_KERNEL,
        "norm divides by the padded width",
        "tl.sum(x_in * x_in, 0) / D",
        "tl.sum(x_in * x_in, 0) / BLOCK",
    ),
    Mutation(
        FUSED_KERNEL,
        "a program forgets the tokens before its own",
        "range(tl.maximum(first - HALO, 0), stop)",
        "range(first, stop)",
    ),
    Mutation(
        FUSED_KERNEL,
        "tap two tokens back drops the one three back",
        "ahead_1 = ahead_2 + tl.sum(",
        "ahead_1 = tl.sum(",
    ),
    # The fused kernels, backward.
    Mutation(
        FUSED_KERNEL,
        "gradient in the norm's weight is weighted",
        "grad_weight += grad_c * x_hat\n            if",
        "grad_weight += u * x_hat\n            if",
    ),
    Mutation(
        FUSED_KERNEL,
        "gradient through the norm is not projected",
        "u = weight * grad_c\n            grad_x_in = rstd * (u - x_hat * (tl.sum(u * x_hat, 0) / D))",
        "u = weight * grad_c\n            grad_x_in = rstd * u",
    ),
    Mutation(
        FUSED_KERNEL,
        "rebuilt state is written again",
        "X = S - change",
        "X = S + change",
    ),
    Mutation(
        FUSED_KERNEL,
        "norm's gradient counts the tokens of the next program",
        "tl.where(t < stop, grad_c * x_hat, 0.0)",
        "grad_c * x_hat",
    ),
    Mutation(
        FUSED_KERNEL,
        "gradient in the state without the oldest tap",
        "range(tl.minimum(4, tokens - t))",
        "range(tl.minimum(3, tokens - t))",
    ),
    Mutation(
        FUSED_KERNEL,
        "gradient in the oldest tap from the wrong token",
        "((t + 3) & (RING - 1))",
        "((t + 2) & (RING - 1))",
    ),
    # The kernels of single operations.
    Mutation(
        REWRITE_KERNEL,
        "writes along a direction that is not normalised",
        "delta[:, None] * (inverse * h)[None, :]",
        "delta[:, None] * h[None, :]",
    ),
    Mutation(
        REWRITE_KERNEL,
        "gradient in h is not projected off the direction in full",
        "along = beta * (grad_beta - tl.sum(g * readout, 0))",
        "along = beta * grad_beta",
    ),
    Mutation(
        COMPRESS_KERNEL,
        "a sequence reads the end of the one before",
        "inside = (earlier >= 0) &",
        "inside = (sequence + earlier >= 0) &",
    ),
    Mutation(
        COMPRESS_KERNEL,
        "gradient in the taps from the last tokens only",
        "grad_taps += tl.sum(",
        "grad_taps = tl.sum(",
    ),
    Mutation(
        EXPAND_KERNEL,
        "every channel uses the taps of the first",
        "load(taps_ptr + ((s * DV + j) * D)",
        "load(taps_ptr + ((s * DV) * D)",
    ),
    Mutation(
        EXPAND_KERNEL,
        "gradient in the taps from the last token only",
        "grad_taps += x[None, :, :] * G",
        "grad_taps = x[None, :, :] * G",
    ),
    Mutation(
        LOSS_KERNEL,
        "sum is not rescaled to a larger logit",
        "total = total * tl.exp(largest - higher) +",
        "total = total +",
    ),
    Mutation(
        LOSS_KERNEL,
        "gradient with the largest logit in place of the log-sum",
        "tl.exp(z - log_sum)",
        "tl.exp(z - largest)",
    ),
    # The cache and generation.
    Mutation(
        CACHE,
        "positions of new tokens start at zero",
        "torch.arange(past, self.length, device",
        "torch.arange(T, device",
    ),
    Mutation(
        CACHE,
        "a new token does not attend to itself",
        "causal = column <= row",
        "causal = column < row",
    ),
    Mutation(
        CACHE,
        "reordered cache keeps the values in their rows",
        "self.stored[0][rows], self.stored[1][rows]",
        "self.stored[0][rows], self.stored[1]",
    ),
    Mutation(
        CACHE,
        "reordered cache forgets the MLP's states",
        "(block.attention_input, block.attention, block.mlp_input)",
        "(block.attention_input, block.attention)",
    ),
    Mutation(
        GENERATE,
        "temperature multiplies",
        "(logits / temperature)",
        "(logits * temperature)",
    ),
    Mutation(
        GENERATE,
        "without the cache only the last token is read",
        "token if cache else torch.cat((unread, token), dim=1)",
        "token",
    ),
    # FLOPs and memory.
    Mutation(
        FLOPS,
        "attention over the whole sequence, not half of it",
        "2 * 2 * d * T // 2",
        "2 * 2 * d * T",
    ),
    Mutation(
        FLOPS,
        "final readout is not counted",
        "for reader in model.readers())",
        "for reader in model.readers()[:-1])",
    ),
    Mutation(
        FLOPS,
        "memory of the smallest state, not the largest",
        "Memory(max(live)",
        "Memory(min(live)",
    ),
    # The run around the training step.
    Mutation(
        LEARNER,
        "validation sums the means of micro-batches",
        "objective(ids, targets).double() * len(ids)",
        "objective(ids, targets).double()",
    ),
    Mutation(
        LEARNER,
        "optimiser states are not restored",
        'self.optimizer.load_state_dict({**state["optimizer"], "state": moments})',
        "del moments",
    ),
    Mutation(
        RUN,
        "validation loss divided by the number of micro-batches",
        "/ self.validation_sequences\n",
        "/ len(self.validation)\n",
    ),
    Mutation(
        RUN,
        "training loss of the last step only",
        "torch.tensor(progress.losses).mean().item()",
        "progress.losses[-1]",
    ),
    Mutation(
        RUN,
        "losses of earlier records stay in the mean",
        "progress.losses = []",
        "pass",
    ),
    Mutation(
        RUN,
        "records from before an interruption are lost",
        'Progress.read(state["progress"], self.recipe.steps)',
        'Progress(state["progress"]["step"], state["progress"]["seconds"])',
    ),
    Mutation(
        CHECKPOINTS,
        "resumes from the oldest checkpoint",
        "for path in reversed(_files(folder or self.folder))",
        "for path in _files(folder or self.folder)",
    ),
    Mutation(
        BATCHES,
        "all processes train on the same micro-batches",
        "parts[self.processes.rank :: self.processes.count]",
        "parts[:: self.processes.count]",
    ),
    Mutation(
        BATCHES,
        "every batch starts at the first sequence",
        "first = step * size",
        "first = 0 * size",
    ),
    Mutation(
        BATCHES,
        "validates on the first sequences only",
        "np.linspace(0, len(data) - 1, count)",
        "np.arange(count)",
    ),
    Mutation(
        PROCESSES,
        "mean over the processes is a sum",
        "self.sum(values) / self.count",
        "self.sum(values)",
    ),
    Mutation(
        PROCESSES,
        "gradients of the last micro-batch are not reduced",
        "        if last:\n",
        "        if not last:\n",
    ),
    Mutation(
        COST,
        "ratio to the baseline's median, not round by round",
        'spread(modes["train"] / base["train"])',
        'spread(modes["train"] / np.median(base["train"]))',
    ),
    Mutation(
        COST,
        "warm-up rounds are measured",
        "rounds[scale.cost.warmup_rounds :]",
        "rounds",
    ),
    Mutation(
        COST,
        "peak memory includes what the imports need",
        "after - before",
        "after",
    ),
    # Evaluation.
    Mutation(
        SCORER,
        "score is a mean over tokens, not a sum",
        "np.add.reduceat(torch.cat(log_p).double().cpu().numpy(), offsets)",
        "np.add.reduceat(torch.cat(log_p).double().cpu().numpy(), offsets) / lengths",
    ),
    Mutation(
        SCORER,
        "scores one position too early",
        "len(inputs[row]) - prefix - n",
        "len(inputs[row]) - prefix - n - 1",
    ),
    Mutation(
        SCORER,
        "scores the padding of short inputs",
        "len(inputs[row]) - prefix - n",
        "width - prefix - n",
    ),
    Mutation(
        SCORER,
        "a long request loses one token too many",
        "[-length - 1 : -1]",
        "[-length:-1]",
    ),
    Mutation(
        SCORER,
        "shared prefix covers scored positions",
        "min(len(ids) - len(pairs[index][1]) for",
        "min(len(ids) for",
    ),
    Mutation(
        SCORER,
        "greedy if one token is",
        "np.logical_and.reduceat",
        "np.logical_or.reduceat",
    ),
    Mutation(
        VALIDATION,
        "last sequences of the split are left out",
        "range(0, len(data), rows)",
        "range(0, len(data) - rows + 1, rows)",
    ),
    Mutation(
        VALIDATION,
        "standard deviation in place of the standard error",
        "float(means.std() / math.sqrt(len(means)))",
        "float(means.std())",
    ),
    Mutation(
        VALIDATION,
        "perplexity to the base 2",
        "math.exp(loss)",
        "2**loss",
    ),
    Mutation(
        TASKS,
        "answers by the accuracy that is not normalised",
        "bool(sample[task.metric])",
        'bool(sample["acc"])',
    ),
    Mutation(
        TASKS,
        "standard error of the average too large",
        'for column in columns)) / n,\n        "chance"',
        'for column in columns) / n),\n        "chance"',
    ),
    Mutation(
        TABLE_COLUMNS,
        "tasks of a column count alike, whatever their size",
        'math.fsum(result["n"] * result[key] for result in results) / n',
        "math.fsum(result[key] for result in results) / len(results)",
    ),
    Mutation(
        OVERLAP,
        "n-grams across two parts of a shard are lost",
        "start + CHUNK + max(NGRAMS) - 1",
        "start + CHUNK",
    ),
    # Data.
    Mutation(
        SEQUENCES,
        "targets are the inputs",
        "tokens[:, 1:].contiguous()",
        "tokens[:, :-1].contiguous()",
    ),
    Mutation(
        SEQUENCES,
        "first token of a window is never predicted",
        "start = first * self.sequence_length",
        "start = first * (self.sequence_length + 1)",
    ),
    Mutation(
        SEQUENCES,
        "every epoch has the same order",
        "SeedSequence([seed, epoch])",
        "SeedSequence([seed])",
    ),
    Mutation(
        SPLIT,
        "copies that differ in case or spaces are on both sides",
        '" ".join(text.lower().split())',
        "text",
    ),
    Mutation(
        SPLIT,
        "near duplicates of training stay in validation",
        "if fraction < MAX_SHARED]",
        "if fraction < 2 * MAX_SHARED]",
    ),
    Mutation(
        ENCODE,
        "documents are not separated",
        'np.concatenate([start, np.array(encoding.ids, dtype="<u2")])',
        'np.array(encoding.ids, dtype="<u2")',
    ),
    # Statistics of the tables.
    Mutation(
        STATISTICS,
        "interval of 90 %, not 95 %",
        "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]",
        "[1 - LEVEL, LEVEL]",
    ),
    Mutation(
        STATISTICS,
        "correlation widens the difference",
        "- 2 * correlation",
        "+ 2 * correlation",
    ),
    Mutation(
        STATISTICS,
        "an interval that starts at zero excludes it",
        "self.low > 0 or",
        "self.low >= 0 or",
    ),
    Mutation(
        ACCURACIES,
        "difference is the baseline minus ours",
        "ours[name] - base[name]",
        "base[name] - ours[name]",
    ),
    Mutation(
        ACCURACIES,
        "several seeds are treated as one",
        "if len(pairs) > 1:",
        "if len(pairs) > 9:",
    ),
    Mutation(
        ACCURACIES,
        "error of the paper's average not divided by the tasks",
        "math.hypot(*errors) / len(errors)",
        "math.hypot(*errors)",
    ),
]


CONTROL = Mutation(FUSED, "nothing (control)", "import torch\n", "import torch\n")

# Where a mistake in a file is most likely to be noticed first. Kernels are tested in Triton's interpreter.
KERNELS = (
    "tests/ops/test_kernels.py",
    "tests/ops/test_fused_rewrite_kernel.py",
    "tests/model/test_kernels_in_models.py",
)
TESTS: dict[str, tuple[str, ...]] = {
    FUSED: ("tests/ops/test_fused_rewrite_cpu.py", "tests/ops/test_fused_rewrite.py"),
    REWRITE: ("tests/ops/test_ops.py", "tests/ops/test_gradient.py", "tests/ops/test_history.py"),
    COMPRESS: ("tests/ops/test_ops.py", "tests/ops/test_fused_rewrite.py", "tests/model/test_language_model.py"),
    EXPAND: ("tests/ops/test_ops.py", "tests/ops/test_fused_rewrite.py"),
    LOSS: ("tests/ops/test_cross_entropy.py",),
    RULE: (
        "tests/model/test_residual.py",
        "tests/model/test_language_model.py",
        "tests/model/test_generate.py",
        "tests/model/test_rivals.py",
        "tests/model/test_further_designs.py",
    ),
    EXPANDED: ("tests/model/test_residual.py", "tests/model/test_language_model.py", "tests/model/test_generate.py"),
    READER: ("tests/model/test_rivals.py", "tests/model/test_further_designs.py"),
    MODEL: ("tests/model/test_backbone.py", "tests/model/test_language_model.py", "tests/model/test_generate.py"),
    CACHE: ("tests/model/test_generate.py",),
    GENERATE: ("tests/model/test_generate.py",),
    FLOPS: ("tests/model/test_flops.py", "tests/model/test_language_model.py"),
    LEARNER: ("tests/training/test_learner.py", "tests/training/test_run.py"),
    RUN: ("tests/training/test_run.py", "tests/training/test_distributed.py"),
    CHECKPOINTS: ("tests/training/test_checkpoints.py", "tests/training/test_run.py"),
    BATCHES: ("tests/training/test_run.py", "tests/training/test_distributed.py"),
    PROCESSES: ("tests/training/test_distributed.py",),
    COST: ("tests/training/test_cost.py",),
    SCORER: ("tests/evaluation/test_loglikelihood.py",),
    VALIDATION: ("tests/evaluation/test_validation.py",),
    TASKS: ("tests/evaluation/test_run.py", "tests/evaluation/test_paper_benchmarks.py"),
    TABLE_COLUMNS: ("tests/evaluation/test_columns.py",),
    OVERLAP: ("tests/evaluation/test_contamination.py",),
    SEQUENCES: ("tests/data/test_build.py",),
    SPLIT: ("tests/data/test_documents.py", "tests/data/test_build.py"),
    ENCODE: ("tests/data/test_parallel_encode.py", "tests/data/test_build.py"),
    STATISTICS: ("tests/reporting/test_statistics.py",),
    ACCURACIES: (
        "tests/reporting/test_accuracy_tables.py",
        "tests/reporting/test_seed_noise.py",
        "tests/evaluation/test_columns.py",
    ),
    FUSED_KERNEL: KERNELS[1:],
    REWRITE_KERNEL: KERNELS,
    COMPRESS_KERNEL: KERNELS[:1],
    EXPAND_KERNEL: KERNELS[:1],
    LOSS_KERNEL: ("tests/ops/test_cross_entropy.py",),
}
OWN_TEST = "tests/benchmarks/test_mutations.py"  # notices every mutation, because the text to replace is gone


def mutated(mutation: Mutation, text: str) -> str:
    """Apply a mutation to the text of its file.

    Raises:
        MutationError: the text to replace does not occur exactly once.
    """
    if (count := text.count(mutation.old)) != 1:
        raise MutationError(f"{mutation.file}: expected {mutation.old!r} once, found it {count} times")
    return text.replace(mutation.old, mutation.new)


def is_kernel(file: str) -> bool:
    """Whether a file holds Triton kernels, which run on a GPU or in Triton's interpreter."""
    return file.endswith("_triton.py")


def notebook_that_notices(mutation: Mutation, project: Path) -> tuple[str, str]:
    """The first notebook that fails in the mutated project, and its error.

    Returns:
        ("none", "") if all pass; ("not run", the reason) if no notebook runs the mutated file on this machine.
    """
    if is_kernel(mutation.file):
        return NOT_RUN, "kernels need a GPU"
    if mutation.file == READER:
        return NOT_RUN, "the derivations build no rival design"
    readers = [name for name in NOTEBOOKS if mutation.file in code_identity(f"notebooks/{name}.py")]
    if not readers:
        return NOT_RUN, "no derivation notebook imports this file"
    return first_failing_notebook(readers, project)


def first_failing_notebook(names: Iterable[str], project: Path, limit: float = LIMIT) -> tuple[str, str]:
    """Name and error of the first notebook that fails in a project; ("none", "") if all pass."""
    for name in names:
        code, text = run([f"notebooks/{name}.py"], project, limit, MPLBACKEND="Agg")
        if code:
            lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
            return name, shortened(lines[-1] if lines else f"exit code {code}", project)
    return NONE, ""


def test_that_notices(mutation: Mutation, project: Path) -> tuple[str, str]:
    """The first test that fails in the mutated project, and its error; ("none", "") if all pass."""
    likely = TESTS.get(mutation.file, ())
    for path in likely:
        if found := first_failing_test([path], project, LIMIT, interpreted=is_kernel(mutation.file)):
            return found
    seen = [] if is_kernel(mutation.file) else [f"--ignore={path}" for path in likely]
    rest = ["tests", "-m", "not dag", f"--ignore={OWN_TEST}", *seen]
    return first_failing_test(rest, project, LIMIT_OF_REST) or (NONE, "")


def first_failing_test(
    arguments: list[str], project: Path, limit: float, interpreted: bool = False
) -> tuple[str, str] | None:
    """Run pytest until a test fails; its id and its error, or None if all pass."""
    command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    code, text = run(command, project, limit, TRITON_INTERPRET="1" if interpreted else "0")
    if code == 0:
        return None
    if code == 5:
        raise MutationError(f"pytest {' '.join(arguments)}: no tests were run")
    if found := re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", text, re.MULTILINE):
        errors = re.findall(r"^E +(\S.*)$", text, re.MULTILINE)  # of numpy's, the first line is empty
        return found[1], shortened("; ".join(errors[:2]), project)
    lines = text.strip().splitlines()
    return arguments[0], shortened(lines[-1] if lines else f"exit code {code}", project)


def run(arguments: list[str], project: Path, limit: float, **variables: str) -> tuple[int, str]:
    """Run Python in the project; the exit code and what it printed, errors included.

    A process that takes longer than `limit` seconds is killed with its children; the last line then says so.
    """
    environment = os.environ | {
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutation can leave the size and time of a file unchanged
        "PYTHONUNBUFFERED": "1",  # errors come after what was printed before them
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "1000",  # pytest shortens names and errors to the width of the terminal
        **variables,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = f"\nno end after {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        return process.returncode, printed.read() + late


def shortened(error: str, project: Path) -> str:
    """An error without the path of the clone, and at most 200 characters long."""
    return error.replace(f"{project}/", "")[:200]


def clone(to: Path) -> str:
    """Clone the last commit; returns a digest of its code, settings, notebooks and tests."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(to)], check=True)
    trees = [f"HEAD:{folder}" for folder in ("ddl", "config", "notebooks", "tests")]
    done = subprocess.run(["git", "rev-parse", *trees], cwd=to, capture_output=True, text=True, check=True)
    return done.stdout


class Table:
    """The CSV of results: one row per mutation, in the order of the list.

    Args:
        path: the file; created with the first row.
        code: digest of the code, settings, notebooks and tests.
    """

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code

    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        """(file, breaks) -> row; empty if the file is absent or has other columns."""
        if not self.path.exists():
            return {}
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader) if reader.fieldnames == [*COLUMNS, *ORIGIN] else []
        return {(row["file"], row["breaks"]): row for row in rows}

    def digest(self, mutation: Mutation) -> str:
        """Identifies what a row depends on; two equal digests mean equal results."""
        return hashlib.sha256(f"{self.code}{mutation}".encode()).hexdigest()[:12]

    def has(self, mutation: Mutation) -> bool:
        """Whether the table has a row of this mutation, made with the same code."""
        row = self.rows().get((mutation.file, mutation.breaks))
        return row is not None and row["code"] == self.digest(mutation)

    def keep(self, mutation: Mutation, **values: str | int) -> None:
        """Write the row of a mutation, and drop the rows of mutations that the list no longer has."""
        rows = self.rows() | {
            (mutation.file, mutation.breaks): {
                "file": mutation.file,
                "breaks": mutation.breaks,
                "code": self.digest(mutation),
                **{name: str(value) for name, value in values.items()},
            }
        }
        ordered = [rows[key] for each in (CONTROL, *MUTATIONS) if (key := (each.file, each.breaks)) in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *ORIGIN], lineterminator="\n")
            writer.writeheader()
            writer.writerows(ordered)


def try_mutation(mutation: Mutation, project: Path) -> dict[str, str | int]:
    """Apply a mutation to the project, run notebooks and tests, and undo it."""
    path, started = project / mutation.file, time.monotonic()
    text = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, text), encoding="utf-8")
    try:
        notebook, notebook_error = notebook_that_notices(mutation, project)
        test, test_error = test_that_notices(mutation, project)
    finally:
        path.write_text(text, encoding="utf-8")
    return {
        "notebook": notebook,
        "notebook_error": notebook_error,
        "test": test,
        "test_error": test_error,
        "seconds": round(time.monotonic() - started),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Break the package on purpose and find what notices.")
    parser.add_argument("--csv", type=Path, required=True, help="the table to write, or to continue")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutations with this text in file or breaks")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        table = Table(args.csv, clone(project))
        source = provenance()
        origin = {"commit": source["commit"], "device": source["device"], "torch": source["versions"]["torch"]}
        chosen = [mutation for mutation in MUTATIONS if args.only in f"{mutation.file}: {mutation.breaks}"]
        for mutation in (CONTROL, *chosen):
            if table.has(mutation):
                continue
            found = try_mutation(mutation, project)
            print(
                f"{mutation.file}: {mutation.breaks}: notebook {found['notebook']}, test {found['test']} "
                f"({found['seconds']} s)",
                flush=True,
            )
            if mutation == CONTROL and (found["notebook"], found["test"]) != (NONE, NONE):
                raise MutationError(f"fails without a mutation: {found}")
            table.keep(mutation, **found, **origin, utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


if __name__ == "__main__":
    main()
