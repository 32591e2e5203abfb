"""Seeds in every number: intervals over several, and no digit of one that its noise does not carry."""

import dataclasses
import json
import math
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

from ddl.config import load_scale
from ddl.layout import BASELINE, REFERENCE, ROOT, STUDY_ROWS
from ddl.reporting import read_results, readme, rounding, seed_noise
from ddl.reporting.accuracy_tables import differences, downstream_table
from ddl.reporting.figures import Curve, curves_of, draw_curves
from ddl.reporting.gradient_figure import by_layer, draw_gradients
from ddl.reporting.loss_and_cost_tables import compute_table, cost_table, loss_table
from ddl.reporting.quoted_numbers import collect
from ddl.reporting.read_results import Results
from ddl.reporting.read_studies import read_study
from ddl.reporting.seed_noise import noise_of, rounded, seeds_note
from ddl.reporting.seed_statistics import over_seeds
from ddl.reporting.table_format import DASH, decimals_for
from tests.helpers import fake_results

matplotlib.use("agg")

SEEDS = tuple(fake_results.SEEDS)
OURS = "Ours (laptop scale): Small"


@pytest.fixture(autouse=True)
def noise_file(tmp_path, monkeypatch):
    """Where the noise study is read from; nothing is there."""
    file = tmp_path / STUDY_ROWS.format(study="noise")
    file.parent.mkdir()
    monkeypatch.setattr(seed_noise, "read_study", lambda name: read_study(name, tmp_path))
    monkeypatch.setattr(rounding, "ROUNDING", tmp_path / "rounding.csv")
    return file


@pytest.fixture
def one(tmp_path):
    return Results(fake_results.write(tmp_path))


@pytest.fixture
def three(tmp_path, monkeypatch):
    scale = dataclasses.replace(load_scale("laptop"), seeds=SEEDS)
    monkeypatch.setattr(read_results, "load_scale", lambda name: scale if name == "laptop" else load_scale(name))
    return Results(fake_results.write(tmp_path / "three", seeds=SEEDS))


def write_noise(file, sizes=("small", "medium"), **columns):
    """A noise study in which the deviation of a run is 0.02 nats and that of a paired difference 0.04."""
    scale = load_scale("laptop")
    recipe = {"scale": "laptop", "backbone": scale.backbone, "steps": scale.recipe.steps}
    recipe |= {"learning_rate": scale.recipe.learning_rate, "reason": ""}
    losses = {BASELINE: (4.90, 4.94, 4.92), "ddl-cc": (4.34, 4.30, 4.32)}
    rows = [
        {**recipe, "size": size, "variant": variant, "seed": seed, "val_loss": loss, **columns}
        for size in sizes
        for variant, found in losses.items()
        for seed, loss in enumerate(found)
    ]
    pd.DataFrame(rows).to_csv(file, index=False)


@pytest.mark.parametrize(
    ("uncertainty", "decimals"),
    [
        *((0.5, 1), (0.3, 2), (0.06, 2), (0.034, 2), (0.033, 3), (0.016, 3), (2.4, 1), (7.0, 0), (400.0, 0)),
        *((0.0, 4), (1e-9, 4), (math.inf, 0), (math.nan, 0)),
    ],
)
def test_the_last_digit_is_the_first_or_second_of_the_uncertainty(uncertainty, decimals):
    assert decimals_for(uncertainty) == decimals


def test_several_seeds_are_rounded_by_their_interval_and_one_by_the_given_noise():
    shown = rounded(over_seeds([4.0, 4.1, 4.2]), uncertainty=1e-9)
    assert shown.text == "4.10 ± 0.25"
    assert rounded(over_seeds([4.123456]), uncertainty=0.02).text == "4.123"
    assert rounded(None, uncertainty=0.02).text == DASH


