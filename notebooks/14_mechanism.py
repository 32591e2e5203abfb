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
# # Is any layer overwriting?
#
# The delta rule $\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\,(\mathbf{v}^\top - \mathbf{k}^\top\mathbf{X})$ can
# replace what the state holds along a direction. Whether a trained model does so is a question about its gates,
# directions and targets, which the loss does not answer. This notebook looks at the trained models of this scale on
# validation tokens, at every snapshot of their training. It then changes one part of the rule at a time, without
# training, to see what the loss of these models depends on.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import MaxNLocator

from ddl.config import load_backbones, load_variants
from ddl.layout import BASELINE
from ddl.reporting.figures import label, look, save_figure, scale_note
from ddl.reporting.mechanism_results import (
    COUNTERPARTS,
    Mechanism,
    overwrites,
    retrained,
    seeds_phrase,
    shown,
    study_rows,
)
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_results import Results
from ddl.reporting.read_studies import read_inside
from ddl.reporting.seed_statistics import over_seeds
from ddl.reporting.table_format import DASH

set_style()
data = Results(results)
found = Mechanism(data)
last = found.last()
designs = [slug for slug in data.variants if slug != BASELINE]
seeds = seeds_phrase(data.scale.seeds)
interval = (
    "an interval over seeds"
    if len(data.scale.seeds) > 1
    else "an interval over documents, which says nothing about other seeds"
)
MEASURES = ["erase_share", "energy_before", "energy_after", "overwrites", "gate", "gate_sd", "direction_rank"]
place = ["size", "variant", "sublayer"]
means = last.reindex(columns=[*place, *MEASURES]).groupby(place, sort=False).mean().reset_index()
means = means[means["variant"].isin(designs)]
width = means["size"].map(found.width).astype(float)
means["times_chance"] = means["energy_before"] * width
means["overwriting"] = overwrites(means["erase_share"], means["times_chance"], means["energy_after"] * width)


def counted(size: str) -> str:
    """How many sublayers of the models of one size overwrite."""
    rows = means[means["size"] == size]
    if rows.empty:
        return f"the {size} models were not observed"
    return f"{int(rows['overwriting'].sum())} of {len(rows)} sublayers of the {size} models overwrite"


def details(size: str) -> str:
    """Which sublayers of the models of one size overwrite, and which comes closest."""
    rows = means[means["size"] == size]
    if rows.empty:
        return f"{size.capitalize()}: no measurements ({DASH})."
    hits = rows[rows["overwriting"]]
    where = [
        f"{data.variants[variant].label}: {', '.join(str(number) for number in part['sublayer'])}"
        for variant, part in hits.groupby("variant", sort=False)
    ]
    most = rows.loc[rows["erase_share"].idxmax()]
    return (
        f"{size.capitalize()} ({rows['variant'].nunique()} designs with a delta rule, {seeds} each): "
        + (f"these overwrite, numbered from 0: {'; '.join(where)}. " if where else "")
        + f"The erase term makes up {rows['erase_share'].min():.0%} to {rows['erase_share'].max():.0%} of an update; "
        f"most in sublayer {most['sublayer']} of {data.variants[most['variant']].label}, where the state has "
        f"{most['times_chance']:.1f} times the energy of chance along $\\mathbf{{k}}$ before the update and "
        f"{most['energy_after'] * found.width[size]:.1f} times after it, and the directions of all tokens span about "
        f"{most['direction_rank']:.1f} of {found.width[size]} dimensions."
    )


missing = f"\n\nMissing: {', '.join(found.missing)}." if found.missing else ""
Markdown(
    f"**Answer.** **{'; '.join(counted(size) for size in data.sizes)}.**\n\n"
    + "\n\n".join(details(size) for size in data.sizes)
    + f"\n\n{scale_note(data)}.{missing}"
)

# %% [markdown]
# A sublayer counts as *overwriting* if three things hold, each for the mean over tokens and seeds: the state has more
# energy along $\mathbf{k}$ before the update than a random direction would have ($1/d$); the update leaves less of it
# than there was; and what it erases is longer than what it writes. The first sublayer has only the embedding to
# overwrite.
#
# ## Gates

