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
# On the paper's recipe, DDL ends far below the baseline at the laptop scale. This notebook asks how much another seed
# changes, how strong the baseline can be made, which parts of DDL matter, and whether the gain lasts with more tokens.
# It ends with a verdict on every claim about losses. It reads the rows of studies, which are kept with the package.

# %% tags=["parameters"]
results = "results/laptop"
studies = "results/reference"

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from ddl.config import load_backbones, load_scale, load_variants, paper_variants
from ddl.layout import BASELINE
from ddl.reporting.copied_tokens import copied_tokens
from ddl.reporting.evidence import climbs, finding, findings, shown_p
from ddl.reporting.figures import label, look, ordering, save_figure
from ddl.reporting.judged_claims import FAIR, PAPER, SCALE, committed_verdicts, of_runs, pooled
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_studies import RUN, at_best_rate, losses, read_inside, read_study
from ddl.reporting.seed_statistics import best_rate, coverage, detectable, over_seeds, paired_difference
from ddl.reporting.table_format import count
from ddl.reporting.token_ladder import Ladder

set_style()
labels = {slug: variant.label for slug, variant in load_variants().items()}
backbones = load_backbones()
names = ("noise", "repairs", "designs", "controls", "ladder", "ladder-rates", "normed-embedding", "rivals-rates")
noise, repairs, designs, controls, ladder, ladder_rates, normed, rivals_rates = (
    read_study(name, studies) for name in names
)
others = [normed, *(read_study(name, studies) for name in ("learning-rate", "inside"))]
measured = {size: finding(size) for size in ("small", "medium")}
DDL = "ddl-cc"


