"""Reading the rows of studies."""

import pandas as pd
import pytest

from ddl.config import ConfigError
from ddl.reporting.read_studies import StudyRowsError, at_best_rate, by_design, losses, read_study


def rows(*entries):
    names = ("size", "backbone", "variant", "steps", "learning_rate", "seed", "val_loss")
    return pd.DataFrame(entries, columns=names)


RUNS = rows(
    ("small", "paper", "baseline", 8, 0.1, 0, 5.0),
    ("small", "paper", "baseline", 8, 0.2, 0, 4.0),
    ("small", "paper", "baseline", 8, 0.1, 1, 5.2),
    ("small", "paper", "baseline", 8, 0.2, 1, 4.4),
    ("small", "paper", "ddl-cc", 8, 0.1, 0, 4.5),
    ("small", "paper", "ddl-cc", 8, 0.2, 0, 3.0),
    ("small", "paper", "ddl-cc", 8, 0.1, 1, 4.6),
    ("small", "paper", "ddl-cc", 8, 0.2, 1, float("nan")),
)


def test_the_best_rate_is_chosen_for_each_design_by_its_mean_and_without_divergence():
    best = at_best_rate(RUNS)
    assert by_design(best) == {("paper", "baseline"): {0: 4.0, 1: 4.4}, ("paper", "ddl-cc"): {0: 4.5, 1: 4.6}}


def test_rows_that_differ_in_more_than_the_seed_are_refused():
    with pytest.raises(ValueError, match="one row per seed"):
        losses(RUNS)


def test_a_study_without_rows_is_one_line_that_says_how_to_make_them(tmp_path):
    with pytest.raises(StudyRowsError, match=r"studies/noise\.csv: not found: `snakemake --cores all study --config"):
        read_study("noise", tmp_path)
    with pytest.raises(ConfigError, match="study: expected one of"):
        read_study("nois", tmp_path)


def test_a_diverged_run_is_read_as_no_loss(tmp_path):
    (tmp_path / "studies").mkdir()
    RUNS.assign(reason=["diverged: step 3" if loss != loss else "" for loss in RUNS["val_loss"]]).to_csv(
        tmp_path / "studies/noise.csv", index=False
    )
    found = read_study("noise", tmp_path)
    assert found["val_loss"].isna().tolist() == [False] * 7 + [True]
    assert found["reason"].iloc[-1] == "diverged: step 3"