# %% alt="Gates by sublayer, and their mean during training, one row for each size"
figure, panels = plt.subplots(
    len(data.sizes), 2, figsize=(7.2, 2.6 * len(data.sizes)), layout="constrained", squeeze=False
)
for (depth, training), size in zip(panels, data.sizes, strict=True):
    for order, variant in enumerate(designs):
        style = look(variant)
        rows = last[(last["size"] == size) & (last["variant"] == variant)].dropna(subset=["gate"])
        if rows.empty:
            continue
        by = rows.groupby("sublayer")[["gate", "gate_p05", "gate_p95"]].mean()
        shifted = by.index + 0.1 * (order - (len(designs) - 1) / 2)
        ends = [by["gate"] - by["gate_p05"], by["gate_p95"] - by["gate"]]
        bars = {"color": style["color"], "marker": style["marker"], "linestyle": "none", "linewidth": 0.8}
        depth.errorbar(
            shifted, by["gate"], yerr=np.clip(ends, 0, None), **bars, label=label(data.variants[variant].label)
        )
        every = found.sublayers.query("size == @size and variant == @variant and tokens == 'all'")
        course = every.groupby("step")["gate"].mean()
        training.plot(range(len(course)), course, **style)
        training.set_xticks(range(len(course)), [str(step) for step in course.index])
    for axes in (depth, training):
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_ylim(0, 2)
    depth.set(xlabel="Sublayer (even: attention, odd: MLP)", ylabel=r"Gate $\beta$", title=size.capitalize())
    depth.xaxis.set_major_locator(MaxNLocator(integer=True))
    training.set(xlabel="Step", title=size.capitalize())
handles, labels = panels[0][0].get_legend_handles_labels()
if handles:
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
save_figure(figure, results, "gates")

# %% [markdown] tags=["caption"]
# Left: mean gate of every sublayer at the end of training; the bars reach from the 5th to the 95th percentile over
# tokens, averaged over seeds. Right: mean gate over all sublayers during training. All gates start near 1.

# %% [markdown]
# Is the gate dynamic? The table has its standard deviation over tokens, and the share of its variance that the
# position of a token and its id explain, adjusted for the number of groups (so that noise explains 0 on average). At
# the first sublayer of DDL ($d_v = 1$) the gate reads the embedding of the token and nothing else, so there the id
# must explain everything.

# %%
GATE = ["gate", "gate_sd", "gate_by_position", "gate_by_token"]
names = {"gate": "mean", "gate_sd": "sd over tokens", "gate_by_position": "by position", "gate_by_token": "by token id"}
gates = last[last["variant"].isin(designs)].reindex(columns=[*place, *GATE]).groupby(place, sort=False).mean()
gates.rename(columns=names).round(2)

# %% [markdown]
# ## What is erased, and what was there
#
# Top: the length of the erase term as a share of the lengths of both terms, $\beta|\mathbf{r}| / (\beta|\mathbf{r}| +
# \beta|\mathbf{v}|)$ with the readout $\mathbf{r} = \mathbf{k}^\top\mathbf{X}$. Bottom: the share of the energy of the
# state along $\mathbf{k}$, before (filled) and after (hollow) the update, relative to $1/d$, which a random direction
# has on average. For the baseline $\mathbf{k}$ is the direction of the branch.

# %% alt="Share of the erase term and energy along the direction by sublayer, one column for each size"
figure, panels = plt.subplots(2, len(data.sizes), figsize=(7.2, 5.0), layout="constrained", squeeze=False)
for (top, bottom), size in zip(panels.T, data.sizes, strict=True):
    for variant in data.variants:
        rows = last[(last["size"] == size) & (last["variant"] == variant)]
        if rows.empty:
            continue
        d, style = found.width[size], look(variant)
        mean = rows.groupby("sublayer")[["erase_share", "energy_before", "energy_after"]].mean()
        if variant != BASELINE:
            top.plot(mean.index, mean["erase_share"], **style)
            if rows["seed"].nunique() > 1:
                for _, run in rows.groupby("seed"):
                    top.plot(run["sublayer"], run["erase_share"], color=style["color"], linewidth=0.4)
        bottom.plot(mean.index, d * mean["energy_before"], **style, label=label(data.variants[variant].label))
        bottom.plot(mean.index, d * mean["energy_after"], **style | {"fillstyle": "none", "linewidth": 0.5}, label="_")
    top.axhline(0.5, color="0.6", linewidth=0.8)
    bottom.axhline(1, color="0.6", linewidth=0.8)
    top.set(ylim=(0, 1), ylabel="Erase share of the update", title=size.capitalize())
    bottom.set_yscale("log")
    bottom.set(xlabel="Sublayer (even: attention, odd: MLP)", ylabel=r"Energy along $\mathbf{k}$, times $d$")
    for axes in (top, bottom):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
