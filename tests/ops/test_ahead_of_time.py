"""Every kernel that the paper's models launch, compiled for GPUs that are not at hand.

By default each is compiled once, for GPUs and widths in turn; `pytest -m full` compiles each for every GPU and width.
"""

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="no triton on this platform")

from triton.runtime.jit import JITFunction

from benchmarks.compiled import TARGETS, Launch, global_accesses, record_launches, resources
from benchmarks.launches import TOKENS, WIDTHS, paper_passes
from ddl.ops import compress_triton, expand_triton, fused_rewrite_triton, rewrite_triton

MODULES = (rewrite_triton, compress_triton, expand_triton, fused_rewrite_triton)


def paper_launches(d: int) -> dict[str, Launch]:
    """By name; only the fused rewrites differ between stored and rebuilt states, and with x_in."""
    found = {}
    for in_place, with_x_in, states in ((False, False, ""), (True, False, "-rebuilt"), (True, True, "-rebuilt-x_in")):
        for each in paper_passes(d, "meta", in_place, with_x_in):
            if not in_place or each.operation.startswith("fused_rewrite"):
                (launch,) = record_launches(each.run)
                found[f"{each.operation}-dv{each.d_v}-{each.direction}{states}"] = launch
    return found


LAUNCHES = {d: paper_launches(d) for d in WIDTHS}
NAMES = list(LAUNCHES[WIDTHS[0]])


@pytest.fixture(autouse=True, scope="module")
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def states(launch: Launch) -> list[str]:
    """Arguments of the size of the state."""
    size = TOKENS * launch.arguments["DV"] * launch.arguments["D"]
    return [name for name, value in launch.arguments.items() if isinstance(value, Tensor) and value.numel() == size]


def every_compilation() -> list:
    """(target, name, d) of the whole matrix; all but one of each name are marked `full`, and that one takes turns."""
    machines = list(itertools.product(TARGETS, WIDTHS))
    return [
        pytest.param(target, name, d, marks=[] if rank == index % len(machines) else pytest.mark.full)
        for index, name in enumerate(NAMES)
        for rank, (target, d) in enumerate(machines)
    ]


@pytest.mark.parametrize(("target", "name", "d"), every_compilation())
def test_a_kernel_compiles_without_spills_and_moves_the_state_by_16_bytes(target, name, d):
    launch = LAUNCHES[d][name]
    compiled = launch.compile(TARGETS[target])
    if "ptx" in compiled.asm:
        accesses = global_accesses(launch, compiled.asm["ptx"])
        assert states(launch)
        assert {state: set(accesses[state]) for state in states(launch)} == {state: {16} for state in states(launch)}
    found = resources(compiled)
    assert found.registers > 0
    assert found.spilled == 0, found


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("rewrite-", "fused_rewrite-", "fused_rewrite_cc-"))]
)
def test_each_state_is_moved_once(name):
    """These kernels hold one token at a time: the threads together move one row of the state, and no part of it twice.
    Where it is rebuilt the state is read and written."""
    launch = LAUNCHES[WIDTHS[1]][name]
    accesses = global_accesses(launch, launch.compile(TARGETS["sm_90"]).asm["ptx"])
    row = 2 * launch.arguments["DV"] * launch.arguments["D"]
    for state in states(launch):
        times = 2 if launch.arguments.get("IN_PLACE") and state == "S_ptr" else 1
        assert sum(accesses[state]) * 32 * launch.options["num_warps"] == times * row, state


def test_narrow_accesses_are_seen():
    """100 features of bf16 do not begin at multiples of 16 bytes."""
    S, h, v, beta = (
        torch.zeros(shape, device="meta") for shape in ((TOKENS, 4, 100), (TOKENS, 100), (TOKENS, 4), TOKENS)
    )
    S = S.bfloat16()
    (launch,) = record_launches(lambda: rewrite_triton.rewrite_forward(S, h, v, beta, 1e-5))
    accesses = global_accesses(launch, launch.compile(TARGETS["sm_90"]).asm["ptx"])
    assert set(accesses["S_ptr"]) == {8}
    assert set(accesses["h_ptr"]) == {16}


def test_no_kernel_is_left_out():
    defined = {
        name
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("kernel")
    }
    assert defined == {launch.kernel.__name__ for launch in LAUNCHES[WIDTHS[0]].values()}
