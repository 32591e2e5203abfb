"""The schema of all settings, and the only place that defines their defaults.

`config/scales/<scale>.yaml` sets the size of the runs; `config/variants.yaml` lists the residual designs to compare.
Both are read into the frozen dataclasses below before anything runs. An unknown key, a missing key, a wrong type, a
value outside its declared range or an inconsistent combination raises a `ConfigError` that names the file and the key.
Ranges are declared with the types, see `ddl.setting_ranges`.
"""

import abc
import dataclasses
import hashlib
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from ddl.layout import BASELINE, ROOT, Point
from ddl.outside_parts import is_outside, outside_digest
from ddl.setting_ranges import (
    AboveZero,
    ConfigError,
    Count,
    Finite,
    Momentum,
    NotNegative,
    Positive,
    Range,
    Seed,
    Settings,
)

BACKBONES_FILE = ROOT / "config" / "backbones.yaml"
SCALES_DIR = ROOT / "config" / "scales"
STUDIES_DIR = ROOT / "config" / "studies"
SHOTS = (0, 1)  # demonstrations per prompt: 0 in Tables 7 and 8, 1 in Tables 1 and 2
FAMILIES = ("paper", "own", "control", "rival")  # of designs, see `Variant`
SIZES = ("small", "medium")
SCALAR_RULES = ("additive", "normalised", "additive-erase", "highway", "norm-preserving", "laurel-rw", "laurel-lr")
# Setting of a part of a design -> the setting that chooses the part, and the choices that read it.
NEEDED_BY = {
    "erase": ("residual", ("delta",)),
    "write": ("residual", ("delta",)),
    "branch_norm": ("residual", ("normalised",)),
    "branch_gain": ("residual", ("normalised",)),
    "highway_gate": ("residual", ("highway",)),
    "laurel_rank": ("residual", ("laurel-lr",)),
    "first_state_weight": ("reader", ("first-state",)),
    "sources_every": ("reader", ("depth-attention", "added-depth-attention")),
}
VARIANTS_FILE = ROOT / "config" / "variants.yaml"
SLUG = r"[A-Za-z0-9][A-Za-z0-9_-]*"


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"heads: {heads} does not divide width {width}")
    if width // heads % 2:
        raise ConfigError(f"heads: rotary embeddings need an even head dimension, found {width // heads}")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Settings of one decoder-only language model; they span all variants of the paper (Sec. 3, App. A)."""

    vocab_size: Positive
    sequence_length: Positive
    layers: Positive
    width: Positive  # d
    heads: Positive
    # The residual design.
    residual: str = "additive"  # a key of ddl.model.residual.RULES, or package.module:Class
    value_channels: Positive = 1  # d_v
    compressor: Literal["none", "tc", "cc", "mean", "dynamic"] = "none"
    embed_conv: bool = False  # EC
    embed_conv_kernel: Positive = 4
    compressor_kernel: Positive = 4  # spans tokens for tc; spans value channels for cc, where it must equal d_v
    # The generators of direction, gate and value (Sec. 2.1, App. A.1, A.2).
    direction: Literal["output", "mlp"] = "output"
    direction_pool: Literal["mean", "flatten"] = "mean"  # how the state is pooled for the MLP direction
    direction_eps: NotNegative = 1e-5
    gate: Literal["linear", "mlp", "fixed"] = "linear"  # fixed: beta = gate_init for every token
    gate_hidden: Positive = 128
    gate_init: Annotated[float, Range(0, 2)] = 1.0  # beta_0
    gate_limit: Annotated[float, Range(0, 2, without=(0,))] = 2.0  # learned gates are in (0, gate_limit)
    value_input: Literal["normed", "compressed", "output"] = "normed"
    value_activation: Literal["linear", "sigmoid4"] = "linear"
    value_bias_init: Finite | None = 1.0  # null: the value has no bias
    # Controls: one part of the delta rule changed or left out, a normalised sublayer output, a wider MLP.
    erase: Literal["shared", "own", "none"] = "shared"  # gate of the erase term: the write's, its own, or no erase term
    write: Literal["normalised", "unnormalised"] = "normalised"  # along k, or along k before its normalisation
    branch_norm: Literal["length", "rms"] = "length"  # what is 1 for the normalised output: its length or its rms
    branch_gain: Literal["scalar", "vector"] = "scalar"  # a learned gain per sublayer, or per feature of each sublayer
    mlp_extra: Count = 0  # hidden units added to every MLP
    # Rival designs.
    reader: str = "compressor"  # a key of ddl.model.readers.READERS, or package.module:Class: what a sublayer reads
    highway_gate: Literal["scalar", "vector"] = "scalar"
    laurel_rank: Count = 0
    first_state_weight: Finite = 0.0  # initial weight of the embedding for the reader "first-state"
    sources_every: Positive = 1  # depth attention: number of sublayers whose outputs are summed to one source
    value_residual: bool = False  # attention's values are mixed with those of the first block
    # The backbone (Sec. 4.1).
    rope_base: AboveZero = 10_000.0
    norm_eps: NotNegative = 1e-5
    embedding_std: NotNegative = 0.02
    matrix_std_factor: NotNegative = 0.5  # matrices start at N(0, (factor / sqrt(d))^2)
    output_std_factor: NotNegative = 1.0  # further factor for the output projections; 0 starts every sublayer at zero
    embedding_norm: bool = False  # RMS norm without parameters on the embedding
    logit_scale: bool = False  # a learned factor on the logits, which starts at 1
    # How the model is computed. These settings change results only by rounding.
    kernels: Literal["reference", "triton", "auto"] = "auto"  # plain autograd; Triton only; the fastest available
    state_dtype: Literal["parameters", "bfloat16"] = "parameters"  # dtype of the residual state
    state_memory: Literal["stored", "rebuilt"] = "stored"  # keep the states for the backward pass, or recompute them

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)
        if self.gate_init > self.gate_limit:
            raise ConfigError(f"gate_init: expected a gate in [0, {self.gate_limit:g}], found {self.gate_init}")
        if self.value_channels == 1 and self.compressor != "none":
            raise ConfigError(f"compressor: {self.compressor!r} needs value_channels > 1, found 1")
        if self.reader != "compressor" and self.compressor != "none":
            raise ConfigError(f"compressor: expected 'none' with reader {self.reader!r}, found {self.compressor!r}")
        if self.value_channels > 1 and self.compressor == "none" and self.reader == "compressor":
            raise ConfigError(
                f"compressor: expected 'tc', 'cc', 'mean' or 'dynamic' with value_channels = {self.value_channels}"
            )
        if self.compressor == "cc" and self.compressor_kernel != self.value_channels:
            raise ConfigError(
                f"compressor_kernel: a cc kernel covers all value channels (App. A.3), "
                f"expected {self.value_channels}, found {self.compressor_kernel}"
            )
        if self.direction == "mlp" and self.value_input != "output":
            raise ConfigError(
                f"value_input: with direction 'mlp' the sublayer's output reaches the state only through the value, "
                f"expected 'output', found {self.value_input!r}"
            )
        if self.direction == "output" and self.direction_pool != "mean":
            raise ConfigError(
                f"direction_pool: {self.direction_pool!r} needs direction 'mlp'; direction 'output' does not read the "
                "pooled state"
            )
        if self.state_memory == "rebuilt":  # the state is overwritten: nothing but the fused rewrite may keep it
            for name, unfit in (("kernels", "reference"), ("direction", "mlp")):
                if getattr(self, name) == unfit:
                    raise ConfigError(
                        f"state_memory: 'rebuilt' overwrites the state, which {name} {unfit!r} still needs"
                    )
        if self.residual in SCALAR_RULES and self.value_channels > 1:
            raise ConfigError(f"value_channels: the {self.residual} rule has a scalar state, expected 1")
        for name, (part, expected) in NEEDED_BY.items():
            if getattr(self, name) != getattr(type(self), name) and (found := getattr(self, part)) not in expected:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} needs {part} {' or '.join(map(repr, expected))}, found {found!r}"
                )
        if self.erase == "own" and self.gate == "fixed":
            raise ConfigError("erase: 'own' needs a learned gate, found gate 'fixed'")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the SwiGLU MLP, floor(8 d / 3), and more in a widened baseline."""
        return 8 * self.width // 3 + self.mlp_extra

    def determining(self) -> dict[str, Any]:
        """The settings, given and computed, that determine what a model learns; the others affect only rounding.

        A rule or reader from outside the package comes with a digest of its file.
        """
        computed: dict[str, Any] = {"head_dim": self.head_dim, "mlp_hidden": self.mlp_hidden}
        for part in ("residual", "reader"):
            if is_outside(name := getattr(self, part)):
                computed[f"{part}_file"] = outside_digest(part, name)
        return _without(changed_settings(self), "kernels", "state_memory") | computed


