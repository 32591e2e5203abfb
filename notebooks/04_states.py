# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What does the model store per token?
#
# **Question.** A baseline keeps one vector per token and adds to it. Deep Delta Learning can keep a small matrix. What
# exactly is stored? How is it made from the embedding (EC), and how do the layers read it (TC, CC)? Where do direction,
# target and gate come from? And can a token see its future through any of this?
#
# **Answer.** **A matrix of $d$ features by $d_v$ channels, made from the embeddings of this and earlier tokens. A layer
# reads one weighted sum of the channels, so what it does not read stays. No token sees a later one, and all expanded
# designs start as the same function.**
#
# > The added capacity is used as persistent editable memory, rather than as a uniformly wider compute path. (Sec. 2.2)

# %% tags=["parameters"]
results = "results/laptop"  # every notebook has this parameter; derivations do not use it
seed = 0

# %%
import itertools

import matplotlib.pyplot as plt
import sympy as sp
import torch
from IPython.display import Markdown
from torch import nn

from ddl.config import ConfigError, ModelConfig, from_mapping, load_scale, paper_variants
from ddl.model.expanded_state import COMPRESSORS, Expand
from ddl.model.language_model import Block, LanguageModel, parameter_count
from ddl.model.residual import Delta, Gate, MLPDirection, Value, make_rule
from ddl.ops.compress import compress_channels, compress_tokens
from ddl.ops.expand import expand_embedding, repeat_embedding
from ddl.ops.rewrite import rewrite_reference
from ddl.reporting.notebook_style import set_style, source

set_style()
torch.manual_seed(seed)
random = torch.Generator().manual_seed(seed)
VARIANTS = paper_variants()
SHAPE = {"vocab_size": 61, "sequence_length": 10, "layers": 2, "width": 12, "heads": 2, "kernels": "reference"}


def config_of(slug, **overrides):
    """A variant of config/variants.yaml at a size that runs in milliseconds."""
    return from_mapping(ModelConfig, SHAPE | VARIANTS[slug].model | overrides, "04_states")


def draw(*shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def label(slug):
    return VARIANTS[slug].label.replace("d_v", "$d_v$")


# %% [markdown]
# ## One state, created once, rewritten by every layer
#
# A scalar state ($d_v = 1$) is the vector $\mathbf{x} \in \mathbb{R}^d$ of an ordinary Transformer. An expanded state
# ($d_v = 4$ in the paper) is a matrix $\mathbf{X} \in \mathbb{R}^{d \times d_v}$: $d_v$ *value channels* for every
# feature. The embedding creates this state, and every block takes it and returns it in the same shape. A sublayer sees
# only a *compressed* version of it, which has width $d$ again.

# %%
source(Block.forward)

# %%
ids = torch.randint(0, SHAPE["vocab_size"], (2, SHAPE["sequence_length"]), generator=random)


def shapes_of(model):
    """The shapes in a running model: the state at the start and after every block, and every sublayer's output."""
    states, outputs = [model.expand(model.embedding(ids)).shape], []
    for block in model.blocks:
        block.register_forward_hook(lambda _, arguments, output: states.append(output.shape))
        for sublayer in (block.attention, block.mlp):
            sublayer.register_forward_hook(lambda _, arguments, output: outputs.append(output.shape))
    model(ids)
    return states, outputs


rows = ["| design | $d_v$ | state | sublayer | numbers kept per token |", "|---|---|---|---|---|"]
for slug in VARIANTS:
    config = config_of(slug)
    states, outputs = shapes_of(LanguageModel(config, seed=seed))
    channels = (config.value_channels,) if config.value_channels > 1 else ()
    assert set(states) == {(*ids.shape, config.width, *channels)}, "compress-process-rewrite"
    assert set(outputs) == {(*ids.shape, config.width)}, "compress-process-rewrite"
    kept = states[0][2:].numel()
    assert kept == config.width * config.value_channels, "state-memory"
    rows.append(f"| {label(slug)} | {config.value_channels} | {(*states[0],)} | {(*outputs[0],)} | {kept} |")
Markdown("\n".join(rows))

# %% [markdown]
# The shapes come from running models, with two sequences of ten tokens and $d = 12$. The state grows with $d_v$; the
# width of the computation does not.

# %% [markdown]
# ### Compress, process, rewrite
#
# The picture shows what one sublayer does to one token, with $d = 6$ and $d_v = 4$, in the order of the code above.
# Each square is one number, computed by the package's modules from a seeded state. Below each array are its shape for
# this token and its shape for a batch of $B$ sequences of $T$ tokens.

# %% tags=["fold"] summary="Code: the numbers, from the package's modules"
B, T, D_SMALL, D_V = 2, 5, 6, 4
small = from_mapping(
    ModelConfig, SHAPE | VARIANTS["ddl-cc"].model | {"width": D_SMALL, "heads": 1, "layers": 1}, "picture"
)
block = LanguageModel(small, seed=seed).double().blocks[0]
with torch.no_grad():
    X = draw(B, T, D_SMALL, D_V)
    x_in = block.compress(X)
    c = block.mlp_norm(x_in)
    h = block.mlp(c)
    k, v, beta = block.mlp_rule.generate(X, x_in, c, h)
    after = block.mlp_rule(X, x_in, c, h)
    readout = torch.einsum("bti,btij->btj", k, X)
    delta = beta[..., None] * (v - readout)
assert torch.equal(after, rewrite_reference(X, k, v, beta)), "compress-process-rewrite"
assert torch.allclose(after - X, k[..., None] * delta[..., None, :], rtol=0, atol=1e-15)
arrays = {"X": X, "x": x_in, "c": c, "h": h, "k": k, "v": v, "beta": beta, "readout": readout, "delta": delta}
for name, tail in (("X", (6, 4)), *((name, (6,)) for name in "xchk"), ("v", (4,)), ("beta", ()), ("delta", (4,))):
    assert arrays[name].shape == (B, T, *tail), name

# %% alt="What one sublayer does to one token, array by array, with shapes" tags=["fold"]
INK, ROW = "#222222", "\n"


def draw_array(axis, left, middle, array, name, shapes):
    """Draw a (rows, columns) array as squares centred at height `middle`, its name above, its shapes below."""
    height, width = array.shape
    top = middle + height / 2
    scale = max(float(array.abs().max()), 1e-12)
    x, y = left + torch.arange(width + 1), top - torch.arange(height + 1)
    axis.pcolormesh(x, y, array / scale, cmap="RdBu_r", vmin=-1.3, vmax=1.3, edgecolors="white", lw=0.6)
    axis.plot([x[0], x[-1], x[-1], x[0], x[0]], [y[0], y[0], y[-1], y[-1], y[0]], color=INK, lw=0.8)
    axis.text(left + width / 2, top + 0.3, name, ha="center", va="bottom", fontsize=10)
    axis.text(left + width / 2, top - height - 0.3, ROW.join(shapes), ha="center", va="top", fontsize=6.3, color=INK)
    return left + width


def draw_step(axis, left, right, middle, text):
    """Draw an arrow with a word above it."""
    axis.annotate("", (right, middle), (left, middle), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1})
    axis.text((left + right) / 2, middle + 0.25, text, ha="center", va="bottom", fontsize=7)


