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
# **Question.** Freeze a layer's direction and gate. The old state then passes through the matrix
# $\mathbf{A} = \mathbf{I} - \beta\mathbf{k}\mathbf{k}^\top$. Which eigenvalues, determinant and singular values does
# it have, when does it keep lengths, and how much of this carries over to the layer as a whole?
#
# > It is not a claim about the full Jacobian of the nonlinear DDL block. (Sec. 2.3)

# %% tags=["parameters"]
results = "results/laptop"  # every notebook takes it; a derivation neither reads from there nor writes there
seed = 0

# %%
import matplotlib.pyplot as plt
import sympy as sp
import torch
from IPython.display import Markdown

from ddl.ops.rewrite import normalize_direction, rewrite_reference
from ddl.report import set_style

set_style()
random = torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def shortcut(k, beta):
    """The matrix A that the package's rewrite applies to a state: its image of the identity, with nothing to write."""
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
# The argument needs only $\mathbf{k}^\top\mathbf{k} = 1$, so symbols without entries carry it. First the two
# eigenspaces: a vector $\mathbf{u}$ orthogonal to $\mathbf{k}$ is left as it is, and $\mathbf{k}$ itself is scaled,
#
# $$\mathbf{A}\mathbf{u} = \mathbf{u} \quad (\mathbf{k}^\top\mathbf{u} = 0), \qquad
# \mathbf{A}\mathbf{k} = (1-\beta)\,\mathbf{k}.$$

# %%
beta = sp.Symbol("beta", real=True)
k, k_row, u = sp.symbols("k k^T u", commutative=False)


def using(expression, *rules):
    """Expand a product of symbols and apply what is known of neighbours, such as k^T k = 1, until nothing changes."""
    expression = sp.expand(expression)
    while (simpler := sp.expand(expression.subs(rules))) != expression:
        expression = simpler
    return expression


A = 1 - beta * k * k_row
assert using(A * u, (k_row * u, 0)) == u
assert sp.expand(using(A * k, (k_row * k, 1)) - (1 - beta) * k) == 0
sp.factor(using(A * k, (k_row * k, 1)))

# %% [markdown]
# There are no others. $\mathbf{A}$ annihilates the polynomial $(\lambda - 1)(\lambda - 1 + \beta)$, so these two are
# all the eigenvalues there can be, and being symmetric it has a full set of eigenvectors. The trace
# $d - \beta\,\mathbf{k}^\top\mathbf{k} = d - \beta$ then counts how often each occurs.

# %%
assert using((A - 1) * (A - (1 - beta)), (k_row * k, 1)) == 0
d, ones, others = sp.symbols("d m_1 m_2", positive=True)
multiplicities = sp.solve([ones + others - d, ones + (1 - beta) * others - (d - beta)], [ones, others])
assert multiplicities == {ones: d - 1, others: 1}
Markdown(f"$$m_1 = {sp.latex(multiplicities[ones])}, \\qquad m_2 = {sp.latex(multiplicities[others])}$$")

