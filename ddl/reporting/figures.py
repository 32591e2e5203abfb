"""Shared parts of all figures: the style of each variant, loss curves, and saving in three formats."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ddl.config import Scale, load_backbones, load_scale, load_variants
from ddl.files import atomic
from ddl.layout import BASELINE
from ddl.reporting.read_results import Results, published
from ddl.reporting.seed_statistics import Estimate, over_seeds
from ddl.reporting.table_format import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour, line style and marker of each variant. The colours are Okabe and Ito's, which are safe for colour blindness.
LOOKS = {
    "baseline": ("#000000", "-", "o"),
    "ddl-dv1": ("#E69F00", "--", "s"),
    "ddl-tc-noec": ("#56B4E9", ":", "^"),
    "ddl-cc-noec": ("#CC79A7", "-.", "v"),
    "ddl-tc": ("#0072B2", (0, (6, 1.5)), "D"),
    "ddl-cc": ("#D55E00", "-", "X"),
}
# Styles for further variants, in the order of config/variants.yaml; reused cyclically.
MORE_LOOKS = (("#009E73", "--", "P"), ("#7F7F7F", "-.", "<"), ("#8C510A", ":", ">"), ("#542788", "-", "h"))
FORMATS = ("pdf", "svg", "png")
WARM_UP_HIDDEN = 0.1  # fraction of tokens; the initial drop from ln(vocabulary) would flatten the rest of the curve


def look(variant: str) -> dict[str, object]:
    """Keyword arguments `color`, `linestyle` and `marker` for a variant, the same in every figure."""
    if variant in LOOKS:
        color, linestyle, marker = LOOKS[variant]
    else:
        extra = [slug for slug in load_variants() if slug not in LOOKS]
        color, linestyle, marker = MORE_LOOKS[extra.index(variant) % len(MORE_LOOKS) if variant in extra else 0]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def save_figure(figure: "Figure", results: str | Path, name: str) -> None:
    """Write figures/<name>.pdf, .svg and .png under a results folder.

    The files contain no dates, so equal figures give equal files.
    """
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    for kind in FORMATS:
        with atomic(Path(results) / "figures" / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata[kind])


def family_color(slug: str) -> str:
    """The colour of a design among many: the paper's designs have their own, rivals are black, and controls grey."""
    family = load_variants()[slug].family
    return str(look(slug)["color"]) if family == "paper" else "black" if family == "rival" else "0.55"


def ordering(panels: Mapping[str, Mapping[str, Estimate]], margin: float, dotted: str | None = None) -> "Figure":
    """Draw the losses of designs minus the baseline's, with intervals, in the given order, one panel for each size.

    Colours as from `family_color`. The number of seeds is in brackets.

    Args:
        panels: size -> slug -> difference in nats.
        margin: nats beside the lowest and the highest mean that are shown; wider intervals are cut.
        dotted: a design with a vertical line at its mean.
    """
    import matplotlib.pyplot as plt

    variants, count_panels = load_variants(), max(len(panels), 1)
    tallest = max((len(designs) for designs in panels.values()), default=1)
    figure = plt.figure(figsize=(4.6 * count_panels, 0.9 + 0.23 * tallest), layout="constrained")
    columns = figure.add_gridspec(1, count_panels)
    for place, (size, designs) in enumerate((size, designs) for size, designs in panels.items() if designs):
        # A row has about the same height in all panels.
        ratios = [len(designs), tallest - len(designs)] if len(designs) < tallest else [1]
        axes = figure.add_subplot(columns[place].subgridspec(len(ratios), 1, height_ratios=ratios)[0])
        for row, (slug, difference) in enumerate(designs.items()):
            axes.errorbar(
                difference.mean,
                row,
                xerr=difference.half_width,
                color=family_color(slug),
                marker="o",
                markersize=4,
                capsize=2,
            )
            if slug == dotted:
                axes.axvline(difference.mean, color="0.4", linewidth=1, linestyle=":")
        names = [f"{label(variants[slug].label)} ({difference.n})" for slug, difference in designs.items()]
        axes.set_yticks(range(len(designs)), names, fontsize=8)
        axes.set_ylim(len(designs) - 0.4, -0.6)
        means = [0.0, *(difference.mean for difference in designs.values())]
        axes.set_xlim(min(means) - margin, max(means) + margin)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(title=size.capitalize(), xlabel="Loss minus that of the baseline (nats)")
    return figure


