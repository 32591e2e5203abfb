"""The token ladder on made-up losses that follow a known law."""

import math

import numpy as np
import pandas as pd
import pytest

from ddl.reporting.seed_statistics import Estimate
from ddl.reporting.token_ladder import Ladder, decay_of_gap, fitted, predictions, published_worth

TOKENS = (262_144, 524_288, 1_048_576, 2_097_152)


def ladder(law, seeds=3, noise=0.002, tokens=TOKENS):
    """Losses law[design](tokens), with noise that differs between runs."""
    rng = np.random.default_rng(0)
    return Ladder(
        tokens,
        {
            design: tuple({seed: of(D) + noise * rng.normal() for seed in range(seeds)} for D in tokens)
            for design, of in law.items()
        },
    )


def power(limit, size, exponent):
    return lambda D: limit + size * (D / TOKENS[0]) ** -exponent


def test_the_model_that_made_the_losses_predicts_a_higher_rung():
    law = {"baseline": power(2.0, 3.0, 0.3), "ddl-cc": power(2.0, 2.6, 0.3)}
    found = predictions(ladder(law), 8 * TOKENS[-1])["ddl-cc"]
    truth = 0.4 * 64**-0.3
    assert found["common"].low < truth < found["common"].high
    assert found["common"].gap == pytest.approx(truth, abs=0.02)
    assert found["gap"].gap == pytest.approx(truth, abs=0.03)
    assert found["all"].low < truth < found["all"].high


def test_a_gap_that_lasts_is_told_from_one_that_fades():
    lasting = {"baseline": power(2.2, 3.0, 0.3), "ddl-cc": power(2.0, 3.0, 0.3)}
    assert predictions(ladder(lasting, noise=1e-4), 1e9)["ddl-cc"]["own-limits"].gap == pytest.approx(0.2, abs=0.02)
    fading = {"baseline": power(2.0, 3.0, 0.3), "ddl-cc": lambda D: power(2.0, 3.0, 0.3)(D) - 0.4 * (TOKENS[0] / D)}
    assert decay_of_gap(ladder(fading), "ddl-cc").gap == pytest.approx(1, abs=0.05)


def test_all_parameters_of_a_law_are_recovered():
    law = {"baseline": power(2.0, 3.0, 0.3), "ddl-cc": power(1.5, 2.6, 0.2)}
    exact = ladder(law, noise=0.0, tokens=tuple(TOKENS[0] * 2**rung for rung in range(8)))
    logs = np.log(np.array(exact.tokens) / exact.tokens[0])
    assert fitted("own", logs, exact.means) == pytest.approx(
        [2.0, 1.5, 0.3, 0.2, math.log(3.0), math.log(2.6)], rel=1e-3
    )


def test_a_gap_that_changes_its_sign_is_no_power_of_the_tokens():
    law = {"baseline": power(2.0, 3.0, 0.3), "ddl-cc": lambda D: power(2.0, 3.0, 0.3)(D) + 0.1 * (D - 7e5) / 1e6}
    found = ladder(law)
    assert decay_of_gap(found, "ddl-cc") is None
    assert "gap" not in predictions(found, 1e9)["ddl-cc"]


def test_a_gain_is_worth_the_tokens_that_the_baseline_would_need():
    found = ladder({"baseline": power(0.0, 5.0, 0.3), "ddl-cc": power(0.0, 4.0, 0.3)}, noise=0.0)
    losses = [power(0.0, 5.0, 0.3)(D) for D in TOKENS]
    doubling = Estimate(losses[1] - losses[2], losses[1] - losses[1], losses[0] - losses[1], 0.0, 3)
    worth = found.worth(doubling, TOKENS[1])
    assert worth.mean == pytest.approx(math.log(2))
    assert worth.low == pytest.approx(0)
    assert worth.low < worth.mean < worth.high
    loss = Estimate(losses[1] - losses[0], -math.inf, math.inf, math.nan, 1)  # worse than the baseline
    assert found.worth(loss, TOKENS[1]).mean == pytest.approx(-math.log(2))
    assert (found.worth(loss, TOKENS[1]).low, found.worth(loss, TOKENS[1]).high) == (-math.inf, math.inf)
    beyond = found.worth(doubling, TOKENS[-1]).mean  # the last segment continued
    slope = (losses[-2] - losses[-1]) / math.log(2)
    assert beyond == pytest.approx(doubling.mean / slope)


def test_a_published_gain_is_worth_tokens_by_the_published_scaling_law():
    def law(D):
        return 410.7 * D**-0.28

    D = 49.15e9
    gain = 1e-4
    assert law(D) - law(D * math.exp(published_worth(gain, D))) == pytest.approx(gain, rel=1e-3)


def test_a_ladder_has_the_rungs_that_every_design_reached():
    rows = pd.DataFrame(
        [
            ("small", "paper", design, tokens, seed, 5.0 - seed / 10)
            for design, tokens in (("baseline", 100), ("baseline", 200), ("ddl-cc", 100))
            for seed in (0, 1)
        ],
        columns=("size", "backbone", "variant", "tokens", "seed", "val_loss"),
    ).assign(steps=1, learning_rate=0.1)
    found = Ladder.of(rows, "paper", "small")
    assert found.tokens == (100,)
    assert found.losses["ddl-cc"] == ({0: 5.0, 1: 4.9},)
    assert found.gap("ddl-cc", 0).mean == pytest.approx(0.0)


def test_the_noise_of_a_gap_is_pooled_over_the_rungs_and_pairs_seeds():
    losses = {
        "baseline": ({0: 5.0, 1: 5.2, 2: 5.1}, {0: 4.0, 1: 4.2}, {0: 3.0}),
        "ddl-cc": ({0: 4.9, 1: 5.12, 2: 5.0}, {0: 3.9, 1: 4.08}, {0: 2.8}),
    }
    found = Ladder((1, 2, 4), losses)
    first, _, top = (found.gap("ddl-cc", rung) for rung in range(3))
    assert (first.mean, first.n) == (pytest.approx(0.28 / 3), 3)
    squares = np.var([0.1, 0.08, 0.1]) * 3 + np.var([0.1, 0.12]) * 2
    assert first.sd == pytest.approx(math.sqrt(squares / 3))
    assert (top.mean, top.n) == (pytest.approx(0.2), 1)
    assert top.sd == pytest.approx(first.sd)  # one seed, and the noise of the other rungs
    own, shared, freedom = found.noise
    assert own == pytest.approx(first.sd / math.sqrt(2))
    assert freedom == 3
    assert shared == pytest.approx(0.12, abs=0.03)


def test_tokens_outside_the_rungs_have_no_worth():
    found = ladder({"baseline": power(0.0, 5.0, 0.3)}, noise=0.0)
    gain = Estimate(0.1, 0.0, 0.2, 0.1, 3)
    assert found.worth(gain, TOKENS[0] // 2) is None
    assert found.worth(gain, 2 * TOKENS[-1]) is None
