# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What does one rewrite do?
#
# **Question.** Deep Delta Learning replaces the addition of a residual connection by one formula. What exactly does
# that formula change in the residual state, what does it leave alone, and what does its one gate decide?
#
# **Answer.** **Only the component of the state along one direction changes. The gate decides how far it moves from what
# was read towards the target: not at all at 0, onto the target at 1, past it to the same distance on the other side at
# 2.**
#
# Everything below concerns one token at one layer. Its state is a matrix $\mathbf{X}$ of $d$ features by $d_v$ value
# channels; the layer proposes a *direction* $\mathbf{k} \in \mathbb{R}^d$ of length one, a *target*
# $\mathbf{v} \in \mathbb{R}^{d_v}$ and a *gate* $\beta \in (0, 2)$. Where they come from does not matter here. Each
# claim is derived in symbols, which covers all sizes, and then checked in fp64 with the package's reference function.
# Models run faster code for the same formula; [notebook 05](05_gradient.html), "What the runs execute is the equation",
# checks that code.
#
# > A single scalar gate $\beta_l$ synchronizes erasure and writing: closing the gate recovers the identity map, while
# > setting $\beta_l = 1$ exactly overwrites the selected component. (Sec. 1)

# %% tags=["parameters"]
results = "results/laptop"  # every notebook has this parameter; derivations do not use it
seed = 0

# %%
import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import Markdown
from sympy import Symbol

from ddl.ops.rewrite import normalize_direction, rewrite_reference
from ddl.reporting.notebook_style import set_style, source

set_style()
source(rewrite_reference)

# %% [markdown]
# ## Two ways to write one rule
#
# The paper states the update twice: as a shortcut $\mathbf{A} = \mathbf{I} - \beta\mathbf{k}\mathbf{k}^\top$ that
# erases, followed by a rank-one write,
#
# $$\mathbf{X}' = (\mathbf{I} - \beta\,\mathbf{k}\mathbf{k}^\top)\,\mathbf{X} + \beta\,\mathbf{k}\mathbf{v}^\top,
# \tag{2.1}$$
#
# and as reading, comparing and writing back,
#
# $$\mathbf{X}' = \mathbf{X} + \beta\,\mathbf{k}\,(\mathbf{v}^\top - \mathbf{k}^\top\mathbf{X}). \tag{2.2}$$
#
# The two are equal for all $d$ and $d_v$ and for every $\mathbf{k}$, of length one or not. The proof needs only the
# distributive law, so symbols that do not commute are enough.

# %%
beta = Symbol("beta", real=True)
X, k, k_row, v_row = sp.symbols("X k k^T v^T", commutative=False)

erase_then_write = (1 - beta * k * k_row) * X + beta * k * v_row
read_compare_write = X + beta * k * (v_row - k_row * X)
assert sp.expand(erase_then_write - read_compare_write) == 0, "two-forms"
sp.expand(read_compare_write)

# %% [markdown]
# The same check with explicit entries, for $d = 3$ and $d_v = 2$, so that nothing rests on the algebra of non-commuting
# symbols alone:

# %%
K = sp.Matrix(sp.symbols("k1:4", real=True))
V = sp.Matrix(sp.symbols("v1:3", real=True))
S = sp.Matrix(3, 2, sp.symbols("x1:4(1:3)", real=True))
by_entries = (sp.eye(3) - beta * K * K.T) * S + beta * K * V.T - (S + beta * K * (V.T - K.T * S))
assert by_entries.expand() == sp.zeros(3, 2), "two-forms"
by_entries.expand()

# %% [markdown]
# The package computes (2.2). In fp64, on a seeded example of 1,000 tokens with gates between 0 and 2, it agrees with
# (2.1) to rounding.

# %%
D, D_V, TOKENS = 16, 4, 1000
ROUNDING = 64 * torch.finfo(torch.float64).eps  # room for a few dozen additions of numbers of size one
random = torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