def draw_sign(axis, x, middle, text):
    axis.text(x, middle, text, ha="center", va="center", fontsize=13)


token = {name: tensor[0, -1] for name, tensor in arrays.items()}
expanded, vector = ("$d\\times d_v$", "$(B,T,d,d_v)$"), ("$d$", "$(B,T,d)$")
figure, axis = plt.subplots(figsize=(6.9, 4.9), layout="constrained")
axis.set(xlim=(-0.3, 29.5), ylim=(-14.6, 5.3), aspect="equal")
axis.axis("off")
end = draw_array(axis, 0, 0, token["X"], "$\\mathbf{X}$", expanded)
for name, word, title in (
    ("x", "compress\nCC or TC", "$\\mathbf{x}^{\\mathrm{in}}$"),
    ("c", "process\nRMSNorm", "$\\mathbf{c}$"),
    ("h", "process\nattention or MLP", "$\\mathbf{h}$"),
    ("k", "generate\n$\\mathbf{h}/|\\mathbf{h}|$", "$\\mathbf{k}$"),
):
    draw_step(axis, end + 0.4, end + 4.2, 0, word)
    end = draw_array(axis, end + 4.6, 0, token[name][:, None], title, vector)
axis.text(0, 4.6, "compress, process", fontsize=9, weight="bold")
BELOW = -10.2
axis.text(0, BELOW + 4.6, "rewrite: read along k, compare with v, write back", fontsize=9, weight="bold")
end = draw_array(axis, 0, BELOW, after[0, -1], "$\\mathbf{X}'$", expanded)
draw_sign(axis, end + 0.9, BELOW, "=")
end = draw_array(axis, end + 1.8, BELOW, token["X"], "$\\mathbf{X}$", expanded)
draw_sign(axis, end + 0.9, BELOW, "+")
end = draw_array(axis, end + 1.8, BELOW, token["k"][:, None], "$\\mathbf{k}$", vector)
draw_sign(axis, end + 0.9, BELOW, "·")
end = draw_array(axis, end + 1.8, BELOW, token["beta"].reshape(1, 1), "$\\beta$", ("1", "$(B,T)$"))
draw_sign(axis, end + 0.9, BELOW, "(")
end = draw_array(axis, end + 1.5, BELOW, token["v"][None], "$\\mathbf{v}^{\\mathrm{T}}$", ("$d_v$", "$(B,T,d_v)$"))
draw_sign(axis, end + 0.9, BELOW, "−")
readout_name = "$\\mathbf{k}^{\\mathrm{T}}\\mathbf{X}$"
end = draw_array(axis, end + 1.8, BELOW, token["readout"][None], readout_name, ("$d_v$", "$(B,T,d_v)$"))
draw_sign(axis, end + 0.6, BELOW, ")")
axis.text(16.2, BELOW + 2.6, "β and v: generated from c", ha="center", fontsize=7)
plt.show()

# %% [markdown] tags=["caption"]
# Red is positive, blue is negative, and each array has its own colour scale. $\beta$ and $\mathbf{v}$ are generated
# from $\mathbf{c}$. The change $\mathbf{X}' - \mathbf{X}$ is a column times a row.

# %% [markdown]
# That the change is a column times a row is asserted for all ten tokens, as are the shapes. With $d_v = 1$ the state
# has one column and the step *compress* is missing; the rest is the same.