handles, labels = panels[1][0].get_legend_handles_labels()
if handles:
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
save_figure(figure, results, "overwriting")

# %% [markdown] tags=["caption"]
# Top: the erase share; above one half, more is erased than written. Bottom: the energy of the state along $\mathbf{k}$
# before (filled) and after (hollow) the update; 1 is chance. Each value is a mean over tokens; thin lines at the
# top are single seeds if there are several.

# %% [markdown]
# The numbers behind the figure, with means and 95 % intervals over seeds where there are several. *Overwritable* is the
# share of tokens with $|\mathbf{r}| > |\mathbf{v}|$; *cosine* compares readout and target over the value channels (with
# one channel it is the balance of equal and opposite signs); *rank* is the participation ratio of the directions of all
# tokens, between 1 and $d$; *turn* is the cosine with the direction of the sublayer before. *Survival* is what the
# erasures up to this sublayer leave of the embedding, as the inner product of both relative to the embedding; *growth*
# is the length of the state relative to the embedding's.

# %%
SHOWN = {
    "erase_share": "erase share",
    "overwrites": "overwritable",
    "cosine": "cosine",
    "direction_rank": "rank",
    "turn": "turn",
    "change": "change",
    "survival": "survival",
    "growth": "growth",
}


def over_runs(rows: pd.DataFrame, quantity: str) -> str:
    """Mean of a quantity over the seeds that have it, with its interval."""
    values = rows[quantity].dropna() if quantity in rows else []
    return shown(over_seeds(list(values))) if len(values) else DASH


table = [
    {"size": size, "design": data.variants[variant].label, "sublayer": sublayer}
    | {name: over_runs(rows, quantity) for quantity, name in SHOWN.items()}
    for (size, variant, sublayer), rows in last.groupby(place, sort=False)
]
pd.DataFrame(table, columns=["size", "design", "sublayer", *SHOWN.values()]).set_index(["size", "design", "sublayer"])

# %% [markdown]
# A rank close to 1 with a large erase share means that the sublayer erases the same direction in every token. It then
# removes a component that all states share, which is nearer to centring the state than to replacing a memory of one
# token.
#
# The product of all frozen maps, $\prod_l (\mathbf{I} - \beta_l \mathbf{k}_l \mathbf{k}_l^\top)$, says how much of
# the embedding could reach the readout if nothing were written. Its largest and smallest singular value, and the
# number of independent directions of one token over sublayers (`rank`, between 1 and the number of sublayers), as
# means over tokens and seeds:

# %%
stacks = found.stacks[
    found.stacks["step"] == found.stacks.groupby(["size", "variant", "seed"])["step"].transform("max")
]
spans = [
    {"size": size, "design": data.variants[variant].label}
    | {
        name: f"{np.mean([entry['mean'] for entry in rows[name]]):.2g}"
        for name in ("largest", "smallest", "rank")
        if name in rows
    }
    for (size, variant), rows in stacks.groupby(["size", "variant"], sort=False)
]
pd.DataFrame(spans, columns=["size", "design", "largest", "smallest", "rank"]).set_index(["size", "design"])

# %% [markdown]
# ## Frequent and rare tokens
#
# Tokens are split at the median frequency of their id, once by the token that the model reads and once by the token
# that it has to predict. The table has the mean over sublayers and seeds.