state, target = draw(TOKENS, D, D_V), draw(TOKENS, D_V)
direction = normalize_direction(draw(TOKENS, D), eps=0.0)
gate = 2 * torch.rand(TOKENS, generator=random, dtype=torch.float64)


def readout(X):
    return torch.einsum("ti,tij->tj", direction, X)


outer = torch.einsum("ti,tj->tij", direction, direction)
shortcut = torch.eye(D, dtype=torch.float64) - gate[:, None, None] * outer
write = gate[:, None, None] * direction[:, :, None] * target[:, None, :]
difference = (shortcut @ state + write - rewrite_reference(state, direction, target, gate)).abs().max()
assert difference < ROUNDING, "two-forms"
print(f"(2.1) and (2.2) differ by less than {ROUNDING:.0e} in all {state.numel():,} numbers")

# %% [markdown]
# With one value channel the state is a vector, the target a number, and (2.2) becomes
#
# $$\mathbf{x}' = \mathbf{x} + \beta\,(v - \mathbf{k}^\top\mathbf{x})\,\mathbf{k} ,$$
#
# the scalar rule of Sec. 3.1. The channels of an expanded state do not interact: with the same direction and gate, each
# of them follows the scalar rule on its own.

# %%
rewritten = rewrite_reference(state, direction, target, gate)
for j in range(D_V):
    x, v = state[..., j], target[:, j]
    scalar_rule = x + (gate * (v - (direction * x).sum(-1)))[:, None] * direction
    alone = rewrite_reference(x[..., None], direction, v[:, None], gate)[..., 0]
    assert (alone - scalar_rule).abs().max() < ROUNDING, "scalar-equation"
    assert (rewritten[..., j] - scalar_rule).abs().max() < ROUNDING, "scalar-equation"
print(f"each of the {D_V} channels follows the scalar rule to within {ROUNDING:.0e}")

# %% [markdown]
# ## A closed gate is the identity
#
# With $\beta = 0$ the correction is multiplied by zero, so $\mathbf{X}' = \mathbf{X}$. The function returns the same
# bits, in every precision that training uses, as long as no number on the way overflows: a readout that overflows is
# infinite, and infinity times zero is not a number. With $|\mathbf{k}| \le 1$, no partial sum of a readout is longer
# than its column $\mathbf{x}_j$ of the state. So $|\mathbf{x}_j| + |v_j|$ below the largest number of the precision is
# enough, about $3 \cdot 10^{38}$ in fp32 and bf16. There is one harmless exception: $-0$ plus a correction of zero is
# $+0$.

