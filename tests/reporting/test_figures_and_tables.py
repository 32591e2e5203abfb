import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from ddl.config import load_scale, paper_variants
from ddl.layout import CURVES, ROOT
from ddl.reporting import figures as report
from ddl.reporting import seed_noise
from ddl.reporting.accuracy_tables import downstream_table
from ddl.reporting.loss_and_cost_tables import cost_table, loss_table
from ddl.reporting.quoted_numbers import collect
from ddl.reporting.read_results import TASK_COLUMNS, Results, ResultsError, published
from ddl.reporting.rivals import compared, rivals_table
from ddl.reporting.table_format import DASH, cell, count, mark_best, significant, write_table
from tests.helpers import fake_results
from tests.helpers.command import ddl

matplotlib.use("agg")

PAPER_LABELS = ["Baseline", "DDL (d_v = 1)", "DDL-TC w/o EC", "DDL-CC w/o EC", "DDL-TC", "DDL-CC"]
LABELS = [variant.label for variant in load_scale("laptop").variants.values()]
NOTEBOOKS = ("10_loss_curves", "11_downstream", "12_cost")


@pytest.fixture(scope="module", autouse=True)
def _unknown_noise() -> Iterator[None]:
    """Losses are printed with two decimals, whatever rows the noise study has."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(seed_noise, "NOISE_STUDY", "learning-rate-smoke")  # has no rows
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_results.write(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "laptop").mkdir()
    return tmp_path / "laptop"


def rerun(name: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute a notebook's code in this process with another results folder."""
    source = (ROOT / "notebooks" / f"{name}.py").read_text()
    assert source.count('results = "results/laptop"') == 1
    monkeypatch.chdir(ROOT)
    exec(compile(source.replace('"results/laptop"', repr(str(results))), name, "exec"), {"__name__": name})


def test_loss_table_has_the_rows_and_columns_of_table_3(folder: Path) -> None:
    table = loss_table(Results(folder))
    assert table["Model"].tolist() == LABELS
    columns = ["valid loss", "valid perplexity", "minus baseline"]
    wanted = [f"Ours (laptop scale): {size} {name}" for size in ("Small", "Medium") for name in columns]
    wanted += [f"Published: {size} {name}" for size in ("Small", "Medium") for name in columns[:2]]
    assert [name for name in table if ": " in name] == wanted
    assert table.loc[0, "Published: Small valid loss"] == "2.8543"
    assert table.loc[0, "Ours (laptop scale): Small valid loss"] == "4.41"
    assert table["Ours (laptop scale): Small minus baseline"].tolist()[:2] == ["", "-0.04"]


@pytest.mark.parametrize(("size", "shots", "average"), [("small", 1, "48.56"), ("medium", 0, "51.92")])
def test_downstream_table_has_the_rows_and_columns_of_the_paper(
    folder: Path, size: str, shots: int, average: str
) -> None:
    table = downstream_table(Results(folder), size, shots)
    visible = [name for name in table if name in (*TASK_COLUMNS, "Avg.")]
    assert visible == [*TASK_COLUMNS, "Avg."]
    ours, theirs = (table[table["block"].str.startswith(word)] for word in ("Ours", "Published"))
    assert ours["Model"].tolist() == ["Stand-in task, metric", "Chance", "Untrained (small)", *LABELS]
    assert theirs["Model"].tolist() == PAPER_LABELS
    assert ours.iloc[0]["ARC-E"] == "doc_cloze, acc"
    assert ours.iloc[1]["PIQA"] == "50.00"
    assert ours.iloc[3]["ARC-C ±"] == "2.4"
    assert theirs.iloc[0]["Avg."] == average


V3, REVISED = "Published (paper scale, v3)", "Published (paper scale, only in the revised text)"


@pytest.mark.parametrize("size", ["small", "medium"])
def test_cost_table_puts_ratios_beside_published_ratios_of_both_versions(folder: Path, size: str) -> None:
    table = cost_table(Results(folder), size).set_index(["block", "Model"])
    assert table.loc[(V3, "DDL-TC"), "Train ratio"] == {"small": "0.52", "medium": "0.53"}[size]
    added = table.loc[(REVISED, "DDL-TC w/o EC")]  # 673.2 / 1509.6 and 239.7 / 537.1: to the baseline of v3
    assert (added["Train ratio"], added["Peak-memory factor"]) == ("0.45", {"small": "1.31", "medium": "1.09"}[size])
    assert table.loc[REVISED].index.tolist() == ["DDL-TC w/o EC", "DDL-CC w/o EC"]
    ours = table.loc[("Ours (laptop scale, Example CPU @ 2 GHz)", "DDL-CC")]
    assert (ours["Train ratio"], ours["Train ratio range"]) == ("0.60", "0.58–0.61")


