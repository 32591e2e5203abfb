# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Can every earlier state be rebuilt from the last one?
#
# **Question.** For the backward pass, training usually keeps the state before every rewrite, $d \times d_v$ numbers per
# token each time. But a rewrite changes the state only by an outer product. Are the last state and these outer products
# enough to walk all the way back? How large do rounding errors become on the way? And how much memory does it save?
#
# **Answer.** **Yes, for every gate, if the states are in fp32 or fp64: keep $d + d_v$ numbers per rewrite instead of
# the product, and subtract. Rounding errors add up and are never multiplied. With states in bf16 they add up to several
# percent.**
#
# The paper does not use this, but it follows from Eq. 2.2. The package's backward pass with rebuilt states
# (`state_memory: rebuilt`) relies on it. The page ends with a table of the paper's claims and what the notebooks found.

# %% tags=["parameters"]
results = "results/laptop"  # every notebook has this parameter; derivations do not use it
seed = 0

# %%
import copy
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy as sp
import torch
from IPython.display import Markdown
from sympy import Symbol

from ddl.config import ModelConfig, from_mapping, load_scale, load_variants, scale_names
from ddl.layout import ROOT
from ddl.model.language_model import LanguageModel
from ddl.model.residual import Delta, Gate
from ddl.ops.fused_rewrite_arguments import Reader, Rewrite
from ddl.ops.fused_rewrite_cpu import fused_rewrite_backward, fused_rewrite_forward
from ddl.ops.rewrite import normalize_direction, rewrite_backward_reference, rewrite_reference, undo_rewrite_reference
from ddl.reporting.claims import claims_table, notebooks_of, read_claims
from ddl.reporting.notebook_style import set_style, source

set_style()
torch.set_num_threads(1)
random = torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


source(undo_rewrite_reference)

# %% [markdown]
# ## The identity
#
# Define the *correction* of a rewrite as
# $\boldsymbol\delta_l = \beta_l(\mathbf{v}_l - \mathbf{X}_l^\top\mathbf{k}_l) \in \mathbb{R}^{d_v}$. Then Eq. 2.2 reads
# $\mathbf{X}_{l+1} = \mathbf{X}_l + \mathbf{k}_l\boldsymbol\delta_l^\top$, and
#
# $$\mathbf{X}_l = \mathbf{X}_{l+1} - \mathbf{k}_l\,\boldsymbol\delta_l^\top .$$
#
# This needs no assumptions: $\mathbf{k}$ can have any length, and the gate can have any value.

# %%
beta = Symbol("beta", real=True)
X, k, k_row, v_row = sp.symbols("X k k^T v^T", commutative=False)
delta_row = beta * (v_row - k_row * X)
X_next = (1 - beta * k * k_row) * X + beta * k * v_row  # Eq. 2.1
assert sp.expand(X_next - k * delta_row - X) == 0, "rebuilt-states"
sp.expand(k * delta_row)

# %% [markdown]
# In fp64, for 1,000 tokens whose gates include exactly 0, 1 and 2, the old state is restored up to the rounding of two
# additions. The gate of one is the interesting case: the rewrite has overwritten a readout, and still the old one is
# restored.

# %%
TOKENS, D, D_V = 1000, 16, 4


def correction(X, k, v, beta):
    return beta[..., None] * (v - torch.einsum("...i,...ij->...j", k, X))


state, target = draw(TOKENS, D, D_V), draw(TOKENS, D_V)
direction = normalize_direction(draw(TOKENS, D), eps=1e-5)
gate = 2 * torch.rand(TOKENS, generator=random, dtype=torch.float64)
gate[:300] = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).repeat(100)
rewritten = rewrite_reference(state, direction, target, gate)
delta = correction(state, direction, target, gate)
back = undo_rewrite_reference(rewritten, direction, delta)

eps = torch.finfo(torch.float64).eps
assert torch.equal(rewritten, torch.addcmul(state, direction[..., None], delta[:, None]))  # this was added
assert ((back - state).abs() <= eps * (rewritten.abs() + state.abs())).all(), "rebuilt-states"
assert (rewritten - state).abs().max() > 1  # there was something to undo
print(f"changed by up to {(rewritten - state).abs().max():.1f}, restored to {(back - state).abs().max():.0e}")

