"""Fixtures that several test files share."""

import pytest

from ddl.config import ModelConfig, Variant, from_mapping, load_variants


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
