"""Shared parts of all figures: the style of each variant, loss curves, and saving in three formats."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ddl.config import Scale, load_scale, load_variants
from ddl.files import atomic
from ddl.layout import BASELINE
from ddl.reporting.read_results import Results, published
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


def label(text: str) -> str:
    """A variant's label for matplotlib, with d_v as mathematics."""
    return text.replace("d_v", "$d_v$")


def scale_note(results: Results) -> str:
    """One line on the scale of a figure, e.g. "Laptop scale: 0.62 M and 1.31 M parameters, ..."."""
    summaries = results.summaries()
    baseline = summaries[summaries["variant"] == BASELINE].groupby("size")
    params = [count(baseline.get_group(size)["params"].mean()) for size in results.sizes]
    tokens = count(summaries["tokens"].max())
    return f"{results.scale.title} scale: {' and '.join(params)} parameters, {tokens} tokens per run"


def comparable(scale: Scale) -> bool:
    """Whether a scale matches the paper in models, data, tokenizer and number of tokens."""
    paper = load_scale("paper")
    return _recipe(scale) == _recipe(paper)


def _recipe(scale: Scale) -> tuple[object, ...]:
    corpus = scale.corpus
    return scale.sizes, corpus.name, corpus.source, scale.tokenizer, scale.sequence_length, scale.tokens


def draw_curves(axes: "Axes", results: Results, size: str, quantity: str, variants: Iterable[str]) -> None:
    """Plot a loss against tokens, one line per variant and seed, and list variants without records in the plot.

    Args:
        quantity: "train_loss" or "val_loss", in nats per token.
        variants: slugs, drawn in this order.
    """
    curves = results.curves()
    curves = curves[curves["size"] == size]
    end = curves["tokens"].max()
    unit, divisor = ("billions", 1e9) if end >= 1e9 else ("millions", 1e6)
    missing, highest = [], 0.0
    for order, variant in enumerate(variants):
        text = label(results.variants[variant].label)
        runs = curves[(curves["variant"] == variant)].dropna(subset=[quantity])
        if runs.empty:
            missing.append(text)
        for index, (_, run) in enumerate(runs.groupby("seed")):
            every = max(1, len(run) // 6)
            # Stagger the markers, so that overlapping lines can be distinguished.
            style = look(variant) | {"markevery": (order % every, every), "label": text if index == 0 else "_"}
            axes.plot(run["tokens"] / divisor, run[quantity], **style)  # type: ignore[arg-type]
            highest = max(highest, run[run["tokens"] >= WARM_UP_HIDDEN * end][quantity].max())
    if highest:
        axes.set_ylim(top=highest + 0.05)
    if quantity == "val_loss" and comparable(results.scale):
        _mark_published(axes, size, variants)
    if missing:
        axes.text(0.5, 0.5, "no records: " + ", ".join(missing), transform=axes.transAxes, ha="center", wrap=True)
    kind = {"train_loss": "Training", "val_loss": "Validation"}[quantity]
    axes.set(xlabel=f"Tokens ({unit})", ylabel=f"{kind} loss (nats/token)")


def _mark_published(axes: "Axes", size: str, variants: Iterable[str]) -> None:
    """Mark the published final losses at the right margin."""
    paper = published("validation_loss").set_index(["size", "variant"])["val_loss"]
    for variant in variants:
        if (size, variant) in paper.index:
            style = look(variant) | {"linestyle": "none", "clip_on": False, "fillstyle": "none"}
            axes.plot([1.0], [paper[size, variant]], transform=axes.get_yaxis_transform(), **style)  # type: ignore[arg-type]
