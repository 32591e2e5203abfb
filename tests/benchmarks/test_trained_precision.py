"""The runs that `benchmarks.trained_precision` compares differ in precision only."""

import dataclasses

from benchmarks.trained_precision import MODES, VARIANT, scale_of
from ddl.config import ModelConfig, SizeConfig
from ddl.model.language_model import LanguageModel


def test_the_compared_runs_differ_only_in_how_they_are_computed():
    scales = [scale_of(SizeConfig(layers=3, heads=2, width=64), 128, mode) for mode in MODES]
    models = [scale.model("small", VARIANT) for scale in scales]
    recipes = [scale.training for scale in scales]
    computed = {"kernels", "state_dtype", "state_memory"}
    for field in dataclasses.fields(ModelConfig):
        values = {getattr(model, field.name) for model in models}
        assert len(values) == 1 or field.name in computed, field.name
    assert {dataclasses.replace(recipe, dtype="float32") for recipe in recipes} == {recipes[0]}
    assert len({(recipe.dtype, model) for recipe, model in zip(recipes, models, strict=True)}) == len(MODES)
    assert all(LanguageModel(model).fused for model in models)
