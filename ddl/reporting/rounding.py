"""How far apart runs of one seed end if nothing but rounding differs: the rows of `benchmarks/rounding.py`.

Another number of threads or another instruction set adds the same numbers in another order.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ddl.config import Scale
from ddl.layout import BASELINE, REFERENCE

ROUNDING = REFERENCE / "rounding.csv"
MACHINE = ["threads", "instructions"]
USUAL = (1, "native")  # the machine that the others are compared with


@dataclass(frozen=True)
class Spread:
    """Largest differences from runs of the same seed with one thread and all instructions of the processor, in nats."""

    run: float
    difference: float  # of a design and the baseline with the same seed
    machines: tuple[str, ...]  # what they were compared with


def rounding_spread(scale: Scale, size: str) -> Spread | None:
    """The spread of the scale's recipe at one size; None if it was not measured.

    A machine counts if it has a finite loss wherever the usual one has.
    """
    if not ROUNDING.is_file():
        return None
    rows = pd.read_csv(ROUNDING, keep_default_na=False, na_values={"val_loss": [""]})
    wanted = {"scale": scale.name, "size": size, "backbone": scale.backbone, "steps": scale.recipe.steps}
    wanted |= {"rate": scale.recipe.learning_rate}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    losses = rows.pivot_table(index=["variant", "seed"], columns=MACHINE, values="val_loss").dropna(axis="columns")
    threads, kinds = (losses.columns.get_level_values(name) for name in MACHINE)
    machines = list(zip(map(int, threads), map(str, kinds), strict=True))
    designs = set(losses.index.get_level_values("variant"))
    if USUAL not in machines or len(machines) < 2 or not designs > {BASELINE}:
        return None
    gaps = (losses.drop(index=BASELINE, level="variant") - losses.loc[BASELINE]).dropna()
    run, difference = (_largest_move(table, machines.index(USUAL)) for table in (losses, gaps))
    names = [kind.upper() if count == USUAL[0] else f"{count} threads" for count, kind in machines]
    del names[machines.index(USUAL)]
    return Spread(run, difference, tuple(names))


def _largest_move(table: pd.DataFrame, usual: int) -> float:
    """Largest absolute difference of a column from the column number `usual`."""
    values = table.to_numpy()
    return float(np.max(np.abs(values - values[:, [usual]])))
