# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # How do other residual streams compare?
#
# DDL is one of several designs that replace the residual addition. Each was published in its own training code. Here
# they share backbone, data, order of the data, recipe and the repaired embedding, and each has the learning rate that
# suits it, so that two designs differ in the residual stream alone. The page `docs/residual-designs.md` gives all of
# them in one notation, with what their papers report. The rows are kept with the package.

# %% tags=["parameters"]
results = "results/laptop"
studies = "results/reference"

# %%
import math

import pandas as pd
from IPython.display import Markdown

from ddl.config import load_scale, load_variants
from ddl.reporting.expectations import outcomes
from ddl.reporting.figures import ordering, save_figure
from ddl.reporting.judged_claims import SCALE
from ddl.reporting.notebook_style import set_style
from ddl.reporting.read_studies import rows_if_any
from ddl.reporting.rivals import STRONG, TUNING, compared, rivals_table, speeds
from ddl.reporting.rivals_figure import cost_figure
from ddl.reporting.table_format import DASH, count, write_table

set_style()
variants = load_variants()
labels = {slug: variant.label for slug, variant in variants.items()}
found = {size: compared(size) for size in ("small", "medium")}
found = {size: rows for size, rows in found.items() if any(each.over_baseline for each in rows)}

# %%
said = []
for size, rows in found.items():
    rivals = [each for each in rows if variants[each.slug].family == "rival" and each.over_baseline]
    better = [each for each in rivals if each.is_better]
    strong = [each for each in better if each.over_strong and each.over_strong.high < 0]
    if not rivals:
        said.append(f"{size.capitalize()}: the rivals have not been run.")
        continue
    said.append(
        f"{size.capitalize()}: {len(better)} of {len(rivals)} rival designs end below the baseline, and "
        f"{len(strong)} below the baseline with normalised outputs and EC."
    )
Markdown(f"**Answer.** **{' '.join(said) or 'The runs of this study have not been done.'}**")

# %% alt="Loss of each residual design minus that of the baseline, with intervals, in order, one panel for each size"
ordered = {size: {each.slug: each.over_baseline for each in rows if each.over_baseline} for size, rows in found.items()}
figure = ordering(ordered, margin=0.03, dotted=STRONG)
save_figure(figure, results, "rivals")

# %% [markdown] tags=["caption"]
# Each design's loss minus that of the baseline, from the lowest to the highest, with intervals from the noise pooled
# over all designs (95 %, each for itself). Colours: the paper's designs; black: rivals; grey: baselines and controls.
# The dotted line is the baseline with normalised outputs and EC. In brackets: the seeds.

# %% [markdown]
# The table adds the learning rate of each design, the p-value of the difference, adjusted for the number of designs
# (Holm), the difference to the stronger baseline, and the difference to a baseline that costs as much.

# %%
write_table(
    rivals_table(found),
    results,
    "table-rivals",
    "Residual designs of other papers, DDL and baselines: loss minus that of a baseline, in nats.",
    "Laptop models with the repaired embedding; ± is the half-width of a 95 % interval.",
)

# %% [markdown]
# *Equal parameters* and *equal FLOPs* compare with a baseline whose MLP is as wide as needed, *equal time* with a
# baseline that is trained as long in plain PyTorch, and so with more tokens; its loss is interpolated between the
# complete runs of the token ladder, which has small models only. The *strong baseline* has normalised outputs and EC. A
# dash: the design costs more than the widest baseline that was run, or has no more parameters or operations than the
# baseline.
#
# What the designs cost, and how alike the streams are at the readout: with a cosine of 1 they are one stream.

# %%
tables = []
for size, rows in found.items():
    measured = speeds(size).set_index(["variant", "kernels"])["ratio"] if len(speeds(size)) else {}
    for each in rows:
        plain, fused = measured.get((each.slug, "reference")), measured.get((each.slug, "auto"))
        tables.append(
            {
                "size": size,
                "design": labels[each.slug],
                "parameters": count(each.params),
                "MFLOP per token": f"{each.flops / 1e6:.3g}",
                "speed": DASH if plain is None else f"{plain:.2f}",
                "speed, fused": DASH if fused is None else f"{fused:.2f}",
                "stream cosine": DASH if math.isnan(each.stream_cosine) else f"{each.stream_cosine:.2f}",
            }
        )
pd.DataFrame(tables).set_index(["size", "design"]) if tables else "not run"

# %% [markdown]
# *Speed* is the baseline's time of a training step over the design's, on one machine and thread, in plain PyTorch. Only
# DDL has operations of its own; *fused* is its speed with them, relative to the baseline as it is trained, whose loss
# is an operation too.

# %% alt="Loss minus the baseline's against FLOPs per token and against time per step, one row of panels for each size"
figure = cost_figure(found)
save_figure(figure, results, "rivals-cost")

# %% [markdown] tags=["caption"]
# The lower left is better; the baseline has no extra cost, and the axis of costs is logarithmic beyond the first tick.
# The line joins the designs that none of lower or equal cost beats. Numbers stand for designs, from the lowest loss of
# the small models; bars are intervals. Colours as above.

# %% [markdown]
# ## What was expected?
#
# Before any of these designs was trained, we wrote down what we expected. The ranges in nats that the words stand for
# were fixed before the first full run, but after some half-length ones. An expectation holds if the whole interval is
# in its range, is missed if it is outside, and is open otherwise.

# %%
judged = [
    {
        "expected": each.expectation.text,
        "size": size,
        "design": labels[each.design],
        "minus": labels[each.expectation.reference],
        "difference": each.difference.shown("+"),
        "seeds": each.difference.n,
        "outcome": each.verdict,
    }
    for size in found
    for each in outcomes(size)
]
pd.DataFrame(judged).set_index(["expected", "size"]) if judged else "not run"

# %% [markdown]
# ## Which learning rate does each design have?
#
# Half-length runs with another seed, at rates that enclose the lowest loss. The small models of every design have the
# rate that all studies share; those of a design that loses noticeably there have its best rate too, and are compared at
# the better of both. The medium models have the shared rate.

# %%
rates, shared = rows_if_any(TUNING), load_scale(SCALE).training.learning_rate
table = rates.pivot_table(index="variant", columns="learning_rate", values="val_loss", sort=False)
if len(table):
    table = table.sort_index(axis=1)
    table["lost at the shared rate"] = table[shared] - table.min(axis=1)
    table.index = [labels[slug] for slug in table.index]
table.round(3).map(lambda loss: DASH if math.isnan(loss) else f"{loss:.3f}") if len(table) else "not run"
