"""Main effects and primary comparisons, on made-up losses with known parts."""

import numpy as np
import pytest

from ddl.config import load_variants
from ddl.reporting.main_effects import PARTS, PRIMARY, main_effects, primary_comparisons
from ddl.reporting.seed_statistics import Blocks

FACTORIAL = {design for pairs in PARTS.values() for pair in pairs for design in pair}
SIZES = dict(zip(PARTS, (-0.04, -0.01, 0.005, -0.03, -0.02, 0.01), strict=True))


def additive():
    """Design -> loss if every part adds its size; a design that is reached in two ways must get one value."""
    found = {"baseline": 4.1}
    while len(found) < len(FACTORIAL):
        before = len(found)
        for part, pairs in PARTS.items():
            for with_it, without in pairs:
                if without in found:
                    assert found.setdefault(with_it, found[without] + SIZES[part]) == pytest.approx(
                        found[without] + SIZES[part]
                    )
                elif with_it in found:
                    found[without] = found[with_it] - SIZES[part]
        assert len(found) > before  # all designs are linked by pairs
    return found


def runs(means, seeds=5, noise=0.0):
    rng = np.random.default_rng(1)
    return {
        design: {seed: mean + 0.1 * seed + noise * rng.normal() for seed in range(seeds)}
        for design, mean in means.items()
    }


def fit(*arguments, **settings):
    return Blocks(runs(*arguments, **settings))


def test_pairs_that_differ_in_one_part_recover_its_size():
    found = main_effects(fit(additive()))
    assert {effect.part: effect.main.mean for effect in found} == pytest.approx(SIZES)
    for effect in found:
        assert [each.mean for each in effect.pairs.values()] == pytest.approx([SIZES[effect.part]] * len(effect.pairs))


def test_averaging_over_pairs_narrows_the_interval():
    effects = {effect.part: effect for effect in main_effects(fit(additive(), noise=0.01))}
    erase = effects["erase term"]
    assert erase.main.half_width < 0.5 * max(each.half_width for each in erase.pairs.values())
    assert erase.main.low < SIZES["erase term"] < erase.main.high


def test_a_part_with_a_missing_design_is_left_out():
    losses = runs(additive())
    del losses["ddl-cc-mean-read"]
    assert {effect.part for effect in main_effects(Blocks(losses))} == set(PARTS) - {
        "erase term",
        "CC's read, not the mean",
    }
    assert main_effects(None) == []


def test_primary_comparisons_are_corrected_for_their_number():
    means = {"baseline": 4.2, "ddl-cc": 4.1, "write-only-cc": 4.1, "normalised-branch-ec": 4.1}
    found = {comparison.name: comparison for comparison in primary_comparisons(fit(means, 10, noise=0.01))}
    assert list(found) == list(PRIMARY)
    against_baseline, without_erase, _ = found.values()
    assert against_baseline.difference.mean == pytest.approx(-0.1, abs=0.02)
    assert against_baseline.adjusted_p < 0.001 < 0.05 < without_erase.adjusted_p
    assert primary_comparisons(None) == []


def test_every_design_of_the_factorial_exists():
    assert set(load_variants()) >= FACTORIAL
