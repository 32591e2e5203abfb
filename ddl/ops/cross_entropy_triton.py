# mypy: allow-untyped-defs
"""The kernel of `ddl.ops.cross_entropy`: the loss of each row of logits, and the gradient in place of the logits.

One program per row reads the row twice: for the sum of exponentials and for the gradient. The second time most of the
row comes from the L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8


@triton.jit
def cross_entropy_kernel(logits, targets, losses, vocabulary, LEARNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    # 1. log sum_j exp z_j; the running sum is relative to the largest logit seen.
    largest = float("-inf")
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        o = start + tl.arange(0, BLOCK)
        z = tl.load(logits + o, mask=o < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(z - higher), 0)
        largest = higher
    log_sum = largest + tl.log(total)
    tl.store(losses + row, log_sum - tl.load(logits + target).to(tl.float32))
    # 2. Overwrite the logits with the gradient softmax(z) - one_hot(y).
    if LEARNS:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for start in range(0, vocabulary, BLOCK):
            o = start + tl.arange(0, BLOCK)
            z = tl.load(logits + o, mask=o < vocabulary, other=float("-inf")).to(tl.float32)
            grad = tl.exp(z - log_sum) - tl.where(o == target, 1.0, 0.0)
            tl.store(logits + o, grad.to(logits.dtype.element_ty), mask=o < vocabulary)


def row_losses(logits: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """(n, V) contiguous logits and (n,) targets -> (n,) losses in fp32; if `learns`, the logits are overwritten."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    cross_entropy_kernel[(len(logits),)](
        logits=logits,
        targets=targets,
        losses=losses,
        vocabulary=logits.shape[1],
        LEARNS=learns,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return losses
