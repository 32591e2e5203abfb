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
# with none (Tables 7 and 8). This notebook makes the same four tables from our evaluations and asks of every
# difference, ours and the paper's, whether it is larger than its noise. At the offline scales a column holds a stand-in
# for its benchmark; `08_tasks` describes the stand-ins. The first row of each table names the task. The next two rows
# are the score of guessing and that of the small baseline before training.
#
# With one seed, accuracies have the standard error of a mean over the items of the task. A difference from the baseline
# can be measured more precisely: all designs answer the same items, so the difference is taken item by item, and
# variation in the difficulty of the items cancels. Its 95 % interval comes from a bootstrap over items and says nothing
# about another seed. With several seeds the question is what another seed would give. Then ± is the half-width of the
# 95 % t-interval over seeds, and differences are taken seed by seed and have a t-interval too. A difference is **bold**
# if its interval excludes zero; of the 45 differences in a table, two or three are bold by chance.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from ddl.config import SHOTS
from ddl.layout import BASELINE
from ddl.reporting.accuracy_tables import (
    differences,
    downstream_table,
    in_points,
    published_accuracy,
    published_counts,
    published_gains,
)
from ddl.reporting.figures import label, look, save_figure, scale_note
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_results import TASK_COLUMNS, Results, published
from ddl.reporting.statistics import Z
from ddl.reporting.table_format import DASH, cell, write_table

set_style()
data = Results(results)
seeds = data.scale.seeds
print(scale_note(data))

# %%
averages = {
    (size, shots): {slug: found["Avg."] for slug, found in differences(data, size, shots).items()}
    for size in data.sizes
    for shots in reversed(SHOTS)
}
every = [each for found in averages.values() for each in found.values()]
higher = sum(each.low > 0 for each in every)
Markdown(
    f"**Answer.** **Of our {len(every)} differences of averages from the baseline, {higher} are above zero and "
    f"{sum(each.high < 0 for each in every)} below it, beyond the noise of the "
    f"{'items' if len(seeds) == 1 else 'seeds'}.**"
    if every
    else "**Answer.** The answers to the items are not there, so differences have no intervals."
)