# %% [markdown]
# ## EC, CC and TC as matrices
#
# All three are linear in the state (or in the embedding), so each of them is one matrix that acts on all numbers of a
# sequence. With $0 \le s < K$ counting tokens back from $t$ (App. A.3):
#
# $$\text{EC:}\quad X_{t,i,j} = \sum_s c_{i,j,s}\,x_{t-s,i}, \qquad
# \text{CC:}\quad x^{\mathrm{in}}_{t,i} = \sum_j c_{i,j}\,X_{t,i,j},$$
#
# $$\text{TC:}\quad x^{\mathrm{in}}_{t,i} = \sum_j w_j \sum_s c_{i,j,s}\,X_{t-s,i,j} .$$

# %%
source(expand_embedding, compress_channels, compress_tokens)

# %% [markdown]
# Feeding the basis vectors to a linear function one by one gives the columns of its matrix, however the function is
# written. The example has six tokens, two features, three value channels, kernels with three taps, and random weights.


# %%
def as_matrix(function, *shape):
    """The matrix of a linear map of (T, ...) arrays: column n is the image of basis vector n."""
    numbers = torch.Size(shape).numel()
    basis = torch.eye(numbers, dtype=torch.float64).view(numbers, *shape)
    return function(basis).flatten(1).T


TOKENS, FEATURES, CHANNELS, TAPS = 6, 2, 3, 3
expand_kernel, token_kernel = draw(FEATURES, CHANNELS, TAPS), draw(FEATURES, CHANNELS, TAPS)
channel_kernel, read = draw(FEATURES, CHANNELS), draw(CHANNELS)
functions = {
    "EC": (lambda x: expand_embedding(x, expand_kernel), (TOKENS, FEATURES)),
    "CC": (lambda X: compress_channels(X, channel_kernel), (TOKENS, FEATURES, CHANNELS)),
    "TC": (lambda X: compress_tokens(X, token_kernel, read), (TOKENS, FEATURES, CHANNELS)),
}
matrices = {name: as_matrix(function, *shape) for name, (function, shape) in functions.items()}
for name, (function, shape) in functions.items():
    several = draw(7, *shape)
    error = (several.flatten(1) @ matrices[name].T - function(several).flatten(1)).abs().max()
    assert error < 1e-12, "state-operators"
    print(f"{name}: {' x '.join(map(str, matrices[name].shape))} matrix, equal to the function within 1e-12")

# %% [markdown]
# The agreement on seven random sequences shows two things: these are the matrices, and the functions are linear,
# because a nonlinear function would not agree with any matrix.
#
# Now the structure. Let $\mathbf{S}$ be the shift by one token, with ones just below the diagonal. According to the
# formulas,
#
# $$\mathbf{M}_{\mathrm{EC}} = \sum_s \mathbf{S}^s \otimes \mathbf{E}_s, \qquad
# \mathbf{M}_{\mathrm{CC}} = \mathbf{I}_T \otimes \mathbf{C}, \qquad
# \mathbf{M}_{\mathrm{TC}} = \sum_s \mathbf{S}^s \otimes \mathbf{C}_s,$$
#
# with small blocks that never mix features: $\mathbf{E}_s$ spreads $x_i$ over $(i, j)$ with $c_{i,j,s}$; $\mathbf{C}$
# and $\mathbf{C}_s$ gather $(i, j)$ into $i$ with $c_{i,j}$ and $w_j c_{i,j,s}$. Built from this description, without
# the functions, the matrices must be the same.


# %%
def gather(weights):
    """(d, d_v) weights -> the (d, d d_v) block that computes the weighted sum over the channels of each feature."""
    return torch.block_diag(*weights)


S = torch.diag(torch.ones(TOKENS - 1, dtype=torch.float64), -1)
shifts = [torch.linalg.matrix_power(S, s) for s in range(TAPS)]
structure = {
    "EC": sum(torch.kron(shifts[s], gather(expand_kernel[..., s]).T.contiguous()) for s in range(TAPS)),
    "CC": torch.kron(torch.eye(TOKENS, dtype=torch.float64), gather(channel_kernel)),
    "TC": sum(torch.kron(shifts[s], gather(token_kernel[..., s] * read)) for s in range(TAPS)),
}
for name, matrix in matrices.items():
    assert (matrix - structure[name]).abs().max() < 1e-12, "state-operators"
    print(f"{name}: equal to its Kronecker form; {int((matrix != 0).sum())} of {matrix.numel()} entries are not zero")

# %% alt="The matrices of EC, CC and TC: banded lower block triangular, block diagonal, banded" tags=["fold"]


def draw_matrix(axis, matrix, title, rows_per_token, columns_per_token, names):
    """Draw a matrix, with lines between the tokens and their numbers along the axes."""
    limit = float(matrix.abs().max())
    axis.pcolormesh(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=False)
    for size, line in ((rows_per_token, axis.axhline), (columns_per_token, axis.axvline)):
        for position in range(0, TOKENS * size + 1, size):
            line(position, color="black", lw=0.6)
    half_row, half_column = rows_per_token / 2, columns_per_token / 2
    axis.set_yticks([t * rows_per_token + half_row for t in range(TOKENS)], range(TOKENS))
    axis.set_xticks([t * columns_per_token + half_column for t in range(TOKENS)], range(TOKENS))
    axis.tick_params(length=0)
    axis.grid(False)
    axis.set(title=title, aspect="equal", ylim=(matrix.shape[0], 0), xlim=(0, matrix.shape[1]))
    axis.set_xlabel(f"input: token, {names[1]}")
    axis.set_ylabel(f"output: token, {names[0]}")