def test_noise_is_pooled_over_the_designs_of_the_study(noise_file):
    write_noise(noise_file)
    found = noise_of(load_scale("laptop"), "small")
    assert found.run == pytest.approx(0.02)
    assert found.difference == pytest.approx(0.04)
    assert (found.designs, found.seeds) == ((BASELINE, "ddl-cc"), 3)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": "smoke"},
        {"size": "large"},
        {"backbone": "another"},
        {"steps": 8},
        {"learning_rate": 1.0},
        {"val_loss": math.nan},
    ],
)
def test_noise_of_another_recipe_does_not_count(noise_file, other):
    write_noise(noise_file, **other)
    assert noise_of(load_scale("laptop"), "small") is None


def every_loss(results):
    """All our printed losses, perplexities and differences of losses."""
    table = loss_table(results)
    ours = [name for name in table if name.startswith("Ours") and not name.endswith("±")]
    costs = [cost_table(results, size) for size in results.sizes]
    of_costs = [cell for cost in costs for cell in cost[cost["block"].str.startswith("Ours (laptop")]["Val loss"]]
    return [cell for name in ours for cell in table[name] if cell] + of_costs


def decimals(text):
    return len(text.partition(".")[2])


def test_one_seed_of_unknown_noise_prints_two_decimals_and_says_so(one):
    assert max(decimals(text) for text in every_loss(one)) == 2
    assert seeds_note(one) == "One seed per design. Its noise has not been measured, so losses have 2 decimals."
    assert "±" not in "".join(name for name in loss_table(one) if "loss" in name)
    numbers = collect(one)
    assert numbers["runs"]["small"]["ddl-cc"]["shown"]["delta"] == {
        "mean": pytest.approx(-0.1),
        "half_width": None,
        "decimals": 2,
        "n": 1,
    }
    assert numbers["comparison"]["small"]["ours"]["lower_loss_beyond_noise"] is None


def test_one_seed_is_rounded_by_the_noise_study_which_is_quoted(one, noise_file):
    write_noise(noise_file, sizes=["small"])
    table = loss_table(one).set_index("Model")
    assert table.loc["DDL-CC", f"{OURS} valid loss"] == "4.310"  # deviation of a run: 0.02
    assert table.loc["DDL-CC", f"{OURS} minus baseline"] == "-0.10"  # of a difference: 0.04
    note = seeds_note(one)
    assert "noise.csv: over 3 seeds the standard deviation is" in note
    assert "0.020 nats for a run and 0.04 nats for a paired difference (small, Baseline and DDL-CC)" in note
    assert note.endswith("The noise of medium models has not been measured.")


def write_rounding(file, size="small", **losses):
    """Runs on three kinds of machine; losses of DDL-CC with seed 1 may be given, by machine."""
    scale = load_scale("laptop")
    recipe = {"scale": "laptop", "size": size, "backbone": scale.backbone, "steps": scale.recipe.steps}
    recipe |= {"rate": scale.recipe.learning_rate, "reason": ""}
    machines = {"usual": (1, "native"), "avx2": (1, "avx2"), "threads": (2, "native")}
    base = {"usual": 4.1, "avx2": 4.101, "threads": 4.098}
    rows = [
        {**recipe, "variant": variant, "seed": seed, "threads": threads, "instructions": kind}
        | {"val_loss": (base | losses if (variant, seed) == ("ddl-cc", 1) else base)[name]}
        for variant in (BASELINE, "ddl-cc")
        for seed in range(2)
        for name, (threads, kind) in machines.items()
    ]
    pd.DataFrame(rows).to_csv(file, index=False)


def test_the_largest_move_by_rounding_alone_is_said_after_the_noise_of_seeds(one, noise_file):
    write_noise(noise_file)
    write_rounding(rounding.ROUNDING, avx2=4.11)
    spread = rounding.rounding_spread(one.scale, "small")
    assert spread.run == pytest.approx(0.01)
    assert spread.difference == pytest.approx(0.009)  # the baseline moved by 0.001 in the same direction
    assert spread.machines == ("AVX2", "2 threads")
    assert rounding.rounding_spread(one.scale, "medium") is None
    assert seeds_note(one).endswith(
        "With the seed fixed, small models trained with other threads or instructions (AVX2, 2 threads) differ by up "
        "to 0.010 nats, and paired differences by up to 0.009."
    )


