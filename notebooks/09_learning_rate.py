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
# All runs of a scale share one learning rate, as in the paper. If one design preferred a different rate than the
# others, sharing a rate would put it at a disadvantage, and another design's lead could be an artefact of tuning. This
# notebook scans the rate for the baseline and for DDL, with everything else fixed: initial weights, data order,
# schedule and number of tokens.
#
# The paper calls its parameterisation muP-style (Sec. 4.1) and does not give its rules. Under muP, a rate that is good
# at one width stays good at another, because weights, learning rates and an output multiplier all depend on the width.
# Here, as in the authors' public code, only the initial weights do: their standard deviation is proportional to
# $1/\sqrt d$, which is plain fan-in scaling. A good rate need not carry over from one size to the other. If two sizes
# were scanned, the panels show whether it does.

# %% tags=["parameters"]
results = "results/laptop"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ddl.config import load_variants
from ddl.reporting.figures import label, look, save_figure
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_results import Results

set_style()
data, designs = Results(results), load_variants()
sweep = pd.read_csv(Path(results) / "sweep.csv", keep_default_na=False, na_values={"val_loss": [""]})
shared = data.scale.training.learning_rate
print(
    f"{data.scale.title} scale: {sweep['steps'].max()} of {data.scale.training.steps} steps, "
    f"{sweep['tokens'].max():,} tokens per run, seeds {sweep['seed'].unique().tolist()}; the shared rate is {shared:g}"
)

# %% [markdown]
# ## The curves
#
# The curves show the validation loss after the last step against the peak learning rate; the minimum of the schedule
# scales with the peak. The dotted line is the rate that all runs of this scale share. A cross at the upper edge marks a
# rate at which training diverged.

# %% alt="Validation loss against learning rate, one line for each design, one panel for each size"
sizes = list(dict.fromkeys(sweep["size"]))
figure, panels = plt.subplots(1, len(sizes), figsize=(3.6 * len(sizes), 2.9), layout="constrained", squeeze=False)
for axes, size in zip(panels[0], sizes, strict=True):
    for variant, runs in sweep[sweep["size"] == size].groupby("variant", sort=False):
        means = runs.groupby("learning_rate")["val_loss"].mean()
        axes.plot(means.index, means, label=label(designs[variant].label), **look(variant))
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
# The table gives the best rate of the scan, and what a design loses by using the shared rate: its loss at the shared
# rate minus its best loss. If the best rate is at an end of the scan, the true optimum may be outside.

# %%
rows = []
for (size, variant), runs in sweep.groupby(["size", "variant"], sort=False):
    means = runs.groupby("learning_rate")["val_loss"].mean()
    best, at_end = means.idxmin(), means.idxmin() in (means.index.min(), means.index.max())
    rows.append(
        {
            "size": size,
            "design": designs[variant].label,
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
# The table shows how far the shared rate is from each design's own best rate at this scale, for these seeds and with
# the number of steps above. Longer runs usually prefer a somewhat lower rate. Other settings, such as weight decay and
# warm-up, were not scanned.
