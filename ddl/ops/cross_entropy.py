"""The cross-entropy of a linear head, without the logits of the whole batch.

With the vocabulary of GPT-2 the logits are by far the largest tensor of a batch: for 32 x 1,024 tokens they take 6.6 GB
in fp32, and their gradient takes as much again. Here they exist only for a few rows at a time. Once the logits are
known, the gradient of the mean over tokens is known up to one factor. The forward pass therefore computes it too, and
the backward pass only scales it.

`F.linear_cross_entropy` of torch 2.13 does the same, but returns the loss in the dtype of its inputs (a loss of 2.85 in
bf16 is 2.84 or 2.86), ignores autocast and falls out of compiled graphs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddl.ops.dispatch import only_reverse_mode, runs_triton, saved_dtype

# Size of the logits that exist at a time: small enough for a CPU's cache, large enough to fill a GPU.
CPU_BYTES, GPU_BYTES = 2**21, 2**29
FEWEST_ROWS = 64  # with fewer rows the matrix products become slow


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """mean_n (log sum_j exp z[n,j] - z[n,y_n]) with the logits z = hidden weight^T.

    Args:
        hidden: (..., d).
        weight: (V, d), the weight of the head.
        targets: int64 (...), y in [0, V).

    Returns:
        a scalar, in nats.
    """
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2), targets.flatten())


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`linear_cross_entropy_reference` as one operation, in fp32, or in fp64 if `hidden` is fp64.

    Under autocast the matrix products are in its dtype, as in a linear layer. The logits have the dtype of the
    products; the softmax, the sum over tokens and the gradient in an fp32 weight are in fp32.

    Raises:
        ValueError: the shapes do not fit together.
    """
    only_reverse_mode(hidden, weight)
    d = weight.shape[-1]
    if hidden.shape[-1] != d or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"linear_cross_entropy: expected hidden (..., {d}) and targets (...), "
            f"found {tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    dtype = weight.dtype
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    rows = hidden.reshape(-1, d).contiguous()
    return cross_entropy_op(rows, weight.contiguous(), targets.flatten(), dtype, learns)[0]


@torch.library.custom_op("ddl::linear_cross_entropy", mutates_args=())
def cross_entropy_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss; if `learns`, also the gradients of the summed loss in hidden and weight, else empty tensors.

    Args:
        hidden: (N, d); weight: (V, d); targets: (N,).
        dtype: dtype of the matrix products and the logits.
    """
    tokens, vocabulary = len(hidden), len(weight)
    wide = saved_dtype(hidden)
    losses = hidden.new_empty(tokens, dtype=wide)
    grad_hidden = torch.empty_like(hidden) if learns else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight, dtype=wide) if learns else weight.new_empty(0)
    products = weight.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in parts(tokens, vocabulary * dtype.itemsize, GPU_BYTES if hidden.is_cuda else CPU_BYTES):
            h = hidden[part].to(dtype)
            logits = h @ products.T  # [n, V]
            losses[part] = row_losses(logits, targets[part], learns)
            if learns:
                grad_hidden[part] = logits @ products
                add_product(grad_weight, logits.T, h)
    return losses.mean(), grad_hidden, grad_weight.to(weight.dtype)


def parts(tokens: int, bytes_per_token: int, bytes_at_a_time: int) -> list[slice]:
    """Cut the tokens into consecutive parts of equal size; the last one may be smaller."""
    most = max(bytes_at_a_time // bytes_per_token, FEWEST_ROWS)
    size = -(-tokens // -(-tokens // most)) if tokens else 1
    return [slice(start, start + size) for start in range(0, tokens, size)]


def row_losses(logits: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """The loss of each row of logits (n, V); if `learns`, the gradients, softmax - one-hot, overwrite the logits."""
    if runs_triton(logits):
        from ddl.ops.cross_entropy_triton import row_losses as row_losses_triton

        return row_losses_triton(logits, targets, learns)
    log_p = torch.log_softmax(logits, -1, dtype=saved_dtype(logits))
    chosen = targets.unsqueeze(-1)
    losses = -log_p.gather(-1, chosen).squeeze(-1)
    if learns:
        logits.copy_(log_p.exp_().scatter_add_(-1, chosen, losses.new_full(chosen.shape, -1.0)))
    return losses


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b in the dtype of `total`; a GPU multiplies factors of lower precision without converting them."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


@cross_entropy_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden, grad_weight = (torch.empty_like(x) if learns else x.new_empty(0) for x in (hidden, weight))
    return hidden.new_empty((), dtype=saved_dtype(hidden)), grad_hidden, grad_weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


@once_differentiable  # the forward pass saved the gradients as constants: a second gradient would lack terms
def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scale = grad / len(ctx.saved_tensors[0])
    grads = ((gradient * scale.expand_as(gradient)).to(gradient.dtype) for gradient in ctx.saved_tensors)
    return *grads, None, None, None


cross_entropy_op.register_autograd(_backward, setup_context=_save)
