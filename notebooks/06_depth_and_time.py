# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Is this DeltaNet over depth, and what can it replace that addition cannot?
#
# **Question.** DeltaNet applies the delta rule along the sequence, Deep Delta Learning along the layers. In which sense
# are the two the same? Which matrices can products of the shortcut be? And can a rewrite replace a stored value where
# an addition cannot?
#
# **Answer.** **The rule is DeltaNet's, transposed. Shortcuts with gates of 2 multiply to orthogonal matrices, and at
# most $d$ of them give any one. On a task made of replacements the delta rule has an advantage over a rule that does
# not read; an addition that reads, or writes more with depth, solves it too.**
#
# > DeltaNet applies it over time steps $t$, whereas DDL applies it over network depth $l$. (App. B)

# %% tags=["parameters"]
results = "results/laptop"  # every notebook has this parameter; derivations do not use it
seed = 0

# %%
import matplotlib.pyplot as plt
import sympy as sp
import torch
from IPython.display import Markdown
from scipy import stats
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ddl.config import ModelConfig, from_mapping, load_variants
from ddl.model.language_model import LanguageModel, SwiGLU
from ddl.model.residual import Additive, Delta
from ddl.ops.rewrite import normalize_direction, rewrite_reference
from ddl.reporting.notebook_style import set_style, source

set_style()
torch.set_num_threads(1)
random = torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


source(rewrite_reference)

# %% [markdown]
# ## One rule, two axes
#
# DeltaNet keeps a memory $\mathbf{M}_t \in \mathbb{R}^{d_v \times d}$ that maps keys to values, and corrects the value
# that it returns for the current key,
#
# $$\mathbf{M}_t = \mathbf{M}_{t-1} + \beta_t\,(\mathbf{v}_t - \mathbf{M}_{t-1}\mathbf{k}_t)\,\mathbf{k}_t^\top ,$$
#
# with a multiplication from the right. The paper multiplies from the left,
#
# $$\mathbf{S}_t = (\mathbf{I} - \beta_t\mathbf{k}_t\mathbf{k}_t^\top)\,\mathbf{S}_{t-1}
# + \beta_t\mathbf{k}_t\mathbf{v}_t^\top . \tag{B.1}$$
#
# With $\mathbf{S} = \mathbf{M}^\top$ they are the same rule. The check uses matrices of symbolic size, so it holds for
# every $d$ and $d_v$:

# %%
d, d_v = sp.symbols("d d_v", positive=True, integer=True)
beta = sp.Symbol("beta", real=True)
S = sp.MatrixSymbol("S", d, d_v)
k, v = sp.MatrixSymbol("k", d, 1), sp.MatrixSymbol("v", d_v, 1)
M = S.T
right_form = M + beta * (v - M * k) * k.T
left_form = (sp.Identity(d) - beta * k * k.T) * S + beta * k * v.T
assert right_form.T.doit().expand() == left_form.expand(), "deltanet-over-depth"
left_form.expand()

# %% [markdown]
# **From depth to time.** The reference function of the rewrite, which a model applies layer after layer, is applied
# here along a sequence of 500 tokens, to 8 independent memories that start at zero. It is compared with DeltaNet's
# recurrence. Reading agrees as well: the readout $\mathbf{k}^\top\mathbf{S}$ is the transpose of what the memory
# returns, $\mathbf{M}\mathbf{k}$.

# %%
STEPS, MEMORIES, D, D_V = 500, 8, 16, 4
keys = normalize_direction(draw(STEPS, MEMORIES, D), eps=0.0)
values = draw(STEPS, MEMORIES, D_V)
gates = 2 * torch.rand(STEPS, MEMORIES, generator=random, dtype=torch.float64)

over_depth = torch.zeros(MEMORIES, D, D_V, dtype=torch.float64)
over_time = torch.zeros(MEMORIES, D_V, D, dtype=torch.float64)
gap = 0.0
for key, value, gate in zip(keys, values, gates, strict=True):
    over_depth = rewrite_reference(over_depth, key, value, gate)
    returned = torch.einsum("mji,mi->mj", over_time, key)
    over_time = over_time + gate[:, None, None] * (value - returned)[:, :, None] * key[:, None, :]
    readouts = torch.einsum("mi,mij->mj", key, over_depth) - torch.einsum("mji,mi->mj", over_time, key)
    gap = max(gap, float((over_depth - over_time.mT).abs().max()), float(readouts.abs().max()))