@dataclass(frozen=True)
class SizeConfig(Settings):
    """Backbone shape of one model size (Table 6)."""

    layers: Positive
    heads: Positive
    width: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class Corpus(Settings, abc.ABC):
    """The source of the text for a scale.

    Each kind of corpus is a subclass with its settings and a `name`, which selects it in a scale's file. Add new kinds
    to `AnyCorpus`. `ddl.data` implements how each kind is read.
    """

    name: str
    large: ClassVar[bool] = False  # large enough to use all cores of the machine

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            if field.default is dataclasses.MISSING and getattr(self, field.name) in ("", ()):
                raise ConfigError(f"{field.name}: required by the corpus {self.name!r}, found nothing")

    @property
    @abc.abstractmethod
    def source(self) -> str:
        """What is read, for logs.

        Corpora with the same kind and source read the same text, though possibly different amounts of it.
        """

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What is read, as a phrase that the paper quotes."""

    @property
    def most_tokens(self) -> int | None:
        """Upper bound on the tokens of both splits together; None if it depends on the documents."""
        return None

    def with_limit(self, max_train_tokens: int) -> Self:
        """The same corpus with a different maximum number of training tokens; 0 uses all.

        Raises:
            ConfigError: the number is negative, or this kind of corpus has no limit.
        """
        raise ConfigError(f"corpus.max_train_tokens: not supported by the corpus {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class TokenisedCorpus(Corpus):
    """A corpus of documents to tokenise into shards."""

    max_train_tokens: Count = 0  # 0 uses all
    shard_tokens: Positive = 100_000_000

    def with_limit(self, max_train_tokens: int) -> Self:
        return dataclasses.replace(self, max_train_tokens=max_train_tokens)


@dataclass(frozen=True, kw_only=True)
class DocumentCorpus(TokenisedCorpus):
    """Documents that fit in memory and are split into train and validation by a hash of their text."""

    val_fraction: Annotated[float, Range(0, 0.5, without=(0, 0.5))]  # fraction of documents held out


@dataclass(frozen=True, kw_only=True)
class Packages(DocumentCorpus):
    """Text from installed packages, one document per module."""

    content: ClassVar[str]  # what is read, for the description
    manifest: ClassVar[str]  # file that lists the expected text of each package, relative to the repository
    packages: tuple[str, ...]  # names of distributions

    @property
    def source(self) -> str:
        return ", ".join(self.packages)

    @property
    def description(self) -> str:
        return (
            f"the {self.content} that is shipped with {len(self.packages)} Python packages ({self.source}), "
            "so that no download is needed"
        )


@dataclass(frozen=True, kw_only=True)
class PackageDocs(Packages):
    """The documentation in installed packages."""

    content: ClassVar[str] = "documentation"
    manifest: ClassVar[str] = "config/package_docs.json"
    name: Literal["package-docs"] = "package-docs"


@dataclass(frozen=True, kw_only=True)
class PackageSources(Packages):
    """The source code of installed packages, with its documentation."""

    content: ClassVar[str] = "source code"
    manifest: ClassVar[str] = "config/package_sources.json"
    name: Literal["package-sources"] = "package-sources"


@dataclass(frozen=True, kw_only=True)
class TextFiles(DocumentCorpus):
    """Local text files."""

    name: Literal["text"] = "text"
    path: str  # a file or folder of .txt, .jsonl or .parquet
    val_path: str = ""  # the same for validation; without it, documents in `path` are held out
    val_fraction: Annotated[float, Range(0, 0.5, without=(0.5,))] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.val_path) == bool(self.val_fraction):
            found = "both" if self.val_path else "neither"
            raise ConfigError(f"val_path: expected either val_path or a positive val_fraction, found {found}")

    @property
    def source(self) -> str:
        return f"{self.path} and {self.val_path}" if self.val_path else self.path

    @property
    def description(self) -> str:
        return "a local text corpus"


@dataclass(frozen=True, kw_only=True)
class ParquetDataset(TokenisedCorpus):
    """A dataset of parquet files; it is streamed, so it can be of any size."""

    name: Literal["parquet-dataset"] = "parquet-dataset"
    large: ClassVar[bool] = True
    dataset: str  # owner/name on the hub, or a URL or local folder that holds the same files
    folder: str = ""  # folder of the parquet files within the dataset
    revision: str  # revision of the dataset
    val_tokens: Positive  # this many tokens at the start are held out

    @property
    def source(self) -> str:
        return f"{self.dataset} {self.folder}".strip()

    @property
    def description(self) -> str:
        return f"the dataset {self.source}"

    @property
    def most_tokens(self) -> int | None:
        return self.max_train_tokens + self.val_tokens if self.max_train_tokens else None


@dataclass(frozen=True, kw_only=True)
class TokenShards(Corpus):
    """Existing token shards."""

    name: Literal["shards"] = "shards"
    train_shards: str  # glob pattern, e.g. /data/fineweb_train_*.bin
    val_shards: str

    @property
    def source(self) -> str:
        return self.train_shards

    @property
    def description(self) -> str:
        return "token shards that were made elsewhere"


AnyCorpus = PackageDocs | PackageSources | TextFiles | ParquetDataset | TokenShards
FORMER_NAMES = {"fineweb-edu": "parquet-dataset"}  # old corpus name -> current name


@dataclass(frozen=True)
class TokenizerConfig(Settings):
    """`bpe` is trained on the training split; `gpt2` is the published tokenizer, padded to `vocab_size` rows.

    With `path`, the tokenizer is read from a tokenizer.json, or from a folder that contains either tokenizer.json or
    vocab.json and merges.txt.
    """

    name: Literal["bpe", "gpt2"]
    vocab_size: Annotated[int, Range(257, 65_536)]
    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "gpt2" and self.vocab_size < 50_257:
            raise ConfigError(f"vocab_size: expected 50257 to 65536 for gpt2, found {self.vocab_size}")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """The training recipe (Sec. 4.1)."""

    steps: Positive
    batch_sequences: Positive
    micro_batch_sequences: Positive
    learning_rate: AboveZero
    min_learning_rate: NotNegative
    warmup_steps: Count
    val_interval: Positive  # steps
    val_sequences: Positive  # size of the fixed validation set
    log_interval: Positive
    checkpoint_interval: Positive
    dtype: Literal["float32", "bfloat16"]
    threads: Positive  # CPU threads per run
    gpus: Count  # GPUs reserved per run, one process each; 0: the run shares a GPU or uses the CPU
    # Each process holds the whole model, a shard of it, or a shard with copies of it on the other nodes.
    sharding: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    compile: bool = False  # compile the layers with torch.compile
    tensorboard: bool = False  # also write event files; needs the extra `tensorboard`
    snapshots: tuple[Count, ...] = ()  # steps after which the weights are kept for `ddl mechanism`; 0: the initial ones
    weight_decay: NotNegative = 0.1
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    grad_clip: AboveZero = 1.0
    embedding_rate_factor: NotNegative = 1.0  # learning rate of the embedding, relative to that of all other parameters

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_sequences % self.micro_batch_sequences:
            raise ConfigError(
                f"micro_batch_sequences: {self.micro_batch_sequences} does not divide "
                f"batch_sequences {self.batch_sequences}"
            )
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"warmup_steps: expected 0 to {self.steps - 1}, found {self.warmup_steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(f"min_learning_rate: expected 0 to {self.learning_rate}, found {self.min_learning_rate}")
        if sorted(set(self.snapshots)) != list(self.snapshots):
            raise ConfigError(f"snapshots: expected steps in increasing order, found {list(self.snapshots)}")

    def determining(self) -> dict[str, Any]:
        """The settings that determine what a run learns.

        The others affect at most rounding, or only what is written, and may change when a run resumes.
        """
        rounding = ("micro_batch_sequences", "gpus", "sharding", "compile")
        others = (*rounding, "checkpoint_interval", "tensorboard", "snapshots")
        return _without(changed_settings(self), *others)


@dataclass(frozen=True)
class EvalConfig(Settings):
    """`offline` tasks are built from held-out documents; `benchmarks` are the eight of the paper."""

    tasks: Literal["offline", "benchmarks"]
    items_per_task: Count  # 0 uses all
    batch_tokens: Positive
    mechanism_tokens: Positive = (
        8192  # validation tokens on which `ddl mechanism` observes and changes the residual rules
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks == "offline" and self.items_per_task < 1:
            raise ConfigError(f"items_per_task: expected a positive integer, found {self.items_per_task}")


@dataclass(frozen=True)
class CostConfig(Settings):
    """How throughput and memory are measured: each round measures every variant once."""

    batch_sequences: Positive
    warmup_rounds: Count
    rounds: Positive


@dataclass(frozen=True)
class ExecutionConfig:
    """How the models of a scale are computed: the fields of `ModelConfig` that are not part of the residual design."""

    kernels: Literal["reference", "triton", "auto"]
    state_dtype: Literal["parameters", "bfloat16"]
    state_memory: Literal["stored", "rebuilt"]


@dataclass(frozen=True)
class Backbone:
    """What all designs of a comparison share and the paper does not vary: a label and settings.

    `model` sets fields of `ModelConfig` and `training` fields of `TrainConfig`; the backbone `paper` sets none.
    """

    label: str
    model: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class Grid(Settings):
    """Runs of a study: all combinations of the values that it lists."""

    sizes: tuple[str, ...]
    backbones: tuple[str, ...]
    variants: tuple[str, ...]
    steps: tuple[Positive, ...]  # each is a run of its own with a complete schedule
    learning_rates: tuple[AboveZero, ...]  # peaks; the floor of the schedule is in proportion
    seeds: tuple[Seed, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            if not getattr(self, field.name):
                raise ConfigError(f"{field.name}: expected at least one value, found none")

    def points(self) -> Iterator[Point]:
        """The runs, seed by seed, so that an interrupted study has as many complete seeds as possible."""
        axes = (self.seeds, self.sizes, self.steps, self.learning_rates, self.backbones, self.variants)
        for seed, size, steps, rate, backbone, variant in itertools.product(*axes):
            yield Point(size, backbone, variant, steps, rate, seed)


@dataclass(frozen=True)
class Study:
    """Runs that are compared with each other: one `config/studies/<name>.yaml`."""

    name: str
    title: str
    about: str  # a paragraph for the study's page
    scale: str  # gives shapes, data and the rest of the recipe
    grids: tuple[Grid, ...]
    inside: bool = False  # also measure what the rules of its models do, intervene in them, and keep gradient norms

    def points(self) -> list[Point]:
        """The runs of all grids, each once, in order."""
        return list(dict.fromkeys(point for grid in self.grids for point in grid.points()))


@dataclass(frozen=True)
class Variant:
    """A residual design: its slug, its label in tables and figures, and the fields of `ModelConfig` that it sets.

    The family says where a design appears. `paper` and `own` designs are trained by the workflow and are in every table
    and figure; what is compared with published numbers is limited to `paper`. A `control` varies one choice of a
    `paper` design, and a `rival` is the design of another paper; both are for studies and trained only if named.
    """

    slug: str
    label: str
    model: dict[str, Any]
    family: Literal["paper", "own", "control", "rival"] = "own"
    published: str = ""  # name in paper/published, for the family `paper`

    def __post_init__(self) -> None:
        if not re.fullmatch(SLUG, self.slug):
            raise ConfigError(
                f"slug: expected letters, digits, - and _, because it is part of paths, found {self.slug!r}"
            )
        if (self.family == "paper") != bool(self.published):
            expected = "the name in paper/published" if self.family == "paper" else "nothing"
            raise ConfigError(
                f"published: expected {expected} for the family {self.family!r}, found {self.published or 'nothing'}"
            )


@dataclass(frozen=True)
class Scale(Settings):
    """All settings of one `config/scales/<name>.yaml`."""

    name: str
    title: str
    sequence_length: Positive
    seeds: tuple[Seed, ...]
    sizes: dict[str, SizeConfig]
    corpus: AnyCorpus
    tokenizer: TokenizerConfig
    training: TrainConfig
    evaluation: EvalConfig
    cost: CostConfig
    execution: ExecutionConfig
    backbone: str  # a key of config/backbones.yaml

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in load_backbones():
            raise ConfigError(f"backbone: expected one of {', '.join(load_backbones())}, found {self.backbone!r}")
        if set(self.sizes) != set(SIZES):
            raise ConfigError(f"sizes: expected {' and '.join(SIZES)}, found {', '.join(self.sizes) or 'none'}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: expected different integers, found {list(self.seeds)}")

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The designs of the scale's runs, tables and figures, in the order of the tables."""
        return {slug: variant for slug, variant in load_variants().items() if variant.family in ("paper", "own")}

    @cached_property
    def recipe(self) -> TrainConfig:
        """The training recipe with the changes of the backbone."""
        changed = dataclasses.asdict(self.training) | load_backbones()[self.backbone].training
        return from_mapping(TrainConfig, changed, BACKBONES_FILE.name, self.backbone)

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch_sequences * self.sequence_length

    @property
    def tokens(self) -> int:
        """Training tokens per run."""
        return self.training.steps * self.tokens_per_step

    def model(self, size: str, variant: str) -> ModelConfig:
        """Settings of the model with the given size and variant, which may be of any family."""
        designs = load_variants()
        if size not in self.sizes:
            raise ConfigError(f"size: expected one of {', '.join(self.sizes)}, found {size!r}")
        if variant not in designs:
            raise ConfigError(f"variant: expected one of {', '.join(designs)}, found {variant!r}")
        shape = dataclasses.asdict(self.sizes[size])
        fixed = {"vocab_size": self.tokenizer.vocab_size, "sequence_length": self.sequence_length, **shape}
        settings = fixed | dataclasses.asdict(self.execution) | load_backbones()[self.backbone].model
        settings |= designs[variant].model
        return from_mapping(ModelConfig, settings, VARIANTS_FILE.name, variant)

    def determining(self, size: str, variant: str) -> dict[str, Any]:
        """The settings that determine what a run learns."""
        return {"model": self.model(size, variant).determining(), "training": self.recipe.determining()}

    def fingerprint(self, size: str, variant: str) -> str:
        """The first 16 digits of the SHA-256 of all settings that determine a run: design, recipe and data."""
        given = changed_settings(self)
        values = self.determining(size, variant) | {name: given[name] for name in ("corpus", "tokenizer")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def at(self, point: Point) -> "Scale":
        """The scale of one run of a study: its backbone, steps and learning rate.

        The floor of the learning rate keeps its proportion to the peak, and the warm-up its share of the steps. Only
        the first and the last step are validated, and there are no snapshots.
        """
        own, share = self.training, point.steps / self.training.steps
        training = dataclasses.replace(
            own,
            learning_rate=point.rate,
            min_learning_rate=own.min_learning_rate * point.rate / own.learning_rate,
            steps=point.steps,
            warmup_steps=int(own.warmup_steps * share),
            val_interval=point.steps,
            snapshots=(),
        )
        return dataclasses.replace(self, training=training, backbone=point.backbone)


def load_scale(name: str) -> Scale:
    """Read and check `config/scales/<name>.yaml`.

    Raises:
        ConfigError: there is no such scale, or a setting is unknown, missing, of the wrong type or inconsistent.
    """
    path = SCALES_DIR / f"{name}.yaml"
    if name not in scale_names():
        raise ConfigError(f"scale: expected one of {', '.join(scale_names())}, found {name!r}")
    return from_mapping(Scale, {"name": name, **_yaml(path, path.read_bytes())}, str(path.relative_to(ROOT)))


def scale_names() -> list[str]:
    """Names of the scales in config/scales, in alphabetical order."""
    return sorted(path.stem for path in SCALES_DIR.glob("*.yaml"))


def load_variants() -> dict[str, Variant]:
    """Read the designs of all families from `config/variants.yaml`: slug -> `Variant`, in the order of the tables."""
    return dict(_variants(VARIANTS_FILE, VARIANTS_FILE.read_bytes()))


@lru_cache(maxsize=1)  # a study asks once for each of its runs
def _variants(path: Path, content: bytes) -> dict[str, Variant]:
    where = str(path.relative_to(ROOT))
    entries = _yaml(path, content).items()
    variants = {slug: from_mapping(Variant, {"slug": slug, **entry}, where, slug) for slug, entry in entries}
    if BASELINE not in variants:
        raise ConfigError(f"{where}: expected a variant {BASELINE!r}, with which all others are compared, found none")
    labels: dict[str, str] = {}
    for slug, variant in variants.items():
        if (other := labels.setdefault(variant.label, slug)) != slug:
            raise ConfigError(f"{where}: {slug}.label: expected a label of its own, found that of {other}")
    return variants


def registered_values(setting: str) -> set[str]:
    """The values that the entries of `config/variants.yaml` give to a setting of text."""
    values = {variant.model.get(setting) for variant in load_variants().values()}
    return {value for value in values if isinstance(value, str)}


def load_backbones() -> dict[str, Backbone]:
    """Read `config/backbones.yaml`: slug -> `Backbone`."""
    return dict(_backbones(BACKBONES_FILE, BACKBONES_FILE.read_bytes()))


@lru_cache(maxsize=1)
def _backbones(path: Path, content: bytes) -> dict[str, Backbone]:
    where = str(path.relative_to(ROOT))
    return {slug: from_mapping(Backbone, entry, where, slug) for slug, entry in _yaml(path, content).items()}


def load_study(name: str) -> Study:
    """Read and check `config/studies/<name>.yaml`.

    Raises:
        ConfigError: there is no such study, or one of its settings is invalid.
    """
    path = STUDIES_DIR / f"{name}.yaml"
    if name not in study_names():
        raise ConfigError(f"study: expected one of {', '.join(study_names())}, found {name!r}")
    where = str(path.relative_to(ROOT))
    study = from_mapping(Study, {"name": name, **_yaml(path, path.read_bytes())}, where)
    try:
        scale = load_scale(study.scale)
        for point in study.points():
            scale.at(point).determining(point.size, point.variant)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return study


def study_names() -> list[str]:
    """Names of the studies in config/studies, in alphabetical order."""
    return sorted(path.stem for path in STUDIES_DIR.glob("*.yaml"))


def paper_variants() -> dict[str, Variant]:
    """The variants that the paper trained, whose results are compared with its numbers."""
    return {slug: variant for slug, variant in load_variants().items() if variant.family == "paper"}


def from_mapping(cls: type, values: dict[str, Any], where: str, prefix: str = "") -> Any:
    """Build the dataclass `cls` from plain values, checking every key and type.

    Raises:
        ConfigError: a value is invalid; the message names `where` (a file) and the dotted key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    dotted = f"{prefix}." if prefix else ""
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {dotted}{key}, expected one of {', '.join(fields)}")
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}: missing key {dotted}{key}")
    converted = {key: _convert(hints[key], value, where, f"{dotted}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {dotted}{error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The values of a config as JSON types; the inverse of `from_mapping`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def changed_settings(config: Any) -> dict[str, Any]:
    """The values of a config that differ from their defaults, as JSON types.

    The check whether a result is still valid compares these values, so a new option with a default invalidates nothing.
    A default must therefore never change: it describes how all earlier results were computed. A `name` is always
    included, because it selects the kind of config.
    """
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name == "name" or getattr(config, field.name) != field.default  # MISSING if the field has no default
    }
    return dict(json.loads(json.dumps(changed, default=changed_settings)))  # `default` handles nested configs


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Check `value` against a type hint. A boolean is not accepted as an integer; an integer is accepted as a float."""
    origin = typing.get_origin(hint)
    if hint == float | None:
        if value is not None and type(value) not in (float, int):
            raise ConfigError(f"{where}: {key}: expected a number or null, found {value!r}")
        return None if value is None else float(value)
    if origin is types.UnionType:
        return _convert(_chosen(typing.get_args(hint), value, where, key), value, where, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key}: expected a mapping, found {value!r}")
        return from_mapping(typing.cast(type, hint), value, where, key)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: {key}: expected one of {', '.join(typing.get_args(hint))}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {key}: expected a list, found {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key}: expected a mapping, found {value!r}")
        return {name: _convert(typing.get_args(hint)[1], item, where, f"{key}.{name}") for name, item in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: {key}: expected {hint.__name__}, found {value!r}")
    return value


def _chosen(kinds: tuple[type, ...], value: Any, where: str, key: str) -> type:
    """Choose the dataclass that a mapping describes: the one whose field `name` defaults to the mapping's `name`."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key}: expected a mapping, found {value!r}")
    if "name" not in value:
        raise ConfigError(f"{where}: missing key {key}.name")
    by_name = {str(field.default): kind for kind in kinds for field in dataclasses.fields(kind) if field.name == "name"}
    name = str(value["name"])
    if name in FORMER_NAMES:
        raise ConfigError(f"{where}: {key}.name: {name!r} is now called {FORMER_NAMES[name]!r}")
    if name not in by_name:
        raise ConfigError(f"{where}: {key}.name: expected one of {', '.join(by_name)}, found {name!r}")
    return by_name[name]


def _yaml(path: Path, content: bytes) -> dict[str, Any]:
    """The settings in the file `path` with the given content."""
    import yaml  # imported here so that models can be built and timed without it

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C takes a thirtieth of the time
        """A loader that refuses a key that is given twice; YAML would keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]} is given twice", node.start_mark)
            return dict(super().construct_mapping(node, deep))

    try:
        values = yaml.load(content.decode(), Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path.relative_to(ROOT)}: expected text in UTF-8, found byte {error.start} invalid"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.relative_to(ROOT)}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.relative_to(ROOT)}: expected a mapping of settings")
    return values
