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
# # Does the lower loss help on tasks?
#
# The paper scores its models on eight multiple-choice benchmarks with one example in the prompt (Tables 1 and 2) and
# with none (Tables 7 and 8). This notebook sets the same four tables from our evaluations, with standard errors, and
# puts the published ones below. At the offline scales the eight benchmarks are not to be had, so a column holds a
# stand-in: a task made from held-out documents that has the number of choices of the benchmark and nothing else in
# common with it. The first row of each table names it, the next two say what guessing scores and what the small
# baseline scores before training: a task on which these two differ by more than their noise would be flawed.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import pandas as pd

from ddl.numbers import NOISE, measured, published_numbers
from ddl.report import scale_note
from ddl.results import Results
from ddl.tables import cell, downstream_table, write_table

data = Results(results)
print(scale_note(data))


# %%
def accuracy_table(number: int, size: str, shots: int) -> object:
    """Write one of the four tables and show it."""
    caption = f"{shots}-shot accuracy in percent, {size} models: ours with standard errors, then the published values."
    note = (
        f"{scale_note(data)}. Best of each column and block in bold, second underlined, as printed. "
        f"± is the standard error over the items of a task: a difference within about {NOISE:g} of them is noise."
    )
    return write_table(downstream_table(data, size, shots), results, f"table{number}", caption, note)


# %% [markdown]
# ## One example in the prompt

# %%
accuracy_table(1, "small", 1)

# %%
accuracy_table(2, "medium", 1)

# %% [markdown]
# ## No example

# %%
accuracy_table(7, "small", 0)

# %%
accuracy_table(8, "medium", 0)

# %% [markdown]
# ## The averages against the baseline
#
# Points by which the average of a design differs from the baseline's; for ours, with the standard error of the
# difference of two independent averages. All designs answer the same items, so the true error of a difference is
# smaller.

# %%
ours, paper = measured(data), published_numbers(data)


def difference(rows: dict, slug: str, key: str) -> str:
    """Average of a design minus the baseline's, in points, with its standard error where one is known."""
    mine, base = rows[slug], rows["baseline"]
    if None in (mine[key], base[key]):
        return cell(None)
    errors = [row.get(f"{key}_stderr") for row in (mine, base)]
    error = f" ± {100 * sum(e**2 for e in errors) ** 0.5:.2f}" if None not in errors else ""
    return f"{100 * (mine[key] - base[key]):+.2f}{error}"


pd.DataFrame(
    {
        f"{size}, {shots}-shot, {name}": {slug: difference(rows[size], slug, f"avg_{shots}shot") for slug in rows[size]}
        for shots in (1, 0)
        for size in data.sizes
        for name, rows in (("ours", ours), ("published", paper))
    }
)

# %% [markdown]
# ## What was and was not shown
#
# The tables show whether models of this scale have learned anything that these tasks ask for (compare the chance row)
# and how the designs differ. They do not show that the paper's ranking holds: the paper's differences between
# averages are of the order of a point, which is about the size of the standard errors here, its own table has no
# standard errors, and a stand-in task measures what its name says and not what the benchmark of its column measures.