# %%
GROUPS = ("frequent input", "rare input", "frequent target", "rare target")
split = [
    {"size": size, "design": data.variants[variant].label, "tokens": group}
    | {name: f"{rows[quantity].mean():.2f}" for quantity, name in (("gate", "gate"), ("erase_share", "erase share"))}
    for group in GROUPS
    for (size, variant), rows in found.last(group).groupby(["size", "variant"], sort=False)
    if variant in designs
]
pd.DataFrame(split, columns=["size", "design", "tokens", "gate", "erase share"]).pivot_table(
    index=["size", "design"], columns="tokens", values=["gate", "erase share"], aggfunc="first", sort=False
)

# %% [markdown]
# ## Interventions
#
# Each intervention changes one part of the rule at test time, in one sublayer or in all:
#
# | change | what the rule does then |
# |---|---|
# | closed | $\mathbf{X}' = \mathbf{X}$; for the baseline, the branch is zero |
# | gate 1, mean gate | the gate is 1, or its mean over tokens |
# | mean target | $\mathbf{v}$ is its mean over tokens |
# | write off | $\mathbf{X}' = \mathbf{X} - \beta\,\mathbf{k}\,\mathbf{k}^\top\mathbf{X}$ |
# | erase off | $\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\,\mathbf{v}^\top$ |
# | random direction | $\mathbf{k}$ is drawn at random for every token |
# | half, double | the change of the state is multiplied by 0.5 or 2 (designs without a gate) |
#
# The heat maps show by how much the loss rises.

# %% alt="Rise of the loss after interventions: DDL-CC by sublayer and all designs at once, one row for each size"
CHANGES = [
    "closed",
    "write off",
    "random direction",
    "mean target",
    "erase off",
    "gate 1",
    "mean gate",
    "half",
    "double",
]
EXAMPLE = "ddl-cc"


def matrix(size: str, cells: list[list[tuple[str, str, str]]]) -> np.ndarray:
    """Rise of the loss for each (variant, change, sublayers); NaN where it was not measured."""
    rises = [[found.difference(size, *cell) for cell in row] for row in cells]
    return np.array([[np.nan if rise is None else rise.mean for rise in row] for row in rises])


def heat_map(axes: plt.Axes, values: np.ndarray, columns: list[str], rows: list[str]) -> None:
    """A heat map with its numbers; grey where there is none."""
    axes.set_facecolor("0.92")
    axes.imshow(np.log10(np.clip(values, 1e-3, None)), cmap="Oranges", vmin=-3, vmax=1.3, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if value > 3 else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=0 if len(columns) < 10 else 45)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.grid(False)


figure, panels = plt.subplots(
    len(data.sizes), 2, figsize=(7.2, 2.7 * len(data.sizes)), layout="constrained", squeeze=False
)
for (left, right), size in zip(panels, data.sizes, strict=True):
    count = 2 * data.scale.sizes[size].layers
    columns, own = [*map(str, range(count)), "all"], CHANGES[:7]
    heat_map(left, matrix(size, [[(EXAMPLE, change, where) for where in columns] for change in own]), columns, own)
    left.set(title=f"{size.capitalize()}, {data.variants[EXAMPLE].label}", xlabel="Sublayer")
    short = [label(variant.label).replace(" w/o", "\nw/o").replace(" (", "\n(") for variant in data.variants.values()]
    everywhere = [[(variant, change, "all") for variant in data.variants] for change in CHANGES]
    heat_map(right, matrix(size, everywhere), short, CHANGES)
    right.set(title=f"{size.capitalize()}, all sublayers")
    right.tick_params(axis="x", labelsize=5)
save_figure(figure, results, "interventions")

# %% [markdown] tags=["caption"]
# Left: the paper's default design, DDL-CC, sublayer by sublayer. Right: all designs, with the change in all sublayers
# at once. The darker, the more the loss rises (nats per token).

# %% [markdown]
# The same with intervals, for changes in all sublayers. The unit is nats per token.

# %%
print(f"each ± is the half-width of {interval}")
rises = {
    (size, data.variants[variant].label): {
        change: shown(found.difference(size, variant, change, "all")) for change in CHANGES
    }
    for size in data.sizes
    for variant in data.variants
}
pd.DataFrame(rises).T

# %% [markdown]
# Closing sublayers one after the other, from the top down (`from` the sublayer to the last) or from the bottom up (the
# first `up to` the sublayer), shows where the loss is made:

