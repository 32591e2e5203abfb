# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% tags=["parameters"]
study = "learning-rate"
results = "results/laptop"

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from ddl.config import load_backbones, load_scale, load_study, load_variants
from ddl.reporting.figures import label, look
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_studies import RUN, at_best_rate, by_design, losses, read_study
from ddl.reporting.seed_statistics import best_rate, over_seeds, paired_difference

set_style()
described = load_study(study)
scale, designs, backbones = load_scale(described.scale), load_variants(), load_backbones()
rows = read_study(study, results)
several_backbones = rows["backbone"].nunique() > 1


def name_of(backbone, variant):
    """A design's label, with its backbone if the study has several."""
    return label(designs[variant].label) + (f", {backbones[backbone].label}" if several_backbones else "")


diverged = rows[rows["val_loss"].isna()]
Markdown(
    f"# {described.title}\n\n{described.about}\n\n"
    f"{scale.title} scale, {len(rows)} runs, seeds {', '.join(map(str, sorted(rows['seed'].unique())))}, trained for "
    f"{' or '.join(f'{tokens:,}' for tokens in sorted(rows['tokens'].unique()))} tokens on "
    f"{' and '.join(sorted(rows['device'].unique()))}. {len(diverged)} diverged. Losses are in nats per token, on the "
    "whole validation split."
)

# %% [markdown]
# ## Losses
#
# Each design at the best of the rates that were tried. The interval is Student's t over seeds; one seed has none. If
# the best rate is at an end of the scan, the true optimum may lie outside.

# %%
best = at_best_rate(rows)
table = []
for (size, backbone, variant, steps, rate), runs in best.groupby(RUN, sort=False):
    tried = rows[(rows[["size", "backbone", "variant", "steps"]] == [size, backbone, variant, steps]).all(axis=1)]
    rates = sorted(tried["learning_rate"].unique())
    found = losses(runs)
    end = len(rates) > 1 and rate in (rates[0], rates[-1])
    table.append(
        {
            "size": size,
            "design": name_of(backbone, variant),
            "tokens": runs["tokens"].iloc[0],
            "rate": f"{rate:g}" + (" (end of the scan)" if end else ""),
            "runs": len(runs),
            "diverged": int(runs["val_loss"].isna().sum()),
            "loss": over_seeds(list(found.values())).shown() if found else "–",
        }
    )
pd.DataFrame(table).set_index(["size", "design"])

# %% [markdown]
# ## Loss against learning rate

# %% alt="Validation loss against peak learning rate, one line for each design, one panel for each size"
if rows["learning_rate"].nunique() > 1:
    sizes = list(dict.fromkeys(rows["size"]))
    figure, panels = plt.subplots(1, len(sizes), figsize=(4.2 * len(sizes), 3.4), layout="constrained", squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        of_size = rows[(rows["size"] == size) & (rows["steps"] == rows["steps"].min())]
        for (backbone, variant), runs in of_size.groupby(["backbone", "variant"], sort=False):
            means = runs.groupby("learning_rate")["val_loss"].mean()
            axes.plot(means.index, means, label=name_of(backbone, variant), **look(variant))
            for rate in runs[runs["val_loss"].isna()]["learning_rate"]:
                style = look(variant) | {"linestyle": "none", "marker": "x", "clip_on": False}
                axes.plot([rate], [1.0], transform=axes.get_xaxis_transform(), **style)
        axes.set_xscale("log", base=2)
        ticks = sorted(rows["learning_rate"].unique())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(title=size.capitalize(), xlabel="Peak learning rate", ylabel="Validation loss (nats/token)")
    if not several_backbones:
        panels[0][0].legend(frameon=False)
    plt.show()
else:
    print("The study has one learning rate.")

# %% [markdown] tags=["caption"]
# The lines join the means over seeds. A cross at the upper edge marks a rate at which a run diverged.

# %% [markdown]
# The optimum of each design, by a parabola in the logarithm of the rate through the best rate and its neighbours.

# %%
optima = []
if rows["learning_rate"].nunique() > 1:
    for (size, backbone, variant, _), runs in rows.groupby(["size", "backbone", "variant", "steps"], sort=False):
        means = runs.groupby("learning_rate")["val_loss"].mean().dropna()
        if len(means):
            optimum = best_rate(means.to_dict())
            optima.append(
                {
                    "size": size,
                    "design": name_of(backbone, variant),
                    **{f"{rate:g}": f"{loss:.2f}" for rate, loss in means.items()},
                    "optimum": f"{optimum.fitted_rate:.2g}",
                    "loss there": f"{optimum.fitted_loss:.2f}",
                }
            )
pd.DataFrame(optima)

# %% [markdown]
# ## Differences

# %% alt="Paired differences to the first design with 95 % intervals, one panel for each size"
first = best.iloc[0]
compared = []
for (size, steps), group in best.groupby(["size", "steps"], sort=False):
    found = by_design(group)
    reference = found.pop((first["backbone"], first["variant"]), {})
    for design, runs in found.items():
        if runs.keys() & reference.keys():
            compared.append((size, steps, design, paired_difference(runs, reference)))
if compared and all(np.isfinite(difference.half_width) for *_, difference in compared):
    sizes = list(dict.fromkeys(size for size, *_ in compared))
    height = 1.2 + 0.26 * max(sum(size == row[0] for row in compared) for size in sizes)
    shape = (4.8 * len(sizes), height)
    figure, panels = plt.subplots(1, len(sizes), figsize=shape, layout="constrained", squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        own = [row for row in compared if row[0] == size]
        for place, (_, _, (_, variant), difference) in enumerate(own):
            style = look(variant) | {"linestyle": "none"}
            axes.errorbar(difference.mean, place, xerr=difference.half_width, capsize=2, **style)
        several_steps = len({row[1] for row in own}) > 1
        names = [name_of(*design) + (f", {steps} steps" if several_steps else "") for _, steps, design, _ in own]
        axes.set_yticks(range(len(own)), names)
        axes.invert_yaxis()
        axes.axvline(0, color="0.5", linewidth=1)
        reference = name_of(first["backbone"], first["variant"])
        axes.set(title=size.capitalize(), xlabel=f"Loss minus that of {reference} (nats)")
    plt.show()

# %% [markdown] tags=["caption"]
# Each design minus the first of the study, seed by seed, in nats; below zero is better than the first.

# %%
pd.DataFrame(
    [
        {
            "size": size,
            "steps": steps,
            "design": name_of(*design),
            "seeds": difference.n,
            "difference": difference.shown("+"),
        }
        for size, steps, design, difference in compared
    ]
)
