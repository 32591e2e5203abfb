"""Fixtures that several test files share."""

import pytest
import torch

from ddl.config import ModelConfig, Variant, from_mapping, load_variants
from ddl.ops.dispatch import INTERPRETED

# Where triton interprets, it compiles nothing.
collect_ignore = ["ops/test_ahead_of_time.py"] if INTERPRETED else []


def pytest_collection_modifyitems(config, items):
    """Run the tests marked `interpreter` where TRITON_INTERPRET=1, and the others where it is not.

    It must be set before triton is imported, and holds for the process then; test_interpreter.py starts one with it.
    """
    here = [item for item in items if bool(item.get_closest_marker("interpreter")) == INTERPRETED]
    config.hook.pytest_deselected(items=list(set(items) - set(here)))
    items[:] = here
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
    """Where a test of a kernel runs: interpreted on the CPU, or on a GPU."""
    return request.param


@pytest.fixture(scope="session")
def variants() -> dict[str, Variant]:
    return load_variants()


@pytest.fixture(scope="session")
def tiny_config(variants):
    """Make the config of a variant at a size that runs in milliseconds; keyword arguments override."""

    def make(variant: str, **overrides) -> ModelConfig:
        shape = {"vocab_size": 61, "sequence_length": 16, "layers": 2, "width": 24, "heads": 2}
        return from_mapping(ModelConfig, shape | variants[variant].model | overrides, "test")

    return make