def test_cost_that_neither_version_publishes_is_a_dash_with_its_reason(folder: Path) -> None:
    small, medium = (cost_table(Results(folder), size).set_index(["block", "Model"]) for size in ("small", "medium"))
    lacking = medium.loc[(V3, "DDL (d_v = 1)")]
    assert lacking["Train tok/s (K)"] == lacking["Val loss"] == lacking["Peak-memory factor"] == DASH
    assert lacking["reason"] == "neither version of the paper's cost table for medium models has this row"
    assert set(small.loc[V3]["reason"]) == set(small.loc[REVISED]["reason"]) == {""}


def test_missing_run_prints_a_dash_with_its_reason_and_never_zero(folder: Path) -> None:
    shutil.rmtree(folder / "evals/small/ddl-cc")
    (folder / "cost/small/ddl-cc.json").unlink()
    results = Results(folder)
    loss = loss_table(results).set_index("Model").loc["DDL-CC"]
    assert loss["Ours (laptop scale): Small valid loss"] == DASH
    assert "evals/small/ddl-cc/seed0/validation.json is missing" in loss["reason"]
    tasks = downstream_table(results, "small", 1)
    row = tasks[(tasks["Model"] == "DDL-CC") & tasks["block"].str.startswith("Ours")].iloc[0]
    assert {row[name] for name in (*TASK_COLUMNS, "Avg.")} == {DASH}
    assert "1shot.json is missing" in row["reason"]
    cost = cost_table(results, "small").set_index("Model").loc["DDL-CC"].iloc[0]
    assert cost["Peak memory (GB)"] == cost["Train tok/s (K)"] == DASH
    assert "cost/small/ddl-cc.json is missing" in cost["reason"]
    run = collect(results)["runs"]["small"]["ddl-cc"]
    assert run["val_loss"] is run["delta"] is run["avg_1shot"] is run["train_ratio"] is None


def test_no_results_at_all_still_give_whole_tables_and_numbers(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOTEBOOKS:
        rerun(name, empty, monkeypatch)
    ddl("numbers", "--results", empty)
    table = pd.read_csv(empty / "tables/table1.csv", keep_default_na=False)
    assert set(table[table["block"].str.startswith("Ours")]["Avg."]) == {"mean", DASH}
    numbers = json.loads((empty / "numbers.json").read_text())
    assert {run["val_loss"] for run in numbers["runs"]["small"].values()} == {None}
    assert all(entry["reason"] for entry in numbers["missing"])


def test_best_and_second_are_marked_by_printed_value_and_ties_share_a_mark() -> None:
    frame = pd.DataFrame({"Model": list("abcd"), "up": ["1.0", "3.0", "2.0", "2.0"], "down": ["5", "6", DASH, "5"]})
    marked = mark_best(mark_best(frame, ["up"], lower=False, second=True), [], lower=False, second=True)
    assert marked["bold"].tolist() == [""] * 4  # only the marks of the last call remain
    marked = mark_best(frame, ["up"], lower=False, second=True)
    assert marked["bold"].tolist() == ["", "up", "", ""]
    assert marked["underline"].tolist() == ["", "", "up", "up"]
    marked = mark_best(frame, ["down"], lower=True, second=False)
    assert marked["bold"].tolist() == ["down", "", "", "down"]
    assert marked["underline"].tolist() == [""] * 4


def test_marks_computed_for_published_numbers_are_the_papers(folder: Path) -> None:
    """Check the underlines of Table 1 and the shared first place of Table 2 against the paper."""
    table = downstream_table(Results(folder), "small", 1)
    theirs = table[table["block"].str.startswith("Published")].set_index("Model")["underline"]
    assert theirs.tolist() == ["ARC-C; PIQA", "WG", "ARC-E", "OpenBookQA", "Hellaswag; SciQ; WG", "Social IQA; Avg."]
    medium = downstream_table(Results(folder), "medium", 1)
    bold = medium[medium["block"].str.startswith("Published")].set_index("Model")["bold"]
    assert [label for label in PAPER_LABELS if "Social IQA" in bold[label].split("; ")] == [
        "DDL (d_v = 1)",
        "DDL-TC w/o EC",
    ]


def test_latex_is_escaped_marked_and_has_equal_rows(folder: Path) -> None:
    table = write_table(loss_table(Results(folder)), folder, "table3", "50% of d_v & more", "a_b")
    tex = (folder / "tables/table3.tex").read_text()
    assert r"\caption{50\% of $d_v$ \& more}" in tex
    assert r"\textbf{4.29}" in tex
    assert r"\textbf{2.8299}" in tex
    rows = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {row.replace(r"\&", "").count("&") for row in rows} == {10}
    assert "<b>4.29</b>" in table._repr_html_()


@pytest.mark.shown
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tables_compile_with_booktabs_and_fit_two_columns_of_an_article(folder: Path, tmp_path: Path) -> None:
    data = Results(folder)
    frames = {
        "accuracy": downstream_table(data, "small", 1),
        "loss": loss_table(data),
        "cost": cost_table(data, "small"),
        "rivals": rivals_table({"small": compared("small")}),
    }
    for name, frame in frames.items():
        write_table(frame, tmp_path, name, "What the table shows: 50 % & more.", "A note.")
        text = rf"\documentclass[twocolumn]{{article}}\usepackage{{booktabs}}\begin{{document}}\input{{tables/{name}}}"
        (tmp_path / f"{name}.tex").write_text(rf"{text}\end{{document}}")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout, name


def test_plain_frames_can_be_written_too(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"Model": ["a"], "x": [0.5], "n": [3], "y": [None]}), tmp_path, "table9", "caption")
    assert (tmp_path / "tables/table9.csv").read_text() == f"Model,x,n,y\na,0.5,3,{DASH}\n"


