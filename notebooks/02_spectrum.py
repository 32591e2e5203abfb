# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What does the gate do to the shortcut's spectrum?
#
# **Question.** Notebook 01 looked at one rewrite of one state. Freeze its direction and gate. The old state then passes
# through the matrix $\mathbf{A} = \mathbf{I} - \beta\mathbf{k}\mathbf{k}^\top$. Which eigenvalues, determinant and
# singular values does it have, when does it preserve lengths, and how much of this carries over to the layer as a
# whole?
#
# **Answer.** **One eigenvalue is $1 - \beta$, all others are 1. Lengths are preserved only by the gates 0 and 2. The
# layer as a whole can stretch, because its direction, target and gate depend on the state.**
#
# > It is not a claim about the full Jacobian of the nonlinear DDL block. (Sec. 2.3)

# %% tags=["parameters"]
results = "results/laptop"  # every notebook has this parameter; derivations do not use it
seed = 0

# %%
import copy
import math

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import Markdown
from scipy import stats
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddl.config import ModelConfig, from_mapping, load_variants
from ddl.model.language_model import Block, LanguageModel
from ddl.ops.rewrite import normalize_direction, rewrite_reference
from ddl.reporting.notebook_style import set_style, source

set_style()
torch.set_num_threads(1)
random = torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def shortcut(k, beta):
    """The matrix A by which the package's rewrite multiplies a state: its result for the identity, with target 0."""
    d = k.shape[-1]
    return rewrite_reference(
        torch.eye(d, dtype=k.dtype), k, torch.zeros(d, dtype=k.dtype), torch.as_tensor(beta, dtype=k.dtype)
    )


k_example = normalize_direction(draw(3), eps=0.0)
torch.testing.assert_close(shortcut(k_example, 0.5), torch.eye(3).double() - 0.5 * torch.outer(k_example, k_example))
print(shortcut(k_example, 0.5))

# %% [markdown]
# ## Proposition 2.1, for every width at once
#
# > If $\beta \neq 0$, the eigenvalues of $\mathbf{A}$ are 1 with multiplicity $d - 1$ and $1 - \beta$ with
# > multiplicity 1.
#
# The argument needs only $\mathbf{k}^\top\mathbf{k} = 1$, so it can be made with symbols that have no entries. First
# the two eigenspaces: a vector $\mathbf{u}$ orthogonal to $\mathbf{k}$ stays the same, and $\mathbf{k}$ itself is
# scaled,
#
# $$\mathbf{A}\mathbf{u} = \mathbf{u} \quad (\mathbf{k}^\top\mathbf{u} = 0), \qquad
# \mathbf{A}\mathbf{k} = (1-\beta)\,\mathbf{k}.$$

# %%
beta = sp.Symbol("beta", real=True)
k, k_row, u = sp.symbols("k k^T u", commutative=False)


def using(expression, *rules):
    """Expand a product of symbols and substitute rules such as k^T k = 1 until nothing changes."""
    expression = sp.expand(expression)
    while (simpler := sp.expand(expression.subs(rules))) != expression:
        expression = simpler
    return expression


A = 1 - beta * k * k_row
assert using(A * u, (k_row * u, 0)) == u, "frozen-eigenvalues"
assert sp.expand(using(A * k, (k_row * k, 1)) - (1 - beta) * k) == 0, "frozen-eigenvalues"
sp.factor(using(A * k, (k_row * k, 1)))

# %% [markdown]
# There are no other eigenvalues: $\mathbf{A}$ is a root of the polynomial $(\lambda - 1)(\lambda - 1 + \beta)$. Because
# $\mathbf{A}$ is symmetric, it has a full set of eigenvectors. Its trace
# $d - \beta\,\mathbf{k}^\top\mathbf{k} = d - \beta$ then tells how often each eigenvalue occurs.

# %%
assert using((A - 1) * (A - (1 - beta)), (k_row * k, 1)) == 0, "frozen-eigenvalues"
d, ones, others = sp.symbols("d m_1 m_2", positive=True)
multiplicities = sp.solve([ones + others - d, ones + (1 - beta) * others - (d - beta)], [ones, others])
assert multiplicities == {ones: d - 1, others: 1}, "frozen-eigenvalues"
Markdown(f"$$m_1 = {sp.latex(multiplicities[ones])}, \\qquad m_2 = {sp.latex(multiplicities[others])}$$")

# %% [markdown]
# (That last step divides by $\beta$, which is why the proposition requires $\beta \neq 0$; at $\beta = 0$,
# $\mathbf{A} = \mathbf{I}$.) The determinant is the product of the eigenvalues, $\det(\mathbf{A}) = 1 - \beta$.
#
# ### With entries, for widths 2, 3 and 4
#
# This check uses none of the above. Write $\mathbf{k} = \mathbf{w} / |\mathbf{w}|$ with free entries $w_1, \dots, w_d$,
# and let sympy compute the characteristic polynomial, the determinant and the eigenvectors of the explicit matrix.

