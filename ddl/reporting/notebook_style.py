"""Helpers for all notebooks: the style of figures, and display of the package's source code."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


def source(*functions: Callable[..., object]) -> "Markdown":
    """Show the source code of functions in a notebook."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"```python\n{inspect.getsource(function)}```" for function in functions))


def set_style() -> None:
    """Set one matplotlib style for all figures, suited to print and reproducible to the byte."""
    import seaborn

    settings = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so all machines use the same font
        "axes.grid": True,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
        "figure.dpi": 110,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
        "pdf.fonttype": 42,
        "svg.fonttype": "path",  # glyphs as paths, so a viewer needs no font
        "svg.hashsalt": "ddl",
    }
    seaborn.set_theme(context="paper", style="ticks", rc=settings)