def test_numbers_are_differences_to_the_baseline_and_valid_json(folder: Path) -> None:
    ddl("numbers", "--results", folder)
    text = (folder / "numbers.json").read_text()
    assert "NaN" not in text
    numbers = json.loads(text)
    small = numbers["runs"]["small"]
    assert small["ddl-cc"]["delta"] == pytest.approx(small["ddl-cc"]["val_loss"] - small["baseline"]["val_loss"])
    assert numbers["published"]["medium"]["ddl-cc"]["delta"] == pytest.approx(2.5758 - 2.6053)
    assert numbers["published"]["medium"]["ddl-cc"]["cost_version"] == "v3"
    assert numbers["published"]["medium"]["ddl-cc-noec"]["cost_version"] == "revised"
    assert numbers["published"]["medium"]["ddl-dv1"]["cost_version"] is None
    assert numbers["comparison"]["small"]["ours"]["lower_loss"] == 5
    assert numbers["comparison"]["small"]["same_sign"] == 5
    assert numbers["paper"]["tokens"] == 100_000 * 480 * 1024
    assert numbers["corpus"]["train_tokens"] == fake_results.MANIFEST["splits"]["train"]["tokens"]
    assert numbers["missing"] == []
    assert not numbers["comparable"]


def test_notebooks_write_their_files_and_figures_are_identical_on_two_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NOTEBOOKS:
        rerun(name, folder, monkeypatch)
    for name in CURVES:
        ddl("figure", "--results", folder, "--name", name)
    tables = {file.name for file in (folder / "tables").iterdir()}
    assert tables == {f"table{k}.{kind}" for k in (1, 2, 3, 4, 5, 7, 8) for kind in ("csv", "tex")}
    first = {file.name: file.read_bytes() for file in sorted((folder / "figures").iterdir())}
    names = (*CURVES, "accuracies", "compute")
    assert set(first) == {f"{name}.{kind}" for name in names for kind in report.FORMATS}
    rerun(NOTEBOOKS[-1], folder, monkeypatch)
    for name in CURVES:
        ddl("figure", "--results", folder, "--name", name)
    assert first == {file.name: file.read_bytes() for file in sorted((folder / "figures").iterdir())}


def test_every_variant_of_the_paper_looks_different_and_new_ones_get_a_look() -> None:
    looks = [report.look(slug) for slug in paper_variants()]
    for key in ("color", "linestyle", "marker"):
        values = [str(look[key]) for look in looks]
        # Two designs may share the solid line, but colours and markers must be unique.
        assert len(set(values)) >= (len(values) if key != "linestyle" else len(values) - 1)
    assert report.look("some-new-design")["color"] not in {look["color"] for look in looks}


