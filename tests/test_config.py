"""Settings: the shipped files are valid, and errors name the file and key."""

import dataclasses
import json
import math
import re
import typing

import pytest
import yaml

from ddl import config as config_module
from ddl.config import (
    ConfigError,
    ModelConfig,
    TokenShards,
    Variant,
    changed_settings,
    from_mapping,
    load_scale,
    load_variants,
    paper_variants,
    scale_names,
    to_mapping,
)
from ddl.layout import ROOT, Point
from ddl.setting_ranges import Range, declared_ranges
from tests.helpers.command import ddl

SHAPE = {"vocab_size": 64, "sequence_length": 8, "layers": 1, "width": 16, "heads": 2}


@pytest.fixture
def scale_file(tmp_path, monkeypatch):
    """Write an edited copy of the smoke scale into a folder that replaces config/scales."""
    monkeypatch.setattr(config_module, "SCALES_DIR", tmp_path)
    monkeypatch.setattr(config_module, "ROOT", tmp_path)

    def write(change):
        values = yaml.safe_load((ROOT / "config/scales/smoke.yaml").read_text())
        change(values)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))

    return write


def test_every_shipped_scale_describes_the_papers_twelve_runs_and_those_of_further_designs():
    assert {"smoke", "laptop", "workstation", "h200", "paper"} <= set(scale_names())
    for name in scale_names():
        scale = load_scale(name)
        runs = {(size, variant): scale.model(size, variant) for size in scale.sizes for variant in scale.variants}
        assert len({runs[size, variant] for size in scale.sizes for variant in paper_variants()}) == 12
        assert scale.sizes["small"].layers < scale.sizes["medium"].layers
        assert scale.sizes["small"].width < scale.sizes["medium"].width