# %%
lam = sp.Symbol("lambda")
rows = [
    "| $d$ | characteristic polynomial | determinant | eigenvectors for 1 | for $1 - \\beta$ |",
    "|---|---|---|---|---|",
]
for width in (2, 3, 4):
    w = sp.Matrix(sp.symbols(f"w1:{width + 1}", positive=True))
    matrix = sp.eye(width) - beta * w * w.T / (w.T * w)[0]
    polynomial = sp.factor(matrix.charpoly(lam).as_expr())
    determinant = sp.simplify(matrix.det())
    kept = (matrix - sp.eye(width)).nullspace()
    scaled = (matrix - (1 - beta) * sp.eye(width)).applyfunc(sp.simplify).nullspace(simplify=True)
    assert sp.expand(polynomial - (lam - 1) ** (width - 1) * (lam - 1 + beta)) == 0, "frozen-eigenvalues"
    assert sp.simplify(determinant - (1 - beta)) == 0
    assert len(kept) == width - 1, "frozen-eigenvalues"
    assert all(sp.simplify((w.T * vector)[0]) == 0 for vector in kept), "frozen-eigenvalues"
    assert len(scaled) == 1, "frozen-eigenvalues"
    # It is parallel to w.
    assert sp.simplify(scaled[0] * w[-1] - w * scaled[0][-1]) == sp.zeros(width, 1), "frozen-eigenvalues"
    rows.append(
        f"| {width} | ${sp.latex(polynomial)}$ | ${sp.latex(determinant)}$ "
        f"| {len(kept)}, orthogonal to $\\mathbf{{k}}$ | 1, parallel to $\\mathbf{{k}}$ |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# ### Two footnotes to the proposition
#
# At $d = 1$ only zero is orthogonal to $\mathbf{k}$: the *multiplicity $d - 1$* is zero, and 1 is not an eigenvalue.
# And the guard of Sec. 3.1 makes $|\mathbf{k}| = s < 1$; the eigenvalue along $\mathbf{k}$ is then $1 - \beta s^2$,
# which is closer to one than the proposition says.

# %%
s = sp.Symbol("s", positive=True)
assert sp.expand(using(A * k, (k_row * k, s**2)) - (1 - beta * s**2) * k) == 0, "frozen-eigenvalues"
# With d = 1 the only eigenvalue is 1 - beta.
assert shortcut(torch.ones(1, dtype=torch.float64), 0.5).tolist() == [[0.5]], "frozen-eigenvalues"

EPS_K = 1e-5
rows = ["| $\\lvert\\tilde{\\mathbf{k}}\\rvert / \\varepsilon_k$ | smallest eigenvalue at $\\beta = 1$ |", "|---|---|"]
for ratio in (1.0, 10.0, 1000.0):
    guarded = normalize_direction(ratio * EPS_K * k_example, EPS_K)
    smallest = torch.linalg.eigvalsh(shortcut(guarded, 1.0))[0]
    assert torch.allclose(smallest, 1 - guarded.square().sum(), rtol=0, atol=1e-14), "frozen-eigenvalues"
    rows.append(f"| {ratio:g} | {float(smallest):.1e} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## Singular values and conditioning
#
# $\mathbf{A}$ is symmetric, so its singular values are the absolute values of its eigenvalues: $1$ and $|1 - \beta|$.
# For a gate in $[0, 2]$ no direction is stretched, and the condition number is
#
# $$\kappa(\mathbf{A}) = \frac{1}{|1 - \beta|} .$$
#
# It is 1 at both ends and infinite at $\beta = 1$: an exact overwrite erases the old readout, and no later layer can
# recover it from the state. The squared singular values are the roots of the characteristic polynomial of
# $\mathbf{A}^\top\mathbf{A}$. With free entries, for widths 2 and 3:

# %%
for width in (2, 3):
    w = sp.Matrix(sp.symbols(f"w1:{width + 1}", positive=True))
    matrix = sp.eye(width) - beta * w * w.T / (w.T * w)[0]
    squared = sp.factor((matrix.T * matrix).applyfunc(sp.factor).charpoly(lam).as_expr())
    assert sp.expand(squared - (lam - 1) ** (width - 1) * (lam - (1 - beta) ** 2)) == 0, "bounded-spectrum"
squared

# %% [markdown]
# One root is $(1 - \beta)^2$; all others are 1. Computed from the matrices themselves, over the whole range of gates:

# %% alt="Eigenvalue, singular value and condition number of the shortcut against the gate" tags=["fold"]
WIDTH = 16
k_wide = normalize_direction(draw(WIDTH), eps=0.0)
grid = torch.linspace(0, 2, 201, dtype=torch.float64)
matrices = torch.stack([shortcut(k_wide, b) for b in grid])
singular = torch.linalg.svdvals(matrices)
eigen = torch.linalg.eigvalsh(matrices)
expected = torch.ones_like(eigen)
expected[:, 0] = 1 - grid  # ascending order: for a gate in [0, 2], 1 - beta is the smallest
assert torch.allclose(eigen, expected, rtol=0, atol=1e-14), "frozen-eigenvalues"
assert torch.allclose(singular[:, -1], (1 - grid).abs(), rtol=0, atol=1e-14), "bounded-spectrum"
assert torch.allclose(torch.linalg.det(matrices), 1 - grid, rtol=0, atol=1e-14)
away = (grid - 1).abs() > 1e-9
condition = singular[:, 0] / singular[:, -1]
assert torch.allclose(condition[away], 1 / (1 - grid[away]).abs(), rtol=1e-10)

figure, axes = plt.subplots(1, 2, figsize=(6.7, 2.6), layout="constrained")
axes[0].plot(grid, eigen[:, 0], color="#0072B2", label="eigenvalue $1 - \\beta$")
axes[0].plot(grid, singular[:, -1], color="#D55E00", ls="--", label="singular value $|1 - \\beta|$")
axes[0].axhline(1, color="black", lw=1, label=f"the other {WIDTH - 1}")
axes[0].set(xlabel="gate β", ylim=(-1.15, 1.15))
axes[0].legend(frameon=False, loc="lower left")
axes[1].semilogy(grid[away], condition[away], color="black")
axes[1].set(xlabel="gate β", ylabel="condition number", ylim=(0.8, 200), xlim=(0, 2))
plt.show()

# %% [markdown] tags=["caption"]
# The curves are computed from the matrices ($d = 16$, 201 gates) and asserted to be equal to the formulas. The largest
# condition number in the plot, 100, belongs to $\beta = 1 \pm 0.01$.

# %% [markdown]
# **Training starts around $\beta = 1$, but not exactly there.** By default the bias of a gate's logit starts at zero
# (`gate_init = 1` in `ddl/config.py`; the paper does not give its $\beta_0$). The rest of the logit,
# $\mathbf{w}^\top\mathbf{c}$, does not: the entries of $\mathbf{w}$ start with variance $0.25 / d$, and RMSNorm makes
# $|\mathbf{c}|^2 = d$. So the logit is a normal variable with standard deviation 0.5 at any width, and the initial gate
# is $2\sigma$ of it. The next cell compares this with the gates of initial models.

# %%
normal = stats.norm(scale=0.5)
z = torch.from_numpy(normal.ppf((np.arange(100_000) + 0.5) / 100_000))
in_theory = 2 * torch.sigmoid(z)
small_shape = {"vocab_size": 64, "sequence_length": 16, "layers": 8, "width": 32, "heads": 2, "kernels": "reference"}
small_config = from_mapping(ModelConfig, small_shape | load_variants()["ddl-cc"].model, "02_spectrum")
initial_gates = []
for n in range(32):
    model, of_model = LanguageModel(small_config, seed + 1000 * n), []
    for rule in model.rules():
        rule.gate.register_forward_hook(lambda _, inputs, gates, into=of_model: into.append(gates))
    with torch.no_grad():
        model(torch.randint(64, (4, 16), generator=random))
    initial_gates.append(torch.stack(of_model).double().flatten())
initial_gates = torch.stack(initial_gates)  # one row per model


def describe(gates):
    """Mean, standard deviation and share within 0.05 of one, over the last dimension."""
    return torch.stack([gates.mean(-1), gates.std(-1), ((gates - 1).abs() < 0.05).double().mean(-1)])


of_models, error = describe(initial_gates), describe(initial_gates).std(-1) / len(initial_gates) ** 0.5
expected = describe(in_theory)
assert ((of_models.mean(-1) - expected).abs() < 5 * error).all(), "initial-gate"
assert (error < 0.02).all()
assert abs(float(expected[1]) - 0.24) < 0.005 > abs(float(expected[2]) - 0.16)
rows = ["| initial gates | mean | standard deviation | within 0.05 of one |", "|---|---|---|---|"]
rows.append(f"| $2\\sigma(N(0, 0.5^2))$ | {expected[0]:.2f} | {expected[1]:.2f} | {100 * expected[2]:.0f} % |")
half = stats.t.ppf(0.975, len(initial_gates) - 1) * error
mean, deviation, share = of_models.mean(-1)
rows.append(
    f"| {len(initial_gates)} models, 95 % t-intervals | {mean:.2f} ± {half[0]:.2f} | {deviation:.2f} ± {half[1]:.2f} "
    f"| {100 * share:.0f} ± {100 * half[2]:.0f} % |"
)
Markdown("\n".join(rows))

# %% [markdown]
# The standard deviation of the gates is 0.24, and only 16 % of them start within 0.05 of an exact overwrite.

# %% [markdown]
# ## Value channels: the same matrix on every column
#
# > Under vectorization, the induced shortcut is $\mathbf{I}_{d_v} \otimes \mathbf{A}$. (Sec. 2.3)
#
# This holds for the vector that stacks the *columns* of $\mathbf{X}$. PyTorch stores a $(d, d_v)$ state row by row; in
# that order the same map is $\mathbf{A} \otimes \mathbf{I}_{d_v}$. Either way each eigenvalue and each singular value
# occurs $d_v$ times as often, and the determinant is $(1-\beta)^{d_v}$.

# %%
a11, a12, a21, a22 = sp.symbols("a11 a12 a21 a22")
small = sp.Matrix([[a11, a12], [a21, a22]])
S = sp.Matrix(2, 3, sp.symbols("x1:3(1:4)"))
# Sympy's vec stacks columns
assert (small * S).vec() == sp.kronecker_product(sp.eye(3), small) * S.vec(), "vectorised-shortcut"

state, gate, channels = draw(WIDTH, 4), 0.7, 4
matrix = shortcut(k_wide, gate)
nothing = torch.zeros(channels, dtype=torch.float64)
rewritten = rewrite_reference(state, k_wide, nothing, torch.tensor(gate, dtype=torch.float64))
by_columns = torch.kron(torch.eye(channels, dtype=torch.float64), matrix)
by_rows = torch.kron(matrix, torch.eye(channels, dtype=torch.float64))
assert torch.allclose(by_columns @ state.T.reshape(-1), rewritten.T.reshape(-1), rtol=0, atol=1e-14), (
    "vectorised-shortcut"
)
assert torch.allclose(by_rows @ state.reshape(-1), rewritten.reshape(-1), rtol=0, atol=1e-14), "vectorised-shortcut"
assert not torch.allclose(by_columns @ state.reshape(-1), rewritten.reshape(-1), rtol=0, atol=1e-3), (
    "vectorised-shortcut"
)
values, counts = torch.linalg.eigvalsh(by_columns).round(decimals=12).unique(return_counts=True)
assert counts.tolist() == [channels, channels * (WIDTH - 1)]
singular_values = torch.linalg.svdvals(by_columns)
assert torch.allclose(
    singular_values[-channels:], torch.full((channels,), 1 - gate, dtype=torch.float64), rtol=0, atol=1e-14
)
assert torch.allclose(singular_values[:-channels], torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-14)
assert abs(torch.linalg.det(by_columns) - (1 - gate) ** channels) < 1e-14
print({round(float(value), 12): int(count) for value, count in zip(values, counts, strict=True)})

# %% [markdown]
# The dictionary maps each eigenvalue to its multiplicity, for $d = 16$ and $d_v = 4$. The order matters: the column
# form is wrong for a state stacked by rows, which is asserted too.

# %% [markdown]
# ## When lengths are preserved
#
# $$\mathbf{A}^\top\mathbf{A} = \mathbf{I} - \beta\,(2 - \beta)\,\mathbf{k}\mathbf{k}^\top ,$$
#
# so the shortcut is orthogonal for $\beta = 0$ and $\beta = 2$ and for no other gate. Products of orthogonal matrices
# are orthogonal: at $\beta = 2$ any number of layers, with any directions, multiply to a product of Householder
# reflections, which neither shrinks nor stretches. For gates between the ends, every layer shrinks one direction.

# %%
gram = using(A * A, (k_row * k, 1))  # A is symmetric
assert sp.expand(gram - (1 - beta * (2 - beta) * k * k_row)) == 0, "reflection-at-two"
assert sp.solveset(beta * (2 - beta), beta, sp.S.Reals) == sp.FiniteSet(0, 2), "reflection-at-two"

LAYERS = (1, 4, 24, 96)
directions = normalize_direction(draw(max(LAYERS), WIDTH), eps=0.0)
rows = ["| gate | " + " | ".join(f"depth {n}" for n in LAYERS) + " |", "|---" * (len(LAYERS) + 1) + "|"]
for b in (0.0, 0.1, 0.5, 1.0, 1.5, 1.9, 2.0):
    product, cells = torch.eye(WIDTH, dtype=torch.float64), []
    for n, direction in enumerate(directions, 1):
        product = shortcut(direction, b) @ product
        if n in LAYERS:
            largest, smallest = torch.linalg.svdvals(product)[[0, -1]]
            assert largest < 1 + 1e-12, "bounded-spectrum"  # never stretches
            orthogonal = torch.allclose(product.T @ product, torch.eye(WIDTH).double(), rtol=0, atol=1e-12)
            assert orthogonal == (b in (0.0, 2.0)), "no-global-orthogonality"
            shown = "0" if smallest < 1e-12 else f"{float(smallest):.4f}"  # smaller values are rounding
            cells.append("1 / 1" if orthogonal else f"{float(largest):.3f} / {shown}")
    rows.append(f"| {b:g} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# The table shows the largest / smallest singular value of a product of shortcuts with random directions ($d = 16$). The
# product is orthogonal at every depth for the two end gates only. In between, the *old* content fades in more and more
# directions. That is not a defect: the written term replaces it, and this table ignores what is written.

# %% [markdown]
# ## A product over depth
#
# What does a whole stack of frozen shortcuts, $\mathbf{P}_n = \mathbf{A}_n \cdots \mathbf{A}_1$, do to the state that
# enters it? Four facts hold for any directions:
#
# - no singular value exceeds one, since no factor stretches;
# - $\det \mathbf{P}_n = \prod_l (1 - \beta_l)$;
# - whatever is orthogonal to all $n$ directions passes unchanged, so at least $d - n$ singular values *and* eigenvalues
#   are exactly one. The paper's small model rewrites 24 times at $d = 768$: at least 744 dimensions of the old state
#   reach the end of the frozen stack unchanged, whatever the gates;
# - $\mathbf{P}_n$ is orthogonal if and only if every gate is 0 or 2: a gate in between contracts its direction, and no
#   other factor can stretch it again.
#
# If the directions are also orthogonal to each other, the factors do not interact: the singular values are
# $|1 - \beta_l|$ and ones. In general there is no formula, so histograms of random stacks follow, with $d = 64$ and 16
# stacks for each depth and gate.

# %%
WIDE, DEPTHS, STACKS = 64, (8, 32, 128), 16
NAMES = {
    "each 0 or 2": lambda n: 2 * torch.randint(2, (n,), generator=random).double(),
    "nearly closed": lambda n: 2 * torch.sigmoid(draw(n) - 3),
    "uniform in (0, 2)": lambda n: 2 * torch.rand(n, generator=random, dtype=torch.float64),
    "each 1": lambda n: torch.ones(n, dtype=torch.float64),
}
identity = torch.eye(WIDE, dtype=torch.float64)
nearly_closed = 2 * torch.sigmoid(torch.from_numpy(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)) - 3)
mean_shrinkage = dict(zip(NAMES, (0, float((nearly_closed * (2 - nearly_closed)).mean()), 2 / 3, 1), strict=True))
spectra, kept = {}, {}
for name, gates_of in NAMES.items():
    product, gates = identity.expand(STACKS, WIDE, WIDE), []
    for n in range(1, max(DEPTHS) + 1):
        gates.append(gates_of(STACKS))
        k_n = normalize_direction(draw(STACKS, WIDE), eps=0.0)
        product = rewrite_reference(product, k_n, torch.zeros(STACKS, WIDE).double(), gates[-1])
        if n in DEPTHS:
            singular, moduli = torch.linalg.svdvals(product), torch.linalg.eigvals(product).abs()
            assert singular.max() < 1 + 1e-12, "bounded-spectrum"
            assert moduli.max() < 1 + 1e-12
            assert ((singular > 1 - 1e-12).sum(1) >= WIDE - n).all()
            assert torch.allclose(torch.linalg.det(product), (1 - torch.stack(gates)).prod(0), rtol=1e-8, atol=1e-14)
            orthogonal = torch.allclose(product.mT @ product, identity, rtol=0, atol=1e-12)
            assert orthogonal == (name == "each 0 or 2"), "no-global-orthogonality"
            spectra[name, n] = singular.flatten(), moduli.flatten()
            kept[name, n] = float(singular.square().mean())
            expected = (1 - mean_shrinkage[name] / WIDE) ** n
            assert abs(kept[name, n] / expected - 1) < 0.15

mutual = torch.linalg.qr(draw(WIDE, WIDE)).Q[:8]  # eight mutually orthogonal directions
gates, product = gates_of(8) * 0.3 + 0.1 * torch.arange(8), identity
for k_n, gate_n in zip(mutual, gates, strict=True):
    product = shortcut(k_n, gate_n) @ product
expected = torch.cat((torch.ones(WIDE - 8), (1 - gates).abs())).sort(descending=True).values
assert torch.allclose(torch.linalg.svdvals(product), expected.double(), rtol=0, atol=1e-13)
print(f"checked: {len(spectra)} times {STACKS} random stacks, and one stack with orthogonal directions")
for name in NAMES:
    print(f"gates {name}: {100 * kept[name, 128]:.0f} % of the state's squared length is left after 128 rewrites")

# %% alt="Histograms of singular values and eigenvalue moduli of products of shortcuts" tags=["fold"]
figure, axes = plt.subplots(2, 4, figsize=(7.6, 3.9), sharex=True, sharey=True, layout="constrained")
bins = np.linspace(0, 1, 26)
for column, name in zip(axes.T, NAMES, strict=True):
    for n, colour, style in zip(DEPTHS, ("#56B4E9", "#0072B2", "#D55E00"), (":", "--", "-"), strict=True):
        for axis, values in zip(column, spectra[name, n], strict=True):
            # A value of one may be rounded to either side of the last edge.
            counts, _ = np.histogram(values.clamp(0, 1), bins)
            axis.stairs(counts / len(values), bins, color=colour, ls=style, lw=1.3, label=f"{n} rewrites")
    column[0].set_title(f"gates: {name}", fontsize=8)
    column[1].set(xlim=(-0.02, 1.03), xlabel="value")
axes[0, 0].set(ylabel="share of\nsingular values", ylim=(0, 1.05))
axes[1, 0].set(ylabel="share of eigenvalues\n(by modulus)")
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown] tags=["caption"]
# After eight rewrites most of the 64 values are still one, in every column. With gates of 0 or 2 all values stay at one
# at every depth: the stack is orthogonal. Otherwise the old state fades.

# %% [markdown]
# The mean square of the singular values is the share of its squared length that is left on average. It is asserted to
# follow $(1 - \mathbb{E}[\beta(2 - \beta)]/d)^n$ to within 15 % ([notebook 05](05_gradient.html) derives this formula),
# and the cell above prints it for 128 rewrites: even when every gate overwrites, and there are twice as many rewrites
# as dimensions, the state is not erased. All this concerns the old state only; the frozen product ignores what is
# written.

# %% [markdown]
# ### The ends of the range
#
# > Thus $\beta \in (0, 2)$ in normal operation, with the endpoint cases interpreted as saturated-logit limits. (Sec.
# > 2.1)
#
# In real numbers $2\sigma(z)$ is never 0 or 2, so a product of these shortcuts is never exactly orthogonal. App. A.2,
# however, gives the closed range $[0, 2]$. In fp32 the ends are reached: the computed gate *is* 2 from a logit of 17
# on, and it is 0 where the exponential underflows.

# %%
logits = torch.tensor([-110.0, -80.0, -15.0, 0.0, 15.0, 17.0])
reached = 2 * torch.sigmoid(logits)
assert (reached == 0).tolist() == [True, False, False, False, False, False], "gate-range"
assert (reached == 2).tolist() == [False, False, False, False, False, True], "gate-range"
rows = ["| logit | " + " | ".join(f"{z:g}" for z in logits) + " |", "|---" * 7 + "|"]
Markdown("\n".join([*rows, "| gate in fp32 | " + " | ".join(f"{gate:.7g}" for gate in reached.tolist()) + " |"]))

# %% [markdown]
# ## What the frozen spectrum does not say
#
# In the model, direction, gate and target depend on the state. The Jacobian of the layer then has additional terms:
# with $\boldsymbol\delta = \beta(\mathbf{v} - \mathbf{X}^\top\mathbf{k})$ the update is
# $\mathbf{X}' = \mathbf{X} + \mathbf{k}\boldsymbol\delta^\top$, and both factors change with $\mathbf{X}$. A toy layer
# with $d = 6$, $d_v = 1$ and one linear map for each generator shows how far off the frozen matrix can be. With frozen
# generators its Jacobian must be $\mathbf{A}$, which is asserted first.

# %%
TOY = 6
W_k, w_beta, w_v, x = draw(TOY, TOY), draw(TOY) / TOY**0.5, draw(TOY) / TOY**0.5, draw(TOY)


def generate(x):
    return normalize_direction(W_k @ x, eps=1e-5), 2 * torch.sigmoid(w_beta @ x), (w_v @ x)[None]


def layer(x, generators=None):
    k, beta, v = generators or generate(x)
    return rewrite_reference(x[:, None], k, v, beta)[:, 0]


frozen = generate(x)
A_frozen = shortcut(frozen[0], frozen[1])
with_frozen_generators = torch.func.jacrev(lambda y: layer(y, frozen))(x)
jacobian = torch.func.jacrev(layer)(x)
step = 1e-6 * torch.eye(TOY, dtype=torch.float64)
by_differences = torch.stack([(layer(x + h) - layer(x - h)) / 2e-6 for h in step], dim=1)
assert torch.allclose(with_frozen_generators, A_frozen, rtol=0, atol=1e-14), "full-jacobian"
assert torch.allclose(jacobian, by_differences, rtol=0, atol=1e-7), "full-jacobian"


def listed(values):
    values = sorted(values.tolist(), key=lambda z: (round(z.real, 9), z.imag))
    return ", ".join(f"{z.real:.2f}{z.imag:+.2f}i" if abs(z.imag) > 1e-9 else f"{z.real:.2f}" for z in values)


rows = ["| | eigenvalues | largest singular value | determinant |", "|---|---|---|---|"]
for name, m in (("frozen shortcut", A_frozen), ("full Jacobian", jacobian)):
    largest = float(torch.linalg.svdvals(m)[0])
    rows.append(f"| {name} | {listed(torch.linalg.eigvals(m))} | {largest:.2f} | {float(torch.linalg.det(m)):.2f} |")
print(f"gate of this state: {float(frozen[1]):.3f}")
Markdown("\n".join(rows))

# %% [markdown]
# Autograd and central differences agree on the full Jacobian. One layer is an example, so the same for 200 random
# layers:


# %%
def compare(W_k, w_beta, w_v, x):
    """Largest singular value of both Jacobians of a toy layer, and their distance relative to the frozen one."""

    def toy(x, generators=None):
        k, beta, v = generators or (
            normalize_direction(W_k @ x, eps=1e-5),
            2 * torch.sigmoid(w_beta @ x),
            (w_v @ x)[None],
        )
        return rewrite_reference(x[:, None], k, v, beta)[:, 0], (k, beta, v)

    generators = toy(x)[1]
    full = torch.func.jacrev(lambda y: toy(y)[0])(x)
    frozen = torch.func.jacrev(lambda y: toy(y, generators)[0])(x)
    distance = (full - frozen).norm() / frozen.norm()
    return torch.linalg.svdvals(full)[0], torch.linalg.svdvals(frozen)[0], distance


TOYS = 200
stretch, frozen_stretch, distance = vmap(compare)(
    draw(TOYS, TOY, TOY), draw(TOYS, TOY) / TOY**0.5, draw(TOYS, TOY) / TOY**0.5, draw(TOYS, TOY)
)
assert frozen_stretch.max() < 1 + 1e-12, "full-jacobian"
assert stretch.min() > 1 + 1e-6, "full-jacobian"
assert distance.quantile(0.1) > 0.1, "full-jacobian"
print(
    f"full Jacobian, largest singular value: {stretch.min():.2f} to {stretch.max():.1f}, median {stretch.median():.2f}"
)
print(
    f"distance / norm of the frozen shortcut: median {distance.median():.2f}, 10 % below {distance.quantile(0.1):.2f}"
)

# %% [markdown]
# The frozen shortcut never stretches; every one of the 200 layers does, and in nine out of ten the distance between the
# two Jacobians is more than a tenth of the norm (all asserted). Bounds on the frozen spectrum therefore do not, by
# themselves, bound the activations or gradients of a network.
#
# ### Trained blocks
#
# The toy's generators are random. Does training bring the two matrices close to each other? DDL-CC models with two
# layers, $d = 24$ and $d_v = 4$ are trained for a few seconds on sequences whose second half repeats the first. A
# statement about trained models is one about a distribution, so there are four initialisations. The result could also
# depend on the initial bias of the value branch, so each of them is trained with this package's bias of 1 and with 0.
#
# Then, at each of several tokens, autograd computes the Jacobian of the second block (two rewrites): the derivative of
# its output state with respect to its input state, $96 \times 96$ numbers, with the other tokens held fixed. We
# compare it with what the paper analyses, the product of the two frozen shortcuts on all four value channels,
# $(\mathbf{A}_2\mathbf{A}_1) \otimes \mathbf{I}_4$.

# %% tags=["fold"] summary="Code: the task, and training all models at once"
VOCABULARY, HALF, STEPS, INITIALISATIONS, BIASES = 6, 5, 120, 4, (1.0, 0.0)


def repeated_halves(count):
    half = torch.randint(VOCABULARY, (count, HALF), generator=random)
    return torch.cat((half, half), dim=1)


shape = {
    "vocab_size": VOCABULARY,
    "sequence_length": 2 * HALF,
    "layers": 2,
    "width": 24,
    "heads": 2,
    "kernels": "reference",
}
configs = [
    from_mapping(ModelConfig, shape | load_variants()["ddl-cc"].model | {"value_bias_init": bias}, "02_spectrum")
    for bias in BIASES
]
config = configs[0]
initial = [LanguageModel(c, seed + 1000 * n) for c in configs for n in range(INITIALISATIONS)]
weights, _ = stack_module_state(initial)  # copies, with one row per model
optimizer = torch.optim.AdamW(weights.values(), lr=5e-3)
losses = []
for _ in range(STEPS):
    ids = repeated_halves(24)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no rule for vmap
        logits = vmap(lambda w, ids: functional_call(initial[0], w, (ids,)), (0, None))(weights, ids[:, :-1])
    targets = ids[:, 1:].expand(len(initial), -1, -1)
    loss = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
    loss = loss.view(len(initial), -1).mean(1)  # one number per model
    optimizer.zero_grad()
    loss.sum().backward()
    gradients = [w.grad for w in weights.values()]
    lengths = sum(gradient.flatten(1).square().sum(1) for gradient in gradients).sqrt()
    for gradient in gradients:
        gradient.mul_((1 / lengths).clamp(max=1).view(-1, *[1] * (gradient.dim() - 1)))
    optimizer.step()
    losses.append(loss.detach())
trained = copy.deepcopy(initial)
for n, model in enumerate(trained):
    model.load_state_dict({name: w[n] for name, w in weights.items()})
before, after = losses[0], torch.stack(losses[-10:]).mean(0)
assert (after < before - 0.1).all()
print(f"{len(initial)} models: loss {before.mean():.2f} before, {after.min():.2f} to {after.max():.2f} after training")

# %%
source(Block.forward)


# %%
def both_operators(block, inputs, t):
    """At token t: the block's Jacobian, the product of its frozen shortcuts, and the first shortcut; all 96 x 96."""
    (X, *others), generated = inputs, []

    def watch(rule, inputs, output):
        generated.append([part[0, t].detach() for part in rule.generate(*inputs)])

    def through(x):
        return block(torch.cat((X[:, :t], x[None, None], X[:, t + 1 :]), dim=1), *others)[0, t]

    rules = (block.attention_rule, block.mlp_rule)
    handles = [rule.register_forward_hook(watch) for rule in rules]
    after = through(X[0, t])
    for handle in handles:
        handle.remove()

    def with_frozen_generators(x):
        for k, v, beta in generated:
            x = rewrite_reference(x, k, v, beta)
        return x

    torch.testing.assert_close(with_frozen_generators(X[0, t]), after, rtol=0, atol=1e-12)  # the same function value
    n = X[0, t].numel()
    with sdpa_kernel(SDPBackend.MATH):
        full, frozen = (torch.func.jacrev(f)(X[0, t]).detach().reshape(n, n) for f in (through, with_frozen_generators))
    (k1, _, b1), (k2, _, b2) = generated
    first, second = (torch.kron(shortcut(k, b), torch.eye(4).double()) for k, b in ((k1, b1), (k2, b2)))
    torch.testing.assert_close(frozen, second @ first, rtol=0, atol=1e-12)
    return full, frozen, first


X_NUMBERS = config.width * config.value_channels
ids = repeated_halves(1)[:, :-1]
found = {}
for stage, models in (("at the start", initial), ("trained", trained)):
    for n, model in enumerate(models):
        block, inputs = model.double().blocks[1], []
        handle = block.register_forward_pre_hook(lambda _, arguments, into=inputs: into.extend(arguments))
        with torch.no_grad():
            model(ids)
        handle.remove()
        operators = [both_operators(block, inputs, t) for t in (2, 5, 8)]
        found[stage, n] = [torch.stack(kind) for kind in zip(*operators, strict=True)]


# %%
def interval(values):
    """Geometric mean over the models, and its 95 % t-interval from the logarithms."""
    logs = values.log()
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std() / len(logs) ** 0.5)
    return [math.exp(float(logs.mean()) + by) for by in (0, -half, half)]