def test_only_the_papers_scale_is_comparable_with_it() -> None:
    scales = {name: report.comparable(load_scale(name)) for name in ("smoke", "laptop", "workstation", "h200", "paper")}
    assert scales == {"smoke": False, "laptop": False, "workstation": False, "h200": False, "paper": True}


@pytest.mark.parametrize(("name", "phrase"), [("smoke", "smoke test scale"), ("h200", "H200 scale")])
def test_a_scale_keeps_its_capitals_within_a_sentence(tmp_path: Path, name: str, phrase: str) -> None:
    (tmp_path / name).mkdir()
    assert Results(tmp_path / name).scale_phrase == phrase


def test_a_copy_under_another_name_knows_its_scale_from_its_runs(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "laptop-some-machine"
    shutil.copytree(folder, copy)
    assert Results(copy).scale.name == "laptop"
    shutil.rmtree(copy / "runs")
    with pytest.raises(ResultsError, match="expected a folder named after a scale"):
        Results(copy)


def test_unreadable_results_are_one_line_that_names_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "evals/small/baseline/seed0/validation.json").write_text("{")
    ddl("numbers", "--results", folder, code=2)
    message = capsys.readouterr().err
    assert re.fullmatch(r"error: .*small/baseline/seed0/validation\.json: expected JSON, found: .*\n", message)


def test_absent_results_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ddl("numbers", "--results", tmp_path / "nowhere", code=2)
    assert capsys.readouterr().err.count("\n") == 1


def test_published_names_cover_every_published_row() -> None:
    for name in ("validation_loss", "downstream_accuracy", "cost"):
        assert published(name)["variant"].notna().all()


def test_every_published_row_names_its_version_and_the_revised_text_adds_four_costs() -> None:
    for name in ("architecture", "validation_loss", "downstream_accuracy"):
        assert set(published(name)["version"]) == {"v3"}
    added = published("cost").groupby("version").get_group("revised")
    wanted = [(size, variant) for size in ("small", "medium") for variant in ("ddl-tc-noec", "ddl-cc-noec")]
    assert list(zip(added["size"], added["variant"], strict=True)) == wanted


def test_costs_repeat_the_losses_and_accuracies_of_the_other_published_tables() -> None:
    """Check rows of both versions against Tables 1 to 3 of v3; this would find a misprint."""
    losses = published("validation_loss").set_index(["size", "variant"])["val_loss"]
    accuracy = published("downstream_accuracy").query("num_fewshot == 1 and task == 'Avg.'")
    averages = accuracy.set_index(["size", "variant"])["accuracy_percent"]
    for _, row in published("cost").iterrows():
        key = row["size"], row["variant"]
        assert (row["val_loss"], row["avg_1shot_percent"]) == (losses[key], averages[key])


def test_published_peak_memory_factors_are_the_ratios_of_the_published_peaks() -> None:
    cost = published("cost")
    base = cost[cost["variant"] == "baseline"].set_index("size")["peak_memory_gb"]
    ratios = cost["peak_memory_gb"] / cost["size"].map(base)
    assert (ratios - cost["peak_memory_factor"]).abs().max() < 0.01


def test_published_designs_without_ec_are_slower_and_larger_than_those_with_it() -> None:
    """So the cost of a design with EC bounds nothing; notebook 12 and the budget rely on it."""
    cost = published("cost").set_index(["size", "variant"])
    for size in ("small", "medium"):
        for slug in ("ddl-tc", "ddl-cc"):
            without, with_ec = cost.loc[(size, f"{slug}-noec")], cost.loc[(size, slug)]
            for speed in ("train_ktok_per_s", "inference_ktok_per_s"):
                assert without[speed] < with_ec[speed]
            assert without["peak_memory_gb"] > with_ec["peak_memory_gb"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (significant(0.012345), "0.0123"),
        (significant(1234.5), "1234"),
        (significant(9.999), "10.0"),
        (significant(float("nan")), DASH),
        (count(1_048_576), "1.05 M"),
        (count(49.152e9), "49.2 B"),
        (cell(None), DASH),
        (cell(0.5, 4), "0.5000"),
        (cell(float("nan"), 4), DASH),
    ],
)
def test_numbers_are_shown_with_fixed_digits(shown: str, expected: str) -> None:
    assert shown == expected