def test_the_committed_runs_are_of_the_laptop_scale_and_say_less_than_a_seed_does(monkeypatch):
    monkeypatch.setattr(rounding, "ROUNDING", REFERENCE / "rounding.csv")
    monkeypatch.setattr(seed_noise, "read_study", read_study)
    found, noise = (of(load_scale("laptop"), "small") for of in (rounding.rounding_spread, noise_of))
    assert len(found.machines) == 4
    assert 0 < found.run < noise.run / 10


def test_rounding_of_another_recipe_or_without_the_usual_machine_is_not_quoted(one):
    write_rounding(rounding.ROUNDING, size="medium")
    assert rounding.rounding_spread(one.scale, "small") is None
    rows = pd.read_csv(rounding.ROUNDING)
    kept = (rows["variant"] != BASELINE) | (rows["threads"] == 1)
    rows[kept].assign(size="small").to_csv(rounding.ROUNDING, index=False)
    assert rounding.rounding_spread(one.scale, "small").machines == ("AVX2",)  # the other lacks its baselines
    rows[rows["threads"] == 2].assign(size="small").to_csv(rounding.ROUNDING, index=False)
    assert rounding.rounding_spread(one.scale, "small") is None


def test_several_seeds_give_means_with_t_intervals_and_paired_differences(three):
    losses = {
        slug: [4.41 + move + sum(fake_results.SEEDS[seed][:1]) + fake_results.SEEDS[seed][1][odd] for seed in SEEDS]
        for slug, move, odd in ((BASELINE, 0, 0), ("ddl-dv1", -0.04, 1))
    }
    own = over_seeds(losses[BASELINE])
    table = loss_table(three)
    assert table.loc[0, f"{OURS} valid loss"] == f"{own.mean:.{decimals_for(own.half_width)}f}"
    assert table.loc[0, f"{OURS} valid loss ±"] == f"{own.half_width:.{decimals_for(own.half_width)}f}"
    paired = over_seeds(list(np.subtract(losses["ddl-dv1"], losses[BASELINE])))
    assert paired.half_width < own.half_width / 2  # what all designs share with a seed cancels
    assert table.loc[1, f"{OURS} minus baseline"] == f"{paired.mean:+.2f}"
    assert table.loc[1, f"{OURS} minus baseline ±"] == f"{paired.half_width:.2f}"
    shown = collect(three)["runs"]["small"]["ddl-dv1"]["shown"]["delta"]
    assert (shown["mean"], shown["half_width"]) == pytest.approx((paired.mean, paired.half_width))
    assert shown["n"] == 3
    assert seeds_note(three).startswith("3 seeds per design")


def test_a_design_that_lacks_a_seed_is_compared_on_the_others_and_says_why(three):
    (three.path / "evals/small/ddl-dv1/seed2/validation.json").unlink()
    (three.path / "evals/small/ddl-tc/seed1/validation.json").unlink()
    (three.path / "evals/small/ddl-tc/seed2/validation.json").unlink()
    runs = collect(three)["runs"]["small"]
    assert [runs[slug]["shown"]["delta"]["n"] for slug in ("ddl-cc", "ddl-dv1", "ddl-tc")] == [3, 2, 1]
    table = loss_table(three).set_index("Model")
    assert table.loc["DDL-TC", f"{OURS} valid loss ±"] == ""
    assert "ddl-tc/seed1/validation.json is missing" in table.loc["DDL-TC", "reason"]


def test_designs_whose_interval_excludes_zero_are_counted(three):
    ours = collect(three)["comparison"]["small"]["ours"]
    shown = [row["shown"]["delta"] for slug, row in collect(three)["runs"]["small"].items() if slug != BASELINE]
    assert ours["lower_loss_beyond_noise"] == sum(each["mean"] + each["half_width"] < 0 for each in shown)
    assert 0 < ours["lower_loss_beyond_noise"] < ours["lower_loss"] == 5