assert gap < 1e-11, "deltanet-over-depth"
assert over_depth.abs().max() > 1
print(f"memories of size {over_depth.abs().max():.1f}; over {STEPS} steps they never differ by more than 1e-11")

# %% [markdown]
# **From time to depth.** Conversely, DeltaNet's recurrence must reproduce the residual stream of a model of this
# package. Hooks record the direction, target and gate that each rewrite of a DDL-CC model with 6 layers generates.
# $\mathbf{M}$ starts as the transposed first state and is updated with these, twice per layer.

# %%
shape = {"vocab_size": 50, "sequence_length": 12, "layers": 6, "width": 24, "heads": 2, "kernels": "reference"}
config = from_mapping(ModelConfig, shape | load_variants()["ddl-cc"].model, "06_depth_and_time")
model = LanguageModel(config, seed).double()
generated, states = [], []


def watch(rule, inputs, X_next):
    generated.append(rule.generate(*inputs))
    states.append((inputs[0], X_next))


for rule in [module for module in model.modules() if isinstance(module, Delta)]:
    rule.register_forward_hook(watch)
with torch.no_grad():
    model(torch.randint(50, (4, 12), generator=random))

memory = states[0][0].mT
for (key, value, gate), (_, X_next) in zip(generated, states, strict=True):
    returned = (memory @ key[..., None])[..., 0]
    memory = memory + gate[..., None, None] * (value - returned)[..., None] * key[..., None, :]
    torch.testing.assert_close(memory.mT, X_next, rtol=0, atol=1e-12)
assert (states[-1][1] - states[0][0]).abs().max() > 0.1
print(f"{len(generated)} rewrites of {memory.shape[0] * memory.shape[1]} tokens: memory = transposed state")

# %% [markdown]
# ### Where the correspondence ends
#
# The correspondence concerns the *update*, given direction, target and gate. In DeltaNet these come from the current
# token and not from the memory, so the recurrence is linear in $\mathbf{M}$ and many steps can be evaluated in
# parallel. In DDL they come from the state itself, so layers must run one after the other. Also, DeltaNet has one
# memory per sequence, to which many tokens write and which later tokens read. A residual stream has one state per
# token, which the compressor reads.

# %% [markdown]
# ## Products of reflections
#
# > [...] under $\|\mathbf{k}\|_2 = 1$ it is an orthogonal projector at $\beta = 1$ and a Householder reflection at
# > $\beta = 2$. (App. B)
#
# With the target $\mathbf{v} = 0$ and the gate 2, a stack of $n$ rewrites multiplies the state by
#
# $$\mathbf{Q} = \mathbf{H}_n \cdots \mathbf{H}_1, \qquad \mathbf{H}_l = \mathbf{I} - 2\,\mathbf{k}_l\mathbf{k}_l^\top,
# \qquad \mathbf{Q}^\top\mathbf{Q} = \mathbf{I}, \qquad \det\mathbf{Q} = (-1)^n .$$


# %%
def reflect(X, k):
    """The package's rewrite with gate 2 and target 0."""
    zeros = torch.zeros(X.shape[-1], dtype=X.dtype)
    return rewrite_reference(X, k, zeros, torch.tensor(2.0, dtype=X.dtype))


def project(X, k):
    """The package's rewrite with gate 1 and target 0."""
    return rewrite_reference(X, k, torch.zeros(X.shape[-1], dtype=X.dtype), torch.tensor(1.0, dtype=X.dtype))


identity = torch.eye(D, dtype=torch.float64)
Q, P = identity, project(identity, keys[0, 0])
assert torch.allclose(P @ P, P, rtol=0, atol=1e-14), "projector-and-reflection"
assert torch.allclose(P, P.T, rtol=0, atol=1e-14), "projector-and-reflection"
for n in range(1, 41):
    Q = reflect(Q, keys[n, 0])
    assert torch.allclose(Q.T @ Q, identity, rtol=0, atol=1e-13), "projector-and-reflection"
    assert abs(torch.linalg.det(Q) - (-1.0) ** n) < 1e-12, "reflection-at-two"
print(f"40 reflections: Q^T Q = I to {(Q.T @ Q - identity).abs().max():.0e}, det Q = {torch.linalg.det(Q):+.0f}")