def shown(values):
    mean, low, high = interval(values)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def measure(full, frozen):
    """Means over the tokens: largest singular value, share of eigenvalues outside the unit circle, two distances."""
    identity = torch.eye(X_NUMBERS, dtype=torch.float64)
    outside = (torch.linalg.eigvals(full).abs() > 1 + 1e-9).double().mean()
    distances = (torch.linalg.matrix_norm(m) / identity.norm() for m in (full - frozen, frozen - identity))
    return torch.stack([torch.linalg.matrix_norm(full, 2).mean(), outside, *(each.mean() for each in distances)])


for full, frozen, _ in found.values():
    singular = torch.linalg.svdvals(frozen)
    assert singular.max() < 1 + 1e-12, "bounded-spectrum"
    assert ((singular > 1 - 1e-12).sum(1) >= X_NUMBERS - 8).all()
    assert torch.linalg.eigvals(frozen).abs().max() < 1 + 1e-9
    assert torch.linalg.matrix_norm(full, 2).min() > 1 + 1e-3, "full-jacobian"
measured = {key: measure(full, frozen) for key, (full, frozen, _) in found.items()}
assert min(float(values[1]) for values in measured.values()) > 0.05

rows = [
    "| bias at the start | weights | largest singular value | share of eigenvalues outside the unit circle "
    "| distance to the frozen shortcuts | frozen shortcuts to identity |",
    "|---|---|---|---|---|---|",
]
for group, bias in enumerate(BIASES):
    members = range(group * INITIALISATIONS, (group + 1) * INITIALISATIONS)
    start, end = (torch.stack([measured[stage, n] for n in members], 1) for stage in ("at the start", "trained"))
    for stage, values in (("at the start", start), ("trained", end), ("ratio trained / start", end / start)):
        rows.append(f"| {bias:g} | {stage} | " + " | ".join(map(shown, values)) + " |")
