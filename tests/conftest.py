"""Fixtures shared by several test files, and the selection of tests for each process."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # must be set before torch is imported, which reads it once
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers already share the cores

import pytest
import torch

from ddl.config import ModelConfig, Variant, from_mapping, load_variants
from ddl.ops.dispatch import INTERPRETED

# Triton compiles nothing in interpreter mode.
collect_ignore = ["ops/test_ahead_of_time.py"] if INTERPRETED else []


# Files that take minutes. They start first, so that the other workers do not wait for them at the end.
LONGEST = (
    "tests/test_workflow.py",
    "tests/ops/test_interpreter.py",
    "tests/test_extension.py",
    "tests/evaluation/test_lm_eval_model.py",
    "tests/training/test_distributed.py",
    "tests/ops/test_ahead_of_time.py",
    "tests/training/test_kill.py",
)


def pytest_collection_modifyitems(config, items):
    """Select the tests of this process and move the longest to the front.

    With TRITON_INTERPRET=1 only tests marked `interpreter` run; without it, all others do. Triton reads the variable
    when it is imported, so test_interpreter.py starts a new process with it. Tests marked `full` or `seeds` run if -m
    names that mark.
    """
    on_request = [mark for mark in ("full", "seeds") if mark not in config.getoption("markexpr")]
    here, elsewhere = [], []
    for item in items:
        fits = bool(item.get_closest_marker("interpreter")) == INTERPRETED
        (here if fits and not any(map(item.get_closest_marker, on_request)) else elsewhere).append(item)
    config.hook.pytest_deselected(items=elsewhere)
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items[:] = sorted(here, key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request) -> str:
    """Device of a kernel test: the CPU, where kernels are interpreted, or a GPU."""
    return request.param


@pytest.fixture(scope="session")
def variants() -> dict[str, Variant]:
    return load_variants()


@pytest.fixture(scope="session")
def tiny_config(variants):
    """Make the config of a variant at a size that runs in milliseconds; keyword arguments override settings."""

    def make(variant: str, **overrides) -> ModelConfig:
        shape = {"vocab_size": 61, "sequence_length": 16, "layers": 2, "width": 24, "heads": 2}
        return from_mapping(ModelConfig, shape | variants[variant].model | overrides, "test")

    return make