def test_paper_scale_is_the_papers():
    scale = load_scale("paper")
    recipe = scale.training
    assert scale.tokens == 49_152_000_000
    assert (recipe.learning_rate, recipe.beta1, recipe.beta2, recipe.weight_decay) == (1e-3, 0.9, 0.95, 0.1)
    assert scale.model("small", "ddl-cc").mlp_hidden == 2048
    assert [variant.label for variant in paper_variants().values()] == [
        "Baseline",
        "DDL (d_v = 1)",
        "DDL-TC w/o EC",
        "DDL-CC w/o EC",
        "DDL-TC",
        "DDL-CC",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(stepz=3), r"mine\.yaml: unknown key stepz, expected one of name, title"),
        (lambda v: v["training"].update(stepz=3), r"mine\.yaml: unknown key training\.stepz"),
        (lambda v: v["training"].pop("steps"), r"mine\.yaml: missing key training\.steps"),
        (lambda v: v["training"].update(steps="3"), r"mine\.yaml: training\.steps: expected int, found '3'"),
        (lambda v: v["training"].update(steps=True), r"mine\.yaml: training\.steps: expected int, found True"),
        (
            lambda v: v["training"].update(dtype="fp8"),
            r"training\.dtype: expected one of float32, bfloat16, found 'fp8'",
        ),
        (
            lambda v: v["training"].update(micro_batch_sequences=3),
            r"training\.micro_batch_sequences: 3 does not divide",
        ),
        (
            lambda v: v["training"].update(snapshots=[8, 8]),
            r"training\.snapshots: expected steps in increasing order, found \[8, 8\]",
        ),
        (lambda v: v.update(sizes={"small": v["sizes"]["small"]}), r"sizes: expected small and medium, found small"),
        (lambda v: v["sizes"]["small"].update(heads=[2]), r"sizes\.small\.heads: expected int, found \[2\]"),
        (lambda v: v.update(seeds=[0, 0]), r"seeds: expected different integers, found \[0, 0\]"),
        (lambda v: v["sizes"]["small"].update(heads=5), r"mine\.yaml: sizes\.small\.heads: 5 does not divide width"),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_key(scale_file, change, message):
    scale_file(change)
    with pytest.raises(ConfigError, match=message) as caught:
        load_scale("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.steps", 0, "a positive integer"),
        ("training.learning_rate", math.nan, "more than 0"),
        ("training.learning_rate", math.inf, "more than 0"),
        ("training.learning_rate", 0.0, "more than 0"),
        ("training.weight_decay", -0.1, "0 or more"),
        ("training.grad_clip", 0.0, "more than 0"),
        ("training.beta2", 1.5, "a number in [0, 1)"),
        ("training.beta1", 1.0, "a number in [0, 1)"),
        ("training.warmup_steps", -1, "0 or more"),
        ("training.snapshots", [-8], "0 or more"),
        ("training.gpus", -1, "0 or more"),
        ("evaluation.batch_tokens", 0, "a positive integer"),
        ("evaluation.items_per_task", -1, "0 or more"),
        ("cost.rounds", 0, "a positive integer"),
        ("cost.warmup_rounds", -1, "0 or more"),
        ("corpus.val_fraction", math.nan, "a number in (0, 0.5)"),
        ("tokenizer.vocab_size", 4, "a number in [257, 65536]"),
        ("sizes.small.width", 0, "a positive integer"),
        ("sequence_length", 0, "a positive integer"),
        ("seeds", [-1], "a number in [0, 4294967295]"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_range(scale_file, key, value, expected):
    def change(values):
        *sections, name = key.split(".")
        for section in sections:
            values = values[section]
        values[name] = value

    scale_file(change)
    found = value[0] if isinstance(value, list) else value
    with pytest.raises(ConfigError, match=re.escape(f"mine.yaml: {key}: expected {expected}, found {found}")):
        load_scale("mine")


def test_every_number_of_the_settings_has_a_range():
    missing = []
    for cls in vars(config_module).values():
        if not dataclasses.is_dataclass(cls) or cls in (Point, Range):
            continue
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if kinds & {int, float} and field.name not in declared_ranges(cls):
                missing.append(f"{cls.__name__}.{field.name}")
    assert missing == []


PARQUET = {"name": "parquet-dataset", "dataset": "a/b", "revision": "c", "val_tokens": 9}


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"name": "text", "val_fraction": 0.1}, "missing key corpus.path"),
        (
            {"name": "text", "path": "", "val_fraction": 0.1},
            "corpus.path: required by the corpus 'text', found nothing",
        ),
        ({"name": "text", "path": "x", "val_fraction": 0.5}, "corpus.val_fraction: expected a number in [0, 0.5)"),
        (
            {"name": "text", "path": "x"},
            "corpus.val_path: expected either val_path or a positive val_fraction, found neither",
        ),
        (
            {"name": "text", "path": "x", "val_path": "y", "val_fraction": 0.1},
            "corpus.val_path: expected either val_path or a positive val_fraction, found both",
        ),
        (
            {"name": "text", "path": "x", "val_fraction": 0.1, "shard_tokens": 0},
            "corpus.shard_tokens: expected a positive integer, found 0",
        ),
        ({"name": "package-docs", "packages": [], "val_fraction": 0.1}, "corpus.packages: required by the corpus"),
        (PARQUET | {"val_tokens": -9}, "corpus.val_tokens: expected a positive integer, found -9"),
        (PARQUET | {"max_train_tokens": -9}, "corpus.max_train_tokens: expected 0 or more, found -9"),
        (
            PARQUET | {"val_fraction": 0.1},
            "unknown key corpus.val_fraction, expected one of name, max_train_tokens, shard_tokens, dataset, folder",
        ),
        (PARQUET | {"name": "fineweb-edu"}, "corpus.name: 'fineweb-edu' is now called 'parquet-dataset'"),
        ({"name": "shards", "train_shards": "a"}, "missing key corpus.val_shards"),
        (
            {"name": "shards", "train_shards": "a", "val_shards": "b", "max_train_tokens": 1},
            "unknown key corpus.max_train_tokens, expected one of name, train_shards, val_shards",
        ),
        (
            {"name": "web"},
            "corpus.name: expected one of package-docs, package-sources, text, parquet-dataset, shards",
        ),
        ({"path": "x"}, "missing key corpus.name"),
        ("text", "corpus: expected a mapping, found 'text'"),
    ],
    ids=str,
)
def test_each_kind_of_corpus_has_its_own_settings_and_refuses_others(scale_file, corpus, message):
    scale_file(lambda values: values.update(corpus=corpus))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {re.escape(message)}") as caught:
        load_scale("mine")
    assert "\n" not in str(caught.value)