# %%
cumulative = [
    {"size": size, "design": data.variants[variant].label, "sublayer": number}
    | {"from here on": shown(found.difference(size, variant, "closed", f"{number}.."))}
    | {"up to the one before": shown(found.difference(size, variant, "closed", f"0..{number - 1}"))}
    for size in data.sizes
    for variant in (BASELINE, EXAMPLE)
    for number in range(1, 2 * data.scale.sizes[size].layers)
]
pd.DataFrame(cumulative).set_index(["size", "design", "sublayer"])

# %% [markdown]
# ## Reliance and usefulness
#
# A change at test time says what a trained model *relies on*: the rest of its weights have been fitted to the part
# that is taken away. Whether the part is *useful* is another question, which only models that were trained without it
# answer. The table sets both side by side where a study has trained such models (`results/reference/studies`).

# %%
rows = study_rows()
same = rows[rows["backbone"] == data.scale.backbone]
beside, why = [], []
for size in data.sizes:
    for (change, variant), trained in COUNTERPARTS.items():
        other = retrained(same, size, variant, trained)
        n = other.estimate.n if other.estimate else 0
        beside.append(
            {
                "size": size,
                "design": data.variants[variant].label if variant in data.variants else variant,
                "change": change,
                "at test time": shown(found.difference(size, variant, change, "all")),
                "trained with it": shown(other.estimate),
                "seeds": n or DASH,
            }
        )
        why += [other.reason] if other.reason else []
print("; ".join(f"{DASH} {reason}" for reason in dict.fromkeys(why)))
pd.DataFrame(beside).set_index(["size", "design", "change"])

# %% [markdown]
# ## Over several seeds
#
# The study `inside` has laptop models with several seeds. With each, the rules of all sublayers were changed at
# test time; ± is the half-width of the 95 % t-interval over seeds. Beside it, where a design was trained with the
# change: its loss minus that of the design without it, over the seeds that the studies have.

# %%
inside = read_inside("inside")
whole = inside[(inside["kind"] == "intervention") & (inside["place"] == "all")]
over = []
for (size, backbone, variant, change), group in whole.groupby(["size", "backbone", "variant", "name"], sort=False):
    own = rows[rows["backbone"] == backbone]
    other = retrained(own, size, variant, COUNTERPARTS.get((change, variant)))
    over.append(
        {
            "size": size,
            "backbone": load_backbones()[backbone].label,
            "design": load_variants()[variant].label,
            "change": change,
            "seeds": len(group),
            "at test time": over_seeds(list(group["value"])).shown("+"),
            "trained with it": shown(other.estimate),
            "its seeds": other.estimate.n if other.estimate else DASH,
        }
    )
pd.DataFrame(over).set_index(["size", "backbone", "design", "change"]) if over else "not run"

# %% [markdown]
# What the rules do after training, per sublayer: the mean gate, the share of the erase term in the update, and the
# fraction of tokens whose readout is larger than their target, so that there is more to erase than to write.

# %%
observed = inside[(inside["kind"] == "sublayer") & inside["name"].isin(["gate", "erase_share", "overwrites"])]
table = [
    {
        "size": size,
        "backbone": load_backbones()[backbone].label,
        "design": load_variants()[variant].label,
        "sublayer": place,
        "quantity": name,
        "mean": over_seeds(list(group["value"])).shown(),
    }
    for (size, backbone, variant, place, name), group in observed.groupby(
        ["size", "backbone", "variant", "place", "name"], sort=False
    )
]
wide = pd.DataFrame(table, columns=["size", "backbone", "design", "sublayer", "quantity", "mean"])
wide.pivot(index=["size", "backbone", "design", "sublayer"], columns="quantity", values="mean").fillna(DASH)

# %% [markdown]
# ## What was and was not shown
#
# The measurements describe these trained models on these validation tokens. They hold for the seeds that were trained;
# with one seed, another run may use its sublayers in another way. A mean over tokens can hide a few tokens that are
# overwritten where most are not. An intervention takes a model away from the states that it was trained on, so a
# large rise of the loss shows reliance and not usefulness, and a small one does not show that a part is useless in
# training. Snapshots exist at few steps, and nothing here says what happens at scales that were not run.
