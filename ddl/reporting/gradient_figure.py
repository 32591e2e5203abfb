"""Draw the norm of the gradient by layer over training, from the gradients.csv of the runs."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddl.reporting.figures import over_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = ("Attention", "MLP", "Rewrite", "Outside the blocks")
OUTSIDE = {"embedding": ("#000000", "embedding and head"), "other": ("#999999", "expansion, readout, norm")}
WINDOW = 5  # records in the running median
SMALLEST = 1e-30  # a norm of zero has no logarithm


def by_layer(gradients: pd.DataFrame) -> pd.DataFrame:
    """Combine the parts of a model into sublayers.

    Args:
        gradients: as from `Results.gradients`.

    Returns:
        Columns seed, step, panel (one of `PANELS`), layer (the number of a block, from 1, or a key of `OUTSIDE`), and
        norm. The rewrite of a block is its gates, values and compressor. A sublayer includes the norm before it.
    """
    parts = [name for name in gradients.columns if name not in ("seed", "step")]
    long = gradients.melt(["seed", "step"], parts, "part", "value").dropna()
    places = [place_of(part) for part in long["part"]]
    squares = pd.DataFrame(
        {
            "seed": long["seed"],
            "step": long["step"],
            "panel": [panel for panel, _ in places],
            "layer": [layer for _, layer in places],
            "norm": long["value"] ** 2,
        }
    )
    summed = squares.groupby(["seed", "step", "panel", "layer"])["norm"].sum().reset_index()
    return summed.assign(norm=np.sqrt(summed["norm"].astype(float)))


def place_of(part: str) -> tuple[str, str]:
    """The panel and the layer of a part of the model, e.g. ("Rewrite", "4") for "blocks.3.mlp_rule"."""
    if not (found := re.fullmatch(r"blocks\.(\d+)\.(\w+)", part)):
        return "Outside the blocks", "embedding" if part == "embedding" else "other"
    kinds = {"attention": "Attention", "attention_norm": "Attention", "mlp": "MLP", "mlp_norm": "MLP"}
    return kinds.get(found[2], "Rewrite"), str(int(found[1]) + 1)


def smoothed(norms: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds, with its t-interval, of the running median of one layer's norms; one row per step."""
    logs = norms.sort_values("step").assign(log=lambda each: np.log(each["norm"].clip(lower=SMALLEST)))
    median = logs.groupby("seed")["log"].transform(lambda each: each.rolling(WINDOW, 1, center=True).median())
    shown = over_steps(logs.assign(log=median), "log", ("step",))
    names = ["mean", "low", "high"]
    return shown.assign(**{name: np.exp(shown[name]) for name in names})


def draw_gradients(figure: "Figure", designs: Mapping[str, pd.DataFrame]) -> None:
    """Plot small multiples: a row per design, a column per kind of sublayer, a line per layer, coloured by depth.

    A line is the running median over `WINDOW` records. With several seeds it is their mean on the logarithmic scale,
    with a band for its t-interval.

    Args:
        designs: label -> norms as from `by_layer`; empty if the runs recorded none.
    """
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    grid = figure.subplots(len(designs), len(PANELS), sharex=True, sharey=True, squeeze=False)
    blocks = [int(layer) for norms in designs.values() for layer in norms["layer"] if layer not in OUTSIDE]
    depth = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, max(blocks, default=1)), "viridis_r")
    for row, (label, norms) in zip(grid, designs.items(), strict=True):
        for axes, panel in zip(row, PANELS, strict=True):
            found = norms[norms["panel"] == panel]
            for name, records in found.groupby("layer"):
                layer, shown = str(name), smoothed(records)
                color, text = OUTSIDE[layer] if layer in OUTSIDE else (depth.to_rgba(np.array(int(layer))), "_")
                axes.plot(shown["step"], shown["mean"], color=color, linewidth=1, label=text)
                axes.fill_between(shown["step"], shown["low"], shown["high"], color=color, alpha=0.2, lw=0)
            if found.empty:
                reason = "not recorded" if norms.empty else "no parameters"
                axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", fontsize="small", color="0.4")
        row[0].set_ylabel(f"{label}\ngradient norm")
    for axes, panel in zip(grid[0], PANELS, strict=True):
        axes.set_title(panel)
    for axes in grid[-1]:
        axes.set_xlabel("Step")
    if blocks:
        grid[0, 0].set_yscale("log")
        handles, labels = max(
            (axes.get_legend_handles_labels() for axes in grid[:, -1]), key=lambda found: len(found[0])
        )
        figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False)
        bar = figure.colorbar(depth, ax=grid, label="Block, from the input", aspect=40, pad=0.01)
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