def label(text: str) -> str:
    """A variant's label for matplotlib, with d_v as mathematics."""
    return text.replace("d_v", "$d_v$")


def scale_note(results: Results) -> str:
    """One line on the scale of a figure, e.g. "Laptop scale: 0.62 M and 1.31 M parameters, ..."."""
    summaries = results.summaries()
    baseline = summaries[summaries["variant"] == BASELINE].groupby("size")
    params = [count(baseline.get_group(size)["params"].mean()) for size in results.sizes]
    tokens = count(summaries["tokens"].max())
    seeds = len(results.scale.seeds)
    many = "1 seed" if seeds == 1 else f"mean and 95 % interval over {seeds} seeds"
    note = f"{results.scale.title} scale: {' and '.join(params)} parameters, {tokens} tokens per run, {many}"
    backbone = results.scale.backbone
    return note if backbone == load_scale("paper").backbone else f"{note}, {load_backbones()[backbone].label}"


def comparable(scale: Scale) -> bool:
    """Whether a scale matches the paper in models, data, tokenizer and number of tokens."""
    paper = load_scale("paper")
    return _recipe(scale) == _recipe(paper)


def _recipe(scale: Scale) -> tuple[object, ...]:
    corpus = scale.corpus
    data = (corpus.name, corpus.source, scale.tokenizer, scale.sequence_length, scale.tokens)
    return scale.sizes, scale.backbone, *data


@dataclass(frozen=True)
class Curve:
    """The records of one design, of all its seeds; columns as in `Results.curves`."""

    label: str
    style: dict[str, object]  # keyword arguments for `Axes.plot`
    records: pd.DataFrame


@dataclass(frozen=True)
class ProgressAxis:
    """A measure of the progress of a training, for the horizontal axis."""

    title: str
    units: tuple[tuple[float, str], ...]  # size and name, the largest first
    lacking: str  # what a run without it did not record

    def unit(self, end: float) -> tuple[float, str]:
        """The largest unit that is at most `end`, or the smallest of all."""
        return next((unit for unit in self.units if end >= unit[0]), self.units[-1])


