"""What every notebook starts with: one style for all figures, and the package's own source text."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


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
