"""The byte counts of `benchmarks.bytes` match the formulas."""

import pytest
import torch

pytest.importorskip("triton", reason="no triton on this platform")

from benchmarks.bytes import EagerTraffic, count
from ddl.ops.compress_triton import BLOCK_T, compress_forward
from ddl.ops.rewrite_triton import rewrite_backward, rewrite_forward

N, D, BF16, FP32 = 5, 100, 2, 4


@pytest.mark.interpreter
@pytest.mark.parametrize("d_v", [1, 4])
def test_the_rewrite_moves_each_operand_and_result_once(d_v):
    S, h, v = (torch.zeros(N, *shape, dtype=torch.bfloat16) for shape in ((d_v, D), (D,), (d_v,)))
    beta, inverse, readout = torch.zeros(N), torch.zeros(N), torch.zeros(N, d_v)
    grad = torch.zeros_like(S)
    forward = count(lambda: rewrite_forward(S, h, v, beta, 1e-5))
    # S, h and S'; v; beta and inverse, readout
    assert forward.memory == N * ((2 * d_v + 1) * D * BF16 + d_v * BF16 + (2 + d_v) * FP32)
    backward = count(lambda: rewrite_backward(S, h, v, beta, inverse, readout, grad))
    # S, G, dS, h and dh; v and dv; beta, inverse, dbeta and readout
    assert backward.memory == N * ((3 * d_v + 2) * D * BF16 + 2 * d_v * BF16 + (3 + d_v) * FP32)
    assert forward.cache == backward.cache == 0


@pytest.mark.interpreter
def test_rows_that_several_taps_need_are_cached():
    S, taps = torch.zeros(1, 9, 2, D, dtype=torch.bfloat16), torch.zeros(4, 2, D)
    traffic = count(lambda: compress_forward(S, taps))
    assert traffic.memory == (S.numel() + 9 * D) * BF16 + taps.numel() * FP32
    reads = sum(min(t + 1, 4) for t in range(9))  # rows; nine of these are first reads
    programs = -(-9 // BLOCK_T[4])
    assert traffic.cache == (reads - 9) * 2 * D * BF16 + (programs - 1) * taps.numel() * FP32


def test_eager_operations_count_what_lies_in_memory():
    x = torch.zeros(10, 20)
    with EagerTraffic() as traffic:
        x.mT.view(20, 10)[:5].unsqueeze(0)
    assert traffic.bytes == 0, "views"
    with EagerTraffic() as traffic:
        x + torch.zeros(20)
    assert traffic.bytes == (20 + 2 * 200 + 20) * FP32, "zeros, two operands, a result"
    with EagerTraffic() as traffic:
        x[[1, 2]]
    assert traffic.bytes < 200 * FP32, "two of ten rows"