# %% [markdown]
# ## Rounding over many layers
#
# Let $u$ be the unit roundoff: $2^{-53}$ in fp64, $2^{-24}$ in fp32, $2^{-8}$ in bf16. The forward pass rounds each new
# state once, the walk back rounds each rebuilt state once, and both round the product
# $\mathbf{k}\boldsymbol\delta^\top$ in the same way. Subtracting the same matrix from two states does not change their
# distance, so errors **add up and are never multiplied**. To first order, element by element,
#
# $$|\hat{\mathbf{X}}_l - \mathbf{X}_l| \le u \sum_{j \ge l} \left( |\mathbf{X}_{j+1}| + |\hat{\mathbf{X}}_j|
# + 2\,|\mathbf{k}_j\boldsymbol\delta_j^\top| \right).$$
#
# The right side does not contain the gate. The sum grows with the number of rewrites and with the size of the *later*
# states. It does not depend on the size of the state that is being rebuilt, so the relative error of a small state can
# be large; this will matter below.

# %%
UNIT_ROUNDOFF = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float64, torch.float32, torch.bfloat16)}


def rebuild(last, history):
    """All states, first to last, from the last state and the (k, delta) of each rewrite."""
    states = [last]
    for k, delta in reversed(history):
        states.append(undo_rewrite_reference(states[-1], k, delta))
    return states[::-1]


def drift(states, history):
    """The relative error of each rebuilt state and token; and, per state, the largest error / bound."""
    rebuilt = rebuild(states[-1], history)
    u = UNIT_ROUNDOFF[states[-1].dtype]
    bound, errors, shares = torch.zeros_like(states[-1], dtype=torch.float64), [], []
    for step in range(len(history) - 1, -1, -1):
        k, delta = (part.double() for part in history[step])
        added = (k[..., None] * delta[..., None, :]).abs()
        bound = bound + u * (states[step + 1].double().abs() + rebuilt[step].double().abs() + 2 * added)
        error = (rebuilt[step].double() - states[step].double()).abs()
        shares.append((error / (1.01 * bound + 1e-300)).max())  # 1 % for the terms of higher order
        errors.append((error.norm(dim=(-2, -1)) / states[step].double().norm(dim=(-2, -1))).flatten())
    return torch.stack(errors), torch.stack(shares)


# %% [markdown]
# ### Random streams
#
# First states, directions and targets are drawn from normal distributions, gates from the uniform distribution on
# $[0, 2]$. There are 48 rewrites, as in the paper's medium model. The streams are drawn once and rounded to each
# precision.

# %%
LAYERS = 24
WIDTH, CHANNELS, STREAMS = 32, 4, 480


