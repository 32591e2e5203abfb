"""Read the rows of studies: one row per run, with its loss on the whole validation split."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ddl.config import load_study
from ddl.errors import UserError
from ddl.layout import REFERENCE, STUDY_INSIDE, STUDY_ROWS
from ddl.reporting.seed_statistics import Losses

RUN = ["size", "backbone", "variant", "steps", "learning_rate"]  # with the seed, these columns identify a run
DESIGN = ["backbone", "variant"]
NUMBERS = ("val_loss", "repeated_loss", "new_loss", "flops_per_token", "stream_cosine")  # empty: not there


class StudyRowsError(UserError):
    """A study that has no rows."""


def read_study(name: str, folder: str | Path = REFERENCE) -> pd.DataFrame:
    """The rows of a study; `val_loss` is NaN where a run diverged.

    Args:
        folder: the results of a scale, or the committed ones.

    Raises:
        ConfigError: there is no such study.
        StudyRowsError: its rows are not in the folder.
    """
    load_study(name)
    path = Path(folder) / STUDY_ROWS.format(study=name)
    if not path.is_file():
        raise StudyRowsError(f"{path}: not found: `snakemake --cores all study --config study={name}` writes it")
    return pd.read_csv(
        path,
        dtype={"reason": str},
        keep_default_na=False,
        na_values={name: [""] for name in NUMBERS},
    )


def rows_if_any(name: str) -> pd.DataFrame:
    """The committed rows of a study; an empty frame if it has none."""
    try:
        return read_study(name)
    except StudyRowsError:
        return pd.DataFrame(columns=["scale", *RUN, "seed", "tokens", "flops_per_token", "val_loss"])


def read_inside(name: str, folder: str | Path = REFERENCE) -> pd.DataFrame:
    """What was measured inside the models of a study: columns of its rows, and kind, name, place and value.

    Raises:
        ConfigError, StudyRowsError: as of `read_study`, or the table is not there.
    """
    rows, path = read_study(name, folder), Path(folder) / STUDY_INSIDE.format(study=name)
    if not path.is_file():
        raise StudyRowsError(f"{path}: not found: `snakemake --cores all study --config study={name}` writes it")
    found = pd.read_csv(path, dtype={"place": str})
    return found.merge(rows, left_on="run", right_index=True)


def losses(rows: pd.DataFrame) -> dict[int, float]:
    """Seed -> loss, for rows that differ in the seed alone; runs that diverged are left out.

    Raises:
        ValueError: two rows have the same seed.
    """
    if rows["seed"].duplicated().any():
        raise ValueError(f"expected one row per seed, found {rows[[*RUN, 'seed']].values.tolist()}")
    finite = rows.dropna(subset=["val_loss"])
    return dict(zip(finite["seed"].astype(int), finite["val_loss"].astype(float), strict=True))


def by_design(rows: pd.DataFrame, keys: Iterable[str] = DESIGN) -> dict[tuple[str, ...], Losses]:
    """The values of `keys` -> seed -> loss, in the order of the rows."""
    return {tuple(map(str, key)): losses(group) for key, group in rows.groupby(list(keys), sort=False)}


def at_best_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each design, size and number of steps, the rows at the rate with the lowest mean loss.

    A rate at which a run diverged is not chosen while another is left.
    """
    groups = rows.groupby(RUN, sort=False)["val_loss"]
    means = groups.mean().where(groups.count() == groups.size()).reset_index()
    keys = [key for key in RUN if key != "learning_rate"]
    best = means.sort_values("val_loss", na_position="last", kind="stable").drop_duplicates(keys)
    return rows.merge(best[RUN], on=RUN, how="inner")