# %%
for dtype, bits in ((torch.float64, torch.int64), (torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
    before = state.to(dtype)
    after = rewrite_reference(before, direction.to(dtype), 1e3 * target.to(dtype), torch.zeros(TOKENS, dtype=dtype))
    assert torch.equal(before.view(bits), after.view(bits)), "closed-gate-identity"
    largest = torch.finfo(dtype).max
    huge = (0.8 * largest * (state / torch.linalg.vector_norm(state, dim=1, keepdim=True))).to(dtype)
    far = (0.1 * largest * target.sign()).to(dtype)
    after = rewrite_reference(huge, direction.to(dtype), far, torch.zeros(TOKENS, dtype=dtype))
    assert torch.equal(huge.view(bits), after.view(bits))  # columns of length 0.8, targets of 0.1 of the largest number
    even = torch.full((1, D), D**-0.5, dtype=dtype)
    too_huge = torch.full((1, D, D_V), 0.8 * largest, dtype=dtype)  # columns of length 0.8 sqrt(16) = 3.2 of it
    assert rewrite_reference(too_huge, even, far[:1], torch.zeros(1, dtype=dtype)).isnan().all()
    print(f"{dtype}: all {before.numel():,} numbers have the same bits; NaN if a readout exceeds {largest:.1e}")

minus_zero = torch.full((1, D, D_V), -0.0, dtype=torch.float64)
after = rewrite_reference(minus_zero, direction[:1], target[:1].abs(), torch.zeros(1, dtype=torch.float64))
assert torch.equal(after, minus_zero), "closed-gate-identity"
assert not torch.equal(after.view(torch.int64), minus_zero.view(torch.int64))

# %% [markdown]
# ## A gate of one overwrites
#
# Project (2.2) onto $\mathbf{k}$. This step needs $\mathbf{k}^\top\mathbf{k} = 1$, and it gives the central law of the
# rule: the *discrepancy* between readout and target is multiplied by $1 - \beta$,
#
# $$\mathbf{k}^\top\mathbf{X}' - \mathbf{v}^\top = (1-\beta)\,(\mathbf{k}^\top\mathbf{X} - \mathbf{v}^\top),$$
#
# so at $\beta = 1$ none of it is left:
#
# $$\mathbf{k}^\top\mathbf{X}' = \mathbf{v}^\top. \tag{2.3}$$

# %%
projected = sp.expand(k_row * read_compare_write).subs(k_row * k, 1)
law = (1 - beta) * (k_row * X - v_row)
assert sp.expand(projected - v_row - law) == 0, "discrepancy-law"
assert sp.expand(projected.subs(beta, 1)) == v_row, "overwrite-at-one"
sp.expand(projected)

# %%
overwritten = rewrite_reference(state, direction, target, torch.ones(TOKENS, dtype=torch.float64))
left = (readout(overwritten) - target).abs().max()
rewritten = rewrite_reference(state, direction, target, gate)
off_law = (readout(rewritten) - target - (1 - gate[:, None]) * (readout(state) - target)).abs().max()
assert left < ROUNDING, "overwrite-at-one"
assert off_law < ROUNDING, "discrepancy-law"
print(f"gate 1: largest discrepancy {(readout(state) - target).abs().max():.2f} before, below {ROUNDING:.0e} after")
print(f"gates between 0 and 2: the discrepancy follows the law to within {ROUNDING:.0e}")

# %% [markdown]
# ### The same rewrite, repeated
#
# Repeat a rewrite with the same direction, target and gate, and the factors multiply: after $n$ rewrites the
# discrepancy is $(1-\beta)^n$ times the first one. With a gate below one, the readout approaches the target from one
# side. A gate between one and two is over-relaxed: each rewrite jumps past the target and ends on its other side, as
# far from it as with the gate $2 - \beta$. At the two ends nothing converges: with $\beta = 0$ the readout never moves,
# with $\beta = 2$ it jumps back and forth.

# %% alt="Discrepancy against the number of repetitions, signed and in absolute value, for seven gates" tags=["fold"]
GATES = {0.0: "C7", 0.25: "#56B4E9", 0.5: "#0072B2", 1.0: "#000000", 1.5: "#D55E00", 1.75: "#E69F00", 2.0: "#CC79A7"}
REPEATS = 12
times = np.arange(REPEATS + 1)
figure, axes = plt.subplots(1, 2, figsize=(6.7, 2.7), layout="constrained")
for value, colour in GATES.items():
    now, remaining = state, []
    for _ in times:
        # One number for 1,000 tokens: the least-squares factor between the discrepancy now and at the start.
        first, current = readout(state) - target, readout(now) - target
        remaining.append(float((current * first).sum() / first.square().sum()))
        now = rewrite_reference(now, direction, target, torch.full((TOKENS,), value, dtype=torch.float64))
    assert np.allclose(remaining, (1 - value) ** times, rtol=0, atol=1e-13), "discrepancy-law"
    style = {"color": colour, "marker": "o" if value <= 1 else "s", "label": f"β = {value:g}"}
    axes[0].plot(times, remaining, **style)
    if value != 1.0:
        axes[1].plot(times, np.abs(remaining), **style)
axes[0].set(xlabel="repetitions", ylabel="discrepancy / first discrepancy", title="with its sign")
axes[1].set(xlabel="repetitions", yscale="log", ylim=(1e-4, 2), title="absolute value (β = 1: zero at once)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
plt.show()

# %% [markdown] tags=["caption"]
# Every point is within $10^{-13}$ of $(1-\beta)^n$, asserted for each curve. On the right the curves of 0.25 and 1.75
# coincide, and so do those of 0.5 and 1.5.

# %% [markdown]
# The size of the discrepancy does not distinguish an under-relaxed gate from an over-relaxed one; only its sign does.

# %% [markdown]
# ## Everything orthogonal to the direction stays the same
#
# > Multiplying this error by $\mathbf{k}_l$ writes the correction back only into $\mathrm{span}\{\mathbf{k}_l\}$,
# > leaving the orthogonal subspace on the direct shortcut path unchanged. (Sec. 2.1)
#
# For $\mathbf{u}^\top\mathbf{k} = 0$, (2.2) gives $\mathbf{u}^\top\mathbf{X}' = \mathbf{u}^\top\mathbf{X}$. The change
# is therefore an outer product, $\mathbf{X}' - \mathbf{X} = \mathbf{k}\boldsymbol{\delta}^\top$ with
# $\boldsymbol{\delta} = \beta(\mathbf{v} - \mathbf{X}^\top\mathbf{k})$. A state has $d\,d_v$ numbers; a rewrite changes
# it in only $d_v$ degrees of freedom.

# %%
u_row = Symbol("u^T", commutative=False)
assert sp.expand(u_row * read_compare_write).subs(u_row * k, 0) == u_row * X, "complement-unchanged"

change = rewritten - state
complement = torch.eye(D, dtype=torch.float64) - outer
touched = (complement @ change).abs().max()
ranks = torch.linalg.matrix_rank(change, rtol=1e-12)
assert touched < ROUNDING, "complement-unchanged"
assert (ranks == 1).all(), "complement-unchanged"
print(f"change orthogonal to k: below {ROUNDING:.0e}; rank of every change: {int(ranks.max())}, possible: {D_V}")

# %% [markdown]
# ## At the end of the range: a reflection
#
# As $\beta \to 2$ the shortcut becomes $\mathbf{I} - 2\mathbf{k}\mathbf{k}^\top$, a Householder reflector. It preserves
# lengths and is its own inverse. With a target, the whole rewrite reflects the state in the plane on which the readout
# equals the target, $\mathbf{k}^\top\mathbf{X} = \mathbf{v}^\top$: the discrepancy changes sign, and rewriting twice
# with the same three quantities restores the state.

# %%
two = torch.full((TOKENS,), 2.0, dtype=torch.float64)
mirrored = rewrite_reference(state, direction, torch.zeros_like(target), two)
twice = rewrite_reference(rewrite_reference(state, direction, target, two), direction, target, two)
stretch = (torch.linalg.matrix_norm(mirrored) / torch.linalg.matrix_norm(state) - 1).abs().max()
assert stretch < ROUNDING, "reflection-at-two"
assert (twice - state).abs().max() < ROUNDING, "reflection-at-two"
assert (mirrored - state).abs().max() > 1, "reflection-at-two"  # it is not the identity
print(f"the shortcut moves a number by up to {(mirrored - state).abs().max():.1f} and keeps lengths to {ROUNDING:.0e}")
print(f"the whole rewrite, applied twice, restores the state to {ROUNDING:.0e}")

# %% [markdown]
# In two dimensions and with one value channel, all of this fits in one picture. As the gate opens, the state moves
# along a line parallel to $\mathbf{k}$ and never sideways; at $\beta = 1$ its readout is $v$.

# %% alt="A state in the plane moves parallel to the direction k as the gate opens from 0 to 2" tags=["fold"]
angle, point, wanted = np.deg2rad(25), torch.tensor([[0.55], [1.25]], dtype=torch.float64), 2.1
along = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)
across = torch.tensor([-np.sin(angle), np.cos(angle)], dtype=torch.float64)
opened = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
goal = torch.tensor([wanted], dtype=torch.float64)
moved = torch.stack([rewrite_reference(point, along, goal, b) for b in opened])[..., 0]
assert torch.allclose(moved @ across, (across @ point).expand(5), rtol=0, atol=1e-14)
assert abs(float(moved[2] @ along) - wanted) < 1e-14

figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
line = np.array([-0.4, 4.0])[:, None] * along.numpy()
axis.plot(*line.T, color="C7", lw=0.8)
axis.annotate("", xy=tuple(along), xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.5})
axis.text(*(along.numpy() * 0.6 + [0.05, -0.16]), "$k$", fontsize=11)
plane = wanted * along.numpy() + np.array([-0.6, 1.75])[:, None] * across.numpy()
axis.plot(*plane.T, color="#0072B2", ls="--", lw=1)
axis.text(*(plane[1] + [0.06, -0.05]), "$k^{\\mathrm{T}} x = v$", color="#0072B2", fontsize=10)
axis.plot(*moved.numpy().T, color="#D55E00", lw=1)
for b, place in zip(opened, moved.numpy(), strict=True):
    foot = float(along @ torch.from_numpy(place)) * along.numpy()
    axis.plot(*np.stack([place, foot]).T, color="C7", lw=0.6, ls=":")
    axis.plot(*place, "o", color="#D55E00", ms=6)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axis.text(place[0] - 0.05, place[1] + 0.12, f"β = {float(b):g}", ha="right", fontsize=9, bbox=box)
axis.set(aspect="equal", xlim=(-0.55, 3.9), ylim=(-0.35, 2.9), xlabel="$x_1$", ylabel="$x_2$")
plt.show()

# %% [markdown] tags=["caption"]
# Dotted lines project each state onto the direction. Their feet are the readouts, evenly spaced in $\beta$. All five
# states have the same distance from the direction, asserted to $10^{-14}$.

# %% [markdown]
# ## Why one gate and not two
#
# > Using separate erase and write gates would be more general, but it would permit erase-without-write or
# > write-without-erase behavior and would lose this clean read-compare-write interpretation. (Sec. 2.1)
#
# Suppose that erasing has a gate $a$ and writing another gate $b$,
# $\mathbf{X}' = (\mathbf{I} - a\,\mathbf{k}\mathbf{k}^\top)\mathbf{X} + b\,\mathbf{k}\mathbf{v}^\top$. The discrepancy
# then obeys
#
# $$\mathbf{k}^\top\mathbf{X}' - \mathbf{v}^\top
# = (1-a)\,(\mathbf{k}^\top\mathbf{X} - \mathbf{v}^\top) + (b-a)\,\mathbf{v}^\top .$$
#
# The last term does not depend on how wrong the readout was. A state that already matches its target is left alone only
# if $a = b$ (or $\mathbf{v} = 0$). When the rewrite is repeated, the readout tends to $\tfrac{b}{a}\mathbf{v}$, not to
# $\mathbf{v}$.

# %%
a, b = sp.symbols("a b", real=True)
separate = sp.expand(k_row * ((1 - a * k * k_row) * X + b * k * v_row)).subs(k_row * k, 1)
assert sp.expand(separate - v_row - ((1 - a) * (k_row * X - v_row) + (b - a) * v_row)) == 0, "separate-gates"
r, v = sp.symbols("r v", real=True)
sp.Eq(Symbol("r^*"), sp.solve(sp.Eq(r, (1 - a) * r + b * v), r)[0])

# %%
at_target = rewrite_reference(state, direction, target, torch.ones(TOKENS, dtype=torch.float64))


def rewrite_with_two_gates(X, erase, write):
    return X - erase * direction[:, :, None] * readout(X)[:, None] + write * direction[:, :, None] * target[:, None]


rows = ["| erase $a$ | write $b$ | readout / target after 1 | after 40 | |", "|---|---|---|---|---|"]
for erase, write, kind in (
    (0.5, 0.5, "shared gate"),
    (0.5, 0, "erase only"),
    (0, 0.5, "write only"),
    (0.5, 0.75, "both"),
):
    now, ratio = at_target, {}
    for n in range(1, 41):
        now = rewrite_with_two_gates(now, erase, write)
        ratio[n] = float((readout(now) * target).sum() / target.square().sum())
    limit = write / erase if erase else 1 + 40 * write
    assert abs(ratio[1] - (1 - erase + write)) < 1e-13, "separate-gates"
    assert abs(ratio[40] - limit) < 1e-10, "separate-gates"
    rows.append(f"| {erase} | {write} | {ratio[1]:.3f} | {ratio[40]:.3f} | {kind} |")
Markdown("\n".join(rows))

# %% [markdown]
# All four rows start at the target. Only the shared gate stays there. Erasing alone forgets the target; writing alone
# adds without bound, as an ordinary residual connection does; and two different gates settle at the wrong multiple of
# it.

# %% [markdown]
# ## The guard for small directions
#
# The rule needs $|\mathbf{k}| = 1$, but a proposal $\tilde{\mathbf{k}}$ may be tiny. The paper therefore guards the
# division (Sec. 3.1):
#
# $$\mathbf{k} = \frac{\tilde{\mathbf{k}}}{\sqrt{|\tilde{\mathbf{k}}|^2 + \varepsilon_k^2}}, \qquad |\mathbf{k}| < 1 .$$
#
# The paper gives no number for $\varepsilon_k$; this package uses $10^{-5}$. A proposal of about that length gives a
# direction shorter than one, and the law above changes: with $|\mathbf{k}| = s$, the readout along the unit vector
# contracts by $1 - \beta s^2$ instead of $1 - \beta$, towards $\mathbf{v} / s$.

# %%
source(normalize_direction)

# %%
EPS = 1e-5
proposal = draw(D)
proposal = proposal / proposal.norm()
lengths = torch.logspace(-8, 0, 81, dtype=torch.float64)
guarded = normalize_direction(lengths[:, None] * proposal, EPS)
formula = lengths / (lengths.square() + EPS**2).sqrt()
as_rms_norm = torch.nn.functional.rms_norm(lengths[:, None] * proposal, (D,), eps=EPS**2 / D) / D**0.5
assert torch.allclose(guarded.norm(dim=-1), formula, rtol=1e-14, atol=0), "guarded-direction"
# This is the form that Sec. 3.1 gives for low precision.
assert torch.allclose(guarded, as_rms_norm, rtol=1e-13, atol=0), "guarded-direction"
# There is no 0 / 0: the rewrite is closed.
assert torch.equal(normalize_direction(torch.zeros(D), EPS), torch.zeros(D)), "guarded-direction"

halves = rewrite_reference(
    state[0].expand(81, D, D_V), guarded, torch.zeros(81, D_V).double(), torch.ones(81, dtype=torch.float64)
)
kept = (proposal @ halves)[:, 0] / (proposal @ state[0])[0]
assert torch.allclose(kept, 1 - guarded.norm(dim=-1) ** 2, rtol=0, atol=1e-13), "overwrite-at-one"
assert (1 - guarded.norm(dim=-1)[lengths > 100.1 * EPS] < 5e-5).all()
assert abs(float(kept[30]) - 0.5) < 1e-12 > abs(float(lengths[30]) / EPS - 1)  # the length eps_k itself
at_limit = proposal[:, None] * target[0] / guarded.norm(dim=-1)[:, None, None]  # the readout is v / s
stays = rewrite_reference(at_limit, guarded, target[0].expand(81, D_V), torch.ones(81, dtype=torch.float64))
assert torch.allclose(stays, at_limit, rtol=1e-13, atol=0)
for factor in (1e-2, 1e2):  # without a guard the length of a proposal has no effect: a gate means the same everywhere
    rescaled = normalize_direction(factor * proposal, eps=0.0)
    assert torch.allclose(rescaled, proposal, rtol=0, atol=1e-15), "unit-direction"
print(f"1 - |k| at 10, 100, 1000 eps_k: {', '.join(f'{1 - n / (n * n + 1) ** 0.5:.1e}' for n in (10, 100, 1000))}")

# %% alt="Length of the direction, and old readout left by an overwrite, against the proposal's length" tags=["fold"]
figure, axis = plt.subplots(figsize=(5.2, 2.6), layout="constrained")
axis.semilogx(lengths, guarded.norm(dim=-1), color="#0072B2", label="$|k|$")
axis.semilogx(lengths, kept, color="#D55E00", ls="--", label="old readout left at $\\beta = 1$, $1 - |k|^2$")
axis.axvline(EPS, color="C7", ls=":", lw=1)
axis.text(EPS * 1.2, 0.03, "$\\epsilon_k$", color="C7")
axis.set(xlabel="$|\\tilde{k}|$", ylim=(-0.03, 1.05))
axis.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown] tags=["caption"]
# Above $100\,\varepsilon_k$ the length of the direction is one to within $5\cdot10^{-5}$, and the claims of this page
# hold as stated. At $\varepsilon_k$ an overwrite replaces only half of the readout.

