"""Predictions follow from counted bytes, compiled resources and data sheets, and say what limits a kernel."""

import pytest

from benchmarks import roofline
from benchmarks.roofline import GPUS, KERNELS, Gpu, predict, programs_at_once
from ddl.reporting.readme import newest_rows

H200 = GPUS["sm_90"]


def test_programs_at_once_by_hand():
    assert programs_at_once(H200, registers=32, shared=16, warps=4) == 16  # 64 warps
    assert programs_at_once(H200, registers=229, shared=4096, warps=8) == 1  # 232 x 256 of 65,536 registers
    assert programs_at_once(H200, registers=32, shared=100 * 1024, warps=4) == 2  # of 228 KB
    assert programs_at_once(GPUS["gfx942"], registers=128, shared=0, warps=4) == 4  # 131,072 / (128 x 256)


def test_the_slowest_of_memory_latency_and_arithmetic_decides():
    gpu = Gpu("test", 1e12, 1e12, 1e12, multiprocessors=10, registers=65536, shared=10**6, warps=64)
    many, one = [(32, 0, 4)], [(255, 0, 8)]
    memory = predict(gpu, size=9e4, flops=1, kernels=many, tokens=10**9)
    assert memory.limit == "memory"
    assert memory.seconds == pytest.approx(1e-7)  # 90 kB at nine tenths of 1 TB/s
    assert predict(gpu, 18e4, 1, many, 10**9).seconds == pytest.approx(2 * memory.seconds)
    latency = predict(gpu, size=9e2, flops=1, kernels=one, tokens=10**9)
    assert (latency.limit, latency.programs) == ("latency", 1)
    assert latency.seconds == pytest.approx(roofline.TOKEN_SECONDS / 10)
    assert predict(gpu, size=9e2, flops=1e6, kernels=many, tokens=10**9).limit == "arithmetic"
    assert predict(gpu, 9e4, 1, many, tokens=1).seconds > roofline.LAUNCH_SECONDS


def test_every_counted_pass_is_predicted_on_every_gpu_and_no_copy_is_beaten():
    rows = list(roofline.passes())
    assert len(rows) == len(GPUS) * len(newest_rows(KERNELS / "bytes.csv"))
    assert all(0 < row["percent_of_copy"] <= 100 for row in rows)
    assert all(row["programs"] > 0 for row in rows)


def test_more_traffic_makes_a_design_slower_and_a_faster_baseline_loses_more():
    rows = list(roofline.passes())
    steps = {(row["gpu"], row["size"], row["variant"]): row for row in roofline.steps(rows)}
    assert len(steps) == len(GPUS) * 2 * 5
    for row in steps.values():
        assert 0.5 < row["ratio_at_target"] < row["ratio_at_papers_speed"] < 1
    for gpu in GPUS.values():
        ratios = [steps[gpu.name, "small", name]["ratio_at_target"] for name in ("ddl-dv1", "ddl-cc", "ddl-tc")]
        assert ratios == sorted(ratios, reverse=True)
