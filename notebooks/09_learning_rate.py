# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Does one learning rate serve all designs?
#
# All runs of a scale share one learning rate, as the paper's do. If one design preferred another rate than its
# rivals, a shared one would be a handicap, and a lead could be an artefact of tuning. Here the rate is scanned for the
# baseline and for DDL with everything else fixed: same initial weights, data order, schedule and number of tokens.
#
# The initialisation scales with width and depth in the manner of muP (Sec. 4.1), which is meant to make a rate carry
# over from one size to another; panels of two sizes show whether it does.

# %% tags=["parameters"]
results = "results/laptop"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ddl.reporting.figures import label, look, save_figure
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_results import Results

set_style()
data = Results(results)
sweep = pd.read_csv(Path(results) / "sweep.csv", keep_default_na=False, na_values={"val_loss": [""]})
shared = data.scale.training.learning_rate
print(
    f"{data.scale.title} scale: {sweep['steps'].max()} of {data.scale.training.steps} steps, "
    f"{sweep['tokens'].max():,} tokens a run, seeds {sweep['seed'].unique().tolist()}; the shared rate is {shared:g}"
)

# %% [markdown]
# ## The curves
#
# Validation loss after the last step against the peak of the learning rate; the floor of the schedule moves with the
# peak. The dotted line is the rate that all runs of this scale share. A cross at the upper edge is a rate at which
# training diverged.

# %% alt="Validation loss against learning rate, one line for each design, one panel for each size"
sizes = list(dict.fromkeys(sweep["size"]))
figure, panels = plt.subplots(1, len(sizes), figsize=(3.6 * len(sizes), 2.9), layout="constrained", squeeze=False)
for axes, size in zip(panels[0], sizes, strict=True):
    for variant, runs in sweep[sweep["size"] == size].groupby("variant", sort=False):
        means = runs.groupby("learning_rate")["val_loss"].mean()
        axes.plot(means.index, means, label=label(data.variants[variant].label), **look(variant))
        for rate in runs[runs["val_loss"].isna()]["learning_rate"]:
            style = look(variant) | {"linestyle": "none", "marker": "x", "clip_on": False}
            axes.plot([rate], [1.0], transform=axes.get_xaxis_transform(), **style)
    axes.axvline(shared, color="0.5", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sorted(sweep["learning_rate"].unique()), [f"{x:g}" for x in sorted(sweep["learning_rate"].unique())]
    )
    axes.minorticks_off()
    axes.set(title=size.capitalize(), xlabel="Peak learning rate", ylabel="Validation loss (nats/token)")
panels[0][0].legend(frameon=False)
save_figure(figure, results, "learning_rate")

# %% [markdown]
# ## Which rate each design prefers
#
# The best rate of the scan, and what a design gives away by the shared one: its loss there minus its best loss. A
# best rate at an end of the scan is a bound, not an optimum.

# %%
rows = []
for (size, variant), runs in sweep.groupby(["size", "variant"], sort=False):
    means = runs.groupby("learning_rate")["val_loss"].mean()
    best, at_end = means.idxmin(), means.idxmin() in (means.index.min(), means.index.max())
    rows.append(
        {
            "size": size,
            "design": data.variants[variant].label,
            "best rate": f"{best:g}" + (" (end of the scan)" if at_end else ""),
            "loss there": means.min(),
            "loss at the shared rate": means.get(shared),
            "given away": means.get(shared, float("nan")) - means.min(),
        }
    )
pd.DataFrame(rows).set_index(["size", "design"]).round(4)

# %%
losses = sweep.pivot_table(index="learning_rate", columns=["size", "variant"], values="val_loss", sort=False)
losses.sort_index().round(4)

# %% [markdown]
# ## What was and was not shown
#
# The table says how far the shared rate is from each side's own at this scale, for these seeds, in the number of steps
# above; a longer run usually prefers a somewhat lower rate. Other settings, the weight decay and the warm-up among
# them, were not scanned.
