"""The share of a gap that is in tokens which can be copied."""

import math

import pandas as pd
import pytest

from ddl.reporting.copied_tokens import copied_tokens

SHARE = 0.25


def rows(losses, seed=0, backbone="paper", tokens=1024):
    """Rows of small models from losses of repeated and of other tokens."""
    return pd.DataFrame(
        [
            {"backbone": backbone, "size": "small", "tokens": tokens, "seed": seed, "variant": variant}
            | {"val_loss": SHARE * repeated + (1 - SHARE) * new, "repeated_loss": repeated, "new_loss": new}
            for variant, (repeated, new) in losses.items()
        ]
    )


def test_the_parts_of_a_gap_are_weighted_by_the_share_of_the_tokens():
    frame = pd.concat(
        [
            rows({"baseline": (3.0, 4.0), "ddl-cc": (1.0, 3.8), "ddl-dv1": (3.0, 3.9)}),
            rows({"baseline": (2.8, 4.0), "ddl-cc": (1.2, 4.0)}, seed=1),
            rows({"ddl-cc": (0.0, 0.0)}, seed=2),  # no baseline
            rows({"baseline": (2.0, 3.0), "ddl-cc": (1.0, 3.0)}, tokens=512),
            rows({"baseline": (9.0, 3.0), "ddl-cc": (1.0, 3.0)}, backbone="other"),
        ]
    )
    first, expanded, scalar = copied_tokens(frame, "paper", "small")
    assert [(each.tokens, each.design) for each in (first, expanded, scalar)] == [
        (512, "ddl-cc"),
        (1024, "ddl-cc"),
        (1024, "ddl-dv1"),
    ]
    assert expanded.parts == pytest.approx({0: 0.5 / 0.65, 1: 1.0})
    assert expanded.share == pytest.approx(SHARE)
    assert (expanded.gap.repeated, expanded.gap.new) == pytest.approx((1.8, 0.1))
    assert expanded.shown_part == "77 % to 100 %"
    assert (first.shown_part, scalar.shown_part) == ("100 %", "0 %")


def test_rows_without_these_losses_are_left_out():
    frame = rows({"baseline": (3.0, 4.0), "ddl-cc": (1.0, 3.8)})
    assert copied_tokens(frame.drop(columns=["repeated_loss", "new_loss"]), "paper", "small") == []
    frame.loc[frame["variant"] == "baseline", "repeated_loss"] = math.nan
    assert copied_tokens(frame, "paper", "small") == []