Markdown("\n".join(rows))

# %% alt="Eigenvalues and singular values of trained blocks' Jacobians and of its frozen shortcuts" tags=["fold"]
full, frozen = (matrices[-1] for matrices in found["trained", 0][:2])
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.3), layout="constrained")
turn = np.linspace(0, 2 * np.pi, 200)
axes[0].plot(np.cos(turn), np.sin(turn), color="C7", lw=0.8)
for matrix, colour, marker, label in ((full, "#D55E00", "x", "full Jacobian"), (frozen, "#0072B2", "o", "frozen")):
    eigenvalues = torch.linalg.eigvals(matrix).numpy()
    fill = "none" if marker == "o" else colour
    axes[0].scatter(
        eigenvalues.real,
        eigenvalues.imag,
        s=22,
        marker=marker,
        c=None,
        color=fill if marker == "x" else None,
        facecolors=fill if marker == "o" else None,
        edgecolors=colour if marker == "o" else None,
        label=label,
    )
axes[0].set(xlabel="real part", ylabel="imaginary part", title="eigenvalues, one model and token", aspect="equal")
axes[0].set_aspect("equal", adjustable="datalim")
for name, style in (("at the start", ":"), ("trained", "-")):
    for which, (kind, colour) in enumerate((("full", "#D55E00"), ("frozen", "#0072B2"))):
        values = torch.cat([torch.linalg.svdvals(found[name, n][which]) for n in range(INITIALISATIONS)]).mean(0)
        rank = np.arange(1, len(values) + 1)
        axes[1].semilogy(rank, values.clamp(min=1e-4), color=colour, ls=style, label=f"{kind}, {name}")