# %% [markdown]
# Conversely, **every** orthogonal matrix is such a product of at most $d$ reflections. This follows from the
# construction behind the QR decomposition: reflect the first column onto the first unit vector, with
# $\mathbf{k} \propto \mathbf{q}_1 - \mathbf{e}_1$; what remains is an orthogonal matrix with one dimension less. So $d$
# rewrites suffice for every linear map of the state that preserves lengths, and the determinant tells whether their
# number is even or odd.


# %%
def reflections_of(Q):
    """Directions k_1, ..., k_n with n <= d and H_n ... H_1 Q = I."""
    found = []
    for i in range(len(Q)):
        off = Q[:, i] - torch.eye(len(Q), dtype=Q.dtype)[i]
        if off.norm() > 1e-10:  # otherwise the column already is the unit vector
            found.append(normalize_direction(off, eps=0.0))
            Q = reflect(Q, found[-1])
    return found


rows = ["| $d$ | matrices | reflections for $\\det = +1$ | for $\\det = -1$ | largest error |", "|---|---|---|---|---|"]
for size in (1, 2, 3, 8, 15, 16):
    counts, worst = {1: set(), -1: set()}, 0.0
    for _ in range(20):
        orthogonal = torch.linalg.qr(draw(size, size)).Q
        if torch.rand(1, generator=random) < 0.5:
            orthogonal = orthogonal * torch.tensor([-1.0] + [1.0] * (size - 1), dtype=torch.float64)
        ks, rebuilt = reflections_of(orthogonal), torch.eye(size, dtype=torch.float64)
        for k_l in reversed(ks):  # H_l is its own inverse: Q = H_1 ... H_n
            rebuilt = reflect(rebuilt, k_l)
        sign = round(float(torch.linalg.det(orthogonal)))
        assert len(ks) <= size, "projector-and-reflection"
        assert sign == (-1) ** len(ks), "projector-and-reflection"
        counts[sign].add(len(ks))
        worst = max(worst, float((rebuilt - orthogonal).abs().max()))
    assert worst < 1e-13, "projector-and-reflection"
    shown = [", ".join(map(str, sorted(counts[sign]))) or "–" for sign in (1, -1)]
    rows.append(f"| {size} | 20 | {shown[0]} | {shown[1]} | {worst:.0e} |")
Markdown("\n".join(rows))

# %% [markdown]
# Each number of reflections is at most $d$ and has the parity given by the determinant, asserted for all 120 matrices.
# A trained stack is not such a product: its gates are inside $(0, 2)$, it writes, and its directions depend on the
# state.

# %% [markdown]
# ## Can it replace what is stored?
#
# > [...] accumulating new features is direct, whereas replacing an obsolete, redundant, or conflicting component must
# > be expressed indirectly by producing an update that cancels the old content and writes the new content at the same
# > time. (Sec. 1)
#
# We use a task that needs replacing and nothing else. A state of $8 \times 2$ numbers passes through ten layers. Layer
# $l$ receives one *write*: one of six keys as a one-hot vector, and a value of two normally distributed numbers. At the
# end one key is queried, and the answer read from the state must be the **last** value written to that key. The number
# of *earlier* writes to it, zero to five, is the number of overwrites. Which key will be queried is not known while
# writing.

# %%
KEYS, CHANNELS, WRITES, OVERWRITES = 6, 2, 10, 5
INPUT = KEYS + CHANNELS


def tasks(count, writes=WRITES, generator=random):
    """Writes (L, n, 8), queries (n, 8), expected answers (n, 2) and overwrites (n)."""
    asked = torch.randint(KEYS, (count,), generator=generator)
    overwrites = torch.randint(OVERWRITES + 1, (count,), generator=generator)
    own = torch.rand(count, writes, generator=generator).argsort(1) <= overwrites[:, None]  # a random subset
    others = (asked[:, None] + torch.randint(1, KEYS, (count, writes), generator=generator)) % KEYS
    key = nn.functional.one_hot(torch.where(own, asked[:, None], others), INPUT).float()
    value = torch.randn(count, writes, CHANNELS, generator=generator)
    key[..., KEYS:] = value
    last = (own * torch.arange(1, writes + 1)).argmax(1)
    query = nn.functional.one_hot(asked, INPUT).float()
    return key.transpose(0, 1), query, value[torch.arange(count), last], overwrites


writes, query, wanted, overwrites = tasks(1)
print("keys", writes[:, 0, :KEYS].argmax(1).tolist(), "queried", int(query.argmax()), "overwrites", int(overwrites))
assert any(torch.equal(wanted[0], write[KEYS:]) for write in writes[:, 0])

