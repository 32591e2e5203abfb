"""The comparison of residual designs, from made-up rows."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from ddl.config import load_scale, load_study, load_variants
from ddl.reporting import rivals
from ddl.reporting.judged_claims import FAIR
from ddl.reporting.read_studies import rows_if_any
from ddl.reporting.rivals import WIDER, at_equal_time, compared, rivals_table, speeds
from ddl.reporting.rivals_figure import cost_figure, front
from ddl.reporting.seed_statistics import Estimate
from ddl.reporting.table_format import DASH
from ddl.reporting.token_ladder import Ladder

MEANS = {
    "baseline": 4.2,
    "baseline-equal-flops": 4.18,
    "baseline-wider": 4.08,
    "normalised-branch-ec": 4.05,
    "ihc": 4.1,
}
PARAMS = {
    "baseline": 1000,
    "baseline-equal-flops": 1100,
    "baseline-wider": 1600,
    "normalised-branch-ec": 1000,
    "ihc": 1350,
}


def rows(seeds=4, cosine=0.5):
    noise = np.random.default_rng(0).normal(0, 0.003, (len(MEANS), seeds))
    shared = load_scale("laptop").training.learning_rate
    return pd.DataFrame(
        [
            {
                "size": "small",
                "backbone": FAIR,
                "variant": slug,
                "steps": 512,
                "tokens": 1024,
                "learning_rate": shared,
                "seed": seed,
                "val_loss": mean + 0.1 * seed + noise[place, seed],
                "params": PARAMS[slug],
                "flops_per_token": 2.0 * PARAMS[slug],
                "stream_cosine": cosine if slug == "ihc" else math.nan,
            }
            for place, (slug, mean) in enumerate(MEANS.items())
            for seed in range(seeds)
        ]
    )


def test_designs_are_compared_with_both_baselines_from_the_lowest_loss():
    found = compared("small", rows())
    assert [each.slug for each in found] == sorted(MEANS, key=MEANS.__getitem__)
    ihc = next(each for each in found if each.slug == "ihc")
    assert ihc.over_baseline.mean == pytest.approx(-0.1, abs=0.006)
    assert ihc.over_strong.mean == pytest.approx(0.05, abs=0.006)
    assert ihc.p < 1e-6
    assert (ihc.loss.n, ihc.params, ihc.stream_cosine, ihc.diverged) == (4, 1350, 0.5, 0)
    assert next(each for each in found if each.slug == "baseline").over_baseline is None


def test_a_design_is_compared_with_a_baseline_as_expensive():
    ihc = next(each for each in compared("small", rows()) if each.slug == "ihc")
    # 1,350 parameters are in the middle between two widened baselines with losses 4.18 and 4.08
    assert ihc.at_equal_params.mean == pytest.approx(4.1 - 4.13, abs=0.006)
    assert ihc.at_equal_flops.mean == pytest.approx(ihc.at_equal_params.mean)
    frame = rows()
    frame.loc[frame["variant"] == "ihc", "params"] = 2000  # more than the widest baseline has
    ihc = next(each for each in compared("small", frame) if each.slug == "ihc")
    assert ihc.at_equal_params is None
    assert ihc.at_equal_flops is not None


def test_diverged_runs_are_counted_and_few_runs_are_no_comparison():
    frame = rows()
    frame.loc[(frame["variant"] == "ihc") & (frame["seed"] == 3), "val_loss"] = math.nan
    ihc = next(each for each in compared("small", frame) if each.slug == "ihc")
    assert (ihc.diverged, ihc.loss.n) == (1, 3)
    (single, *_) = compared("small", rows(seeds=1))
    assert (single.over_baseline, single.p) == (None, None)
    assert compared("medium", rows()) == []


def test_the_newest_speed_of_a_design_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "SPEEDS", tmp_path / "designs.csv")
    assert speeds("small").empty
    columns = ["scale", "size", "variant", "kernels", "ms", "ratio", "utc"]
    values = [
        ["laptop", "small", "ihc", "reference", ms, 0.8, utc] for ms, utc in ((200, "2026-01-02"), (100, "2026-01-01"))
    ]
    pd.DataFrame(values, columns=columns).to_csv(rivals.SPEEDS, index=False)
    assert speeds("small")["ms"].tolist() == [200]


def at_rate(frame, slug, rate, shift, seeds=None):
    """Further rows of a design at another rate, with losses shifted."""
    more = frame[frame["variant"] == slug].iloc[:seeds]
    return pd.concat([frame, more.assign(learning_rate=rate, val_loss=more["val_loss"] + shift)])


def rates_and_losses(frame):
    return {each.slug: (each.rate, each.loss) for each in compared("small", frame)}


def test_the_front_has_what_nothing_of_lower_or_equal_cost_beats():
    points = [(2.0, -0.1), (1.0, 0.05), (2.0, -0.05), (3.0, -0.1), (4.0, -0.2), (-1.0, 0.01)]
    assert front(points) == [(-1.0, 0.01), (0.0, 0.0), (2.0, -0.1), (4.0, -0.2)]
    assert front([]) == [(0.0, 0.0)]


def test_the_figure_of_costs_numbers_every_design_and_names_it(monkeypatch):
    measured = pd.DataFrame({"variant": ["baseline", "ihc"], "kernels": "reference", "ms": 1.0, "ratio": [1.0, 0.8]})
    monkeypatch.setattr("ddl.reporting.rivals_figure.speeds", lambda size: measured)
    figure = cost_figure({"small": compared("small", rows())})
    flops, time = figure.axes
    assert sorted(int(text.get_text()) for text in flops.texts) == [1, 2, 3, 4]
    (number,) = (text for text in time.texts if text.get_text())
    names = dict(line.split("  ", 1) for text in figure.texts for line in text.get_text().splitlines())
    assert names[number.get_text()] == "iHC"
    assert number.xy[0] == pytest.approx(25)


def test_a_design_is_compared_at_the_rate_where_it_ends_lowest():
    both = at_rate(rows(), "ihc", 0.016, -0.03)
    ihc = next(each for each in compared("small", both) if each.slug == "ihc")
    assert (ihc.rate, ihc.loss.n) == (0.016, 4)
    assert ihc.over_baseline.mean == pytest.approx(-0.13, abs=0.006)
    worse = at_rate(rows(), "ihc", 0.016, +0.03)
    assert rates_and_losses(worse) == rates_and_losses(rows())


def test_a_rate_with_fewer_runs_than_another_or_with_a_diverged_one_is_not_compared():
    fewer = at_rate(rows(), "ihc", 0.016, -0.03, seeds=3)
    assert rates_and_losses(fewer) == rates_and_losses(rows())
    diverged = at_rate(rows(), "ihc", 0.016, -0.03).reset_index(drop=True)
    diverged.loc[(diverged["learning_rate"] == 0.016) & (diverged["seed"] == 1), "val_loss"] = math.nan
    assert rates_and_losses(diverged) == rates_and_losses(rows())


def test_small_models_run_in_full_at_the_rate_that_their_half_length_runs_prefer():
    full = {(point.variant, point.rate) for point in load_study("rivals").points() if point.size == "small"}
    assert set(rivals.tuned_rates().items()) <= full


def test_every_rate_was_tried_until_the_loss_rose_on_both_sides():
    """The lowest loss of a design is not at the end of its rates, or the end was not reached."""
    for slug, group in rows_if_any("rivals-rates").groupby("variant"):
        best = group.loc[group["val_loss"].idxmin(), "learning_rate"]
        assert group["learning_rate"].min() < best < group["learning_rate"].max(), slug


def test_every_rival_and_every_width_of_the_baseline_is_in_the_study():
    designs = {point.variant for point in load_study("rivals").points()}
    assert {slug for slug, variant in load_variants().items() if variant.family == "rival"} | set(WIDER) <= designs
    assert designs - {point.variant for point in load_study("rivals-rates").points()} == set(WIDER[1:])


def test_the_table_has_the_differences_with_their_intervals():
    found = compared("small", rows())
    table = rivals_table({"small": found}).set_index("Design")
    labels = {slug: variant.label for slug, variant in load_variants().items()}
    assert list(table.index) == [labels[each.slug] for each in found]
    ihc, base = table.loc["iHC"], table.loc["Baseline"]
    assert ihc["Minus the baseline: difference"].startswith("-0.1")
    assert float(ihc["Minus the baseline: difference ±"]) == pytest.approx(0.004, abs=0.002)
    assert (ihc["p"], ihc["Rate"], ihc["Seeds"], ihc["block"]) == ("<0.001", "0.008", "4", "Small models")
    assert (base["Minus the baseline: difference"], base["p"]) == (DASH, DASH)
    assert rivals_table({}).empty


def test_the_sentence_names_the_lowest_design(monkeypatch):
    monkeypatch.setattr(rivals, "rows_if_any", lambda study: rows())
    said = rivals.said_of_rivals("small")
    assert said.startswith("Of 1 other residual designs on this bench, 1 small ones end below the baseline")
    assert "the lowest is iHC (-0.1" in said
    assert said.endswith("nats against the baseline, n = 4).")
    assert rivals.said_of_rivals("medium") == ""


def test_the_numbers_count_the_designs_that_beat_either_baseline(monkeypatch):
    monkeypatch.setattr(rivals, "rows_if_any", lambda study: rows())
    found = rivals.rivals()
    assert list(found) == ["small"]  # no run is medium
    assert (found["small"]["designs"], found["small"]["better"]) == (1, ["iHC"])
    assert found["small"]["better_than_strong"] == []
    (row,) = (row for row in found["small"]["rows"] if row["label"] == "iHC")
    assert row["over_baseline"].startswith("-0.1")
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(rivals, "rows_if_any", lambda study: rows()[rows()["variant"] != "ihc"])
    assert rivals.rivals() == {}


def test_a_slower_design_is_compared_with_a_baseline_of_more_tokens():
    losses = tuple({0: loss, 1: loss} for loss in (4.6, 4.2, 3.8))
    ladder = Ladder((500, 1000, 2000), {"baseline": losses})
    difference = Estimate(-0.1, -0.12, -0.08, 0.01, 5)
    found = at_equal_time(difference, 0.5, 1000, ladder)  # half as fast: the baseline gets 2,000 tokens
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.28, 0.32))
    assert at_equal_time(difference, 1.0, 1000, ladder).mean == pytest.approx(-0.1)
    assert at_equal_time(difference, 2**-0.5, 1000, ladder).mean == pytest.approx(0.1)
    assert at_equal_time(difference, 0.4, 1000, ladder) is None  # beyond the ladder
    assert at_equal_time(difference, None, 1000, ladder) is None