# %% [markdown]
# (Dividing by $\beta$ in that last step is what the proposition excludes by $\beta \neq 0$; at $\beta = 0$ it is
# $\mathbf{A} = \mathbf{I}$.) The determinant is the product of the eigenvalues, $\det(\mathbf{A}) = 1 - \beta$.
#
# ### With entries, for widths 2, 3 and 4
#
# An independent check that uses none of the above: write $\mathbf{k} = \mathbf{w} / |\mathbf{w}|$ with free entries
# $w_1, \dots, w_d$, and let sympy compute characteristic polynomial, determinant and eigenvectors of the explicit
# matrix.

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
    assert sp.expand(polynomial - (lam - 1) ** (width - 1) * (lam - 1 + beta)) == 0
    assert sp.simplify(determinant - (1 - beta)) == 0
    assert len(kept) == width - 1
    assert all(sp.simplify((w.T * vector)[0]) == 0 for vector in kept)
    assert len(scaled) == 1
    assert sp.simplify(scaled[0] * w[-1] - w * scaled[0][-1]) == sp.zeros(width, 1)  # parallel to w
    rows.append(
        f"| {width} | ${sp.latex(polynomial)}$ | ${sp.latex(determinant)}$ "
        f"| {len(kept)}, orthogonal to $\\mathbf{{k}}$ | 1, parallel to $\\mathbf{{k}}$ |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# ## Singular values and conditioning
#
# $\mathbf{A}$ is symmetric, so its singular values are the sizes of its eigenvalues: $1$ and $|1 - \beta|$. For a
# gate in $[0, 2]$ no direction is stretched, and the condition number is
#
# $$\kappa(\mathbf{A}) = \frac{1}{|1 - \beta|} .$$
#
# It is 1 at both ends and infinite at $\beta = 1$: an exact overwrite forgets the old readout, and no later layer can
# recover it. Training starts exactly there by default (`gate_init = 1` in `ddl/config.py`; the paper leaves its
# $\beta_0$ open).

# %% alt="Eigenvalue, singular value and condition number of the shortcut against the gate" tags=["fold"]
WIDTH = 16
k_wide = normalize_direction(draw(WIDTH), eps=0.0)
grid = torch.linspace(0, 2, 201, dtype=torch.float64)
matrices = torch.stack([shortcut(k_wide, b) for b in grid])
singular = torch.linalg.svdvals(matrices)
eigen = torch.linalg.eigvalsh(matrices)
expected = torch.ones_like(eigen)
expected[:, 0] = 1 - grid  # ascending order: for a gate in [0, 2], 1 - beta is the smallest
assert torch.allclose(eigen, expected, rtol=0, atol=1e-14)
assert torch.allclose(singular[:, -1], (1 - grid).abs(), rtol=0, atol=1e-14)
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

# %% [markdown]
# The curves are computed from the matrices ($d = 16$, 201 gates) and asserted equal to the formulas; the largest
# condition number drawn, 100, is that of $\beta = 1 \pm 0.01$.

# %% [markdown]
# ## Value channels: the same matrix on every column
#
# > Under vectorization, the induced shortcut is $\mathbf{I}_{d_v} \otimes \mathbf{A}$. (Sec. 2.3)
#
# This holds for the vector that stacks the *columns* of $\mathbf{X}$. PyTorch stores a $(d, d_v)$ state row by row;
# in that order the same map is $\mathbf{A} \otimes \mathbf{I}_{d_v}$. Either way each eigenvalue now occurs $d_v$
# times as often, and the determinant is $(1-\beta)^{d_v}$.

# %%
a11, a12, a21, a22 = sp.symbols("a11 a12 a21 a22")
small = sp.Matrix([[a11, a12], [a21, a22]])
S = sp.Matrix(2, 3, sp.symbols("x1:3(1:4)"))
assert (small * S).vec() == sp.kronecker_product(sp.eye(3), small) * S.vec()  # sympy's vec stacks columns

state, gate, channels = draw(WIDTH, 4), 0.7, 4
matrix = shortcut(k_wide, gate)
nothing = torch.zeros(channels, dtype=torch.float64)
rewritten = rewrite_reference(state, k_wide, nothing, torch.tensor(gate, dtype=torch.float64))
by_columns = torch.kron(torch.eye(channels, dtype=torch.float64), matrix)
by_rows = torch.kron(matrix, torch.eye(channels, dtype=torch.float64))
assert torch.allclose(by_columns @ state.T.reshape(-1), rewritten.T.reshape(-1), rtol=0, atol=1e-14)
assert torch.allclose(by_rows @ state.reshape(-1), rewritten.reshape(-1), rtol=0, atol=1e-14)
assert not torch.allclose(by_columns @ state.reshape(-1), rewritten.reshape(-1), rtol=0, atol=1e-3)
values, counts = torch.linalg.eigvalsh(by_columns).round(decimals=12).unique(return_counts=True)
assert counts.tolist() == [channels, channels * (WIDTH - 1)]
print({round(float(value), 12): int(count) for value, count in zip(values, counts, strict=True)})

# %% [markdown]
# The dictionary is eigenvalue: multiplicity for $d = 16$ and $d_v = 4$. The last of the three assertions says that
# the order matters: the column form on a row-stacked state is wrong.

# %% [markdown]
# ## When lengths are kept
#
# $$\mathbf{A}^\top\mathbf{A} = \mathbf{I} - \beta\,(2 - \beta)\,\mathbf{k}\mathbf{k}^\top ,$$
#
# so the shortcut is orthogonal for $\beta = 0$ and $\beta = 2$ and for no other gate. Products of orthogonal matrices
# are orthogonal: at $\beta = 2$ any number of layers, each with a direction of its own, compose to a product of
# Householder reflections, which neither shrinks nor stretches. Between the ends every layer shrinks one direction.

# %%
gram = using(A * A, (k_row * k, 1))  # A is symmetric
assert sp.expand(gram - (1 - beta * (2 - beta) * k * k_row)) == 0
assert sp.solveset(beta * (2 - beta), beta, sp.S.Reals) == sp.FiniteSet(0, 2)

LAYERS = (1, 4, 24, 96)
directions = normalize_direction(draw(max(LAYERS), WIDTH), eps=0.0)
rows = ["| gate | " + " | ".join(f"depth {n}" for n in LAYERS) + " |", "|---" * (len(LAYERS) + 1) + "|"]
for b in (0.0, 0.1, 0.5, 1.0, 1.5, 1.9, 2.0):
    product, cells = torch.eye(WIDTH, dtype=torch.float64), []
    for n, direction in enumerate(directions, 1):
        product = shortcut(direction, b) @ product
        if n in LAYERS:
            largest, smallest = torch.linalg.svdvals(product)[[0, -1]]
            assert largest < 1 + 1e-12  # never expanding
            orthogonal = torch.allclose(product.T @ product, torch.eye(WIDTH).double(), rtol=0, atol=1e-12)
            assert orthogonal == (b in (0.0, 2.0))
            shown = "0" if smallest < 1e-12 else f"{float(smallest):.4f}"  # what is below is rounding
            cells.append("1 / 1" if orthogonal else f"{float(largest):.3f} / {shown}")
    rows.append(f"| {b:g} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# Largest / smallest singular value of the product of shortcuts with random directions ($d = 16$). Only the two ends
# are orthogonal at every depth. In between, the *old* content fades in more and more directions, which is no fault:
# what replaces it is the written term, which this table leaves out.

# %% [markdown]
# ## What the frozen spectrum does not say
#
# In the model direction, gate and target depend on the state. The Jacobian of the layer then has further terms: with
# $\boldsymbol\delta = \beta(\mathbf{v} - \mathbf{X}^\top\mathbf{k})$ the update is
# $\mathbf{X}' = \mathbf{X} + \mathbf{k}\boldsymbol\delta^\top$, and both factors move with $\mathbf{X}$. A toy layer
# with $d = 6$, $d_v = 1$ and one linear map for each generator shows how far off the frozen matrix can be. Freezing
# the generators must give $\mathbf{A}$ back, and does.

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
assert torch.allclose(with_frozen_generators, A_frozen, rtol=0, atol=1e-14)
assert torch.allclose(jacobian, by_differences, rtol=0, atol=1e-7)
assert torch.linalg.matrix_norm(jacobian - A_frozen) > 0.1 * torch.linalg.matrix_norm(A_frozen)


def listed(values):
    values = sorted(values.tolist(), key=lambda z: (round(z.real, 9), z.imag))
    return ", ".join(f"{z.real:.2f}{z.imag:+.2f}i" if abs(z.imag) > 1e-9 else f"{z.real:.2f}" for z in values)


rows = ["| | eigenvalues | largest singular value | determinant |", "|---|---|---|---|"]
for name, m in (("frozen shortcut", A_frozen), ("full Jacobian", jacobian)):
    largest = float(torch.linalg.svdvals(m)[0])
    rows.append(f"| {name} | {listed(torch.linalg.eigvals(m))} | {largest:.2f} | {float(torch.linalg.det(m)):.2f} |")
assert float(torch.linalg.svdvals(jacobian)[0]) > 1.01 > float(torch.linalg.svdvals(A_frozen)[0])
print(f"gate of this state: {float(frozen[1]):.3f}")
Markdown("\n".join(rows))

# %% [markdown]
# Autograd and central differences agree on the full Jacobian, and it is another matrix: the frozen shortcut never
# stretches, the layer does. So bounds on the frozen spectrum do not by themselves bound activations or gradients of a
# trained network.

# %% [markdown]
# ## What was shown and what was not
#
# **Shown:** Proposition 2.1 for every width by algebra and for widths 2 to 4 entry by entry; the determinant, the
# singular values and the condition number over the whole range of gates; the Kronecker form and the order of stacking
# it assumes; that exactly the gates 0 and 2 keep lengths, at any depth.
#
# **Not shown:** anything about the layer with its generators. The last section is one counter-example on one seeded
# toy, not a measurement of a trained model; it shows that the frozen spectrum *can* mislead, not how often it does.