# %%
def accuracy_table(number: int, size: str, shots: int) -> object:
    """Write and show one of the four tables."""
    caption = f"{shots}-shot accuracy in percent, {size} models: ours, differences from our baseline, the paper's."
    ours = (
        "In our block ± is the standard error over the items of a task, and the intervals of the differences are over "
        "items; they do not cover the variation between seeds."
        if len(seeds) == 1
        else f"In our block ± is the half-width of the 95 % t-interval over {len(seeds)} seeds. The differences are "
        "taken seed by seed, and their intervals are over seeds too."
    )
    note = (
        f"{scale_note(data)}. {ours} The published tables have no errors; theirs is the binomial error for the "
        "benchmark's number of items. Bold differences have an interval without 0. Bold and underlined published "
        "values are the best and second best of the paper."
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
# The figure and the table show by how many points the eight-task average of a design differs from that of the baseline.
# For ours the table gives the paired 95 % interval; for the paper's, the standard error of the difference, as if the
# two averages were independent. The paper's models and ours answer different questions, so only the signs and the
# widths can be compared.

# %% alt="Differences of the average accuracy from the baseline with intervals, ours and published, by size and shots"
paper = published_accuracy()
others = [slug for slug in data.variants if slug != BASELINE]
figure, grid = plt.subplots(2, 2, figsize=(7.2, 4.6), layout="constrained", sharey=True, sharex=True)
for axes, ((size, shots), found) in zip(grid.flat, averages.items(), strict=True):
    for place, slug in enumerate(others):
        style = {"color": look(slug)["color"], "marker": look(slug)["marker"], "capsize": 2, "linestyle": "none"}
        if slug in found:
            bars = [[100 * (found[slug].value - found[slug].low)], [100 * (found[slug].high - found[slug].value)]]
            axes.errorbar(100 * found[slug].value, place - 0.15, xerr=bars, **style)
        if (size, shots, slug, "Avg.") in paper:
            pair = paper[size, shots, slug, "Avg."], paper[size, shots, BASELINE, "Avg."]
            error = 100 * Z * (pair[0][1] ** 2 + pair[1][1] ** 2) ** 0.5
            axes.errorbar(100 * (pair[0][0] - pair[1][0]), place + 0.15, xerr=error, **style, fillstyle="none")
    axes.axvline(0, color="black", linewidth=1)
    axes.set(title=f"{size.capitalize()}, {shots}-shot")
    axes.set_yticks(range(len(others)), [label(data.variants[slug].label) for slug in others], fontsize=8)
    axes.set_ylim(len(others) - 0.5, -0.5)
for axes in grid[-1]:
    axes.set_xlabel("Accuracy minus baseline (points)")
save_figure(figure, results, "accuracies")

# %% [markdown] tags=["caption"]
# Filled: ours with the paired 95 % interval. Hollow: the paper's, with 1.96 times the error of a difference of two
# independent averages. An interval across zero does not tell the design from the baseline.

# %%


def ours(slug: str, size: str, shots: int) -> str:
    """Our difference of the averages and its interval, in points."""
    value, interval = in_points(differences(data, size, shots).get(slug, {}).get("Avg."))
    return f"{value} ({interval})" if interval else value


def theirs(slug: str, size: str, shots: int) -> str:
    """The paper's difference of the averages and its standard error, in points."""
    if (size, shots, slug, "Avg.") not in paper:
        return DASH
    (value, error), (base, base_error) = paper[size, shots, slug, "Avg."], paper[size, shots, BASELINE, "Avg."]
    return f"{100 * (value - base):+.2f} ± {100 * (error**2 + base_error**2) ** 0.5:.2f}"


pd.DataFrame(
    {
        f"{size}, {shots}-shot, {whose}": {slug: of(slug, size, shots) for slug in data.variants if slug != BASELINE}
        for shots in reversed(SHOTS)
        for size in data.sizes
        for whose, of in (("ours", ours), ("published", theirs))
    }
)

# %% [markdown]
# ## What the text says about the published accuracies
#
# These checks compare sentences of the paper with its own tables. They are the same at every scale.
#
# > [...] and raise average one-shot downstream accuracy by 0.91 and 1.18 points, respectively. (Sec. 1)
#
# > DDL improves the average 1-shot score over the baseline at both scales, whereas 0-shot averages depend on the
# > implementation. We therefore treat these benchmarks as supporting evidence [...] rather than as a claim of uniform
# > downstream dominance. (Sec. 4.2)

# %%
scores = published("downstream_accuracy").pivot(
    index=["num_fewshot", "size", "variant"], columns="task", values="accuracy_percent"
)
above = scores.drop(BASELINE, level="variant") - scores.xs(BASELINE, level="variant")
averages = above["Avg."].unstack("variant")
largest = averages.loc[1].max(axis=1).round(2).to_dict()
assert largest == {"small": 0.91, "medium": 1.18}, "headline-accuracy-gain"
assert (averages.loc[1] > 0).all(axis=None), "one-shot-averages"
below = [(size, slug) for (size, slug), points in averages.loc[0].stack().items() if points < 0]
assert sorted(below) == [("small", "ddl-cc"), ("small", "ddl-cc-noec")], "zero-shot-averages"

won = (above[list(TASK_COLUMNS)] > 0).groupby("variant").sum().sum(axis=1)
cells = len(above) // len(won) * len(TASK_COLUMNS)
assert (won < cells).all(), "no-uniform-dominance"
assert (won > cells / 2).all(), "no-uniform-dominance"
print(f"of {cells} single accuracies (tasks, sizes, shots), above the baseline: {won.to_dict()}")
averages.round(2)

# %% [markdown]
# The rows are shots and sizes, and the numbers are points above the baseline. The stated gains are those of the table.
# All ten one-shot averages are above the baseline. Of the zero-shot averages, those of both CC designs at the small
# size are below it, so the default design loses there. No design is above the baseline everywhere; each is in more than
# half of the cases.

# %% [markdown]
# ## How many of the paper's gains exceed their noise?
#
# The paper prints no standard errors. Each of its accuracies is the fraction of right answers among a known number of
# items. The next cell checks this as far as two decimals allow: it looks for a number of right answers that gives the
# printed accuracy. (Hellaswag has so many items that every accuracy with two decimals is possible.)

# %%
counts = published_counts()
fit = counts["cells"] - len(counts["impossible"])
print(f"{fit} of {counts['cells']} published accuracies in single tasks are a number of right answers / items")
for entry in counts["impossible"]:
    print(
        f"not possible: {entry['percent']} % on {entry['column']}, {data.variants[entry['slug']].label}, "
        f"{entry['size']}, {entry['shots']}-shot; with {entry['items']} items the nearest are "
        f"{' and '.join(f'{near:.2f} %' for near in entry['nearest'])}"
    )
means = counts["averages"] - counts["averages_unlike_mean"]
print(f"{means} of {counts['averages']} published averages are the mean of their tasks")
assert len(counts["impossible"]) == 1, "possible-accuracies"
assert means == counts["averages"], "published-averages"

# %% [markdown]
# The number of items implies the binomial standard error $\sqrt{p\,(1 - p) / n}$, between 0.5 points (Hellaswag) and
# 2.2 points (OpenBookQA). If two accuracies were independent, the standard error of their difference would be
# $\sqrt{2}$ times as large.


# %%
def count_gains(correlation: float = 0.0) -> None:
    """Print how many of the published gains exceed their noise."""
    gains = published_gains(correlation)
    for name, what in (("cells", "single tasks"), ("averages", "averages")):
        found = gains[name]
        print(
            f"{what}: {found['higher']} of {found['compared']} published accuracies are above their baseline, "
            f"{found['higher_beyond_noise']} of them by more than {Z} standard errors"
            f" ({found['lower_beyond_noise']} below by as much)"
        )


count_gains()
assert published_gains()["averages"]["higher_beyond_noise"] == 0, "accuracy-gains-and-noise"

# %% [markdown]
# If the designs were equally good, one difference in forty would be more than 1.96 standard errors above zero by
# chance. But the models answer the same items, and their answers are correlated: with a correlation of $\rho$, the
# noise of a difference is smaller by a factor of about $\sqrt{1 - \rho}$. The paper's answers are not published, so its
# $\rho$ is not known. For *our* models it is:

# %%
correlations = {}
for size in data.sizes:
    for shots in SHOTS:
        bases = {seed: data.outcomes(size, BASELINE, seed, shots) for seed in seeds}
        for slug in data.variants:
            pairs = [(data.outcomes(size, slug, seed, shots), bases[seed]) for seed in seeds if slug != BASELINE]
            found = [
                pd.Series(answers[name]).corr(pd.Series(base[name]))
                for answers, base in pairs
                if answers and base
                for name in TASK_COLUMNS
            ]
            if found:
                correlations.setdefault(slug, {})[f"{size}, {shots}-shot"] = pd.Series(found).mean()
frame = pd.DataFrame(correlations).T
frame.map(lambda value: cell(value, 2))

# %%
typical = float(frame.stack().mean()) if len(frame) else float("nan")
print(f"mean correlation of our models' answers with the baseline's: {cell(typical, 2)}")
if typical == typical:
    count_gains(typical)

# %% [markdown]
# If the paper's answers are as correlated as ours, more of its gains exceed their noise. That most of the differences
# are positive is further evidence. The counts do not mean that the gains are absent. They mean that the printed numbers
# alone do not establish most of them. The answers to the single items, which cost nothing to keep, would have shown
# much more.

# %% [markdown]
# ## Without the items that overlap with the training data
#
# The table shows the average over the tasks, in percent, for all items / for the items that share no thirteen
# consecutive tokens with the training data (`08_tasks`). The difference of the two shows how much a model gains from
# items it has seen.

# %%
items = data.path / "contamination.parquet"
overlap = pd.read_parquet(items) if items.is_file() else None
rows = {}
for slug in data.variants:
    for size in data.sizes:
        for shots in SHOTS:
            files = [data.path / f"evals/{size}/{slug}/seed{seed}/{shots}shot.parquet" for seed in seeds]
            runs = [pd.read_parquet(file, columns=["task", "item", "correct"]) for file in files if file.is_file()]
            if overlap is None or not runs:
                continue
            found = pd.concat(runs).merge(overlap, on=["task", "item"])
            clean = found[~(found["share_13"] > 0)]
            pair = [part.groupby("task")["correct"].mean().mean() for part in (found, clean)]
            rows.setdefault(slug, {})[f"{size}, {shots}-shot"] = " / ".join(cell(100 * value, 1) for value in pair)
pd.DataFrame(rows).T

# %% [markdown]
# ## What was and was not shown
#
# The tables show whether models of this scale have learned anything that these tasks ask for (compare the row for
# chance), and which designs differ from the baseline by more than the choice of items explains, or with several seeds
# the choice of the seed. With one seed they do not show that another training run would give the same order. They do
# not show that the paper's ranking holds: most of its differences are within the noise of a benchmark with that many
# items, and a stand-in task does not measure what the benchmark of its column measures. The paper's sentences about its
# accuracies agree with its tables.