axes[1].set(xlabel="rank", title="singular values, mean", ylim=(1e-3, None))
axes[0].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=2, fontsize=8)
axes[1].legend(frameon=False, loc="lower left", fontsize=8)
plt.show()

# %% [markdown] tags=["caption"]
# Left: one trained model at one token. Right: means over tokens and models, at the start and trained. The biases start
# at 1. The full Jacobian has eigenvalues outside the unit circle and singular values above one; the frozen shortcuts
# have neither.

# %% [markdown]
# The table shows geometric means over four models with 95 % t-intervals; distances are relative to the norm of the
# identity.
#
# The comparison is fair, which is asserted at every token of every model: with the generators' values held fixed, the
# block gives the same output, and its Jacobian is the formula to $10^{-12}$. With generators that depend on the state,
# the picture changes. The frozen shortcuts have no singular value above one, and at most eight of the 96 are below one.
# The full Jacobian of every model stretches some direction at every token, and more than 5 % of its eigenvalues are
# outside the unit circle, before and after training and with either bias (all asserted). The frozen spectrum alone
# therefore does not tell whether a real stack is stable.
#
# How far apart the two are varies a lot between initialisations and with the bias, as the intervals show. Four models
# of this size do not support a general statement on whether training brings them together.
#
# ### Where the frozen shortcuts are the Jacobian
#
# There is a subspace on which the two agree. Generators and sublayers see only what the compressor $\mathbf{C}$ reads
# of the state, here a quarter of its dimensions. A perturbation $\mathbf{P}$ that is invisible both before and after
# the first rewrite, $\mathbf{C}(\mathbf{P}) = \mathbf{C}(\mathbf{A}_1\mathbf{P}) = 0$, changes no generator. On the
# subspace of these perturbations the two operators must be equal, although the block is nonlinear:

