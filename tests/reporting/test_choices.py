"""The table of choices: every open setting has a row, values come from the settings, sources are known."""

import dataclasses
import re

import pytest

from ddl.config import ExecutionConfig, ModelConfig, TokenizerConfig, TrainConfig, load_scale, scale_names
from ddl.reporting import choices as module
from ddl.reporting.choices import ChoicesError, choices

SOURCES = {"paper", "revised text", "public code", "parameter counts", "convention", "ours"}
NOT_LISTED = {
    "stated in Sec. 2, Sec. 3, Sec. 4.1 or Table 6": {
        "model": "sequence_length layers width heads residual value_channels compressor embed_conv gate_limit",
        "training": "steps batch_sequences learning_rate warmup_steps beta1 beta2 grad_clip",
    },
    "listed as a setting of tokenizer or execution": {"model": "vocab_size state_dtype state_memory"},
    "not used by the designs of the paper": {
        "model": "direction_pool gate_hidden erase write branch_norm branch_gain mlp_extra output_std_factor "
        "embedding_norm logit_scale reader highway_gate laurel_rank first_state_weight sources_every value_residual",
    },
    "no effect, or one on rounding": {
        "model": "kernels",
        "execution": "kernels",
        "tokenizer": "path",
        "training": "micro_batch_sequences log_interval checkpoint_interval threads gpus sharding compile tensorboard "
        "snapshots",
    },
}


def written(tmp_path, monkeypatch, used):
    file = tmp_path / "choices.csv"
    file.write_text(f'topic,paper,revised,used,source,why\nGate,,,"{used}",ours,\n')
    monkeypatch.setattr(module, "FILE", file)


def test_every_setting_that_the_paper_does_not_state_is_listed():
    configs = {
        "model": ModelConfig,
        "training": TrainConfig,
        "tokenizer": TokenizerConfig,
        "execution": ExecutionConfig,
    }
    settings = {f"{part}.{field.name}" for part, config in configs.items() for field in dataclasses.fields(config)}
    listed = {name for row in choices(load_scale("paper")) for name in row["settings"].split(", ") if name}
    excused = {f"{part}.{name}" for why in NOT_LISTED.values() for part, names in why.items() for name in names.split()}
    assert settings - listed == excused
    assert listed <= settings


@pytest.mark.parametrize("scale", scale_names())
def test_every_row_is_complete_at_every_scale(scale):
    for row in choices(load_scale(scale)):
        assert all(row[column] for column in ("topic", "paper", "used", "source", "why")), row
        assert set(row["source"].split(", ")) <= SOURCES, row["topic"]
        assert "{" not in "".join(row.values()), row["topic"]


def test_no_value_of_a_setting_is_typed_into_the_table():
    for line in module.FILE.read_text().splitlines():
        used = re.search(r"\{.*\}", line)
        assert not used or not re.search(r"\d", re.sub(r"\{[\w.]+\}", "", used[0])), line


def test_values_are_those_of_the_scale_and_of_a_second_one_where_they_differ(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "{model.gate_init}, {tokenizer.vocab_size}, {training.min_learning_rate}")
    paper = load_scale("paper")
    other = dataclasses.replace(paper, name="other", tokenizer=TokenizerConfig("gpt2", 50_257))
    assert choices(paper)[0]["used"] == "1, 50,304, 3e-5"
    assert choices(paper, other)[0]["used"] == "1, 50,304 (other: 50,257), 3e-5"


def test_the_metrics_are_those_of_the_benchmarks(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "{benchmarks.acc}")
    assert choices(load_scale("paper"))[0]["used"] == "Social IQA, WG"


def test_an_unknown_setting_is_one_line_that_names_it(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "{model.gate_unit}")
    with pytest.raises(ChoicesError, match=r"^paper/choices.csv: Gate: unknown setting \{model.gate_unit\}$"):
        choices(load_scale("paper"))