def test_accuracies_of_several_seeds_have_intervals_over_seeds(three):
    found = differences(three, "small", 1)["ddl-cc"]["Avg."]
    by_seed = [
        np.mean(
            [
                (ours - base).mean()
                for ours, base in zip(
                    three.outcomes("small", "ddl-cc", seed, 1).values(),
                    three.outcomes("small", BASELINE, seed, 1).values(),
                    strict=True,
                )
            ]
        )
        for seed in SEEDS
    ]
    expected = over_seeds(by_seed)
    assert (found.value, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    table = downstream_table(three, "small", 1)
    row = table[table["block"].str.startswith("Ours") & (table["Model"] == "DDL-CC")].iloc[0]
    frame = three.downstream(1).query("size == 'small' and variant == 'ddl-cc' and column == 'Avg.'")
    own = over_seeds(list(100 * frame["value"]))
    assert row["Avg. ±"] == f"{own.half_width:.{decimals_for(own.half_width)}f}"


def test_curves_of_several_seeds_are_a_mean_with_a_band(one, three):
    from matplotlib import pyplot as plt

    for results, seeds in ((three, 3), (one, 1)):
        figure, axes = plt.subplots()
        draw_curves(axes, curves_of(results, "small", results.variants), "val_loss")
        assert len(axes.lines) == len(results.variants)
        bands = [collection.get_paths()[0].vertices for collection in axes.collections if collection.get_paths()]
        visible = [band for band in bands if np.isfinite(band).all() and np.ptp(band[:, 1]) > 0]
        assert len(visible) == (len(results.variants) if seeds > 1 else 0)
        plt.close(figure)
    records = three.curves().query("size == 'small' and variant == 'baseline'").dropna(subset=["val_loss"])
    last = over_seeds(list(records[records["step"] == records["step"].max()]["val_loss"]))
    figure, axes = plt.subplots()
    draw_curves(axes, curves_of(three, "small", [BASELINE]), "val_loss")
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(last.mean)
    at_end = [y for x, y in axes.collections[0].get_paths()[0].vertices if x == axes.lines[0].get_xdata()[-1]]
    assert (min(at_end), max(at_end)) == pytest.approx((last.low, last.high))
    plt.close(figure)


def test_loss_is_drawn_against_cumulative_flops_and_against_time(one):
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2)
    curves = curves_of(one, "small", [BASELINE, "ddl-cc"])
    for axes, progress in zip(panels, ("flops", "seconds"), strict=True):
        draw_curves(axes, curves, "val_loss", progress)
    tokens = one.curves()["tokens"].max()
    ends = [line.get_xdata()[-1] for line in panels[0].lines]
    assert ends == pytest.approx([3.0e6 * tokens / 1e12, 4.0e6 * tokens / 1e12])  # 200,000 more for each design
    assert panels[0].get_xlabel() == "Training FLOPs ($10^{12}$)"
    assert panels[1].get_xlabel() == "Training time (minutes)"
    assert panels[1].lines[0].get_xdata()[-1] == pytest.approx(0.16 * 512 / 60)
    plt.close(figure)


def test_any_curve_can_join_the_designs_of_the_registry(one):
    from matplotlib import pyplot as plt

    curves = curves_of(one, "small", [BASELINE])
    other = Curve("Strong baseline", {"color": "red"}, curves[0].records.assign(val_loss=lambda x: x["val_loss"] - 1))
    figure, axes = plt.subplots()
    draw_curves(axes, [*curves, other], "val_loss", "flops")
    assert [line.get_label() for line in axes.lines] == ["Baseline", "Strong baseline"]
    plt.close(figure)


def older(results):
    """Make the runs those of a version that recorded neither FLOPs nor time nor gradients."""
    for folder in results.path.glob("runs/*/*/seed*"):
        summary = json.loads((folder / "summary.json").read_text())
        del summary["train_flops_per_token"]
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        (folder / "gradients.csv").unlink()