figure = plt.figure(figsize=(6.9, 5.0), layout="constrained")
grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.75))
pairs, features = "(feature, channel)", "feature"
spread = FEATURES * CHANNELS
draw_matrix(figure.add_subplot(grid[:, 0]), matrices["EC"], "EC", spread, FEATURES, (pairs, features))
draw_matrix(figure.add_subplot(grid[0, 1]), matrices["CC"], "CC", FEATURES, spread, (features, pairs))
draw_matrix(figure.add_subplot(grid[1, 1]), matrices["TC"], "TC", FEATURES, spread, (features, pairs))
plt.show()

# %% [markdown] tags=["caption"]
# White is zero, red is positive, blue is negative. EC and TC are bands that end at the diagonal and span three tokens;
# CC repeats one block on the diagonal.

# %% [markdown]
# The blocks of EC and TC repeat all the way down, because the kernel does not depend on the position. No block mixes
# the two features: that is left to sublayers and rewrites.
#
# ### Causal means lower block triangular
#
# An output at token $t$ must not depend on an input at $t' > t$, so every block above the diagonal must be zero. It
# must be exactly zero, since the functions never read there. To show that this check can fail, the same test is applied
# to TC run backwards in time.


# %%
def is_causal(matrix):
    """Whether every block (t, t') with t' > t is exactly zero."""
    blocks = matrix.view(TOKENS, matrix.shape[0] // TOKENS, TOKENS, matrix.shape[1] // TOKENS)
    return not any(blocks[t, :, later].any() for t in range(TOKENS) for later in range(t + 1, TOKENS))


for name, matrix in matrices.items():
    assert is_causal(matrix), f"causal-operators: {name}"
backwards = as_matrix(lambda X: functions["TC"][0](X.flip(1)).flip(1), *functions["TC"][1])
assert not is_causal(backwards), "causal-operators"
# CC is block diagonal: it reads no other token.
assert torch.equal(matrices["CC"], matrices["CC"] * (structure["CC"] != 0)), "cc-no-history"
print("EC, CC, TC: causal;  TC run backwards in time: not causal")

# %% [markdown]
# ### What a compressor does not see
#
# A compressor maps $T d\,d_v$ numbers to $T d$. Its matrix has full rank $T d$, so a space of $T d\,(d_v - 1)$
# dimensions is invisible to the attention and the MLP that it feeds. This is what "memory" means here: content can stay
# in the state without entering any computation until a compressor with another kernel reads it. (The rewrite does read
# it: $\mathbf{k}^\top\mathbf{X}$ has an entry for every channel.)

# %%
for name in ("CC", "TC"):
    rank = int(torch.linalg.matrix_rank(matrices[name]))
    assert rank == TOKENS * FEATURES
    hidden = torch.linalg.svd(matrices[name]).Vh[rank:].view(-1, TOKENS, FEATURES, CHANNELS)
    assert len(hidden) == TOKENS * FEATURES * (CHANNELS - 1)
    assert functions[name][0](hidden).abs().max() < 1e-12
    print(f"{name}: reads {rank} of {matrices[name].shape[1]} dimensions; the other {len(hidden)} give zero")

# %% [markdown]
# ## Causality of whole models
#
# The same question for every variant as a whole model: two blocks with attention and rewrites. The weights are moved
# away from their initial values, because some kernels start at zero and could hide a leak. We replace one token and
# look at which outputs change. The output is the normalised readout of every position, in fp64.


# %%
@torch.no_grad()
def away_from_start(model):
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def response(model):
    """(T, T): largest change of the output at position t (row) when token t' (column) is replaced."""
    length, vocabulary = model.config.sequence_length, model.config.vocab_size
    ids = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))
    batch = ids.repeat(length + 1, 1)  # the last sequence stays as it is
    batch[range(length), range(length)] = (ids[0] + 1) % vocabulary
    hidden = model.hidden(batch)
    return (hidden[:-1] - hidden[-1]).abs().amax(-1).T


changes = {}
for slug in VARIANTS:
    model = away_from_start(LanguageModel(config_of(slug), seed=seed))
    changes[slug] = response(model.double())
for slug, change in changes.items():
    past = change.triu(1)
    assert past.max() < 1e-12, f"causal-operators: {slug}"
    assert (change.diagonal() > 1e-3).all()
    assert (change.tril() + torch.ones_like(change).triu(1) > 1e-9).all()  # every later output changes
    print(
        f"{VARIANTS[slug].label:18s} earlier outputs change by less than 1e-12, others up to {float(change.max()):.1f}"
    )

