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
# # What does the rewrite cost?
#
# The paper's Tables 4 and 5 give parameters, loss and accuracy together with throughput and peak memory. This notebook
# makes both tables from our measurements. They cover the models of this scale and, if `benchmarks/gpu.py` has measured
# them on a GPU, models of the paper's shapes. Tokens per second cannot be compared between machines. Ratios to the
# baseline on the same machine can, to some degree. Both are shown, ours first.
#
# Version 3 of the paper (v3) has no costs of the designs w/o EC. The revised text in the authors' repository adds them
# and repeats all rows of v3. The tables show the rows of the two texts in separate blocks.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import matplotlib.pyplot as plt

from ddl.reporting.figures import label, look, scale_note
from ddl.reporting.loss_and_cost_tables import cost_table
from ddl.reporting.notebook_style import set_style
from ddl.reporting.quoted_numbers import measured, published_numbers
from ddl.reporting.read_results import Results
from ddl.reporting.table_format import write_table

set_style()
data = Results(results)
print(scale_note(data))
data.cost().dropna(axis="columns", how="all").groupby("size").first().filter(
    ["device", "dtype", "batch_sequences", "sequence_length", "threads", "peak_mem_kind"]
)


# %%
def costs(number: int, size: str) -> object:
    """Write and show one of the two tables."""
    caption = (
        f"Cost and quality of the {size} models: ours at this scale and at the paper's shapes, then the published ones "
        "by version of the paper."
    )
    note = (
        f"{scale_note(data)}. Ratios are relative to the baseline of the same block, or of v3 for rows of the revised "
        "text; ours are medians over rounds in which the designs take turns, 20th and 80th percentiles in brackets. "
        "Avg eval: one-shot average in percent."
    )
    return write_table(cost_table(data, size), results, f"table{number}", caption, note)


# %% [markdown]
# ## Small models

# %%
costs(4, "small")

# %% [markdown]
# ## Medium models

# %%
costs(5, "medium")

# %% [markdown]
# ## Loss against speed
#
# The figure shows the difference in loss from the baseline against the relative training throughput. Points further
# left train more slowly; points further down have a lower loss. Filled markers are ours, hollow markers the paper's.
# The costs of the designs w/o EC are from the revised text. Neither text has the cost of DDL ($d_v = 1$) at the medium
# size.

# %%
sources = {"ours": measured(data), "published": published_numbers(data)}
figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
for axes, size in zip(panels, data.sizes, strict=True):
    for name, source in sources.items():
        for slug, row in source[size].items():
            if None not in (row["train_ratio"], row["delta"]):
                style = look(slug) | {"linestyle": "none", "fillstyle": "full" if name == "ours" else "none"}
                text = label(data.variants[slug].label) if name == "ours" else "_"
                axes.plot(row["train_ratio"], row["delta"], **style, label=text)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="Training throughput / baseline", ylabel="Loss − baseline (nats/token)", title=size.capitalize())
handles, labels = panels[0].get_legend_handles_labels()
if handles:
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, columnspacing=1.2)

# %% [markdown]
# ## What was and was not shown
#
# The first block shows what the rewrite costs at the shapes of this scale, on this device, with this implementation.
# Its ratios differ from the paper's. The paper measured wide models on four GPUs with fused kernels, where memory
# traffic limits the rewrite; at small widths and on a CPU the fixed cost of each operation matters more. The second
# block shows the paper's shapes on one GPU, or dashes until they have been measured.
#
# In the published blocks the designs w/o EC are slower than those with it and need more memory, although they do less
# work. The captions of the paper's tables say that optimised kernels are used for "CC and EC-enabled implementations".
# So these rows compare implementations as well as designs, and they say little about what EC costs.
#
# `peak_mem_kind` above states what peak memory means on this device. It is a different quantity on other kinds of
# devices, so only ratios can be compared.