def test_a_corpus_without_a_limit_of_tokens_refuses_one():
    assert load_scale("paper").corpus.with_limit(7).most_tokens == 7 + load_scale("paper").corpus.val_tokens
    with pytest.raises(ConfigError, match=r"corpus\.max_train_tokens: not supported by the corpus 'shards'"):
        TokenShards(train_shards="a", val_shards="b").with_limit(7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"residual": "delta", "compressor": "tc"}, "compressor: 'tc' needs value_channels > 1, found 1"),
        (
            {"residual": "delta", "value_channels": 4},
            "compressor: expected 'tc', 'cc', 'mean' or 'dynamic' with value_channels = 4",
        ),
        (
            {"residual": "delta", "value_channels": 2, "compressor": "cc"},
            r"compressor_kernel: a cc kernel covers all value channels \(App. A.3\), expected 2, found 4",
        ),
        ({"residual": "delta", "direction": "mlp"}, "value_input: with direction 'mlp' .* expected 'output'"),
        ({"residual": "delta", "direction_pool": "flatten"}, "direction_pool: 'flatten' needs direction 'mlp'"),
        ({"value_channels": 4, "compressor": "tc"}, "value_channels: the additive rule has a scalar state"),
        ({"heads": 3}, "heads: 3 does not divide width 16"),
        (
            {"residual": "normalised", "value_channels": 4, "compressor": "cc"},
            "value_channels: the normalised rule has a scalar state, expected 1",
        ),
        ({"gate_init": 2.5}, r"gate_init: expected a number in \[0, 2\], found 2.5"),
        ({"gate_limit": 1.0, "gate_init": 1.5}, r"gate_init: expected a gate in \[0, 1\], found 1.5"),
        ({"gate_limit": 0.0, "gate_init": 0.0}, r"gate_limit: expected a number in \(0, 2\], found 0.0"),
        ({"erase": "none"}, "erase: 'none' needs residual 'delta', found 'additive'"),
        ({"write": "unnormalised"}, "write: 'unnormalised' needs residual 'delta', found 'additive'"),
        ({"residual": "delta", "branch_norm": "rms"}, "branch_norm: 'rms' needs residual 'normalised', found 'delta'"),
        ({"branch_gain": "vector"}, "branch_gain: 'vector' needs residual 'normalised', found 'additive'"),
        (
            {"residual": "delta", "erase": "own", "gate": "fixed"},
            "erase: 'own' needs a learned gate, found gate 'fixed'",
        ),
        ({"mlp_extra": -1}, "mlp_extra: expected 0 or more, found -1"),
        ({"value_bias_init": "none"}, "here: value_bias_init: expected a number or null, found 'none'"),
        ({"value_bias_init": True}, "here: value_bias_init: expected a number or null, found True"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_a_sentence(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(ModelConfig, SHAPE | settings, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"title: a\ntitle: b\n", "mine.yaml: not valid YAML: key title is given twice"),
        (b"training: {steps: 1, steps: 2}\n", "mine.yaml: not valid YAML: key steps is given twice"),
        (b"title: \xff\n", "mine.yaml: expected text in UTF-8, found byte 7 invalid"),
    ],
)
def test_a_file_with_a_key_twice_or_in_another_encoding_is_refused(scale_file, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_scale("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a/b": {"label": "A", "model": {}}}, "slug: expected letters, digits, - and _"),
        ({"..": {"label": "A", "model": {}}}, "slug: expected letters, digits, - and _"),
        ({"a|b": {"label": "A", "model": {}}}, "slug: expected letters, digits, - and _"),
        (
            {"twin": {"label": "Baseline", "model": {}}},
            "twin.label: expected a label of its own, found that of baseline",
        ),
        ({"baseline": None}, "expected a variant 'baseline'"),
    ],
)
def test_a_registry_that_a_workflow_cannot_use_is_refused(tmp_path, monkeypatch, entries, message):
    base = {"baseline": {"label": "Baseline", "model": {}}} | entries
    (tmp_path / "variants.yaml").write_text(json.dumps({slug: entry for slug, entry in base.items() if entry}))
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    monkeypatch.setattr(config_module, "VARIANTS_FILE", tmp_path / "variants.yaml")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_variants()


