# mypy: allow-untyped-defs
"""Common code of the kernels and their launchers: supported shapes, block sizes, and loads into fp32."""

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VALUE_CHANNELS = (1, 2, 4, 8)
LARGEST_WIDTH = 8192


def check_supported(
    dtype: torch.dtype, d: int, d_v: int, taps: int = 1, supported_taps: tuple[int, ...] = (1,)
) -> None:
    """Raise ValueError unless the kernels support this dtype, width, number of value channels and number of taps."""
    for name, found, supported in (
        ("dtype", dtype, DTYPES),
        ("d_v", d_v, VALUE_CHANNELS),
        ("taps", taps, supported_taps),
    ):
        if found not in supported:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, supported))} on a GPU, found {found}")
    if d > LARGEST_WIDTH:
        raise ValueError(f"d: expected at most {LARGEST_WIDTH} on a GPU, found {d}")


def feature_block(d: int) -> int:
    """Features per block. One warp reads a block row by row, 8 adjacent features (16 bytes of bf16) per thread."""
    return min(triton.next_power_of_2(d), 256)


@triton.jit
def load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
