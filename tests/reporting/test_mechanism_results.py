"""Measurements of `ddl mechanism`: differences with intervals, retrained counterparts, and their notebook."""

import dataclasses
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from ddl.config import load_scale, load_variants
from ddl.layout import DRAWN, MECHANISM, ROOT, drawn_files
from ddl.reporting import read_results
from ddl.reporting.mechanism_results import COUNTERPARTS, Mechanism, over_documents, retrained, shown, study_rows
from ddl.reporting.read_results import Results
from ddl.reporting.seed_statistics import Estimate
from ddl.reporting.table_format import DASH
from tests.helpers import fake_mechanism, fake_results

matplotlib.use("agg")

NOTEBOOK = "14_mechanism"


@pytest.fixture
def several_seeds(monkeypatch):
    """Give the laptop scale three seeds."""
    scale = dataclasses.replace(load_scale("laptop"), seeds=(0, 1, 2))
    monkeypatch.setattr(read_results, "load_scale", lambda name: scale)
    monkeypatch.setattr(fake_results, "load_scale", lambda name: scale)
    return scale


def results(tmp_path: Path, scale=None) -> Results:
    folder = fake_results.write(tmp_path)
    fake_mechanism.write(folder, scale or load_scale("laptop"))
    return Results(folder)


def rerun(folder: Path, monkeypatch) -> dict:
    """Execute the notebook's code in this process with another results folder; return its names."""
    source = (ROOT / "notebooks" / f"{NOTEBOOK}.py").read_text()
    monkeypatch.chdir(ROOT)
    names = {"__name__": NOTEBOOK}
    exec(compile(source.replace('"results/laptop"', repr(str(folder))), NOTEBOOK, "exec"), names)
    return names


def test_an_interval_over_documents_is_that_of_a_ratio():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 100, 40)
    same = over_documents(0.3 * tokens, tokens)
    assert (same.mean, same.half_width, same.n) == (pytest.approx(0.3), pytest.approx(0, abs=1e-12), 40)
    covered = 0
    for _ in range(400):
        tokens = generator.integers(1, 100, 40)
        estimate = over_documents(tokens * (0.3 + generator.normal(0, 0.2, 40)), tokens)
        covered += estimate.low < 0.3 < estimate.high
    assert 0.91 < covered / 400 < 0.98
    assert math.isinf(over_documents(np.array([1.0]), np.array([2])).half_width)


def test_a_difference_of_one_run_is_over_its_documents(tmp_path):
    found = Mechanism(results(tmp_path))
    estimate = found.difference("small", "ddl-cc", "erase off", "all")
    assert (estimate.n, estimate.mean) == (fake_mechanism.DOCUMENTS, pytest.approx(0.25))
    assert found.difference("small", "baseline", "erase off", "all") is None


def test_a_difference_of_several_runs_is_over_their_seeds(tmp_path, several_seeds):
    estimate = Mechanism(results(tmp_path, several_seeds)).difference("small", "ddl-cc", "erase off", "all")
    assert (estimate.n, estimate.mean, estimate.sd) == (3, pytest.approx(0.26), pytest.approx(0.01))


def test_only_the_last_step_counts_as_the_end(tmp_path):
    found = Mechanism(results(tmp_path))
    assert set(found.last()["step"]) == {24}
    assert set(found.sublayers["step"]) == {0, 8, 24}
    assert set(found.last("rare input")["tokens"]) == {"rare input"}


def test_missing_measurements_are_listed(tmp_path):
    folder = fake_results.write(tmp_path)
    found = Mechanism(Results(folder))
    assert f"{MECHANISM.format(size='small', variant='baseline', seed=0)}/mechanism.json" in found.missing
    assert found.last().empty
    assert found.difference("small", "ddl-cc", "closed", "all") is None


def study(**columns) -> pd.DataFrame:
    rows = [
        {"size": "small", "variant": variant, "seed": seed, "val_loss": 4.0 + 0.1 * seed + shift}
        for variant, shift in (("ddl-cc", 0.0), ("write-only-cc", 0.02))
        for seed in (0, 1, 2)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_a_retrained_difference_is_paired_by_seed():
    found = retrained(study(), "small", "ddl-cc", "write-only-cc").estimate
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.02), pytest.approx(0, abs=1e-12))


