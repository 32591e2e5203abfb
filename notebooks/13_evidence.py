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
# In the twelve runs of the laptop scale DDL ends with a lower loss than the baseline. They do not show why.
# This notebook asks how much another seed changes, how strong the baseline can be made, and which parts of DDL matter.
# It reads the rows of studies, which are kept with the package.

# %% tags=["parameters"]
results = "results/laptop"
studies = "results/reference"

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from ddl.config import load_backbones, load_variants, paper_variants
from ddl.layout import BASELINE
from ddl.reporting.figures import label, look, save_figure
from ddl.reporting.judged_claims import FAIR, PAPER, of_runs
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_studies import at_best_rate, losses, read_study
from ddl.reporting.seed_statistics import Blocks, best_rate, detectable, over_seeds, paired_difference

set_style()
labels = {slug: variant.label for slug, variant in load_variants().items()}
backbones = load_backbones()
noise, repairs, designs, controls = (
    read_study(study, studies) for study in ("noise", "repairs", "designs", "controls")
)
DDL = "ddl-cc"


def runs_of(rows, **wanted):
    """Seed -> loss of the rows with these values."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return losses(rows)


# %%
gaps = {backbone: of_runs(designs, "small", backbone) for backbone in (PAPER, FAIR)}
gains = {
    backbone: paired_difference(runs[BASELINE], runs[DDL])
    for backbone, runs in gaps.items()
    if runs.get(BASELINE) and runs.get(DDL)
}
sentence = "The runs that decide this have not been done."
if gains.keys() == {PAPER, FAIR}:
    closed = 1 - gains[FAIR].mean / gains[PAPER].mean
    rest = "an interval above zero" if gains[FAIR].low > 0 else "an interval that includes zero"
    sentence = (
        f"On the paper's recipe, {labels[DDL]} ends {gains[PAPER].shown()} nats below the baseline (n = "
        f"{gains[PAPER].n}). With a larger initial embedding that also learns faster, in both, the gain is "
        f"{gains[FAIR].shown()} nats (n = {gains[FAIR].n}), {rest}. So the embedding carries {closed:.0%} of the gain."
    )
Markdown(f"**{sentence}** Small models of the laptop scale; ± is the half-width of a 95 % t-interval over seeds.")

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
                f"{labels[variant]}: loss (sd of a run)": f"{found.shown()} ({found.sd:.3f})"
                for variant, found in ((variant, over_seeds(list(runs[variant].values()))) for variant in runs)
            },
            "gain (sd of a difference)": f"{difference.shown('+')} ({difference.sd:.3f})",
            "sd if seeds did not pair": sum(over_seeds(list(own.values())).sd ** 2 for own in runs.values()) ** 0.5,
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
# whatever the sublayer returns, and so sets the scale of the state. The baseline has no such help. The following
# repairs change one or two things outside the residual rule. They are tried at several learning rates, with half of the
# usual steps and one seed, which is used in no comparison below.

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
        name = labels[variant]
        if not means:
            row |= {f"{name}: loss": "–", f"{name}: best rate": "not run"}
            continue
        found = best_rate(means)
        row |= {f"{name}: loss": f"{found.loss:.2f}", f"{name}: best rate": f"{found.tried:g}"}
    table.append(row)
pd.DataFrame(table).set_index("backbone")

# %% [markdown]
# A dash means that a combination was not run. The rates tried differ between rows, and one seed decides each number, so
# only differences well above the noise of the first table count. What follows uses the best row.
#
# ## The six designs, with the paper's embedding and with the repaired one
#
# The repair is a property of the backbone, so every design gets it. The zero line is the baseline with the same
# backbone. The intervals use the noise of all designs together and hold simultaneously (Dunnett).

# %% alt="Loss of each design minus that of the baseline, with intervals, on both backbones, one panel for each size"
rows, panels_shown = [], []
for size in ("small", "medium"):
    for backbone in (PAPER, FAIR):
        found = {slug: runs for slug, runs in of_runs(designs, size, backbone).items() if slug in paper_variants()}
        if BASELINE not in found or len(found) < 2 or len(set.intersection(*map(set, found.values()))) < 2:
            continue
        blocks = Blocks.of(found)
        panels_shown.append((size, backbone, blocks.against(BASELINE)))
        for slug, runs in found.items():
            difference = blocks.against(BASELINE).get(slug)
            rows.append(
                {
                    "size": size,
                    "backbone": backbones[backbone].label,
                    "design": labels[slug],
                    "seeds": len(blocks.seeds),
                    "loss": over_seeds(list(runs.values())).shown(),
                    "minus the baseline": difference.shown("+") if difference else "",
                }
            )
sizes = list(dict.fromkeys(size for size, *_ in panels_shown))
figure, panels = plt.subplots(
    1, max(len(sizes), 1), figsize=(4.6 * max(len(sizes), 1), 3.2), layout="constrained", squeeze=False, sharey=True
)
for axes, size in zip(panels[0], sizes, strict=False):
    places = {slug: place for place, slug in enumerate(slug for slug in paper_variants() if slug != BASELINE)}
    for _, backbone, differences in (shown for shown in panels_shown if shown[0] == size):
        offset, filled = (-0.15, "full") if backbone == PAPER else (0.15, "none")
        for slug, difference in differences.items():
            style = look(slug) | {"linestyle": "none", "fillstyle": filled, "capsize": 2}
            axes.errorbar(difference.mean, places[slug] + offset, xerr=difference.half_width, **style)
    axes.set_yticks(list(places.values()), [label(labels[slug]) for slug in places])
    axes.axvline(0, color="black", linewidth=1)
    axes.set(title=size.capitalize(), xlabel="Loss minus that of the baseline (nats)")
if sizes:
    panels[0][0].invert_yaxis()
save_figure(figure, results, "designs")

# %%
pd.DataFrame(rows).set_index(["size", "backbone", "design"]) if rows else "not run"

# %% [markdown]
# ## Which part carries what is left?
#
# Controls have some parts of DDL and lack others. All runs here have the repaired embedding, and each difference is
# taken seed by seed. With a scalar state the parts come one at a time: a normalised sublayer output (the same length
# for every write), a strength that depends on the token, the erase term. With an expanded state the matched control is
# DDL-CC without its erase term, $\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\mathbf{v}^\top$, with everything
# else equal. Two baselines have DDL-CC's embedding convolution (EC) or its number of parameters.

# %% alt="Loss of each control minus that of the baseline, with intervals"
found = of_runs(controls, "small", FAIR)
compared = {
    slug: paired_difference(runs, found[BASELINE])
    for slug, runs in found.items()
    if slug != BASELINE and len(runs.keys() & found[BASELINE].keys()) > 1
}
compared = dict(sorted(compared.items(), key=lambda item: item[1].mean))
figure, axes = plt.subplots(figsize=(5.6, 0.9 + 0.26 * len(compared)), layout="constrained")
for place, (slug, difference) in enumerate(compared.items()):
    style = {"color": look(slug)["color"], "marker": "o", "linestyle": "none", "capsize": 2}
    axes.errorbar(difference.mean, place, xerr=difference.half_width, **style)
axes.set_yticks(range(len(compared)), [label(labels[slug]) for slug in compared])
axes.invert_yaxis()
axes.axvline(0, color="black", linewidth=1)
axes.set(xlabel="Loss minus that of the baseline (nats); small models, repaired embedding")
save_figure(figure, results, "controls")

# %% [markdown]
# The contrasts that separate the parts, as the loss of the first design minus that of the second: below zero, the
# first is better. An interval that includes zero does not show that there is no difference.

# %%
CONTRASTS = {
    "normalising the output (d_v = 1)": ("normalised-branch", "baseline"),
    "strength from the token (d_v = 1)": ("write-only", "normalised-branch"),
    "erase term (d_v = 1)": ("ddl-dv1", "write-only"),
    "erase term (DDL-CC)": ("ddl-cc", "write-only-cc"),
    "EC, on the baseline": ("baseline-ec", "baseline"),
    "EC, on DDL-CC": ("ddl-cc", "ddl-cc-noec"),
    "parameters of DDL-CC, on the baseline": ("baseline-equal-parameters", "baseline"),
    "DDL-CC against a baseline with EC": ("ddl-cc", "baseline-ec"),
    "DDL-CC without erase against a baseline with EC": ("write-only-cc", "baseline-ec"),
}
contrasts = []
for part, (first, second) in CONTRASTS.items():
    common = found.get(first, {}).keys() & found.get(second, {}).keys()
    difference = paired_difference(found[first], found[second]) if len(common) > 1 else None
    contrasts.append(
        {
            "part": part,
            "first": labels[first],
            "second": labels[second],
            "seeds": len(common),
            "difference": difference.shown("+") if difference else "not run",
            "excludes zero": "" if difference is None else "yes" if difference.separated else "no",
        }
    )
pd.DataFrame(contrasts).set_index("part")