# %% [markdown]
# A vanishing proposal closes the rewrite instead of dividing by zero. The other examples of this page use
# $\varepsilon_k = 0$, which switches the guard off.

# %% [markdown]
# ## The same rule over time
#
# Notebook 06 examines this in detail; here is the core of it. Appendix B points out that DeltaNet applies this rule
# along the sequence: with a memory $\mathbf{M}_t = \mathbf{S}_t^\top$,
#
# $$\mathbf{S}_t = (\mathbf{I} - \beta_t\mathbf{k}_t\mathbf{k}_t^\top)\,\mathbf{S}_{t-1}
# + \beta_t\mathbf{k}_t\mathbf{v}_t^\top \tag{B.1}$$
#
# is $\mathbf{M}_t = \mathbf{M}_{t-1} + \beta_t(\mathbf{v}_t - \mathbf{M}_{t-1}\mathbf{k}_t)\mathbf{k}_t^\top$. The
# package's rewrite, run over the tokens of the example as if they were time steps, reproduces that recurrence.

# %%
over_depth = torch.zeros(D, D_V, dtype=torch.float64)
over_time = torch.zeros(D_V, D, dtype=torch.float64)
for t in range(TOKENS):
    over_depth = rewrite_reference(over_depth, direction[t], target[t], gate[t])
    over_time = over_time + gate[t] * torch.outer(target[t] - over_time @ direction[t], direction[t])
gap = (over_depth - over_time.T).abs().max()
assert gap < 1e-11, "deltanet-over-depth"
print(f"after {TOKENS} steps, states of size {over_depth.abs().max():.1f} differ by less than 1e-11")

# %% [markdown]
# ## What was shown and what was not
#
# **Shown,** in symbols for every size and in fp64 on seeded examples: (2.1) and (2.2) are one rule; a closed gate
# returns the state bit for bit unless the readout overflows (only $-0$ may become $+0$); a gate of one overwrites the
# readout with the target; in general the discrepancy is multiplied by $1 - \beta$, which is negative for gates above
# one, and only the component along $\mathbf{k}$ moves; at two the shortcut is a reflection; with separate gates the
# target is no longer a fixed point; the small-norm guard weakens these statements only for proposals near
# $\varepsilon_k$.
#
# **Not shown:** that a network benefits from any of this. Here direction, target and gate were given; in the model they
# are learned and depend on the state. Nothing here tells which gates training chooses, or what happens in bf16 over
# many layers.