def test_runs_of_other_recipes_are_not_compared():
    long, short = study(steps=512), study(steps=64).query("seed < 2").assign(val_loss=7.0)
    mixed = pd.concat([long, short])
    assert retrained(mixed, "small", "ddl-cc", "write-only-cc").estimate.n == 3
    apart = pd.concat([long.query("variant == 'ddl-cc'"), short.query("variant == 'write-only-cc'")])
    assert retrained(apart, "small", "ddl-cc", "write-only-cc").estimate is None


@pytest.mark.parametrize(
    ("size", "changed", "reason"),
    [
        ("medium", "write-only-cc", "no study has runs of write-only-cc and ddl-cc at the medium size"),
        ("small", "gated", "no study has runs of gated and ddl-cc at the small size"),
        ("small", None, "no design is trained with this change"),
    ],
)
def test_without_a_retrained_model_there_is_a_reason(size, changed, reason):
    found = retrained(study(), size, "ddl-cc", changed)
    assert (found.estimate, found.reason) == (None, reason)


def test_every_counterpart_is_a_design():
    assert {*COUNTERPARTS.values(), *(design for _, design in COUNTERPARTS)} <= load_variants().keys()


def test_a_diverged_run_is_no_counterpart():
    rows = study()
    rows.loc[rows["variant"] == "write-only-cc", "val_loss"] = float("nan")
    assert retrained(rows, "small", "ddl-cc", "write-only-cc").estimate is None


def test_rows_of_all_studies_are_read(tmp_path):
    assert study_rows(tmp_path).empty
    study(study="a").to_csv(tmp_path / "a.csv", index=False)
    study(study="b").to_csv(tmp_path / "b.csv", index=False)
    assert len(study_rows(tmp_path)) == 12


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5234, 0.4934, 0.5534, 0.1, 5), "+0.52 ± 0.03"),
        (Estimate(-3.4, -5.7, -1.1, 1.0, 3), "-3 ± 2"),
        (Estimate(0.5234, -math.inf, math.inf, math.nan, 1), "0.52"),
        (None, DASH),
    ],
)
def test_a_mean_has_the_digits_that_its_interval_carries(estimate, text):
    assert shown(estimate) == text


def test_the_notebook_draws_its_figures_and_answers_from_the_rows(tmp_path, monkeypatch):
    found = results(tmp_path)
    path = found.path / MECHANISM.format(size="medium", variant="ddl-cc", seed=0) / "mechanism.json"
    values = json.loads(path.read_text())
    for row in values["sublayers"]:
        if row["sublayer"] == 3:
            row |= {"erase_share": 0.75, "energy_before": 0.25, "energy_after": 0.125, "direction_rank": 1.25}
    path.write_text(json.dumps(values))
    names = rerun(found.path, monkeypatch)
    assert all((found.path / file).stat().st_size for name in DRAWN[NOTEBOOK] for file in drawn_files(name))
    assert names["counted"]("medium") == "1 of 40 sublayers of the medium models overwrite"
    answer = names["details"]("medium")
    assert "these overwrite, numbered from 0: DDL-CC: 3. " in answer
    assert "most in sublayer 3 of DDL-CC, where the state has 32.0 times" in answer
    assert "16.0 times after it" in answer
    assert names["counted"]("small") == "0 of 20 sublayers of the small models overwrite"
    assert "these overwrite" not in names["details"]("small")
    row = next(row for row in names["beside"] if (row["size"], row["change"]) == ("small", "erase off"))
    assert row["at test time"] == "+0.2500 ± 0.0000"


def test_the_notebook_runs_with_several_seeds_and_without_results(tmp_path, several_seeds, monkeypatch):
    names = rerun(results(tmp_path, several_seeds).path, monkeypatch)
    assert "3 seeds each" in names["details"]("small")
    (tmp_path / "none" / "laptop").mkdir(parents=True)
    names = rerun(tmp_path / "none" / "laptop", monkeypatch)
    assert names["counted"]("small") == "the small models were not observed"
    assert "no measurements" in names["details"]("small")