def test_an_unreadable_file_and_an_unknown_scale_are_named(scale_file, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: [1, 2")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not valid YAML"):
        load_scale("mine")
    with pytest.raises(ConfigError, match="scale: expected one of mine, found 'lapdog'"):
        load_scale("lapdog")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"family": "rivals"}, "here: mine.family: expected one of paper, own, control, rival, found 'rivals'"),
        (
            {"family": "paper"},
            "here: mine.published: expected the name in paper/published for the family 'paper', found nothing",
        ),
        ({"published": "DDL-CC"}, "here: mine.published: expected nothing for the family 'own', found DDL-CC"),
    ],
)
def test_a_design_says_which_family_it_is_of(entry, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Variant, {"slug": "mine", "label": "Mine", "model": {}, **entry}, "here", "mine")


def test_a_control_has_a_model_at_every_scale_and_is_none_of_its_runs():
    controls = {slug for slug, variant in load_variants().items() if variant.family == "control"}
    assert {"ddl-dv1-no-value-bias", "ddl-cc-no-value-bias", "ddl-cc-public-value"} <= controls
    for name in scale_names():
        scale = load_scale(name)
        assert not controls & set(scale.variants)
        assert len({scale.model(size, slug) for size in scale.sizes for slug in controls}) == 2 * len(controls)


def test_a_value_without_bias_is_no_default_and_stays_null():
    config = load_scale("paper").model("small", "ddl-cc-no-value-bias")
    assert config.determining()["value_bias_init"] is None
    assert from_mapping(ModelConfig, to_mapping(config), "there").value_bias_init is None
    assert type(from_mapping(ModelConfig, SHAPE | {"value_bias_init": 2}, "here").value_bias_init) is float


def test_plain_values_round_trip():
    for variant in load_variants().values():
        config = from_mapping(ModelConfig, SHAPE | variant.model, "here")
        assert from_mapping(ModelConfig, to_mapping(config), "there") == config


# A default is the value that all earlier runs used, and fingerprints omit settings that equal their defaults. So never
# change a default: set the value in the scale's file or the variant's entry. The default of a new setting must describe
# how the code behaved before the setting existed.
DEFAULTS = {
    "ModelConfig": {
        "residual": "additive",
        "value_channels": 1,
        "compressor": "none",
        "embed_conv": False,
        "embed_conv_kernel": 4,
        "compressor_kernel": 4,
        "direction": "output",
        "direction_pool": "mean",
        "direction_eps": 1e-5,
        "gate": "linear",
        "gate_hidden": 128,
        "gate_init": 1.0,
        "gate_limit": 2.0,
        "value_input": "normed",
        "value_activation": "linear",
        "value_bias_init": 1.0,
        "erase": "shared",
        "write": "normalised",
        "branch_norm": "length",
        "branch_gain": "scalar",
        "mlp_extra": 0,
        "reader": "compressor",
        "highway_gate": "scalar",
        "laurel_rank": 0,
        "first_state_weight": 0.0,
        "sources_every": 1,
        "value_residual": False,
        "rope_base": 10_000.0,
        "norm_eps": 1e-5,
        "embedding_std": 0.02,
        "matrix_std_factor": 0.5,
        "output_std_factor": 1.0,
        "embedding_norm": False,
        "logit_scale": False,
        "kernels": "auto",
        "state_dtype": "parameters",
        "state_memory": "stored",
    },
    "EvalConfig": {"mechanism_tokens": 8192},
    "ParquetDataset": {"folder": ""},
    "Variant": {"family": "own", "published": ""},
    "TokenisedCorpus": {"max_train_tokens": 0, "shard_tokens": 100_000_000},
    "TextFiles": {"val_path": "", "val_fraction": 0},
    "TokenizerConfig": {"path": ""},
    "TrainConfig": {
        "sharding": "ddp",
        "compile": False,
        "tensorboard": False,
        "snapshots": (),
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "grad_clip": 1.0,
        "embedding_rate_factor": 1.0,
    },
    "Study": {"inside": False},
}