# %% alt="For each variant, the outputs that change when one token is replaced: none at earlier positions" tags=["fold"]
columns = 3
lines = -(-len(changes) // columns)
figure, axes = plt.subplots(lines, columns, figsize=(6.9, 2.25 * lines + 0.3), layout="constrained", squeeze=False)
for axis in axes.flat:
    axis.axis("off")
for axis, (slug, change) in zip(axes.flat, changes.items(), strict=False):
    axis.axis("on")
    shown = change.log10().masked_fill(change < 1e-12, float("nan"))
    picture = axis.imshow(shown, cmap="cividis", vmin=-2, vmax=1)
    axis.grid(False)
    axis.set_title(label(slug), fontsize=9)
    axis.set(xticks=range(0, 10, 3), yticks=range(0, 10, 3))
for axis in axes[-1]:
    axis.set_xlabel("token replaced")
for axis in axes[:, 0]:
    axis.set_ylabel("output changes at")
figure.colorbar(picture, ax=axes, label="largest change, $\\log_{10}$", shrink=0.7)
plt.show()

# %% [markdown] tags=["caption"]
# White means no change. The upper triangle is empty for every variant: a later token changes no earlier output. The
# lower triangle is full, because attention reads all earlier tokens.

# %% [markdown]
# ## How it starts
#
# The paper initialises the convolution of EC as an identity, and the read vector of TC as an average:
#
# > [...] so the starting behavior matches simple repetition. (App. A.3)
#
# In the package EC starts with tap 0 equal to one and the other taps zero, which is repetition,
# $\mathbf{X}_0 = \mathbf{x}\,\mathbf{1}^\top$; both compressors start as the mean over the channels,
# $x^{\mathrm{in}}_i = \frac{1}{d_v}\sum_j X_{i,j}$. (For CC the paper does not say; the package chooses the mean.)

# %%
embedding, any_state = torch.randn(2, 10, 12, generator=random), torch.randn(2, 10, 12, 4, generator=random)
with torch.no_grad():
    for slug in ("ddl-tc", "ddl-cc"):
        expanded_state = Expand(config_of(slug))(embedding)
        assert torch.equal(expanded_state, repeat_embedding(embedding, 4)), "state-operators"
        compressor = COMPRESSORS[config_of(slug).compressor](config_of(slug))
        gap = (compressor(any_state) - any_state.mean(-1)).abs().max()
        assert gap < 1e-6, "state-operators"
        assert torch.equal(compressor(expanded_state), embedding)
        print(f"{VARIANTS[slug].label}: EC is repetition, bit for bit; the compressor is the mean to 1e-6 in fp32")

# %% [markdown]
# Compressing a freshly expanded embedding therefore returns the embedding, bit for bit. It follows that, with the same
# seed, the four expanded designs start as *the same function*. Only training makes them differ.

# %%
ids = torch.randint(0, SHAPE["vocab_size"], (2, SHAPE["sequence_length"]), generator=random)
with torch.no_grad():
    start = {slug: LanguageModel(config_of(slug), seed=seed).double()(ids) for slug in VARIANTS}
    moved = {slug: away_from_start(LanguageModel(config_of(slug), seed=seed)).double()(ids) for slug in VARIANTS}
rows = ["| design | difference of logits to DDL-CC at the start | after moving all weights |", "|---|---|---|"]
for slug in ("ddl-tc-noec", "ddl-cc-noec", "ddl-tc"):
    first, later = ((logits[slug] - logits["ddl-cc"]).abs().max() for logits in (start, moved))
    assert first < 1e-5  # logits are rounded to fp32
    assert later > 1e-2
    rows.append(f"| {label(slug)} | below 1e-5 | {float(later):.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# Moreover, at the start an expanded design is equivalent to a *scalar* one. As long as a compressor uses the same
# channel weights for every feature, compressing commutes with rewriting. With $\mathbf{m} = \mathbf{1}/d_v$ and
# $\bar{v} = \frac{1}{d_v}\sum_j v_j$, multiplying (2.2) by $\mathbf{m}$ gives
#
# $$\mathbf{X}'\mathbf{m} = \mathbf{X}\mathbf{m}
# + \beta\,\mathbf{k}\,(\bar{v} - \mathbf{k}^\top\mathbf{X}\mathbf{m}) ,$$
#
# which is the rule with $d_v = 1$ for the compressed state. DDL-CC must therefore start as DDL ($d_v = 1$) with the
# average of its value projections. The four channels become useful only when training makes the kernels differ between
# features or blocks.


# %%
@torch.no_grad()
def with_averaged_values(scalar_model, expanded_model):
    """The scalar model with the weights of the expanded one, its value projections averaged over the channels."""
    weights = {name: weight for name, weight in expanded_model.state_dict().items() if "kernel" not in name}
    for name in weights:
        if ".value." in name:
            weights[name] = weights[name].mean(0, keepdim=True)
    scalar_model.load_state_dict(weights)
    return scalar_model.double()


rows = ["| DDL-CC against the averaged DDL ($d_v = 1$) | largest difference of logits |", "|---|---|"]
for stage, prepare in (("at the start", lambda model: model), ("after moving all weights", away_from_start)):
    expanded_model = prepare(LanguageModel(config_of("ddl-cc"), seed=seed))
    scalar_model = with_averaged_values(LanguageModel(config_of("ddl-dv1"), seed=seed), expanded_model)
    with torch.no_grad():
        gap = float((expanded_model.double()(ids) - scalar_model(ids)).abs().max())
    assert (gap < 1e-5) == (stage == "at the start")
    rows.append(f"| {stage} | {'below 1e-5' if gap < 1e-5 else f'{gap:.2f}'} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## The generators
#
# Direction, target and gate come from small functions. For each there are a few choices (Sec. 2.1, App. A.1, A.2); all
# of them are settings of the model's configuration.

# %%
source(Delta.generate, Gate.forward, Value.forward, MLPDirection.forward)

# %% [markdown]
# Written out with the weights of the modules, on random inputs: the gate is $2\sigma(\cdot)$ of one linear map of
# $\mathbf{c}$, or of two with a $\tanh$ between them; the target is a linear map of $\mathbf{c}$; the direction is the
# normalised output $\mathbf{h}$, or the normalised output of an MLP on the pooled state.

# %%
inputs = torch.Generator().manual_seed(seed)
X = torch.randn(2, 5, 12, 4, generator=inputs, dtype=torch.float64)
x_in, c, h = torch.randn(3, 2, 5, 12, generator=inputs, dtype=torch.float64)


@torch.no_grad()
def generated(**setting):
    """Weights of a rule, away from their initial values, and the direction, target and gate that it generates."""
    rule = away_from_start(make_rule(config_of("ddl-cc", gate_hidden=7, **setting)).double())
    return dict(rule.named_parameters()), *rule.generate(X, x_in, c, h)


def unit(k_tilde):
    return k_tilde / k_tilde.norm(dim=-1, keepdim=True)


GUARD = 1e-8  # the guard of the normalisation changes a direction by less than this
for kind in ("linear", "mlp"):
    W, k, v, beta = generated(gate=kind)
    features = c if kind == "linear" else torch.tanh(c @ W["gate.hidden.weight"].T)
    logit = (features @ W["gate.logit.weight"].T + W["gate.logit.bias"])[..., 0]
    assert torch.allclose(beta, 2 / (1 + torch.exp(-logit)), rtol=0, atol=1e-14), "gate-form"
    assert torch.allclose(v, c @ W["value.linear.weight"].T + W["value.linear.bias"], rtol=0, atol=1e-14), "value-form"
    assert torch.allclose(k, unit(h), rtol=0, atol=GUARD), "output-direction"
for pool, pooled in (("mean", X.mean(-1)), ("flatten", X.flatten(-2))):
    W, k, *_ = generated(direction="mlp", direction_pool=pool, value_input="output")
    hidden = pooled @ W["direction.up.weight"].T
    k_tilde = (hidden * hidden.sigmoid()) @ W["direction.down.weight"].T
    assert torch.allclose(k, unit(k_tilde), rtol=0, atol=GUARD), "mlp-direction"
print("gate, target and both kinds of direction: equal to their formulas")

# %% [markdown]
# > We compute the logits in fp32 for stability and initialize the output bias to match the configured starting value
# > $\beta_0 = \texttt{ddl\_beta\_init} \in [0, 2]$ via $\mathrm{logit}(\beta_0/2)$ (clamped in code) (App. A.2)
#
# In bf16 training the gate's weights and logits are fp32: given the same bf16 input, it returns what fp32 arithmetic
# gives, bit for bit. Logits in bf16 would give other gates. The bias makes the gate $\beta_0$ for the input
# $\mathbf{c} = 0$; the clamp of the logit to $\pm 15$ moves the ends of the range by less than $10^{-6}$.

# %%
gate = away_from_start(Gate(config_of("ddl-cc")))
rounded = torch.randn(1000, 12, generator=inputs).bfloat16()
with torch.no_grad():
    in_fp32 = 2 * torch.sigmoid(nn.functional.linear(rounded.float(), gate.logit.weight, gate.logit.bias))[:, 0]
    in_bf16 = 2 * torch.sigmoid(nn.functional.linear(rounded, *(p.bfloat16() for p in gate.logit.parameters())))[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        found = gate(rounded)
assert gate.logit.weight.dtype == found.dtype == torch.float32, "fp32-logits"
assert torch.equal(found, in_fp32), "fp32-logits"
assert (in_bf16 - in_fp32).abs().max() > 1e-3, "fp32-logits"

for beta_0 in (0.0, 0.3, 1.0, 1.8, 2.0):
    with torch.no_grad():
        at_zero = float(Gate(config_of("ddl-cc", gate_init=beta_0))(torch.zeros(1, 12)))
    assert abs(at_zero - beta_0) < 1e-6, "initial-gate"
print("logits in fp32; gates of the input zero: equal to beta_0 within 1e-6")

# %% [markdown]
# So $\beta_0$ is the centre of the initial gates and not their value: the weights of the gate are drawn at random, and
# the gates of different tokens scatter around it ([notebook 02](02_spectrum.html) shows how).
#
# ### Choices and their numbers of parameters

# %% [markdown]
# The table shows what each choice computes, and how many parameters it has per sublayer with $d$ features, $d_v$
# channels and a hidden gate width $m$. The counts are written down from the equations as sympy expressions and must
# equal the sizes of the modules, here for $d = 12$, $d_v = 4$, $m = 7$. The last column is the count for all 48
# sublayers of the paper's medium model, with $d = 1024$, $d_v = 4$, $m = 128$.

# %% tags=["fold"] summary="Code: the table of choices, counted"
d, d_v, m = sp.symbols("d d_v m")
D_HERE, D_V_HERE, M_HERE = SHAPE["width"], 4, 7
MLP = {"direction": "mlp", "value_input": "output"}
paper = load_scale("paper").model("medium", "ddl-cc")

choices = [
    ("gate, linear", r"\beta = 2\sigma(\mathbf{w}^\top\mathbf{c} + b)", d + 1, Gate, {}),
    (
        "gate, mlp",
        r"\beta = 2\sigma(\mathbf{w}^\top\tanh(\mathbf{W}\mathbf{c}) + b)",
        m * d + m + 1,
        Gate,
        {"gate": "mlp"},
    ),
    ("direction, output", r"\tilde{\mathbf{k}} = \mathbf{h}", sp.Integer(0), None, {}),
    (
        "direction, mlp of the mean",
        r"\tilde{\mathbf{k}} = \mathbf{W}_2\,\mathrm{silu}(\mathbf{W}_1\,\mathbf{X}\mathbf{1}/d_v)",
        2 * d**2,
        MLPDirection,
        MLP | {"direction_pool": "mean"},
    ),
    (
        "direction, mlp of all channels",
        r"\tilde{\mathbf{k}} = \mathbf{W}_2\,\mathrm{silu}(\mathbf{W}_1\,\mathrm{vec}(\mathbf{X}))",
        (d_v + 1) * d**2,
        MLPDirection,
        MLP | {"direction_pool": "flatten"},
    ),
]
letters = {"normed": r"\mathbf{c}", "compressed": r"\mathbf{x}^{\mathrm{in}}", "output": r"\mathbf{h}"}
for kind, letter in letters.items():
    for activation, shape in (
        ("linear", r"\mathbf{{W}}{} + \mathbf{{b}}"),
        ("sigmoid4", r"4\sigma(\mathbf{{W}}{} + \mathbf{{b}})"),
    ):
        setting = {"value_input": kind, "value_activation": activation}
        choices.append(
            (f"value, {kind}, {activation}", r"\mathbf{v} = " + shape.format(letter), (d + 1) * d_v, Value, setting)
        )

rows = ["| choice | computes | parameters | here | paper's medium |", "|---|---|---|---|---|"]
for name, computes, count, module, setting in choices:
    config = config_of("ddl-cc", gate_hidden=M_HERE, **setting)
    held = sum(parameter.numel() for parameter in module(config).parameters()) if module else 0
    assert held == count.subs({d: D_HERE, d_v: D_V_HERE, m: M_HERE}), name
    large = 2 * paper.layers * count.subs({d: paper.width, d_v: paper.value_channels, m: paper.gate_hidden})
    rows.append(f"| {name} | ${computes}$ | ${sp.latex(count)}$ | {held:,} | {int(large):,} |")
Markdown("\n".join(rows))

# %%
baseline = parameter_count(load_scale("paper").model("medium", "baseline"))["total"]
default = parameter_count(paper)["total"]
shares = {}
for pool in ("mean", "flatten"):
    setting = load_scale("paper").variants["ddl-cc"].model | MLP | {"direction_pool": pool}
    with_mlp = from_mapping(
        ModelConfig,
        {name: getattr(paper, name) for name in ("vocab_size", "sequence_length", "layers", "width", "heads")}
        | setting,
        "paper",
    )
    extra = parameter_count(with_mlp)["total"] - default
    assert extra == 2 * paper.layers * paper.width**2 * (2 if pool == "mean" else 1 + paper.value_channels), (
        "mlp-direction-cost"
    )
    shares[pool] = extra / baseline
assert min(shares.values()) > 0.25, "mlp-direction-cost"
print(f"DDL-CC, medium: {default - baseline:,} parameters more than the baseline's {baseline:,}")
print(f"an MLP direction adds {100 * shares['mean']:.0f} % (mean) or {100 * shares['flatten']:.0f} % (flatten) to it")

# %% [markdown]
# With the sublayer's output as direction, the generators have few parameters, as the paper says. With an MLP on the
# pooled state they do not. (The hidden width $d$ of that MLP is this package's choice; the paper gives none.)
#
# ### Every combination that makes sense
#
# All combinations of gate, direction, pool, value input and value activation are tried. Every combination that the
# schema accepts is built and run, and must give unit directions, gates inside $(0, 2)$ and targets of the right shape.

# %%
options = {
    "gate": ("linear", "mlp"),
    "direction": ("output", "mlp"),
    "direction_pool": ("mean", "flatten"),
    "value_input": ("normed", "compressed", "output"),
    "value_activation": ("linear", "sigmoid4"),
}
accepted, refused = [], {}
X = torch.randn(2, 5, D_HERE, D_V_HERE, generator=random)
x_in, c, h = torch.randn(3, 2, 5, D_HERE, generator=random)
for values in itertools.product(*options.values()):
    setting = dict(zip(options, values, strict=True))
    try:
        rule = make_rule(config_of("ddl-cc", gate_hidden=M_HERE, **setting))
    except ConfigError as error:
        refused.setdefault(str(error), []).append(setting)
        continue
    with torch.no_grad():
        k, v, beta = rule.generate(X, x_in, c, h)
        assert torch.allclose(k.norm(dim=-1), torch.ones(2, 5), rtol=0, atol=1e-5)
        assert beta.shape == (2, 5)
        assert 0 < beta.min() < beta.max() < 2
        assert v.shape == (2, 5, D_V_HERE)
        assert rule(X, x_in, c, h).shape == X.shape
        assert setting["value_activation"] == "linear" or 0 < v.min() < v.max() < 4
    accepted.append(setting)
assert len(accepted) == 2 * 3 * 2 + 2 * 2 * 2  # first the direction from the output, then from an MLP
print(f"{len(accepted)} combinations run; rejected:")
for sentence, settings in refused.items():
    print(f"  {len(settings)} x  {sentence}")

# %% [markdown]
# Each rejection has a reason. With an MLP direction, the sublayer's output $\mathbf{h}$ enters the state only through
# the value. If the value were computed from anything else, attention and MLP would have no influence on the loss. And a
# pool without an MLP direction would be a setting without effect.
#
# ### Settings that make no sense are rejected with a message


# %%
def refusal(slug, **overrides):
    """The message with which the schema rejects these settings; empty if it accepts them."""
    try:
        config_of(slug, **overrides)
    except ConfigError as error:
        return str(error)
    return ""


nonsense = [
    ("compressor", "ddl-dv1", {"compressor": "cc"}),
    ("compressor", "ddl-cc", {"compressor": "none"}),
    ("compressor_kernel", "ddl-cc", {"compressor_kernel": 3}),
    ("value_channels", "baseline", {"value_channels": 4, "compressor": "cc"}),
    ("value_input", "ddl-cc", {"direction": "mlp"}),
    ("direction_pool", "ddl-cc", {"direction_pool": "flatten"}),
    ("gate_init", "ddl-cc", {"gate_init": 2.5}),
    ("gate", "ddl-cc", {"gate": "quadratic"}),
]
for key, slug, overrides in nonsense:
    sentence = refusal(slug, **overrides)
    assert f"{key}: " in sentence, (slug, overrides)
    print(f"{slug} with {', '.join(f'{name} = {value}' for name, value in overrides.items())}\n    {sentence}")
assert not any(refusal(slug) for slug in VARIANTS)

# %% [markdown]
# ## Memory of the state
#
# **In training,** the input of every rewrite is a state, so storing them all takes $d\,d_v$ numbers per token and
# sublayer, compared with $d$ for the baseline.
#
# **In generation,** the states of past tokens are not needed, except where a convolution over tokens looks back: EC
# needs the last $K - 1$ embeddings, once; TC needs a history at each of its applications.
#
# > During autoregressive generation, this token-axis convolution requires retaining the last $k - 1$ expanded residual
# > states per layer [...] (App. A.3)
#
# That is sufficient but more than necessary. TC is linear and sums over its channels, so each state can be compressed
# with all $K$ taps as soon as it exists, and only partial sums of width $d$ have to be kept for later tokens:
#
# $$x^{\mathrm{in}}_t = y_{0,t} + r_{1,t-1}, \qquad r_{s,t} = y_{s,t} + r_{s+1,t-1}, \qquad
# y_{s,t,i} = \sum_j w_j\,c_{i,j,s}\,X_{t,i,j} .$$
#
# These are $(K - 1)\,d$ numbers instead of $(K - 1)\,d\,d_v$. The check computes TC one token at a time, using the
# package's CC for the sum over channels:

# %%
sequence = draw(1, TOKENS, FEATURES, CHANNELS)
waiting = [torch.zeros(1, 1, FEATURES, dtype=torch.float64) for _ in range(TAPS)]  # the last one stays zero
one_by_one = []
for t in range(TOKENS):
    now = [compress_channels(sequence[:, t : t + 1], token_kernel[..., s] * read) for s in range(TAPS)]
    one_by_one.append(now[0] + waiting[0])
    waiting = [now[s + 1] + waiting[s + 1] for s in range(TAPS - 1)] + waiting[-1:]
error = (torch.cat(one_by_one, 1) - compress_tokens(sequence, token_kernel, read)).abs().max()
assert error < 1e-12, "tc-history"
kept = sum(part.numel() for part in waiting[:-1])
assert kept == (TAPS - 1) * FEATURES, "tc-history"
print(f"token by token: equal to the whole sequence within 1e-12; {kept} numbers kept instead of {kept * CHANNELS}")

# %% [markdown]
# The table gives the memory for the paper's medium model with 2 bytes per number (bf16). Each block compresses two
# different states, one before attention and one before the MLP, and the readout compresses the last one. Where the
# paper says "per layer", this implementation therefore has $2 L + 1$ histories.

# %%
scale = load_scale("paper")
KIB = 1024
rows = [
    "| design | state of a token | all states of a token (training) | keys and values of a token | "
    "history of a sequence: as states | as partial sums |",
    "|---|---|---|---|---|---|",
]
for slug in VARIANTS:
    config = scale.model("medium", slug)
    state = 2 * config.width * config.value_channels
    stored = (2 * config.layers + 1) * state
    keys_values = 2 * 2 * config.layers * config.width
    embeddings = 2 * (config.embed_conv_kernel - 1) * config.width if config.embed_conv else 0
    applications = 2 * config.layers + 1 if config.compressor == "tc" else 0
    as_states = applications * (config.compressor_kernel - 1) * state + embeddings
    as_sums = applications * (config.compressor_kernel - 1) * 2 * config.width + embeddings
    cells = (f"{value / KIB:,.0f} KiB" for value in (state, stored, keys_values, as_states, as_sums))
    rows.append(f"| {label(slug)} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# The history does not grow with the length of the sequence. Keys and values do: at 1,024 tokens they take 96 MiB. CC
# itself has no history, but DDL-CC *with* EC still keeps three embeddings.

# %% [markdown]
# ## What was shown and what was not
#
# **Shown:** the shapes of state and computation, from running models; EC, CC and TC as explicit matrices, which are
# equal to the functions and to their Kronecker forms and are lower block triangular; that a compressor reads one in
# $d_v$ dimensions; that no later token changes an earlier output, in any variant; that all expanded designs start as
# the same function, which is that of a scalar model; the generators' formulas, the fp32 logits of the gate and where it
# starts; every valid combination of generators, with its number of parameters, and the messages that reject the
# others; how much memory the states take.
#
# **Not shown:** that the extra channels are used for anything. A compressor *can* leave content unread and read it
# later; only trained models can tell whether one does. Causality was checked on small models with two blocks, whose
# computation is the same at every size. That is not a proof for every sequence.
