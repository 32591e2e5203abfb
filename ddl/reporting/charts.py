"""Interactive charts of the site, drawn by Bokeh: the gate, the loss curves, and the designs in order.

Each is a Bokeh model, which the browser draws without a server.
"""

import numpy as np
import pandas as pd
from bokeh.layouts import row
from bokeh.model import Model
from bokeh.models import (
    Arrow,
    ColumnDataSource,
    FactorRange,
    HoverTool,
    Legend,
    NormalHead,
    Span,
)
from bokeh.plotting import figure
from matplotlib.colors import to_hex

from ddl.config import load_variants
from ddl.layout import BASELINE
from ddl.reporting.figures import family_color, look
from ddl.reporting.read_results import Results
from ddl.reporting.seed_statistics import Estimate

FAMILIES = {
    "paper": "designs of the paper",
    "own": "own designs",
    "control": "controls and baselines",
    "rival": "designs of other papers",
}
DASHES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashdot"}
HEIGHT = 320  # pixels
ROW_HEIGHT = 20  # pixels of a design among the designs in order
PANEL = {"sizing_mode": "stretch_width", "height": HEIGHT, "min_width": 300, "styles": {"flex": "1 1 300px"}}
SIDE_BY_SIDE = {"sizing_mode": "stretch_width", "styles": {"flex-wrap": "wrap"}}  # below each other on a narrow screen
GATE = 0.5  # where the slider starts
STATE, DIRECTION, TARGET = (1.2, 0.9), (0.96, 0.28), -0.6  # of the example: x, k of length one, and v for d_v = 1


def gate() -> Model:
    """The shortcut's eigenvalues and singular values, and a vector that is rewritten, at a gate of `GATE`.

    The start page moves the models named "now", "path" and "moved" when its slider moves.
    """
    grid, read = np.linspace(0, 2, 201), float(np.dot(STATE, DIRECTION))
    spectrum = figure(title="Shortcut I − βkkᵀ", tools="", toolbar_location=None, **PANEL)
    spectrum.line(grid, 1 - grid, color="#0072B2", width=2, legend_label="eigenvalue along k: 1 − β")
    spectrum.line(grid, abs(1 - grid), color="#D55E00", dash="dashed", width=2, legend_label="singular value |1 − β|")
    spectrum.line([0, 2], [1, 1], color="#000000", width=2, legend_label="all others: 1")
    here = {"x": [GATE, GATE], "y": [1 - GATE, abs(1 - GATE)], "color": ["#0072B2", "#D55E00"]}
    spectrum.scatter("x", "y", source=ColumnDataSource(here, name="now"), size=11, color="color")
    spectrum.xaxis.axis_label = "gate β"
    spectrum.legend.location = "bottom_left"

    axes = {"x_range": (-2.2, 1.8), "y_range": (-1.1, 1.7), "match_aspect": True}
    plane = figure(title="One rewrite, x′ = x + βk(v − kᵀx)", tools="", toolbar_location=None, **axes, **PANEL)
    along = np.array([-3, 3])
    plane.line(along * DIRECTION[0], along * DIRECTION[1], color="#999999", dash="dotted")
    kept, overwritten, moved, reflected = (
        np.array(STATE) + beta * np.array(DIRECTION) * (TARGET - read) for beta in (0, 1, GATE, 2)
    )
    path = ColumnDataSource({"x": [kept[0], reflected[0]], "y": [kept[1], reflected[1]]}, name="path")
    plane.line("x", "y", source=path, color="#cccccc", width=6, legend_label="x′ for all gates")
    for point, color, name in ((STATE, "#000000", "x"), (DIRECTION, "#999999", "k")):
        head = NormalHead(size=9, fill_color=color, line_color=color)
        plane.add_layout(Arrow(end=head, x_start=0, y_start=0, x_end=point[0], y_end=point[1], line_color=color))
        plane.text([point[0]], [point[1]], text=[name], x_offset=6, y_offset=-2)
    cross = {"marker": "x", "size": 12, "line_width": 2, "color": "#000000"}
    plane.scatter([overwritten[0]], [overwritten[1]], legend_label="overwritten, β = 1", **cross)
    source = ColumnDataSource({"x": [moved[0]], "y": [moved[1]]}, name="moved")
    plane.scatter("x", "y", source=source, size=12, color="#D55E00", legend_label="x′")
    plane.legend.location = "top_left"
    return row(spectrum, plane, **SIDE_BY_SIDE)