def test_defaults_are_what_earlier_runs_were_made_with():
    found = {}
    for name, cls in vars(config_module).items():
        if dataclasses.is_dataclass(cls) and cls is not Range:
            own = [field for field in dataclasses.fields(cls) if field.name in cls.__annotations__]
            assert all(field.default_factory is dataclasses.MISSING for field in own)
            given = {field.name: field.default for field in own if field.default is not dataclasses.MISSING}
            given.pop("name", None)  # identifies the kind of corpus
            if given:
                found[name] = given
    assert found == DEFAULTS


def test_changed_settings_leave_out_defaults_and_keep_all_else():
    recipe = dataclasses.replace(load_scale("smoke").training, snapshots=())
    assert changed_settings(recipe) == {
        name: value for name, value in to_mapping(recipe).items() if name not in DEFAULTS["TrainConfig"]
    }
    changed = dataclasses.replace(recipe, grad_clip=0.5)
    assert changed_settings(changed) == changed_settings(recipe) | {"grad_clip": 0.5}
    scale = dataclasses.replace(load_scale("smoke"), training=changed)
    assert changed_settings(scale)["training"]["grad_clip"] == 0.5
    assert changed_settings(scale)["corpus"]["name"] == "package-docs"  # included although it equals the default
    assert changed_settings(scale)["sizes"]["small"] == {"layers": 1, "heads": 2, "width": 24}


def test_what_a_model_is_made_of_determines_it_and_how_it_is_computed_does_not():
    config = load_scale("smoke").model("small", "ddl-tc")
    properties = {name for name, value in vars(ModelConfig).items() if isinstance(value, property)}
    assert properties <= set(config.determining())
    assert dataclasses.replace(config, gate_init=0.5).determining() != config.determining()
    assert dataclasses.replace(config, kernels="triton", state_memory="stored").determining() == config.determining()


def test_every_setting_is_read_somewhere():
    code = "".join(path.read_text() for path in (ROOT / "ddl").rglob("*.py") if path.name != "config.py")
    code += (ROOT / "Snakefile").read_text() + (ROOT / "ddl/config.py").read_text().split("def load_scale")[0]
    for name in (
        "ModelConfig",
        "SizeConfig",
        "PackageDocs",
        "PackageSources",
        "TextFiles",
        "ParquetDataset",
        "TokenShards",
        "TokenizerConfig",
        "TrainConfig",
        "Backbone",
        "Grid",
        "Study",
        "EvalConfig",
        "CostConfig",
    ):
        for field in vars(config_module)[name].__dataclass_fields__:
            assert re.search(rf"\.{field}\b", code), f"{name}.{field} is read nowhere"


def test_an_unknown_scale_is_one_line(capsys):
    ddl("describe", "--scale", "lapdog", code=2)
    assert (
        capsys.readouterr().err
        == "error: scale: expected one of h200, laptop, paper, smoke, workstation, found 'lapdog'\n"
    )


def test_describe_prints_a_row_for_every_design_of_the_families_and_the_baseline(capsys):
    cases = [(name, [], ("paper", "own")) for name in scale_names()]
    for name, arguments, families in [*cases, *(("smoke", ["--family", f], (f,)) for f in ("control", "rival"))]:
        ddl("describe", "--scale", name, *arguments)
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("small", "medium"))]
        designs = [v for v, variant in load_variants().items() if variant.family in families or v == "baseline"]
        assert [tuple(row.split()[:2]) for row in rows] == [
            (size, v) for size in load_scale(name).sizes for v in designs
        ]
