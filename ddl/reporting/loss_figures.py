"""The figures that show the course of the trainings, from the records of the runs alone.

    ddl figure --results results/laptop --name figure2

A figure needs the runs of the sizes that it shows (`ddl.layout.CURVES`), and no evaluation. Notebook 10 shows all of
them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ddl.layout import BASELINE, CURVES
from ddl.reporting.figures import curves_of, draw_curves, draw_differences, label, mark_published, save_figure
from ddl.reporting.gradient_figure import by_layer, draw_gradients
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_figure(results: Path, name: str) -> None:
    """Write figures/<name>.pdf, .svg and .png under the results of a scale.

    Args:
        name: a key of `ddl.layout.CURVES`.
    """
    import matplotlib as mpl

    mpl.use("agg")  # needs no screen
    mpl.rcdefaults()  # a matplotlibrc of the user does not change the file
    set_style()
    save_figure(loss_figure(Results(results), name), results, name)


def loss_figure(results: Results, name: str) -> "Figure":
    """The figure of this name, a key of `ddl.layout.CURVES`."""
    if name == "figure3":
        return rewrite_designs(results)
    (size,) = CURVES[name]
    return gradient_figure(results, size) if name == "gradients" else all_designs(results, size)


def all_designs(results: Results, size: str) -> "Figure":
    """Training loss, validation loss, and its difference from the baseline's, of all designs at one size."""
    import matplotlib.pyplot as plt

    figure, (training, validation, differences) = plt.subplots(1, 3, figsize=(9.0, 2.9), layout="constrained")
    baseline, *others = curves = curves_of(results, size, results.variants)
    draw_curves(training, curves, "train_loss")
    draw_curves(validation, curves, "val_loss")
    draw_differences(differences, baseline, others)
    mark_published(validation, results, size, results.variants)
    add_legend(figure, training)
    return figure


def rewrite_designs(results: Results) -> "Figure":
    """Training loss of all designs but the baseline, one panel for each size."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results.sizes), figsize=(7.2, 2.9), layout="constrained")
    for axes, size in zip(panels, results.sizes, strict=True):
        draw_curves(
            axes, curves_of(results, size, [slug for slug in results.variants if slug != BASELINE]), "train_loss"
        )
        axes.set_title(size.capitalize())
    add_legend(figure, panels[0])
    return figure


def gradient_figure(results: Results, size: str) -> "Figure":
    """Gradient norms of the baseline, the design with one value channel and the default design at one size."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(7.2, 5.0), layout="constrained")
    shown = {slug: label(results.variants[slug].label) for slug in (BASELINE, "ddl-dv1", "ddl-cc")}
    draw_gradients(figure, {name: by_layer(results.gradients(size, slug)) for slug, name in shown.items()})
    return figure


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """One legend for all panels of a figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, columnspacing=1.2)