def curves(results: Results, size: str) -> Model:
    """Validation loss against tokens, and its difference to the baseline; a click in the legend hides a design."""
    records = results.curves().dropna(subset=["val_loss"])
    means = records[records["size"] == size].groupby(["variant", "tokens"])["val_loss"].mean().unstack("variant")
    panels = []
    for title, shown in (("Validation loss (nats)", means), ("Minus the baseline's (nats)", minus_baseline(means))):
        panel = figure(title=f"{size.capitalize()}: {title}", tools="pan,box_zoom,reset", **PANEL)
        panel.toolbar.logo = None
        lines = []
        for slug in (slug for slug in results.variants if slug in shown):
            values = shown[slug].dropna()
            style = look(slug)
            dash = DASHES.get(str(style["linestyle"]), [6, 3])
            name = plain(results.variants[slug].label)
            source = ColumnDataSource({"tokens": values.index / 1e6, "loss": values, "design": [name] * len(values)})
            line = panel.line("tokens", "loss", source=source, color=style["color"], line_dash=dash, width=2)
            lines.append((name, [line]))
        tips = [("design", "@design"), ("million tokens", "@tokens{0.00}"), ("nats", "@loss{0.000}")]
        panel.add_tools(HoverTool(tooltips=tips))
        panel.xaxis.axis_label = "million training tokens"
        panel.add_layout(Legend(items=lines, click_policy="hide", ncols=2), "below")
        panels.append(panel)
    return row(*panels, **SIDE_BY_SIDE)


def plain(label: str) -> str:
    """A design's label for text without formatting."""
    return label.replace("d_v", "dᵥ")


def minus_baseline(means: pd.DataFrame) -> pd.DataFrame:
    """Each column minus the baseline's; without columns if there is no baseline."""
    return means.sub(means[BASELINE], axis=0).drop(columns=BASELINE) if BASELINE in means else means.iloc[:, :0]


def ordering(differences: dict[str, Estimate], size: str) -> Model:
    """Losses minus the baseline's with intervals, from the lowest.

    The start page filters the designs by what it finds in the tags of the axis: (name, family, seeds) of each.
    """
    variants = load_variants()
    names = {slug: f"{plain(variants[slug].label)} ({difference.n})" for slug, difference in differences.items()}
    facts = [(name, variants[slug].family, differences[slug].n) for slug, name in reversed(names.items())]
    chart = figure(
        name=f"ordering-{size}",
        title=f"{size.capitalize()}: loss minus the baseline's (nats)",
        y_range=FactorRange(*(name for name, *_ in facts), tags=facts),
        frame_height=ROW_HEIGHT * len(names),
        sizing_mode="stretch_width",
        tools="pan,reset",
    )
    chart.toolbar.logo = None
    chart.add_layout(Span(location=0, dimension="height", line_color="black"))
    for family, title in FAMILIES.items():
        own = {slug: each for slug, each in differences.items() if variants[slug].family == family}
        if not own:
            continue
        source = ColumnDataSource(
            {
                "name": [names[slug] for slug in own],
                "color": [to_hex(family_color(slug)) for slug in own],
                "mean": [each.mean for each in own.values()],
                "low": [each.low for each in own.values()],
                "high": [each.high for each in own.values()],
            }
        )
        points = chart.scatter("mean", "name", source=source, size=8, color="color", legend_label=title)
        bars = chart.segment("low", "name", "high", "name", source=source, color="color", legend_label=title, width=2)
        tips = [("design", "@name"), ("nats", "@mean{+0.000} (@low{+0.000} to @high{+0.000})")]
        chart.add_tools(HoverTool(renderers=[points, bars], tooltips=tips))
    means = [0.0, *(each.mean for each in differences.values())]
    chart.x_range.start, chart.x_range.end = min(means) - 0.05, max(means) + 0.05
    chart.add_layout(chart.legend[0], "below")
    return chart