PROGRESS = {
    "tokens": ProgressAxis("Tokens", ((1e9, "billions"), (1e6, "millions")), "records"),
    "flops": ProgressAxis(
        "Training FLOPs", tuple((10.0**power, f"$10^{{{power}}}$") for power in (21, 18, 15, 12, 9)), "FLOPs"
    ),
    "seconds": ProgressAxis("Training time", ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")), "training time"),
}


def curves_of(results: Results, size: str, variants: Iterable[str]) -> list[Curve]:
    """The curves of some designs at one size, in this order."""
    records = results.curves(size)
    designs = results.variants
    return [Curve(label(designs[slug].label), look(slug), records[records["variant"] == slug]) for slug in variants]


def draw_curves(axes: "Axes", curves: Sequence[Curve], quantity: str, progress: str = "tokens") -> None:
    """Plot a loss against the progress of training: the mean over seeds, and a band for its t-interval if there are
    several. The axis cuts off the first fall; an inset has the whole course. Curves without records are listed.

    Args:
        quantity: "train_loss" or "val_loss", in nats per token.
        progress: a key of `PROGRESS`. Time is averaged over the seeds at equal steps.
    """
    axis = PROGRESS[progress]
    divisor, unit = axis.unit(max((curve.records[progress].max() for curve in curves), default=0.0))
    end = max((curve.records["tokens"].max() for curve in curves), default=0.0)
    missing, highest = [], 0.0
    for order, curve in enumerate(curves):
        records = curve.records.dropna(subset=[progress, quantity])
        if records.empty:
            missing.append(curve.label)
            continue
        shown = over_steps(records, quantity, ("tokens", progress))
        every = max(1, len(shown) // 6)
        # Stagger the markers, so that overlapping lines can be distinguished.
        style = curve.style | {"markevery": (order % every, every), "label": curve.label}
        axes.plot(shown[progress] / divisor, shown["mean"], **style)  # type: ignore[arg-type]
        axes.fill_between(
            shown[progress] / divisor, shown["low"], shown["high"], color=str(curve.style["color"]), alpha=0.2, lw=0
        )
        highest = max(highest, shown["mean"][shown["tokens"] >= WARM_UP_HIDDEN * end].max())
    if highest:
        axes.set_ylim(top=highest + 0.05)
        inset = axes.inset_axes((0.62, 0.58, 0.36, 0.38))
        for curve in curves:
            records = curve.records.dropna(subset=[progress, quantity])
            shown = over_steps(records, quantity, (progress,))
            inset.plot(shown[progress] / divisor, shown["mean"], color=str(curve.style["color"]), linewidth=0.7)
        inset.tick_params(labelsize=5, length=2)
    if missing:
        text = f"no {axis.lacking}: {', '.join(missing)}"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", wrap=True)
    kind = {"train_loss": "Training", "val_loss": "Validation"}[quantity]
    axes.set(xlabel=f"{axis.title} ({unit})", ylabel=f"{kind} loss (nats/token)")


def draw_differences(axes: "Axes", baseline: Curve, curves: Sequence[Curve]) -> None:
    """Plot validation losses minus the baseline's against tokens: the mean over seeds, and its t-interval if several.

    The axis is cut as in `draw_curves`.
    """
    keys = ["seed", "step", "tokens"]
    base = baseline.records.dropna(subset=["val_loss"])[[*keys, "val_loss"]]
    divisor, unit = PROGRESS["tokens"].unit(base["tokens"].max() if len(base) else 0.0)
    ends: list[float] = [0.0]
    for order, curve in enumerate(curves):
        both = curve.records.dropna(subset=["val_loss"]).merge(base, on=keys, suffixes=("", "_baseline"))
        if both.empty:
            continue
        shown = over_steps(both.assign(gap=both["val_loss"] - both["val_loss_baseline"]), "gap", ("tokens",))
        every = max(1, len(shown) // 6)
        style = curve.style | {"markevery": (order % every, every)}
        axes.plot(shown["tokens"] / divisor, shown["mean"], **style)  # type: ignore[arg-type]
        band = {"color": str(curve.style["color"]), "alpha": 0.2, "lw": 0}
        axes.fill_between(shown["tokens"] / divisor, shown["low"], shown["high"], **band)  # type: ignore[arg-type]
        ends += shown["mean"][shown["tokens"] >= WARM_UP_HIDDEN * shown["tokens"].max()].tolist()
    axes.axhline(0, color=str(baseline.style["color"]), linewidth=1)
    margin = 0.1 * (max(ends) - min(ends)) + 0.005
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set(xlabel=f"Tokens ({unit})", ylabel="Loss minus baseline's (nats)")


def over_steps(records: pd.DataFrame, quantity: str, places: Iterable[str]) -> pd.DataFrame:
    """Mean and t-interval of a quantity over the seeds at each step; the interval is empty where there is one seed.

    Args:
        records: columns step, the quantity and the places; one row per seed and step.
        places: columns that say how far the training is, averaged over the seeds.

    Returns:
        One row per step: the places, mean, low, high.
    """
    rows = []
    for _, at_step in records.groupby("step"):
        estimate = over_seeds(at_step[quantity].tolist())
        low, high = (estimate.low, estimate.high) if estimate.n > 1 else (float("nan"), float("nan"))
        rows.append({name: at_step[name].mean() for name in places} | {"mean": estimate.mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def mark_published(axes: "Axes", results: Results, size: str, variants: Iterable[str]) -> None:
    """Mark the published final losses at the right margin, if the results are from the paper's scale."""
    if not comparable(results.scale):
        return
    paper = published("validation_loss").set_index(["size", "variant"])["val_loss"]
    for variant in variants:
        if (size, variant) in paper.index:
            style = look(variant) | {"linestyle": "none", "clip_on": False, "fillstyle": "none"}
            axes.plot([1.0], [paper[size, variant]], transform=axes.get_yaxis_transform(), **style)  # type: ignore[arg-type]
