"""What the results notebooks and the paper share: one style for every figure, loss curves, and numbers.json.

python -m ddl.report --results results/laptop      # writes results/laptop/numbers.json
"""

import argparse
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ddl.config import ConfigError, Scale, load_scale, load_variants
from ddl.numbers import collect
from ddl.provenance import atomic, user_errors, write_json
from ddl.results import BASELINE, Results, ResultsError, published
from ddl.tables import count

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour (Okabe and Ito's, told apart by all common kinds of colour vision), line style and marker of each variant.
LOOKS = {
    "baseline": ("#000000", "-", "o"),
    "ddl-dv1": ("#E69F00", "--", "s"),
    "ddl-tc-noec": ("#56B4E9", ":", "^"),
    "ddl-cc-noec": ("#CC79A7", "-.", "v"),
    "ddl-tc": ("#0072B2", (0, (6, 1.5)), "D"),
    "ddl-cc": ("#D55E00", "-", "X"),
}
# For variants beyond the paper's, in the order of config/variants.yaml; used again when they run out.
MORE_LOOKS = (("#009E73", "--", "P"), ("#7F7F7F", "-.", "<"), ("#8C510A", ":", ">"), ("#542788", "-", "h"))
FORMATS = ("pdf", "svg", "png")
WARM_UP_HIDDEN = 0.1  # of the tokens: the fall from ln(vocabulary) would leave the rest of a curve flat


def source(*functions: Callable[..., object]) -> "Markdown":
    """The package's own text of functions, for a notebook to show."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"```python\n{inspect.getsource(function)}```" for function in functions))


def set_style() -> None:
    """Make matplotlib draw every figure alike, for print, and byte for byte the same in every run."""
    import seaborn

    settings = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so no machine draws another
        "axes.grid": True,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
        "figure.dpi": 110,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
        "pdf.fonttype": 42,
        "svg.fonttype": "path",  # no reader needs the font
        "svg.hashsalt": "ddl",
    }
    seaborn.set_theme(context="paper", style="ticks", rc=settings)


def look(variant: str) -> dict[str, object]:
    """The keyword arguments `color`, `linestyle` and `marker` that draw a variant, in every figure the same."""
    if variant in LOOKS:
        color, linestyle, marker = LOOKS[variant]
    else:
        extra = [slug for slug in load_variants() if slug not in LOOKS]
        color, linestyle, marker = MORE_LOOKS[extra.index(variant) % len(MORE_LOOKS) if variant in extra else 0]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def save_figure(figure: "Figure", results: str | Path, name: str) -> None:
    """Write figures/<name>.pdf, .svg and .png under a results folder, without dates: equal figures, equal files."""
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    for kind in FORMATS:
        with atomic(Path(results) / "figures" / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata[kind])


def label(text: str) -> str:
    """A variant's label as matplotlib sets it, the paper's d_v as mathematics."""
    return text.replace("d_v", "$d_v$")


def scale_note(results: Results) -> str:
    """One line that says at what scale a figure was made, e.g. "Laptop scale: 0.62 M and 1.31 M parameters, ..."."""
    summaries = results.summaries()
    baseline = summaries[summaries["variant"] == BASELINE].groupby("size")
    params = [count(baseline.get_group(size)["params"].mean()) for size in results.sizes]
    tokens = count(summaries["tokens"].max())
    return f"{results.scale.title} scale: {' and '.join(params)} parameters, {tokens} tokens a run"


def comparable(scale: Scale) -> bool:
    """Whether the runs of a scale are those of the paper: same models, data, tokenizer and number of tokens."""
    paper = load_scale("paper")
    return _recipe(scale) == _recipe(paper)


def _recipe(scale: Scale) -> tuple[object, ...]:
    tokens = scale.training.steps * scale.training.batch_sequences * scale.sequence_length
    return scale.sizes, scale.corpus.name, scale.corpus.dataset, scale.tokenizer, scale.sequence_length, tokens


def draw_curves(axes: "Axes", results: Results, size: str, quantity: str, variants: Iterable[str]) -> None:
    """Draw a loss against tokens for some variants of one size, one line a seed, and say which runs are missing.

    Args:
        quantity: "train_loss" or "val_loss", nats a token.
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
            # Marks are staggered, so that lines that lie on each other can still be told apart.
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
    """Ticks at the right margin at the published final losses."""
    paper = published("validation_loss").set_index(["size", "variant"])["val_loss"]
    for variant in variants:
        if (size, variant) in paper.index:
            style = look(variant) | {"linestyle": "none", "clip_on": False, "fillstyle": "none"}
            axes.plot([1.0], [paper[size, variant]], transform=axes.get_yaxis_transform(), **style)  # type: ignore[arg-type]


def write_numbers(results: Results) -> pd.DataFrame:
    """Write numbers.json, every number that the paper's prose and the README quote.

    Returns:
        frame of what is missing: name, reason.
    """
    numbers = collect(results) | {"scale_note": scale_note(results)}
    whole = numbers["training"]["tokens"] == numbers["paper"]["tokens"]
    numbers["comparable"] = whole and comparable(results.scale)
    write_json(results.path / "numbers.json", numbers)
    return pd.DataFrame(numbers["missing"], columns=["name", "reason"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ddl.report", description="Write results/<scale>/numbers.json.")
    parser.add_argument("--results", type=Path, required=True, help="the folder of a scale, e.g. results/laptop")
    arguments = parser.parse_args(argv)
    with user_errors(ConfigError, ResultsError):
        missing = write_numbers(Results(arguments.results))
        for name, reason in missing.itertuples(index=False):
            print(f"{name}: {reason}")
        print(f"{arguments.results / 'numbers.json'}: {len(missing)} missing")


if __name__ == "__main__":
    main()
