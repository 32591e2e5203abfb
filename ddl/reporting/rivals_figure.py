"""Draw the losses of residual designs against what they cost."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddl.config import load_variants
from ddl.layout import BASELINE
from ddl.reporting.figures import family_color, label
from ddl.reporting.rivals import Compared, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY_COLUMNS = 4
# Title of a panel -> its ticks in per cent. The axis is linear up to the second one, and logarithmic beyond.
EXTRA = {"FLOPs per token": (0, 0.1, 0.3, 1, 3, 10), "Time per step": (0, 3, 10, 30, 100)}


def cost_figure(found: Mapping[str, Sequence[Compared]]) -> "Figure":
    """Loss minus the baseline's against extra FLOPs and extra time per step, one row of panels for each size.

    Numbers stand for designs, from the lowest loss of the first size to the highest, with their names below. A line
    joins the designs that none of lower or equal cost beats.

    Args:
        found: size -> designs, from `compared`.
    """
    import matplotlib.pyplot as plt

    variants = load_variants()
    shown = {size: [each for each in rows if each.over_baseline] for size, rows in found.items()}
    slugs = dict.fromkeys(each.slug for rows in shown.values() for each in rows)
    numbers = {slug: place for place, slug in enumerate(slugs, 1)}
    lines = -(-len(numbers) // KEY_COLUMNS)
    rows = max(len(shown), 1)
    figure, drawn = plt.subplots(rows, len(EXTRA), squeeze=False, figsize=(8.6, 3.4 * rows), layout="constrained")
    for row, (size, designs) in zip(drawn, shown.items(), strict=False):
        costs = dict(zip(EXTRA, (extra_flops(found[size]), extra_time(size)), strict=True))
        for axes, (title, extra) in zip(row, costs.items(), strict=True):
            draw_costs(axes, [each for each in designs if each.slug in extra], extra, numbers)
            ticks, ends = EXTRA[title], [0.0, *(extra[each.slug] for each in designs if each.slug in extra)]
            axes.set_xscale("symlog", linthresh=ticks[1])
            axes.set_xlim(min(ends) - ticks[1] / 5, 1.5 * max(ends) + ticks[1])
            axes.set_xticks([tick for tick in ticks if tick <= axes.get_xlim()[1]])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set(xlabel=f"{title} beyond the baseline's (%)", title=size.capitalize())
        row[0].set_ylabel("Loss minus the baseline's (nats)")
    names = [f"{number}  {label(variants[slug].label)}" for slug, number in numbers.items()]
    for column in range(KEY_COLUMNS):
        text = "\n".join(names[column * lines : (column + 1) * lines])
        figure.text(0.04 + column / KEY_COLUMNS, 0, text, fontsize=6, va="top", linespacing=1.4)
    return figure


def extra_flops(designs: Sequence[Compared]) -> dict[str, float]:
    """Slug -> FLOPs per token beyond the baseline's, in per cent, for designs that count them."""
    base = next(each.flops for each in designs if each.slug == BASELINE)
    return {each.slug: 100 * (each.flops / base - 1) for each in designs if not math.isnan(each.flops)}


def extra_time(size: str) -> dict[str, float]:
    """Slug -> time per step beyond the baseline's, in per cent, in plain PyTorch; empty if it was not measured."""
    measured = speeds(size)
    plain = measured[measured["kernels"] == "reference"]
    return {slug: 100 * (1 / ratio - 1) for slug, ratio in zip(plain["variant"], plain["ratio"], strict=True)}


def draw_costs(
    axes: "Axes", designs: Sequence[Compared], extra: Mapping[str, float], numbers: Mapping[str, int]
) -> None:
    """One panel: a point with its interval and its number for each design, and the line of the best."""
    for each in designs:
        difference, color = each.over_baseline, family_color(each.slug)
        assert difference is not None
        axes.errorbar(extra[each.slug], difference.mean, yerr=difference.half_width, color=color, alpha=0.35, lw=0.8)
        axes.plot(extra[each.slug], difference.mean, marker="o", color=color, markersize=3)
        at = (extra[each.slug], difference.mean)
        axes.annotate(str(numbers[each.slug]), at, textcoords="offset points", xytext=(3, 2), fontsize=6, color=color)
    best = front([(extra[each.slug], each.over_baseline.mean) for each in designs if each.over_baseline])
    axes.step(*zip(*best, strict=True) if best else ((), ()), where="post", color="0.6", linewidth=1, zorder=0)
    axes.axhline(0, color="black", linewidth=0.8)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, loss) that no other of lower or equal cost beats, from the cheapest; the baseline is (0, 0)."""
    best: list[tuple[float, float]] = []
    for cost, loss in sorted([(0.0, 0.0), *points]):
        if not best or loss < best[-1][1]:
            best.append((cost, loss))
    return best