def runs_of(rows, **wanted):
    """Seed -> loss of the rows with these values."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return losses(rows)


# %%
first, *rest = findings().values()
points = "\n".join(f"- {text}" for text in rest)
Markdown(f"**Answer.** **{first}**\n\n{points}\n\n± is the half-width of a 95 % interval over n seeds.")

# %% [markdown]
# The figure shows every design that was run with the repaired embedding, small and medium, from the lowest loss to the
# highest.

# %% alt="Loss of each design minus that of the baseline, with intervals, in order, one panel for each size"
ordered = {}
for size in ("small", "medium"):
    found = of_runs(controls, size, FAIR)
    base, blocks = found.pop(BASELINE, {}), pooled(controls, size, FAIR)
    compared = {}
    for slug, runs in found.items():
        if blocks and {slug, BASELINE} <= set(blocks.designs):
            compared[slug] = blocks.difference(slug, BASELINE)
        elif len(runs.keys() & base.keys()) > 1:
            compared[slug] = paired_difference(runs, base)
    if compared:
        ordered[size] = dict(sorted(compared.items(), key=lambda item: item[1].mean))
figure = ordering(ordered, margin=0.05)
save_figure(figure, results, "controls")

# %% [markdown] tags=["caption"]
# The zero line is the baseline with the same embedding. Designs of the paper have their colours; grey ones are
# controls, which have some parts of DDL and lack others or are stronger baselines. In brackets: the seeds. The
# intervals (95 %, each for itself) pool the noise of the designs of the factorial below and of the paper. Other designs
# have Student's t of their own differences, seed by seed; with two seeds it is so wide that the panel cuts it.

# %% [markdown]
# ## How much does another seed change?
#
# The baseline and DDL-CC with several seeds, with the repaired embedding and on the paper's recipe. A seed gives the
# initial weights and the order of the data. Both designs see the same data in the same order, and their backbones start
# from the same weights.

# %%
spread = []
for size, backbone in noise[["size", "backbone"]].drop_duplicates().itertuples(index=False):
    runs = {variant: runs_of(noise, size=size, backbone=backbone, variant=variant) for variant in (BASELINE, DDL)}
    if len(runs[BASELINE].keys() & runs[DDL].keys()) < 2:
        continue
    difference = paired_difference(runs[BASELINE], runs[DDL])
    spread.append(
        {
            "size": size,
            "backbone": backbones[backbone].label,
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
pd.DataFrame(spread).round(3).set_index(["size", "backbone"])

# %% [markdown]
# The interval is Student's t over seeds (95 %). The last columns are the differences between two designs that a paired
# test finds with a probability of 80 %. If the standard deviation of a difference is not smaller than that of two
# unrelated runs, the common seed does not help: the runs drift apart, and only more seeds make the interval narrower.
#
# How often does an interval of nominally 95 % cover the truth with so few seeds? A simulation with normal noise:

# %%
covered = {f"{n} seeds": {name: f"{share:.1%}" for name, share in coverage(n).items()} for n in (3, 5, 10)}
pd.DataFrame(covered)

# %% [markdown]
# ## How strong can the baseline be made?
#
# The paper does not state how the embedding starts; what is called its recipe here takes the public code's small start.
# The first rewrite of DDL adds a vector of length 1, whatever the sublayer returns, and so sets the scale of the state.
# The baseline has no such help. The following repairs change one or two things outside the residual rule. They are
# tried at several learning rates, with half of the usual steps and one seed, which is used in no comparison of designs.

# %% alt="Validation loss against learning rate for each repair of the baseline"
tuning = repairs[repairs["seed"] == repairs["seed"].min()]
tuned = tuning[tuning["variant"] == BASELINE]
best = at_best_rate(tuned).set_index("backbone")["val_loss"].sort_values()
shown = list(best.index)
figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
colors = plt.get_cmap("viridis")
for place, backbone in enumerate(shown):
    means = tuned[tuned["backbone"] == backbone].set_index("learning_rate")["val_loss"].sort_index()
    style = {"color": "black", "linewidth": 2.2} if backbone == "paper" else {"color": colors(place / len(shown))}
    axes.plot(means.index, means, marker="o", markersize=3, label=backbones[backbone].label, **style)
axes.set_xscale("log", base=2)
rates = sorted(tuned["learning_rate"].unique())
axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
axes.minorticks_off()
axes.set(xlabel="Peak learning rate", ylabel="Validation loss of the baseline (nats/token)")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
save_figure(figure, results, "repairs")

# %% [markdown] tags=["caption"]
# Small baselines with half of the usual steps and one seed, from the best repair (dark) to the worst (light). The thick
# black line is the paper's recipe.

# %%
table = []
for backbone in shown:
    row = {"backbone": backbones[backbone].label}
    for variant in (BASELINE, DDL):
        own = tuning[(tuning["backbone"] == backbone) & (tuning["variant"] == variant)]
        means = own.set_index("learning_rate")["val_loss"].dropna().to_dict()
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
# only differences well above the noise of the first table count. What follows calls one of these backbones the
# *repaired* one: it was the best when it was chosen, and every design gets it. Its rank among all of them, and the
# finalists with a second seed:

# %%
ranked = pd.Series({backbones[backbone].label: place + 1 for place, backbone in enumerate(shown)}, name="rank")
second = repairs[(repairs["seed"] != repairs["seed"].min()) & (repairs["variant"] == BASELINE)]
table = second.assign(backbone=[backbones[name].label for name in second["backbone"]]).pivot_table(
    index="backbone", columns=["seed", "learning_rate"], values="val_loss"
)
display(Markdown(f"Repaired: {backbones[FAIR].label}, rank {ranked[backbones[FAIR].label]} of {len(ranked)}."))
table.round(2)

# %% [markdown]
# ### A later repair: the embedding is normalised too
#
# After the studies below were done, another repair was found: on top of the larger and faster embedding, a
# normalisation of it to rms 1, without parameters. It helps some designs and harms others, so it is no common ground
# for all of them. The table compares designs with and without it at the shared learning rate, seed by seed.

# %%
usual, table = load_scale(SCALE), []
repaired = pd.concat([designs, controls]).drop_duplicates([*RUN, "seed"])
for design in dict.fromkeys(normed["variant"]):
    own = {"size": "small", "variant": design, "learning_rate": usual.training.learning_rate, "tokens": usual.tokens}
    with_it, without = runs_of(normed, **own), runs_of(repaired, backbone=FAIR, **own)
    common = len(with_it.keys() & without.keys())
    if common > 1:
        change = paired_difference(with_it, without)
        table.append(
            {
                "design": labels[design],
                "repaired: loss": over_seeds(list(without.values())).shown(),
                "normalised too: loss": over_seeds(list(with_it.values())).shown(),
                "difference": change.shown("+"),
                "seeds": change.n,
            }
        )
pd.DataFrame(table).set_index("design")

# %% [markdown]
# With half of the steps and one seed, by learning rate:

# %%
halves = normed[normed["tokens"] < usual.tokens]
same = pd.concat([repairs, rivals_rates]).query("backbone == @FAIR")
same = same[same["variant"].isin(halves["variant"]) & same["seed"].isin(halves["seed"])]
halves = pd.concat([same[same["learning_rate"].isin(halves["learning_rate"])], halves])
halves["backbone"] = [backbones[name].label for name in halves["backbone"]]
halves["variant"] = [labels[name] for name in halves["variant"]]
halves.pivot_table(index="variant", columns=["backbone", "learning_rate"], values="val_loss", sort=False).round(2)

# %% [markdown]
# ## How is the gradient spread over the layers?
#
# The figure shows the norm of the gradient of the embedding and of each block. AdamW divides by the size of a gradient,
# so these norms say where the loss is sensitive, and not which layer learns fastest.

# %% alt="Gradient norm of the embedding and the blocks against steps, for the baseline and DDL-CC on both backbones"
inside = read_inside("inside", studies)
norms = inside[inside["kind"] == "gradient"].assign(step=lambda each: each["place"].astype(int))
shown_runs = [(backbone, variant) for backbone in (PAPER, FAIR) for variant in (BASELINE, DDL)]
figure, panels = plt.subplots(1, 4, figsize=(10.0, 2.8), layout="constrained", sharey=True)
for axes, (backbone, variant) in zip(panels, shown_runs, strict=True):
    own = norms[(norms["backbone"] == backbone) & (norms["variant"] == variant)]
    for part, style in {
        "embedding": ("black", "-"),
        "blocks.0": ("#0072B2", "--"),
        "blocks.1": ("#D55E00", ":"),
    }.items():
        line = own[own["name"] == part].groupby("step")["value"].median()
        name = part if part == "embedding" else f"block {int(part[-1]) + 1}"
        axes.plot(line.index, line, color=style[0], linestyle=style[1], label=name)
    axes.set_yscale("log")
    axes.set(xlabel="Step")
    axes.set_title(f"{labels[variant]}\n{backbones[backbone].label}", fontsize=8)
panels[0].set(ylabel="Norm of the gradient")
panels[0].legend(frameon=False, fontsize=8)
save_figure(figure, results, "gradient-flow")

# %% [markdown] tags=["caption"]
# Small models, before clipping. Lines are medians over the seeds of the study `inside`.

# %% [markdown]
# ## The six designs, with the paper's embedding and with the repaired one
#
# The repair is a property of the backbone, so every design gets it. All runs have the rate of the laptop scale; the
# study `learning-rate` says what each design loses by that.

# %% alt="Loss of each design minus that of the baseline, with intervals, on both backbones, one panel for each size"
rows, panels_shown = [], []
for size, found in measured.items():
    for backbone, gains in ((PAPER, found.paper), (FAIR, found.fair)):
        if gains:
            panels_shown.append((size, backbone, {slug: gain.negated() for slug, gain in gains.items()}))
        runs = of_runs(pd.concat([designs, controls]), size, backbone)
        for slug in (slug for slug in paper_variants() if slug in runs):
            rows.append(
                {
                    "size": size,
                    "backbone": backbones[backbone].label,
                    "design": labels[slug],
                    "loss": over_seeds(list(runs[slug].values())).shown(),
                    "seeds": len(runs[slug]),
                    "minus the baseline": gains[slug].negated().shown("+") if slug in gains else "",
                    "common seeds": gains[slug].n if slug in gains else "",
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

# %% [markdown] tags=["caption"]
# Filled: the paper's recipe; hollow: the repaired embedding. The zero line is the baseline with the same backbone. The
# intervals use the noise of all designs with this backbone together, and hold simultaneously (Dunnett).

# %%
pd.DataFrame(rows).set_index(["size", "backbone", "design"]) if rows else "not run"

# %% [markdown]
# ## Which part carries what is left?
#
# All runs here have the repaired embedding. Pairs of designs differ in one part of DDL: a normalised sublayer output
# (the same length for every write), a strength that depends on the token, the erase term, the embedding convolution
# (EC), value channels, and how these are read. A part's main effect is the mean over its pairs. The noise of all
# designs is pooled; the lines below say how much it differs between them. Where a pair has a noisy design, its interval
# is too narrow.

# %% alt="Effect of each part of DDL on the loss: each pair of designs, and their mean with an interval"
effects = measured["small"].effects
figure, axes = plt.subplots(figsize=(6.0, 0.9 + 0.42 * max(len(effects), 1)), layout="constrained")
for place, effect in enumerate(effects):
    pairs = [pair.mean for pair in effect.pairs.values()]
    axes.plot(pairs, [place + 0.2] * len(pairs), marker="|", linestyle="none", color="0.45", markersize=7)
    axes.errorbar(effect.main.mean, place - 0.1, xerr=effect.main.half_width, color="black", marker="o", capsize=2)
axes.set_yticks(range(len(effects)), [effect.part[0].upper() + effect.part[1:] for effect in effects])
axes.invert_yaxis()
axes.axvline(0, color="black", linewidth=1)
axes.set(xlabel="Loss with the part minus without it (nats); below zero it helps")
save_figure(figure, results, "effects")

# %% [markdown] tags=["caption"]
# The point is the mean, with a 95 % interval, over the pairs of designs that differ in the part; the marks below it are
# the pairs. Left of zero the part lowers the loss.

# %%
table = [
    {
        "part": effect.part,
        "with": labels[with_it],
        "without": labels[without],
        "difference": pair.shown("+"),
        "main effect": effect.main.shown("+"),
        "seeds": effect.main.n,
    }
    for effect in effects
    for (with_it, without), pair in effect.pairs.items()
]
quiet, *_, noisy = sorted(measured["small"].noises.items(), key=lambda item: item[1])
print("standard deviation of a run, the effect of its seed removed:")
print(
    "; ".join(f"{labels[slug]} {sd:.3f} nats" for slug, sd in (quiet, noisy)), "(the quietest and the noisiest design)"
)
pd.DataFrame(table).set_index(["part", "with", "without"]) if table else "not run"

# %% [markdown]
# Three comparisons decide what the delta rule is worth: DDL-CC against the baseline, against the same design with an
# update that writes without erasing, $\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\mathbf{v}^\top$, which the revised
# text calls decisive, and against a baseline with normalised outputs and EC. Below zero DDL-CC is better. The intervals
# are each for itself; the p-values of a size are adjusted together (Holm). A small p-value says that the sign is not
# chance; a large one does not show that there is none.

# %%
table = [
    {
        "size": size,
        "comparison": each.name,
        "seeds": each.difference.n,
        "difference": each.difference.shown("+"),
        "p (Holm)": shown_p(each.adjusted_p),
    }
    for size, found in measured.items()
    for each in found.primary
]
pd.DataFrame(table).set_index(["size", "comparison"]) if table else "not run"

# %% [markdown]
# ## Does the gain last with more tokens?
#
# The same designs with different numbers of tokens, each with a complete schedule. The noise of a gap is pooled over
# the rungs.

# %% alt="Validation loss, and gap to the baseline, against training tokens, with the predicted gap of the highest rung"
found = climbs()
figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
for (backbone, variant), group in ladder.groupby(["backbone", "variant"], sort=False):
    means = group.groupby("tokens")["val_loss"].mean()
    fill = {"fillstyle": "full" if backbone == PAPER else "none"}
    shown = {"label": label(labels[variant])} if backbone == FAIR else {}
    left.plot(means.index, means, **look(variant) | fill, **shown)
top_rung = max((climb.rungs[-1].tokens for climb in found), default=1)
for place, climb in enumerate(found):
    style = look(climb.design) | {"fillstyle": "full" if climb.backbone == PAPER else "none", "capsize": 2}
    gaps = [rung.gap for rung in climb.rungs]
    widths = [gap.half_width if math.isfinite(gap.half_width) else math.nan for gap in gaps]
    tokens = np.array([rung.tokens for rung in climb.rungs])
    right.errorbar(tokens, [gap.mean for gap in gaps], yerr=widths, **style)
    top = climb.top["all"]
    band = {"color": look(climb.design)["color"], "alpha": 0.4, "linewidth": 4, "solid_capstyle": "butt"}
    right.plot([top_rung * 1.12 * 1.06**place] * 2, [top.low, top.high], **band)
for axes in (left, right):
    rungs = sorted(ladder["tokens"].unique())
    axes.set_xscale("log")
    axes.set_xticks(rungs, [count(tokens) for tokens in rungs])
    axes.minorticks_off()
    axes.set(xlabel="Training tokens")
left.set(ylabel="Validation loss (nats/token)")
right.set(ylabel="Gap to the baseline (nats)")
right.axhline(0, color="black", linewidth=1)
figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
save_figure(figure, results, "ladder")

# %% [markdown] tags=["caption"]
# Left: the losses. Right: the gap to the baseline with the same backbone, with 95 % intervals. Filled: the paper's
# recipe; hollow: the repaired embedding. The bars at the right edge are what the fitted models predict for the highest
# rung from the lower ones (95 % over seeds and models).

# %% [markdown]
# The table also gives the gap as a factor of tokens: how many times as many tokens the baseline would need, by its
# curve.

# %%
table = [
    {
        "backbone": backbones[climb.backbone].label,
        "design": labels[climb.design],
        "tokens": count(rung.tokens),
        "seeds": rung.gap.n,
        "gap (nats)": rung.gap.shown("+"),
        "factor of tokens": "–" if rung.factor is None else "{:.2f} ({:.2f} to {:.2f})".format(*rung.factor),
    }
    for climb in found
    for rung in climb.rungs
]
pd.DataFrame(table).set_index(["backbone", "design", "tokens"]) if table else "not run"

# %% [markdown]
# The designs that decide what carries the gain, at every rung with the repaired embedding: their loss minus that of
# DDL-CC, with the noise pooled over the rungs. Positive: DDL-CC is better.

# %%
rungs, rivals = Ladder.of(ladder, FAIR, "small"), {}
for slug in rungs.losses.keys() - {DDL}:
    gaps = [rungs.gap(DDL, place, slug) for place in rungs.rungs]
    if all(gaps):
        rivals[labels[slug]] = [f"{gap.shown('+')} ({gap.n})" for gap in gaps]
pd.DataFrame(rivals, index=[count(tokens) for tokens in rungs.tokens]).sort_index(axis=1) if rivals else "not run"

# %% [markdown]
# ### What grows with more tokens?
#
# Some validation tokens repeat a pair of tokens of their sequence: the token before them occurred earlier, with the
# same successor. An induction head (Olsson et al., 2022) predicts them by copying. It takes two attention layers: the
# first tells each token which one stands before it, and the second looks for a token behind one like the present.

# %% alt="Loss of tokens that repeat a pair of their sequence, and of the others, against training tokens, by design"
split = ladder[ladder["backbone"] == FAIR].dropna(subset=["repeated_loss"])
figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
for axes, column, title in zip(panels, ("repeated_loss", "new_loss"), ("Repeated pairs", "Other tokens"), strict=True):
    for variant, group in split.groupby("variant", sort=False):
        means = group.groupby("tokens")[column].mean()
        axes.plot(means.index, means, **look(variant), label=label(labels[variant]))
        runs = look(variant) | {"linestyle": "none", "markersize": 3, "alpha": 0.5}
        axes.plot(group["tokens"], group[column], **runs)
    axes.set_xscale("log")
    axes.set_xticks(rungs_shown := sorted(split["tokens"].unique()), [count(tokens) for tokens in rungs_shown])
    axes.minorticks_off()
    axes.set(xlabel="Training tokens", ylabel="Validation loss (nats/token)", title=title)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
save_figure(figure, results, "copied-tokens")

# %% [markdown] tags=["caption"]
# Left: the loss of tokens that repeat a pair, with the repaired embedding. Right: the loss of all others. Small marks
# are single runs, lines their means.

# %%
table = [
    {
        "tokens": count(each.tokens),
        "design": labels[each.design],
        "seeds": len(each.parts),
        "repeated pairs: loss": f"{each.own.repeated:.2f}",
        "below the baseline": f"{each.gap.repeated:+.2f}",
        "other tokens: loss": f"{each.own.new:.2f}",
        "below the baseline ": f"{each.gap.new:+.2f}",
    }
    for each in copied_tokens(ladder, FAIR, "small")
]
pd.DataFrame(table).set_index(["tokens", "design"]) if table else "not run"

# %% [markdown]
# All runs of the ladder share one learning rate. The best one may fall as training gets longer, and not by the same
# factor for every design. The table has designs with the repaired embedding at other rates too: the mean loss at each
# rate, with the number of seeds, and in the last column how far each ends below the baseline if each has the best of
# the rates that were tried with it (positive: a lower loss). Only seeds that were trained at all rates of a design
# choose its best; they are also those that are compared, which flatters a design with more rates.

# %%
tried = pd.concat([ladder, ladder_rates, designs]).drop_duplicates([*RUN, "seed"])
tried = tried[(tried["backbone"] == FAIR) & (tried["size"] == "small")]
for column in ("variant", "tokens", "seed"):
    tried = tried[tried[column].isin(ladder_rates[column])]
rates = tried.groupby(["tokens", "variant"])["learning_rate"].transform("nunique")
with_all = tried.groupby(["tokens", "variant", "seed"])["learning_rate"].transform("nunique") == rates
best = at_best_rate(tried[with_all])
table = []
for (tokens, slug), group in tried.groupby(["tokens", "variant"]):
    base, own = (runs_of(best, variant=each, tokens=tokens) for each in (BASELINE, slug))
    by_rate = {f"rate {rate:g}": runs["val_loss"] for rate, runs in group.groupby("learning_rate")}
    row = {"tokens": count(tokens), "design": labels[slug]}
    row |= {rate: f"{values.mean():.3f} ({len(values)})" for rate, values in by_rate.items()}
    if slug != BASELINE and base.keys() & own.keys():
        row["at its best rate"] = paired_difference(base, own).shown("+")
    table.append(row)
pd.DataFrame(table).set_index(["tokens", "design"]).fillna("–") if table else "not run"

# %% [markdown]
# How well the models do: the gap at the highest rung, predicted from the lower ones, beside what was measured, whose
# own noise comes on top. Only where the pooled prediction of that rung holds does the next column predict the gap at
# the paper's number of tokens, from all rungs, beside the published one. **Tokens, corpus, vocabulary and size of the
# models all differ there: a check of consistency, not evidence.** The exponent is that of a power law of the gap:
# negative if the gap grows. With an exponent above 0.5 the gap is a matter of the first steps, and says nothing about
# the paper's scale. A dash there: the gap is not surely above zero at every rung.

# %%
if found:
    missed = [f"{labels[climb.design]} ({backbones[climb.backbone].label})" for climb in found if not climb.holds]
    display(
        Markdown(
            f"The models miss the highest rung of {len(missed)} of {len(found)} ladders"
            f"{': ' if missed else ''}{', '.join(missed)}. No prediction is made from these."
        )
    )
table = [
    {
        "backbone": backbones[climb.backbone].label,
        "design": labels[climb.design],
        "model": model,
        "top rung, predicted": f"{top.gap:.3f} ({top.low:.3f} to {top.high:.3f})",
        "measured": climb.rungs[-1].gap.shown("+"),
        "at the paper's tokens, predicted": f"{last.gap:.3f} ({last.low:.3f} to {last.high:.3f})"
        if climb.holds
        else "–",
        "published": "–" if climb.published_gain is None else f"{climb.published_gain:.4f}",
        "exponent": "–"
        if climb.exponent is None
        else f"{climb.exponent.gap:.2f} ({climb.exponent.low:.2f} to {climb.exponent.high:.2f})",
    }
    for climb in found
    for model, top in climb.top.items()
    if (last := climb.published_tokens.get(model))
]
pd.DataFrame(table).set_index(["backbone", "design", "model"]) if table else "not run"

# %% [markdown]
# ## Verdicts
#
# The rules were committed before the runs of designs and controls, with the exceptions that
# `ddl/reporting/judged_claims.py` lists. *Supported*: the interval of the gain is above zero, and its size, as a factor
# of tokens, reaches half of the published one. *Direction only*: above zero, but smaller, or not comparable. *Not
# supported*: any gain is below 0.01 nats, or below zero. *Not testable here*: the interval contains zero, and the
# published gain is below what these runs can detect. *Inconclusive*: anything else. That the rule causes a gain is
# supported only if the design beats all of its rivals without the rule.

# %%
_, judged = committed_verdicts(load_scale(SCALE))
table = [
    {
        "claim": row.claim,
        "size": row.size,
        "backbone": backbones[row.backbone].label if row.backbone else "",
        "published": "–" if row.published is None else f"{row.published:+.4f}",
        "measured": row.shown,
        "factor of tokens": "–" if row.worth is None else f"{row.worth:.2f}",
        "published factor": "–" if row.published_worth is None else f"{row.published_worth:.2f}",
        "seeds": row.seeds,
        "verdict": row.verdict,
        "why": row.why,
    }
    for row in judged
]
pd.DataFrame(table).set_index(["claim", "size", "backbone"])

# %% [markdown]
# A published factor uses the slope of a published scaling law (Hoffmann et al., 2022), because the paper gives one
# number of tokens only.
#
# ## What this took

# %%
rows = pd.concat([noise, repairs, designs, controls, ladder, ladder_rates, *others]).drop_duplicates([*RUN, "seed"])
print(
    f"{len(rows)} runs, {rows['val_loss'].isna().sum()} of which diverged; {rows['seconds'].sum() / 3600:.1f} hours in "
    f"all, one thread each, on {', '.join(sorted(rows['device'].unique()))}"
)
