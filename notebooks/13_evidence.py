# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What carries the gain?
#
# The twelve runs show that DDL ends with a lower loss than the baseline. They do not show why, and each is one run.
# This notebook asks how much another seed changes, how strong the baseline can be made, and which parts of DDL matter.
# It reads the rows of studies: several hundred small runs, which are kept with the package.

# %% tags=["parameters"]
results = "results/laptop"
studies = "results/reference"

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from ddl.config import load_backbones, load_scale, load_study, load_variants
from ddl.layout import BASELINE
from ddl.reporting.figures import label, look, save_figure
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_studies import at_best_rate, by_design, losses, read_study
from ddl.reporting.seed_statistics import best_rate, detectable, over_seeds, paired_difference

set_style()
designs, backbones = load_variants(), load_backbones()
noise, repairs = read_study("noise", studies), read_study("repairs", studies)
DDL = "ddl-cc"


def runs_of(rows, **wanted):
    """Seed -> loss of the rows with these values."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return losses(rows)


# %% [markdown]
# ## How much does another seed change?
#
# The baseline and DDL-CC on the paper's recipe, with several seeds. A seed gives the initial weights and the order of
# the data. Both designs see the same data in the same order, and their backbones start from the same weights.

# %%
spread = []
for size in dict.fromkeys(noise["size"]):
    runs = {variant: runs_of(noise, size=size, variant=variant) for variant in (BASELINE, DDL)}
    difference = paired_difference(runs[BASELINE], runs[DDL])
    spread.append(
        {
            "size": size,
            "seeds": difference.n,
            **{
                f"{designs[variant].label}: loss (sd of a run)": f"{found.shown()} ({found.sd:.3f})"
                for variant, found in ((variant, over_seeds(list(runs[variant].values()))) for variant in runs)
            },
            "gain (sd of a difference)": f"{difference.shown('+')} ({difference.sd:.3f})",
            "sd if seeds did not pair": (over_seeds(list(runs[BASELINE].values())).sd ** 2
            + over_seeds(list(runs[DDL].values())).sd ** 2) ** 0.5,
            "detectable with 5 seeds": detectable(difference.sd, 5),
            "with 10": detectable(difference.sd, 10),
        }
    )
pd.DataFrame(spread).round(3).set_index("size")

# %% [markdown]
# The interval is Student's t over seeds (95 %). The last columns are the differences between two designs that a paired
# test finds with a probability of 80 %. If the standard deviation of a difference is not smaller than that of two
# unrelated runs, the common seed does not help: the runs drift apart, and only more seeds make the interval narrower.

# %% [markdown]
# ## How strong can the baseline be made?
#
# The embedding starts with a root mean square of 0.02 per feature. The first rewrite of DDL adds a vector of length 1,
# whatever the sublayer returns. So DDL's state is soon dominated by what the sublayers write, and the baseline's is
# not. Each of the following repairs changes one thing outside the residual rule. All of them are tried at four learning
# rates and with half of the usual steps. The seed is used nowhere else.

# %% alt="Validation loss against learning rate for each repair of the baseline"
tuned = repairs[(repairs["size"] == "small") & (repairs["variant"] == BASELINE)]
best = at_best_rate(tuned).set_index("backbone")["val_loss"].sort_values()
shown = list(best.index)
figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
colors = plt.get_cmap("viridis")
for place, backbone in enumerate(shown):
    means = tuned[tuned["backbone"] == backbone].groupby("learning_rate")["val_loss"].mean()
    style = {"color": "black", "linewidth": 2.2} if backbone == "paper" else {"color": colors(place / len(shown))}
    axes.plot(means.index, means, marker="o", markersize=3, label=backbones[backbone].label, **style)
axes.set_xscale("log", base=2)
rates = sorted(tuned["learning_rate"].unique())
axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
axes.minorticks_off()
axes.set(xlabel="Peak learning rate", ylabel="Validation loss of the baseline (nats/token)")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
save_figure(figure, results, "repairs")

# %%
table = []
for backbone in shown:
    row = {"backbone": backbones[backbone].label}
    for variant in (BASELINE, DDL):
        own = repairs[(repairs["backbone"] == backbone) & (repairs["variant"] == variant)]
        means = own.groupby("learning_rate")["val_loss"].mean().dropna().to_dict()
        name = designs[variant].label
        if not means:
            row |= {f"{name}: loss": "–", f"{name}: best rate": "not run"}
            continue
        found = best_rate(means)
        row |= {f"{name}: loss": f"{found.loss:.2f}", f"{name}: best rate": f"{found.tried:g}"}
    table.append(row)
pd.DataFrame(table).set_index("backbone")