def test_runs_that_recorded_no_compute_are_named_and_their_cells_are_dashes(one):
    from matplotlib import pyplot as plt

    older(one)
    figure, panels = plt.subplots(1, 3)
    for axes, progress in zip(panels, ("flops", "seconds", "tokens"), strict=True):
        draw_curves(axes, curves_of(one, "small", [BASELINE]), "val_loss", progress)
    texts = ["".join(text.get_text() for text in axes.texts) for axes in panels]
    assert texts == ["no FLOPs: Baseline", "no training time: Baseline", ""]
    plt.close(figure)
    row = compute_table(one).set_index(["Size", "Model"]).loc[("small", "DDL-CC")]
    assert set(row) == {DASH}
    figure = plt.figure()
    draw_gradients(figure, {"Baseline": by_layer(one.gradients("small", BASELINE))})
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"not recorded"}
    plt.close(figure)


def test_losses_at_equal_compute_are_read_from_the_curve(one):
    table = compute_table(one).set_index(["Size", "Model"])
    row = table.loc[("small", "DDL-CC")]
    assert (row["Training FLOPs / baseline"], row["Training time / baseline"]) == ("1.33", "1.00")
    run = one.curves().query("size == 'small' and variant == 'ddl-cc'").dropna(subset=["val_loss"])
    base = one.curves().query("size == 'small' and variant == 'baseline'").dropna(subset=["val_loss"])
    reached = np.interp(0.75, run["tokens"] / run["tokens"].max(), run["val_loss"])
    assert row["Loss minus baseline at its FLOPs"] == f"{reached - base['val_loss'].iloc[-1]:+.2f}"


def test_gradients_of_parts_add_up_to_layers(three):
    norms = by_layer(three.gradients("small", "ddl-cc"))
    assert set(norms["seed"]) == set(SEEDS)
    first = norms.query("seed == 0").groupby(["panel", "layer"])["norm"].first()
    assert first["Attention", "1"] == pytest.approx(0.2)
    assert first["Rewrite", "1"] == pytest.approx(math.hypot(0.2, 0.2))
    assert first["Rewrite", "2"] == pytest.approx(math.hypot(0.1, 0.1))
    assert first["Outside the blocks", "embedding"] == first["Outside the blocks", "other"] == pytest.approx(0.1)
    assert "Rewrite" not in set(by_layer(three.gradients("small", BASELINE))["panel"])


def test_notebooks_of_the_runs_work_with_several_seeds(three, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("10_loss_curves", "11_downstream", "12_cost"):
        source = (ROOT / f"notebooks/{name}.py").read_text()
        source = source.replace('"results/laptop"', repr(str(three.path)))
        exec(compile(source, name, "exec"), {"__name__": name})
    table = pd.read_csv(three.path / "tables/table3.csv", keep_default_na=False)
    assert f"{OURS} minus baseline ±" in table


def test_the_headline_claims_only_what_the_noise_leaves(one, three, noise_file):
    """One value channel has a third of the gain of the fake designs; the claim needs surely more than half."""
    claim = "most of the gain here needs no expanded state"
    for results in (one, three):
        numbers = collect(results)
        text = readme.headline_part(numbers)
        assert claim not in text
        assert seeds_note(results) in text
        assert ("±" in text) == (results is three)
    for size in one.sizes:
        numbers["runs"][size]["ddl-dv1"]["shown"]["delta"]["mean"] = -0.11
        for shown in (numbers["runs"][size]["ddl-dv1"]["shown"]["delta"], ours_of(numbers, size)["best_shown"]):
            shown["half_width"] = 0.01
    assert claim in readme.headline_part(numbers)
    for size in one.sizes:
        numbers["runs"][size]["ddl-dv1"]["shown"]["delta"]["half_width"] = 0.08
    assert claim not in readme.headline_part(numbers)


def ours_of(numbers, size):
    return numbers["comparison"][size]["ours"]


def test_no_text_has_four_decimals_of_one_seed(one):
    numbers = collect(one)
    parts = [readme.headline_part(numbers).split("In the paper")[0], str(loss_table(one).filter(like="Ours").values)]
    assert not re.search(r"\d\.\d{3}", " ".join(parts))
