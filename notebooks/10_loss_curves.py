# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does a rewrite learn faster than an addition?
#
# The paper trains six residual designs at two sizes and reports their loss curves (Figures 2 to 4) and their final
# validation losses (Table 3). This notebook draws the same figures and the same table from our runs and puts the
# published losses beside ours. It trains nothing.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import matplotlib.pyplot as plt
import pandas as pd

from ddl.reporting.figures import draw_curves, save_figure, scale_note
from ddl.reporting.loss_and_cost_tables import loss_table
from ddl.reporting.notebook_style import set_style
from ddl.reporting.quoted_numbers import measured, published_numbers
from ddl.reporting.read_results import Results
from ddl.reporting.table_format import write_table

set_style()
data = Results(results)
print(scale_note(data))

# %% [markdown]
# ## The curves
#
# Every panel leaves out the fall from the logarithm of the vocabulary size during the first tenth of the tokens,
# which all designs share. A training loss is the mean over the batches since the last record, so it is noisy;
# validation losses are on a fixed set of sequences, the same for all runs, so a difference between two of them is not
# one of data.


# %%
def training_and_validation(size: str) -> plt.Figure:
    """One size: training loss on the left, validation loss on the right, all variants."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
    for axes, quantity in zip(panels, ("train_loss", "val_loss"), strict=True):
        draw_curves(axes, data, size, quantity, data.variants)
    finish(figure, panels[0], f"{size.capitalize()}. {scale_note(data)}")
    return figure


def finish(figure: plt.Figure, axes: plt.Axes, title: str) -> None:
    """One title and one legend for all panels."""
    figure.suptitle(title, fontsize="medium")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, columnspacing=1.2)


# %% [markdown]
# **Figure 2.** Small models.

# %%
figure2 = training_and_validation("small")
save_figure(figure2, results, "figure2")

# %% [markdown]
# **Figure 4.** Medium models.

# %%
figure4 = training_and_validation("medium")
save_figure(figure4, results, "figure4")

# %% [markdown]
# **Figure 3.** The designs with a delta rule alone, both sizes.

# %%
figure3, panels = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
for axes, size in zip(panels, data.sizes, strict=True):
    draw_curves(axes, data, size, "train_loss", [slug for slug in data.variants if slug != "baseline"])
    axes.set_title(size.capitalize())
finish(figure3, panels[0], scale_note(data))
save_figure(figure3, results, "figure3")

# %% [markdown]
# ## The final losses
#
# Ours are on the whole validation split, after the last step. A published loss belongs to other data, another
# tokenizer and many times the tokens, unless this is the paper's scale: compare the differences between rows, not the
# levels.

# %%
write_table(
    loss_table(data),
    results,
    "table3",
    "Validation loss (nats per token) and perplexity after the last step, ours beside the published values.",
    f"{scale_note(data)}. Best of each column in bold. Seeds a run: {len(data.scale.seeds)}.",
)

# %% [markdown]
# How far each design is below (negative) or above (positive) the baseline of the same size, in nats:

# %%
sources = {"ours": measured(data), "published": published_numbers(data)}
deltas = {
    f"{size}, {name}": {slug: source[size][slug]["delta"] for slug in data.variants}
    for size in data.sizes
    for name, source in sources.items()
}
pd.DataFrame(deltas).astype(float).round(4)

# %% [markdown]
# ## What was and was not shown
#
# The curves and the table show in which order these designs learn at this scale, on this corpus, with these settings.
# Where there is one seed there is no error bar, and a difference between two rows may be the seed's. The order at a
# scale far below the paper's says little about the order at the paper's, because early in training the initial value
# of the write target alone can decide who leads.