def random_stream(dtype):
    """States and history of STREAMS tokens over 2 LAYERS rewrites."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(STREAMS, *shape, generator=numbers, dtype=torch.float64)

    states, history = [normal(WIDTH, CHANNELS).to(dtype)], []
    for _ in range(2 * LAYERS):
        k = normalize_direction(normal(WIDTH), eps=1e-5).to(dtype)
        v = normal(CHANNELS).to(dtype)
        beta = (2 * torch.rand(STREAMS, generator=numbers, dtype=torch.float64)).to(dtype)
        history.append((k, correction(states[-1], k, v, beta)))
        states.append(rewrite_reference(states[-1], k, v, beta))
    return states, history


drifts = {}
rows = ["| dtype | $u$ | first state, median token | worst token | largest error / bound |", "|---|---|---|---|---|"]
for dtype, u in UNIT_ROUNDOFF.items():
    errors, shares = drift(*random_stream(dtype))
    assert (shares <= 1).all(), "rebuilt-states"
    assert errors[-1].max() < 30 * u, "rebuilt-states"
    drifts["random streams, 48 rewrites", str(dtype)[6:]] = errors
    first = errors[-1]
    rows.append(f"| {str(dtype)[6:]} | {u:.0e} | {first.median():.1e} | {first.max():.1e} | {shares.max():.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# After undoing 48 rewrites, the first state is restored to a few roundoffs in each precision, and the bound holds for
# every number of every state (asserted). This is the easy case: the first and the last state have about the same size.

# %% [markdown]
# ### A trained model
#
# Next come DDL-CC models of 12 and 24 layers ($d = 32$, $d_v = 4$). They are trained for some dozen steps on a
# language of 32 words in which each word has a usual successor, so that gates, directions and targets are no longer
# random. A hook calls the generators of each rewrite, and asserts that
# $\mathbf{X}_l + \mathbf{k}_l\boldsymbol\delta_l^\top$ is, bit for bit, the state with which the model continued.

# %%
VOCABULARY, LENGTH, BATCH, STEPS = 32, 24, 16, 60
successor = torch.randperm(VOCABULARY, generator=random)


def sentences(count):
    """Token ids (count, LENGTH + 1): the usual successor four times in five, otherwise any token."""
    ids = [torch.randint(VOCABULARY, (count,), generator=random)]
    for _ in range(LENGTH):
        usual = torch.rand(count, generator=random) < 0.8
        ids.append(torch.where(usual, successor[ids[-1]], torch.randint(VOCABULARY, (count,), generator=random)))
    return torch.stack(ids, dim=1)


def trained(layers):
    shape = {
        "vocab_size": VOCABULARY,
        "sequence_length": LENGTH,
        "layers": layers,
        "width": WIDTH,
        "heads": 2,
        "kernels": "reference",
    }
    model = LanguageModel(from_mapping(ModelConfig, shape | load_variants()["ddl-cc"].model, "07_history"), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    while len(losses) < STEPS or (np.mean(losses[-5:]) > losses[0] - 0.3 and len(losses) < 10 * STEPS):
        ids = sentences(BATCH)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    print(f"{layers} layers: loss {losses[0]:.2f} before, {np.mean(losses[-5:]):.2f} after {len(losses)} steps")
    return model


models = {layers: trained(layers) for layers in (12, 24)}


# %%
@torch.no_grad()
def observe(model, ids):
    """States and history of one forward pass."""
    states, history = [], []

    def watch(rule, inputs, X_next):
        X, x_in, c, h = inputs
        k, v, beta = rule.generate(X, x_in, c, h)
        delta = correction(X, k, v, beta)
        assert torch.equal(torch.addcmul(X, k[..., None], delta[..., None, :]), X_next)
        if not states:
            states.append(X)
        states.append(X_next)
        history.append((k, delta))

    handles = [rule.register_forward_hook(watch) for rule in model.modules() if isinstance(rule, Delta)]
    model(ids)
    for handle in handles:
        handle.remove()
    return states, history


ids = sentences(20)[:, :-1]
rows = ["| layers | numbers | last state / first, by length | first state, median token | worst token |"]
rows.append("|---|---|---|---|---|")
for layers, model in models.items():
    for name, dtype, cast in (
        ("float64", torch.float64, False),
        ("float32", torch.float32, False),
        ("bf16 autocast", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        # PyTorch warns once that autocast gives bf16 to norms with fp32 weights.
        with torch.autocast("cpu", torch.bfloat16, enabled=cast), warnings.catch_warnings(record=True):
            states, history = observe(copy.deepcopy(model).to(dtype), ids)
        assert len(history) == 2 * layers
        assert states[-1].dtype == dtype  # under autocast the states stay fp32
        errors, shares = drift(states, history)
        assert (shares <= 1).all(), "rebuilt-states"
        drifts[f"DDL-CC, {layers} layers", name] = errors
        growth = (states[-1].double().norm(dim=(-2, -1)) / states[0].double().norm(dim=(-2, -1))).median()
        rows.append(f"| {layers} | {name} | {growth:.0f} | {errors[-1].median():.1e} | {errors[-1].max():.1e} |")
Markdown("\n".join(rows))

# %% [markdown]
# *bf16 autocast* is what `dtype: bfloat16` means in a scale file: matrix products are in bf16, but the state is the sum
# of fp32 embeddings and fp32 corrections and stays in fp32 (asserted), unless `state_dtype` requests bf16. *bfloat16*
# casts the whole model, including the states. The bound above holds in all eight cases, asserted for every number.

# %% alt="Error of rebuilt states in units of the roundoff, against the rewrites undone, by precision" tags=["fold"]
LOOKS = {
    "float64": ("#0072B2", torch.float64, 2.6),
    "float32": ("#009E73", torch.float32, 1.6),
    "bf16 autocast": ("#E69F00", torch.float32, 0.9),
    "bfloat16": ("#D55E00", torch.bfloat16, 1.2),
}
panels = list(dict.fromkeys(panel for panel, _ in drifts))
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3.4), sharey=True, layout="constrained")
for axis, panel in zip(axes, panels, strict=True):
    for name, (colour, dtype, width) in LOOKS.items():
        if (panel, name) not in drifts:
            continue
        errors = drifts[panel, name] / UNIT_ROUNDOFF[dtype]
        undone = np.arange(1, len(errors) + 1)
        axis.semilogy(undone, errors.max(dim=1).values, color=colour, lw=width, label=name)
        axis.semilogy(undone, errors.median(dim=1).values, color=colour, lw=width, ls="--")
    axis.set(xlabel="rewrites undone", title=panel, xlim=(0, len(errors)))
axes[0].set(ylabel="$|\\hat{X}_l - X_l|\\ /\\ |X_l|$, in units of $u$", ylim=(0.2, 100))
handles, labels = axes[1].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown] tags=["caption"]
# Solid lines show the worst token, dashed lines the median. Relative to its own roundoff, every precision drifts by a
# similar amount, as expected of errors that only add up.

# %% [markdown]
# With random streams the drift is a few roundoffs. In a model it grows towards the first states (to the right), because
# these are small: embeddings start at 0.02 and targets near one, so the roundoff of a late state is large compared with
# an early state. How much this matters depends on $u$:

# %%
worst = {name: max(float(drifts[panel, name].max()) for panel in panels[1:]) for name in LOOKS}
assert all(worst[name] < 100 * UNIT_ROUNDOFF[dtype] for name, (_, dtype, _) in LOOKS.items()), "rebuilt-states"
assert worst["bfloat16"] > 1e-2, "rebuilt-states"
for name, error in worst.items():
    print(f"{name:>13}: largest relative error of any state of any token {error:.0e}")

# %% [markdown]
# In fp64 and fp32 the walk back is exact up to rounding. The same is true of a pure bf16 state, but there it means
# little: the roundings to 8 bits add up to several percent of the first states, so as an exact inverse the answer is
# **no**. Under autocast with a state in fp32 it is **yes**: directions and corrections computed in bf16 do no harm,
# because the walk back subtracts exactly the outer products that the forward pass added. What counts is the precision
# of the *sum*.

# %% [markdown]
# ## What a wrong state does to the gradient
#
# A state is rebuilt only for the backward pass, so its error matters as far as the gradient reads it. The forward pass
# keeps the direction, the target, the gate, the readout $\mathbf{r} = \mathbf{X}^\top\mathbf{k}$ and all activations of
# the sublayers. The rebuilt state is read in two places: in the gradient of the direction, which contains
# $\mathbf{X}\,\partial L/\partial\mathbf{v}$ (notebook 05), and in the backward pass of the norm and the compressor
# after the rewrite. Here the state is wrong by 10 %:

# %%
shapes = {"S": (D_V, D), "h": (D,), "v": (D_V,), "c": (D,)}
S, h, v, grad_c = (draw(1, TOKENS, *shape) for shape in shapes.values())
rewrite, reader = Rewrite(h, v, gate[None]), Reader(draw(1, D_V, D), draw(D))
after, _, saved = fused_rewrite_forward(S, rewrite, reader, 1e-5, 1e-5, in_place=False)
grad_after, noise = draw(*after.shape), draw(*S.shape)
wrong = S + 0.1 * noise * S.norm() / noise.norm()


def changes(grad_after, grad_c):
    """The relative change of each gradient when the state is wrong, where there is such a gradient."""
    right, off = (fused_rewrite_backward(X, rewrite, reader, saved, grad_after, grad_c, False) for X in (S, wrong))
    pairs = {name: (a, getattr(off, name)) for name, a in right._asdict().items()}
    return {name: float((a - b).norm() / a.norm()) for name, (a, b) in pairs.items() if a.any()}


through_rewrite, through_reader = changes(grad_after, None), changes(None, grad_c)
assert [name for name, change in through_rewrite.items() if change] == ["h"]
assert all(0 < change < 0.3 for change in [through_rewrite["h"], *through_reader.values()])
names = {"S": "earlier state", "h": "direction", "v": "target", "beta": "gate", "taps": "compressor", "weight": "norm"}
rows = ["| change of the gradient in | from later states | from the next sublayer |", "|---|---|---|"]
for name, of in names.items():
    cells = [f"{part[name]:.1%}" if name in part else "none" for part in (through_rewrite, through_reader)]
    rows.append(f"| {of} | {' | '.join(cells)} |")
Markdown("\n".join(rows))

# %% [markdown]
# The gradient that comes from later states passes through the rewrite unharmed (asserted to the bit, except for the
# direction). This is the path along which gradients reach the first layers, so errors of states do not multiply along
# it. Only what enters a layer from its own sublayer is off.

# %% [markdown]
# ### Measured at the paper's widths
#
# Is that small enough? The benchmark `benchmarks/gradient_error.py` trains models on text, and compares gradients on
# held-out text with those of plain autograd in fp64. Matrix products are in bf16, as at the scales `h200` and `paper`.
# *Growth* is the length of the last state relative to the first. *Most affected* is the kind of parameters, or the
# layer, whose error grows most by rebuilding. The benchmark's rule was chosen before the measurement: rebuilding is
# accepted if no group's error grows by more than a tenth.

# %%
GROUP = ["variant", "layers", "width", "step"]
gradients, states = (
    pd.read_csv(ROOT / "results/reference/kernels" / f"{name}.csv") for name in ("gradient_error", "rebuilt_states")
)
gradients["ratio"] = gradients["rebuilt"] / gradients["stored"]
LIMIT = 1.1  # chosen before the measurement
rows = [
    "| design | layers x width | steps | state | growth | error of the first state | gradient: stored | rebuilt "
    "| most affected | there: stored | rebuilt | ratio |",
    "|---" * 12 + "|",
]
failures = []
for (slug, layers, width, step), part in gradients.groupby(GROUP, sort=False):
    for arithmetic in ("bf16, state in fp32", "bf16, state in bf16"):
        of = part[part["arithmetic"] == arithmetic]
        chosen = (states[GROUP] == [slug, layers, width, step]).all(axis=1) & (states["arithmetic"] == arithmetic)
        first = states[chosen & (states["state"] == 0)].iloc[0]
        whole, worst_group = of[of["group"] == "all"].iloc[0], of.loc[of["ratio"].idxmax()]
        failures += [(arithmetic, group, slug, layers, width, step) for group in of[of["ratio"] > LIMIT]["group"]]
        rows.append(
            f"| {load_variants()[slug].label} | {layers} x {width:,} | {step} | {arithmetic[-4:]} "
            f"| {first['growth']:.0f} | {first['error']:.0e} | {whole['stored']:.2%} | {whole['rebuilt']:.2%} "
            f"| {worst_group['group']} | {worst_group['stored']:.2%} | {worst_group['rebuilt']:.2%} "
            f"| {worst_group['ratio']:.2f} |"
        )
Markdown("\n".join(rows))

# %%
coarse = gradients[gradients["arithmetic"] == "bf16, state in bf16"]
assert {(arithmetic, group) for arithmetic, group, *_ in failures} == {("bf16, state in bf16", "compressors")}, (
    "rebuilt-gradient"
)
assert {(slug, layers, width, step > 0) for _, _, slug, layers, width, step in failures} == {
    ("ddl-tc", 12, 768, False),
    ("ddl-cc", 24, 1024, False),
    ("ddl-cc", 24, 128, True),
}, "rebuilt-gradient"
assert gradients[gradients["arithmetic"] == "fp32"]["rebuilt"].max() < 1e-4, "rebuilt-gradient"
for scale in map(load_scale, scale_names()):
    expected = "stored" if scale.execution.state_dtype == "bfloat16" else "rebuilt"
    assert scale.execution.state_memory == expected, f"rebuilt-gradient: {scale.name}"
share = (coarse["difference"] / coarse["other_text"]).max()
print(f"bf16, any group: rebuilding changes the gradient by at most {coarse['difference'].max():.1%} of its length;")
print(f"other text of the same length changes it by at least {1 / share:.0f} times as much")
print(f"smallest cosine between the gradients with stored and with rebuilt states: {coarse['cosine'].min():.4f}")

# %% [markdown]
# The error of a state and that of the gradient differ, because they are relative to different lengths. Each state is
# off by roundoffs of the later, longer states; relative to the first state, which is many times shorter, that is
# several percent. But most of the gradient does not read the first states, and its other parts are rounded to bf16 in
# any case. What does read them shows it: above all the gradients of the compressors in the first layers.
#
# **States are rebuilt in fp32 and stored in bf16.** With fp32 states the rule holds everywhere, and if the
# products are in fp32 too, every error is below $10^{-4}$, so that its growth does not matter. With bf16 states the
# rule fails for the compressors of three of the measured models: DDL-TC with the depth and width of the paper's small
# model and DDL-CC with those of its medium model, both with their first weights, and DDL-CC with 24 narrow layers after
# training. In the trained models of the medium width it says little, because there products in bf16 alone make the
# gradient err far more. Rebuilding also moves more bytes (`docs/kernels.md`); whether `h200` and `paper` need the
# memory that it saves has not been measured (next section). So these two, whose states are bf16, store them. `laptop`
# and `smoke`, whose states are fp32, rebuild them (asserted). What rebuilding a bf16 state changes is small compared
# with the noise of the text, so where memory is short, it can still be rebuilt.

# %% [markdown]
# ## How much memory it takes
#
# Per token and rewrite, a stored state has $d\,d_v$ numbers, and the history has $d + d_v$. At the paper's shapes, in
# bf16, for the tokens of one micro-batch:

# %%
paper = load_scale("paper")
tokens = paper.training.micro_batch_sequences * paper.sequence_length
rows = [
    f"| model | $d$ | $d_v$ | state | history | ratio | all states of {tokens:,} tokens | all histories |",
    "|---|---|---|---|---|---|---|---|",
]
for size in ("small", "medium"):
    for variant in ("ddl-dv1", "ddl-cc"):
        config = paper.model(size, variant)
        d, d_v = config.width, config.value_channels
        gigabytes = 2 * config.layers * tokens * 2 / 1e9  # one bf16 number per token and rewrite
        assert (d * d_v > d + d_v) == (d_v > 1)
        rows.append(
            f"| {size} | {d:,} | {d_v} | {d * d_v:,} | {d + d_v:,} | {d * d_v / (d + d_v):.2f} "
            f"| {gigabytes * d * d_v:.1f} GB | {gigabytes * (d + d_v):.1f} GB |"
        )
Markdown("\n".join(rows))

# %% [markdown]
# An H200 has 141 GB for these states and everything else that training keeps; whether all of it fits has not been
# measured. Smaller micro-batches need less, and leave the batch as it is.
#
# With four value channels the history is almost four times smaller than the states. With one channel it is one number
# *larger*: for the scalar design the identity by itself saves nothing. But the gradient of the normalisation needs
# $\mathbf{k}$ in any case (notebook 05). If $\mathbf{k}$ is stored anyway, not storing the state costs only
# $\boldsymbol\delta$: $d_v$ numbers instead of $d\,d_v$.

# %% [markdown]
# ## Are the corrections needed?
#
# One might hope to invert the rewrite instead of storing its correction. Eq. 2.1, solved for the old state, is
#
# $$\mathbf{X} = (\mathbf{I} - \beta\mathbf{k}\mathbf{k}^\top)^{-1}
# (\mathbf{X}' - \beta\mathbf{k}\mathbf{v}^\top), \qquad
# (\mathbf{I} - \beta\mathbf{k}\mathbf{k}^\top)^{-1} = \mathbf{I} + \frac{\beta}{1-\beta}\mathbf{k}\mathbf{k}^\top ,$$
#
# which amounts to computing the correction from the *new* state,
# $\boldsymbol\delta = \frac{\beta}{1-\beta}(\mathbf{v} - \mathbf{X}'^\top\mathbf{k})$. This divides by $1 - \beta$, and
# at $\beta = 1$ there is no inverse.

# %%
A = 1 - beta * k * k_row
inverse = 1 + beta / (1 - beta) * k * k_row
product = sp.expand(A * inverse).subs(k * k_row * k * k_row, k * k_row)  # k^T k = 1
assert sp.simplify(sp.expand(product).coeff(k * k_row)) == 0
unit_k, ones = normalize_direction(draw(TOKENS, D), eps=0.0), torch.ones(TOKENS, dtype=torch.float64)
other = state + unit_k[..., None] * draw(TOKENS, D_V)[:, None]  # differs along k only

same = (rewrite_reference(state, unit_k, target, ones) - rewrite_reference(other, unit_k, target, ones)).abs().max()
histories = (correction(state, unit_k, target, ones) - correction(other, unit_k, target, ones)).abs().max()
shortcut = torch.eye(D, dtype=torch.float64) - torch.outer(unit_k[0], unit_k[0])
assert same < 1e-13 < 1 < histories
assert torch.linalg.matrix_rank(shortcut) == D - 1
assert (other - state).abs().max() > 1
print(f"two states that differ by {(other - state).abs().max():.1f} differ by {same:.0e} after the same overwrite")
print(f"their corrections differ by {histories:.1f}")

# %% [markdown]
# The same overwrite makes two different states equal, so no function of $\mathbf{X}', \mathbf{k}, \mathbf{v}, \beta$
# can tell which of them it was. The $d_v$ numbers of $\boldsymbol\delta$ can: they contain exactly what the overwrite
# erased. For gates near one the inverse exists, but it magnifies rounding by $1/|1 - \beta|$:

# %% alt="Error of the inverse and of the rank-one history against the distance of the gate from one" tags=["fold"]
gaps = torch.logspace(-7, -0.3, 29, dtype=torch.float64)
figure, axis = plt.subplots(figsize=(5.4, 2.9), layout="constrained")
for dtype, colour in ((torch.float32, "#009E73"), (torch.float64, "#0072B2")):
    x, unit, v = state.to(dtype), unit_k.to(dtype), target.to(dtype)
    inverted, remembered = [], []
    for gap in gaps:
        b = torch.full((TOKENS,), 1 - float(gap), dtype=dtype)
        after = rewrite_reference(x, unit, v, b)
        mirror = correction(after, unit, v, b) / (1 - b)[:, None]
        size = x.norm()
        inverted.append(float((undo_rewrite_reference(after, unit, mirror) - x).norm() / size))
        remembered.append(float((undo_rewrite_reference(after, unit, correction(x, unit, v, b)) - x).norm() / size))
    u = UNIT_ROUNDOFF[dtype]
    assert max(remembered) < 2 * u
    assert inverted[0] > 1e5 * remembered[0]
    name = str(dtype)[6:]
    axis.loglog(gaps, inverted, color=colour, ls="--", label=f"inverse, {name}")
    axis.loglog(gaps, remembered, color=colour, label=f"history, {name}")
axis.set(xlabel="$|1 - \\beta|$", ylabel="relative error of the rebuilt state")
axis.legend(frameon=False, loc="upper right", fontsize=8)
plt.show()

# %% [markdown] tags=["caption"]
# With the history, the error stays at the roundoff. The inverse loses one decimal digit each time the gate comes ten
# times closer to one.

# %% [markdown]
# One is the gate of the paper's "exact replacement", and gates start around it: `gate_init = 1` sets their bias, and
# their random weights spread them. These are the gates of both models before training:

# %%
before = []
for model in models.values():
    fresh = LanguageModel(model.config, seed)
    for module in fresh.modules():
        if isinstance(module, Gate):
            module.register_forward_hook(lambda module, inputs, beta: before.append(beta.flatten()))
    with torch.no_grad():
        fresh(ids)
before = torch.cat(before)
near = float(((before - 1).abs() < 0.05).double().mean())
assert abs(before.mean() - 1) < 0.1
assert 0.15 < before.std() < 0.35
assert 0.05 < near < 0.3
print(f"{len(before):,} gates: mean {before.mean():.2f}, standard deviation {before.std():.2f}")
print(f"{near:.0%} lie within 0.05 of one, where the inverse loses more than a decimal digit")

# %% [markdown]
# ## Gradients while walking back
#
# The backward pass of a rewrite needs the state before it once, for the gradient of the direction (notebook 05). A
# chain of 48 rewrites can therefore be differentiated with a single state in memory: undo one rewrite, use the state,
# discard it. The gradients are compared with those of autograd, which stores all 48 states.

# %%
CHAIN = 2 * LAYERS


def chain_gradients(dtype):
    """The gradients in first state, directions, targets and gates: pairs (autograd, walking back), in fp64."""
    numbers = torch.Generator().manual_seed(seed)
    first, weight = (torch.randn(64, D, D_V, generator=numbers, dtype=torch.float64).to(dtype) for _ in range(2))
    ks = normalize_direction(torch.randn(CHAIN, 64, D, generator=numbers, dtype=torch.float64), 0.0).to(dtype)
    vs = torch.randn(CHAIN, 64, D_V, generator=numbers, dtype=torch.float64).to(dtype)
    betas = (2 * torch.rand(CHAIN, 64, generator=numbers, dtype=torch.float64)).to(dtype)
    inputs = [tensor.requires_grad_() for tensor in (first, ks, vs, betas)]
    X, deltas = first, []
    for k, v, beta in zip(ks, vs, betas, strict=True):
        deltas.append(correction(X, k, v, beta).detach())
        X = rewrite_reference(X, k, v, beta)
    stored = torch.autograd.grad((weight * X).sum(), inputs)

    X, grad, found = X.detach(), weight, []
    with torch.no_grad():
        for k, v, beta, delta in zip(*(reversed(list(t)) for t in (ks, vs, betas, deltas)), strict=True):
            X = undo_rewrite_reference(X, k, delta)
            grad, *rest = rewrite_backward_reference(X, k, v, beta, grad)
            found.append(rest)
    walked = (grad, *(torch.stack(part[::-1]) for part in map(list, zip(*found, strict=True))))
    return [(a.double(), b.double()) for a, b in zip(stored, walked, strict=True)]


rows = ["| dtype | first state | directions | targets | gates |", "|---|---|---|---|---|"]
for dtype in (torch.float64, torch.float32):
    differences = [float((a - b).norm() / a.norm()) for a, b in chain_gradients(dtype)]
    assert max(differences) < 50 * UNIT_ROUNDOFF[dtype], "rebuilt-states"
    rows.append(f"| {str(dtype)[6:]} | " + " | ".join(f"{difference:.0e}" for difference in differences) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# The table shows the relative differences from autograd after 48 rewrites. In both precisions they are rounding. In a
# real layer, attention or an MLP computes $\mathbf{k}$, $\mathbf{v}$ and $\beta$ from the state, and the activations of
# these sublayers must be stored or computed again from the rebuilt state. This check covers the residual stream, not
# the sublayers.

# %% [markdown]
# ## What was shown and what was not
#
# **Shown:** the identity in symbols; that walking back over all states is exact up to rounding at every gate, including
# overwrites, with a bound on the drift that holds for every observed number; that it works in fp64, in fp32 and with
# bf16 products on an fp32 state, for random streams and for trained models of 12 and 24 layers, and that the rounding
# of a bf16 state is too coarse for an exact inverse; what that does to the gradient, at the paper's widths and depths
# and after the training steps listed above; how much memory it saves (a factor of about four with $d_v = 4$,
# nothing with $d_v = 1$ unless $\mathbf{k}$ is stored anyway); that inverting the rewrite is no substitute; gradients
# through 48 given rewrites with one state in memory.
#
# **Not shown:** the speed and the peak memory of rebuilt states. The drift depends on how much longer the last state is
# than the first, and no model measured here is fully trained: those of this page are small ($d = 32$), and the larger
# ones made the few steps that the table says. Nor was the effect of computing a sublayer again from a rebuilt
# state instead of the original one.

# %% [markdown]
# ## The paper's claims and what these notebooks found
#
# The table has one row per claim, in the order of the paper. *Version* says which text makes it: v3, the revised text,
# both, or ours. *Exact* means a proof in symbols or equality of bits; *to rounding* means fp64 with a stated tolerance;
# *example* means that one seeded case shows that it is possible, and no more. Notebooks 10 to 12 compare what the paper
# says about losses, accuracies and costs with its own tables. Whether trained models at the paper's scale behave as
# claimed cannot be decided by algebra or by small runs.

# %%
claims = read_claims()
derivations = {path.name[:2] for path in (ROOT / "notebooks").glob("0[1-7]*.py")}
assert derivations <= {number for claim in claims for number in notebooks_of(claim)}
Markdown(claims_table(claims, [name for name in claims[0] if name != "Label"]))