# %% [markdown]
# ### The contenders
#
# - **Delta**: the package's `Delta` rule. Direction, target and gate are *linear* functions of the write alone (the
#   gate through its sigmoid); the sublayer is one matrix.
# - **Addition, same generators**: the same parameters with the same initial values, but the rule adds
#   $\beta\mathbf{k}\mathbf{v}^\top$ without reading. Only the rule differs.
# - **Addition with a sublayer that reads the state**: `Additive` with the package's SwiGLU, applied to state and write,
#   which can change all 16 numbers of the state at once. It has more than ten times as many parameters and can learn
#   to cancel.
#
# The ten layers share all weights, and all three contenders read the answer with one learned linear query.

# %%
BASE = {"vocab_size": 1, "sequence_length": 1, "layers": 1, "heads": 1, "kernels": "reference"}
DELTA = {"residual": "delta", "value_channels": CHANNELS, "compressor": "cc", "compressor_kernel": CHANNELS}
generators = from_mapping(
    ModelConfig, BASE | DELTA | {"width": INPUT, "gate_init": 0.5, "value_bias_init": 0.0}, "06_depth_and_time"
)
reading = from_mapping(ModelConfig, BASE | {"width": INPUT + INPUT * CHANNELS}, "06_depth_and_time")


class Stack(nn.Module):
    """Ten layers, each of which receives one write; `step` applies the rule."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.query = nn.Linear(INPUT, INPUT, bias=False)
        self.direction = nn.Linear(INPUT, INPUT, bias=False)
        self.rule = Delta(generators)

    def forward(self, writes, query):
        X = torch.zeros(1, writes.shape[1], INPUT, CHANNELS)
        for c in writes[:, None]:
            X = self.step(X, c)
        return torch.einsum("ti,tij->tj", self.query(query), X[0])


class WithDelta(Stack):
    def step(self, X, c):
        return self.rule(X, c, c, self.direction(c))


class WithAddition(Stack):
    def step(self, X, c):
        k, v, beta = self.rule.generate(X, c, c, self.direction(c))
        return X + rewrite_reference(torch.zeros_like(X), k, v, beta)  # a rewrite of zero is beta k v^T


class WithReadingAddition(Stack):
    def __init__(self, seed):
        super().__init__(seed)
        del self.direction
        self.rule, self.sublayer = Additive(reading), SwiGLU(reading)
        nn.init.zeros_(self.sublayer.out.weight)  # start as the identity; otherwise ten layers diverge

    def step(self, X, c):
        h = self.sublayer(torch.cat((c, X.flatten(-2)), dim=-1))[..., INPUT:]
        return self.rule(X, c, c, h.unflatten(-1, (INPUT, CHANNELS)))


rows = ["| contender | parameters |", "|---|---|"]
CONTENDERS = {
    "delta": WithDelta,
    "addition, same generators": WithAddition,
    "addition that reads the state": WithReadingAddition,
}
sizes = {name: sum(p.numel() for p in made(0).parameters()) for name, made in CONTENDERS.items()}
assert sizes["delta"] == sizes["addition, same generators"] < sizes["addition that reads the state"] / 10
Markdown("\n".join(rows + [f"| {name} | {size:,} |" for name, size in sizes.items()]))

# %% [markdown]
# ### What addition can and cannot do, before any training
#
# **It cannot replace** if its writes do not depend on the state. The readout is then a sum over the writes, and when a
# write is made, it is not known whether it will be the last to its key. The values are independent of each other and of
# the keys. The best such sum, over all possible generators, therefore weights layer $l$ by the probability of being
# last,
#
# $$\hat{\mathbf{y}} = \sum_l c_l\,\mathbf{v}_l\,[\text{key}_l = \text{asked}], \qquad
# c_l = P(\text{write } l \text{ is the last} \mid \text{key}_l = \text{asked}) .$$
#
# The contenders share their weights between layers and must use one $c$ for all of them. Then $c = 1 / 3.5$, since the
# queried key has been written 3.5 times on average. Both sums give a lower bound of the error.

# %%
writes, query, wanted, overwrites = tasks(40_000)
to_asked = (writes[..., :KEYS] * query[:, :KEYS]).sum(-1)  # (L, n): 1 where the write is to the queried key
values_asked = to_asked[..., None] * writes[..., KEYS:]
terms = values_asked.reshape(WRITES, -1).T.double()
fitted = torch.linalg.lstsq(terms, wanted.double().reshape(-1, 1)).solution[:, 0]
is_last = to_asked.cumsum(0) * to_asked == overwrites + 1
chance = (is_last.double().sum(1) / to_asked.double().sum(1)).float()
assert (fitted - chance).abs().max() < 0.03, "replace-by-addition"  # least squares finds the same weights
shared = 1 / (1 + OVERWRITES / 2)


def by_overwrites(answer):
    squared = (answer - wanted).square().mean(-1)
    return torch.stack([squared[overwrites == m].mean() for m in range(OVERWRITES + 1)])


floors = {
    "one weight for all layers": by_overwrites(shared * values_asked.sum(0)),
    "a weight for each layer": by_overwrites((chance[:, None, None] * values_asked).sum(0)),
}
theory = torch.tensor([(1 - shared) ** 2 + m * shared**2 for m in range(OVERWRITES + 1)])
assert (floors["one weight for all layers"] - theory).abs().max() < 0.03, "replace-by-addition"
assert all(floor.min() > 0.25 for floor in floors.values()), "replace-by-addition"
rows = ["| best without reading | " + " | ".join(f"{m} overwrites" for m in range(OVERWRITES + 1)) + " | mean |"]
rows.append("|---" * (OVERWRITES + 3) + "|")
for name, floor in floors.items():
    rows.append(f"| {name} | " + " | ".join(f"{error:.2f}" for error in [*floor, floor.mean()]) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# (Answering zero has the error 1.) **It can replace** if the sublayer reads the state and is not linear. With
# $\mathbf{h} = \mathbf{k}(\mathbf{v} - \mathbf{X}^\top\mathbf{k})^\top$, addition *is* the overwrite. For one-hot keys,
# SwiGLU can compute this product with one hidden unit per stored number. With the weights below, the package's own
# modules do so to rounding.

# %%
by_hand = SwiGLU(reading).requires_grad_(False)
for parameter in by_hand.parameters():
    parameter.zero_()
gate_rows, up_rows = by_hand.gate_up.weight.chunk(2)
for i in range(KEYS):
    for j in range(CHANNELS):
        unit, place = i * CHANNELS + j, INPUT + i * CHANNELS + j
        gate_rows[unit, i] = 64.0  # silu(64) is 64 in fp32; silu(0) is 0
        up_rows[unit, KEYS + j], up_rows[unit, place] = 1 / 64, -1 / 64  # value minus the stored value
        by_hand.out.weight[place, unit] = 1.0

canceller = WithReadingAddition(0)
canceller.sublayer, canceller.query = by_hand, nn.Identity()
with torch.no_grad():
    error = (canceller(writes[:, :1000], query[:1000]) - wanted[:1000]).abs().max()
assert error < 1e-5, "addition-can-replace"
print(f"addition with a hand-made cancelling sublayer: largest error {error:.0e}, {KEYS * CHANNELS} hidden units used")

# %% [markdown]
# There is a second way: *writes that grow*. Let layer $l$ add $g^l\,\mathbf{v}$, and $g^l$ to one more channel, and
# divide at the end. The last write then outweighs each earlier one by a factor of at least $g$. The numbers grow like
# $g^l$ with depth, and the error falls like $1/g^2$.

# %%
rows = ["| growth $g$ | error | largest number in the state | after 24 layers |", "|---|---|---|---|"]
by_growth = {}
for growth in (1.0, 2.0, 4.0, 16.0):
    loudness = growth ** torch.arange(1, WRITES + 1)
    loud = (loudness[:, None, None] * to_asked[..., None] * writes[..., KEYS:]).sum(0)
    answer = loud / (loudness[:, None] * to_asked).sum(0)[:, None]
    by_growth[growth] = error = float((answer - wanted).square().mean())
    rows.append(f"| {growth:g} | {error:.4f} | {loud.abs().max():.0e} | about {growth**24:.0e} |")
assert by_growth[16.0] < 0.01, "addition-can-replace"
assert 8 < by_growth[4.0] / by_growth[16.0] < 32, "addition-can-replace"  # 1 / g^2 predicts 16
Markdown("\n".join(rows))

# %% [markdown]
# It would therefore be wrong to say that addition cannot replace. But addition must either *read first*, in the
# sublayer, or grow without bound, while the delta rule has the reading built in.
#
# ### Trained, side by side
#
# Each contender is trained from 16 initialisations on the same stream of fresh examples, with the same optimiser,
# learning rate and number of steps, none of which was tuned for a contender. The 16 models are trained together, with
# stacked parameters. Gates start at 0.5, so that the delta rule has to learn that 1 is the solution.

# %% tags=["fold"] summary="Code: training 16 initialisations at once"
SEEDS, STEPS, EXAMPLES, RATE = 16, 400, 128, 2e-2


def clip(gradients, longest):
    """Clip the gradient of each seed to the length `longest`."""
    lengths = sum(gradient.flatten(1).square().sum(1) for gradient in gradients).sqrt()
    for gradient in gradients:
        gradient.mul_((longest / lengths).clamp(max=1).view(-1, *[1] * (gradient.dim() - 1)))


def train(made):
    """Train all seeds; return a function that runs them on a batch, and their parameters (seeds, ...)."""
    models = [made(seed + 1000 * n) for n in range(SEEDS)]
    parameters, _ = stack_module_state(models)

    def run(writes, query):
        return vmap(lambda p: functional_call(models[0], p, (writes, query)))(parameters)

    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stream = torch.Generator().manual_seed(seed + 1)
    for _ in range(STEPS):
        writes, query, wanted, _ = tasks(EXAMPLES, generator=stream)
        loss = (run(writes, query) - wanted).square().mean((1, 2))  # one number per seed
        optimizer.zero_grad()
        loss.sum().backward()
        clip([parameter.grad for parameter in parameters.values()], 1.0)
        optimizer.step()
        schedule.step()
    return run, parameters


trained = {name: train(made) for name, made in CONTENDERS.items()}

# %%
DEPTHS = (10, 15, 20, 30, 40)


@torch.no_grad()
def squared_errors(run, count, depth):
    """(seeds, overwrites + 1): the mean squared errors on fresh examples."""
    writes, query, wanted, overwrites = tasks(count, depth, torch.Generator().manual_seed(seed + 100 + depth))
    squared = (run(writes, query) - wanted).square().mean(-1)
    return torch.stack([squared[:, overwrites == m].mean(1) for m in range(OVERWRITES + 1)], dim=1)


def overlap(parameters):
    """(seeds,): the largest cosine between the directions of two keys, for writes with value zero."""
    k = nn.functional.normalize(parameters["direction.weight"].detach()[:, :, :KEYS], dim=1)
    cosines = torch.einsum("sik,sil->skl", k, k).abs()
    return (cosines - torch.eye(KEYS)).amax((1, 2))


errors = {name: squared_errors(run, 4000, WRITES) for name, (run, _) in trained.items()}
deeper = {
    name: torch.stack([squared_errors(run, 1000, depth).mean(1) for depth in DEPTHS], dim=1)
    for name, (run, _) in trained.items()
}
for error in (*errors.values(), *deeper.values()):
    error.nan_to_num_(torch.inf)  # training can diverge, and a stack deeper than in training can overflow
means = {name: error.mean(1) for name, error in errors.items()}
at_40 = {name: error[:, -1] for name, error in deeper.items()}
overlaps = {name: overlap(parameters) for name, (_, parameters) in trained.items() if "direction.weight" in parameters}
apart, same = overlaps["delta"] < 0.005, overlaps["delta"] > 0.5
everything, finite = torch.ones(SEEDS, dtype=torch.bool), means["addition that reads the state"].isfinite()
groups = [
    ("delta, overlap of keys below 0.005", "delta", apart),
    ("delta, between", "delta", ~apart & ~same),
    ("delta, overlap of keys above 0.5", "delta", same),
    ("addition, same generators", "addition, same generators", everything),
    ("addition that reads the state", "addition that reads the state", finite),
    ("addition that reads, diverged in training", "addition that reads the state", ~finite),
]


def median_and_range(values):
    if not values.isfinite().any():
        return "–"
    return f"{values.median():.1g} ({values.min():.1g} to {values.max():.1g})"


rows = ["| contender | runs | share of its 16 runs | error, 10 layers | error, 40 layers |", "|---|---|---|---|---|"]
for title, name, members in groups:
    count = int(members.sum())
    low, high = stats.binomtest(count, SEEDS).proportion_ci(method="wilson")
    share = f"{100 * count / SEEDS:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
    cells = (median_and_range(values[name][members]) for values in (means, at_40))
    rows.append(f"| {title} | {count} | {share} | " + " | ".join(cells) + " |")

assert apart.any()
assert (errors["delta"][apart] < 0.01).all(), "direct-replacement"
assert (means["delta"][same] > 0.2).all(), "direct-replacement"
assert means["addition, same generators"].min() > 0.97 * floors["one weight for all layers"].mean(), (
    "replace-by-addition"
)
reads = means["addition that reads the state"]
assert finite.any()
assert 1e-4 < reads[finite].min() < reads[finite].max() < 0.1
assert (at_40["addition that reads the state"] > 3 * reads)[finite].all()
assert at_40["delta"][apart].max() < at_40["addition that reads the state"].min()
Markdown("\n".join(rows))

# %% alt="Error of three residual rules against the number of overwrites, depth, and the overlap of keys" tags=["fold"]
LOOKS = {
    "delta": ("#0072B2", "-", "o"),
    "addition, same generators": ("#D55E00", "--", "s"),
    "addition that reads the state": ("#E69F00", "-.", "^"),
}
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3.5), sharey=True, layout="constrained")
for name, (colour, style, marker) in LOOKS.items():
    for axis, xs, error in ((axes[0], range(OVERWRITES + 1), errors[name]), (axes[1], DEPTHS, deeper[name])):
        for one in error.clamp(min=1e-9):
            axis.semilogy(xs, one, color=colour, lw=0.6, alpha=0.6)
        axis.semilogy(xs, error.median(0).values.clamp(min=1e-9), color=colour, ls=style, marker=marker, label=name)
    if name in overlaps:
        axes[2].loglog(overlaps[name], means[name].clamp(min=1e-9), marker, color=colour, ms=4, alpha=0.7)
for (name, floor), style in zip(floors.items(), (":", (0, (5, 3))), strict=True):
    axes[0].semilogy(range(OVERWRITES + 1), floor, color="black", lw=1, ls=style, label=f"lower bound, {name}")
axes[0].set(xlabel="overwrites of the queried key", ylabel="mean squared error", title=f"{WRITES} layers")
axes[1].set(xlabel="layers", title="more layers", xticks=DEPTHS, ylim=(5e-10, 3))
axes[2].set(xlabel="overlap of keys", title=f"{WRITES} layers, run by run")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown] tags=["caption"]
# Thick lines are medians, thin lines the 16 runs. Answering zero has the error 1. The *overlap of keys* is the largest
# cosine between the learned directions of two keys.

# %% [markdown]
# The table gives the median error of each group of runs and its range; shares have Wilson intervals of 95 %.
#
# - **Same generators, only the rule differs.** No run of addition gets below its lower bound: the more often a value
#   was replaced, the larger the error. The delta rule has no such bound. Every run that learned nearly orthogonal keys
#   (an overlap below 0.005) solves the task, for any number of overwrites, and at 40 layers its error is below that of
#   every run of the addition that reads (both asserted).
# - **Not in every run.** Every run of the delta rule whose overlap is above 0.5 fails (asserted). No gate or target can
#   make up for two keys that share a direction. This is a failure of training rather than of the rule; how often it
#   happens depends on the initialisation, and 16 runs tell it only as precisely as the interval in the table.
# - **Addition that reads.** With more than ten times as many parameters and the state as an input, it learns to cancel
#   well, but not exactly: the error of every run that does not diverge is between $10^{-4}$ and $0.1$, and it is more
#   than three times as large at 40 layers (asserted).
#
# The delta rule is not more powerful than addition with a sublayer that reads. It makes the reading and cancelling part
# of the rule, where they are exact and need no parameters.

# %% [markdown]
# ## What was shown and what was not
#
# **Shown:** (B.1) is the transpose of DeltaNet's rule, for every size; the package's rewrite reproduces DeltaNet over
# time, and DeltaNet's recurrence reproduces a model of the package over depth; with gates of 2 the shortcuts multiply
# to orthogonal matrices, and at most $d$ of them are needed for each one; on a task that consists of replacing, a rule
# that does not read has an error that training cannot reduce below a bound, the delta rule with the same generators has
# no such bound, and addition can solve the task by reading or by writes that grow with depth.
#
# **Not shown:** that a language model needs to replace anything, or that its sublayers, which do read the state, are
# unable to cancel. The toy favours the rule by construction: its writes come from outside, its keys are few, and its
# answer is linear in the state. Nothing here compares the two at the paper's scale.
