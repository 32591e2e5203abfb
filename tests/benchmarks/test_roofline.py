"""Predictions follow from counted bytes, compiled resources and data sheets, and say what limits a kernel."""

import dataclasses

import pytest

from benchmarks import roofline
from benchmarks.roofline import GPUS, KERNELS, Kernel, predict
from ddl.reporting.readme import newest_rows, predicted_part

H200 = GPUS["sm_90"]
SMALL = Kernel(registers=32, shared=16, warps=4, programs_per_token=1, steps=1)


@pytest.mark.parametrize(
    ("gpu", "kernel", "programs"),
    [
        ("sm_90", {"warps": 4}, 16),  # of 64 warps
        ("sm_90", {"warps": 1}, 32),  # the most of any kernel
        ("sm_90", {"registers": 229, "warps": 8}, 1),  # 232 x 256 of 65,536 registers
        ("sm_90", {"shared": 100 * 1024}, 2),  # of 228 KB
        ("gfx942", {"registers": 128}, 4),  # 128 x 256 of 131,072 registers
    ],
)
def test_programs_at_once_by_hand(gpu, kernel, programs):
    assert dataclasses.replace(SMALL, **kernel).at_once(GPUS[gpu]) == programs


def test_the_slowest_of_memory_latency_and_arithmetic_decides():
    bandwidth = H200.copy
    tokens = 10**6
    memory = predict(H200, size=bandwidth * 1e-6, flops=1, kernel=SMALL, tokens=tokens)
    assert memory.limit == "memory"
    assert memory.seconds == pytest.approx(1e-6, rel=1e-3)
    assert predict(H200, 2 * bandwidth * 1e-6, 1, SMALL, tokens).seconds == pytest.approx(2e-6, rel=1e-3)
    assert predict(H200, size=1, flops=H200.fp32, kernel=SMALL, tokens=tokens).limit == "arithmetic"
    assert predict(H200, 1, 1, SMALL, tokens=1).memory > roofline.LAUNCH_SECONDS / 2


def test_a_program_that_takes_many_tokens_in_turn_waits_for_each_of_them():
    chunk = dataclasses.replace(SMALL, programs_per_token=1 / 64, steps=64)
    tokens = 64 * 16 * H200.multiprocessors  # as many programs as the GPU holds
    one_wave = predict(H200, size=1, flops=1, kernel=chunk, tokens=tokens)
    assert one_wave.limit == "latency"
    assert one_wave.seconds * tokens == pytest.approx(64 * roofline.STEP_SECONDS)
    few = predict(H200, 1, 1, chunk, tokens // 4)  # a quarter of the programs takes as long
    assert few.seconds * tokens / 4 == pytest.approx(one_wave.seconds * tokens)
    more = predict(H200, 1, 1, chunk, tokens + 64)  # one program more takes a second wave
    assert more.seconds * (tokens + 64) == pytest.approx(2 * one_wave.seconds * tokens)


def test_steps_of_a_program_are_those_of_its_launch():
    launches = roofline.launches(768)
    assert roofline.steps_of(launches["rewrite", "forward", "4", "stored"]) == 1
    tokens = launches["fused_rewrite_cc", "forward", "4", "stored"]
    assert tokens.programs * roofline.steps_of(tokens) == roofline.LAUNCHED_TOKENS
    groups = launches["compress_tc", "forward", "4", "stored"]
    assert (groups.programs, roofline.steps_of(groups)) == (3 * roofline.LAUNCHED_TOKENS // 4, 1)


def test_every_counted_pass_is_predicted_on_every_gpu_and_no_copy_is_beaten():
    rows = list(roofline.passes())
    assert len(rows) == len(GPUS) * len(newest_rows(KERNELS / "bytes.csv"))
    assert all(0 < row["percent_of_copy"] <= 100 for row in rows)


def test_more_traffic_makes_a_design_slower_and_a_faster_baseline_loses_more():
    rows = list(roofline.passes())
    steps = {(row["gpu"], row["size"], row["variant"]): row for row in roofline.steps(rows)}
    assert len(steps) == len(GPUS) * 2 * 5
    for row in steps.values():
        assert 0.5 < row["ratio_at_target"] < row["ratio_at_papers_speed"] < 1
    for gpu in GPUS.values():
        ratios = [steps[gpu.name, "small", name]["ratio_at_target"] for name in ("ddl-dv1", "ddl-cc", "ddl-tc")]
        assert ratios == sorted(ratios, reverse=True)


def test_an_addition_saves_what_the_baseline_does_itself():
    free = dict.fromkeys(
        [(H200.name, name, 1, 768, way) for name in ("fused_rewrite",) for way in ("forward", "backward")], 0.0
    )
    config = roofline.load_scale("paper").model("small", "ddl-dv1")
    vectors = sum(roofline.GENERATORS.values()) - sum(roofline.RESIDUAL_ADDITION.values())
    assert roofline.added_seconds(config, H200, free) == pytest.approx(24 * vectors * 768 * 2 / H200.copy)


def test_the_page_shows_the_committed_predictions():
    part = predicted_part(KERNELS)
    row = next(
        row
        for row in newest_rows(KERNELS / "predicted_passes.csv")
        if (row["gpu"], row["operation"], row["d"], row["direction"], row["states"])
        == ("H200", "fused_rewrite_tc", "768", "backward", "stored")
    )
    line = next(line for line in part.splitlines() if "`fused_rewrite_tc`, d_v = 4, backward" in line)
    assert line.split(" | ")[1:3] == [f"{float(row['ns_per_token']):.1f}", f"{float(row['percent_of_copy']):.0f}"]