# %%
rows = [
    "| | dimensions of the state | invisible to the block | full − frozen there | anywhere |",
    "|---|---|---|---|---|",
]
for stage, models in (("at the start", initial), ("trained", trained)):
    counts, inside, elsewhere = set(), 0.0, []
    for n, model in enumerate(models):
        read = model.blocks[1].compress
        C = torch.func.jacrev(lambda x, read=read: read(x[None, None])[0, 0])(torch.zeros(24, 4).double())
        C = C.detach().reshape(24, X_NUMBERS)
        for full, frozen, first in zip(*found[stage, n], strict=True):
            _, sizes, basis = torch.linalg.svd(torch.cat((C, C @ first)))
            hidden = basis[int((sizes > 1e-9 * sizes[0]).sum()) :]
            counts.add(len(hidden))
            inside = max(inside, float(((full - frozen) @ hidden.T).abs().max()))
            elsewhere.append(float((full - frozen).abs().max()))
    assert min(counts) >= X_NUMBERS - 24 - 4  # A_1 differs from I by a matrix of rank 4
    assert inside < 1e-10 < 1e-3 < min(elsewhere), "full-jacobian"
    rows.append(
        f"| {stage} | {X_NUMBERS} | {', '.join(map(str, sorted(counts)))} | {inside:.0e} | {max(elsewhere):.1f} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# The last two columns are the largest entries of the difference, over all models and tokens. More than two thirds of
# the state's dimensions are invisible to the block, and there the frozen operator is the full Jacobian to rounding. The
# proposition therefore describes how content that a block does not read passes through it: unchanged, except for the
# components along two directions. This needs an expanded state; with $d_v = 1$ everything is read.

# %% [markdown]
# ## What was shown and what was not
#
# **Shown:** Proposition 2.1 for every width by algebra and for widths 2 to 4 entry by entry, and what the guard and
# $d = 1$ change in it; the determinant, the singular values and the condition number over the whole range of gates; the
# Kronecker form and the order of stacking it assumes; that only the gates 0 and 2 preserve lengths, at any depth; how
# the spectrum of a product of random shortcuts changes with depth; that the Jacobians of eight small blocks stretch,
# initial and trained, which their frozen shortcuts do not, and that the two are equal on what the compressor does not
# read.
#
# **Not shown:** how large that difference is in a model of useful size, and whether training makes it larger or
# smaller. The toys and the small blocks show that the frozen spectrum *can* mislead about the layer, and how; they say
# nothing about the size of the effect in larger models. The histograms use independent directions; those of a trained
# model depend on each other.
