"""The training loop: repeatable to the bit, across interruptions too, and never from another model's checkpoint."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from ddl import train as train_module
from ddl.config import load_scale
from ddl.model import load_model
from ddl.provenance import sha256_file, write_json
from ddl.shards import DataError, write_shard
from ddl.tokenizer import END_OF_TEXT, load_tokenizer
from ddl.train import Run, TrainingError, learning_rate, make_optimizer

STEPS = 12


@pytest.fixture
def data(tmp_path):
    """A manifest with random token shards of a 64-entry vocabulary."""
    folder = tmp_path / "data"
    folder.mkdir()
    splits = {}
    for split, tokens in (("train", 2000), ("val", 500)):
        path = folder / f"{split}_000000.bin"
        write_shard(path, np.random.default_rng(len(split)).integers(0, 64, tokens))
        shard = {"file": path.name, "tokens": tokens, "sha256": sha256_file(path)}
        splits[split] = {"documents": 1, "bytes": tokens, "tokens": tokens, "shards": [shard]}
    Tokenizer(models.WordLevel({END_OF_TEXT: 0}, END_OF_TEXT)).save(str(folder / "tokenizer.json"))
    tokenizer = {"name": "bpe", "vocab_size": 64, "file": "tokenizer.json"}
    tokenizer["sha256"] = sha256_file(folder / "tokenizer.json")
    write_json(folder / "manifest.json", {"tokenizer": tokenizer, "splits": splits, "documents": None})
    return folder / "manifest.json"


@pytest.fixture
def scale():
    smoke = load_scale("smoke")
    recipe = dataclasses.replace(
        smoke.training,
        steps=STEPS,
        batch_sequences=4,
        micro_batch_sequences=2,
        warmup_steps=2,
        val_interval=5,
        val_sequences=8,
        log_interval=3,
        checkpoint_interval=4,
    )
    tokenizer = dataclasses.replace(smoke.tokenizer, name="gpt2", vocab_size=50257)
    object.__setattr__(tokenizer, "vocab_size", 64)  # smaller than any tokenizer that could be trained
    return dataclasses.replace(smoke, sequence_length=16, training=recipe, tokenizer=tokenizer)


@pytest.fixture
def start(data, scale, tmp_path):
    """Make a run in a folder of its own."""

    def make(name, variant="ddl-cc", seed=0, **recipe):
        changed = dataclasses.replace(scale, training=dataclasses.replace(scale.training, **recipe))
        return Run(changed, "small", variant, seed, data, tmp_path / name)

    return make


def curve(folder):
    """The metrics of a run without the times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "tok_per_s"} for record in records]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("variant", ["baseline", "ddl-tc"])
def test_same_seed_gives_the_same_curve_and_weights_to_the_bit(start, tmp_path, variant):
    for name in ("a", "b"):
        assert start(name, variant).train()
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    start("c", variant, seed=1).train()
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


def test_training_learns_and_writes_what_it_promises(start, tmp_path):
    start("run", steps=60, log_interval=10, val_interval=60).train()
    records = curve(tmp_path / "run")
    assert [record["step"] for record in records] == [0, 10, 20, 30, 40, 50, 60]
    assert records[0]["train_loss"] is None
    assert records[1]["val_loss"] is None
    assert records[-1]["train_loss"] < records[1]["train_loss"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val_loss"] == records[-1]["val_loss"]
    assert summary["tokens"] == 60 * 4 * 16
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["settings"]["model"]["compressor"] == "cc"
    assert load_model(tmp_path / "run").config.compressor == "cc"
    assert load_tokenizer(tmp_path / "run" / "tokenizer.json").get_vocab() == {END_OF_TEXT: 0}


@pytest.mark.parametrize("stop_after", [1, 4, 5, 11])
def test_a_stopped_run_continues_to_the_same_bits(start, tmp_path, monkeypatch, stop_after):
    start("whole").train()
    run = start("stopped")
    step = run.step

    def step_then_stop(lr):
        result = step(lr)
        if run.progress.step + 1 == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(run, "step", step_then_stop)
    assert not run.train()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    again = start("stopped")
    assert again.train()
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_killed_run_loses_at_most_one_checkpoint_interval(start, tmp_path, monkeypatch, capsys):
    start("whole").train()
    run = start("killed")
    monkeypatch.setattr(run, "validate", lambda: (_ for _ in ()).throw(KeyboardInterrupt) if run.progress.step else 4.0)
    with pytest.raises(KeyboardInterrupt):  # at step 5, the checkpoint is of step 4
        run.train()
    start("killed").train()
    assert "resumed from step 4 " in capsys.readouterr().out
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_finished_run_that_is_started_again_only_writes_its_files(start, tmp_path, monkeypatch):
    start("run").train()
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    again = start("run")
    monkeypatch.setattr(again, "step", lambda lr: pytest.fail("trained again"))
    again.train()
    assert weights(tmp_path / "run") == before


def test_no_checkpoint_serves_other_settings_data_or_code(start, data, monkeypatch, tmp_path):
    first = start("run").fingerprint
    assert start("run").fingerprint == first
    assert start("run", learning_rate=1e-3).fingerprint != first
    assert start("run", seed=1).fingerprint != first
    changed = tmp_path / "residual.py"
    changed.write_text("another rule")
    code = train_module.running_code()
    monkeypatch.setattr(train_module, "running_code", lambda: [changed if f.name == changed.name else f for f in code])
    assert start("run").fingerprint != first
    monkeypatch.setattr(train_module, "running_code", lambda: code)
    manifest = json.loads(data.read_text())
    write_shard(data.parent / "train_000000.bin", np.zeros(2000, dtype=np.int64))
    manifest["splits"]["train"]["shards"][0]["sha256"] = sha256_file(data.parent / "train_000000.bin")
    write_json(data, manifest)
    assert start("run").fingerprint != first


def test_fingerprint_covers_the_code_of_model_and_rules():
    names = {path.name for path in train_module.running_code()}
    assert {"train.py", "model.py", "residual.py", "rewrite.py", "compress.py", "expand.py", "config.py"} <= names


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(start, tmp_path, capsys):
    start("run").train()
    before = weights(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").rglob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    start("run").train()
    printed = capsys.readouterr().out
    assert f"{newest}: damaged, left out" in printed
    assert "resumed from step 8 " in printed
    assert weights(tmp_path / "run") == before


def test_two_checkpoints_are_kept(start, tmp_path):
    start("run").train()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    assert names == ["step00000008.pt", "step00000012.pt"]


def test_every_epoch_sees_each_sequence_once_and_in_another_order(start):
    run = start("run")
    count = len(run.train_data)
    steps = 2 * count // 4
    seen = np.concatenate([run.batch_indices(step) for step in range(steps + 1)])
    epochs = seen[: 2 * count].reshape(2, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_more_sequences_in_a_batch_than_in_the_split_are_refused(start):
    with pytest.raises(DataError, match="training split: expected at least 1000 sequences, found 124"):
        start("run", batch_sequences=1000).train()


def test_micro_batches_add_up_to_the_whole_batch(start):
    whole, parts = start("a", micro_batch_sequences=4), start("b", micro_batch_sequences=1)
    for run in (whole, parts):
        run.step(1e-3)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(start, tmp_path, monkeypatch):
    run = start("run")
    monkeypatch.setattr(run.model, "loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    monkeypatch.setattr(run, "validate", lambda: 4.0)
    with pytest.raises(TrainingError, match="step 3: loss nan"):
        run.train()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_learning_rate_warms_up_and_falls_to_its_floor():
    recipe = load_scale("paper").training
    rates = [learning_rate(step, recipe) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(recipe.learning_rate / recipe.warmup_steps)
    assert max(rates) == rates[recipe.warmup_steps - 1] == recipe.learning_rate
    assert rates[-1] == pytest.approx(recipe.min_learning_rate)
    assert all(a >= b for a, b in zip(rates[recipe.warmup_steps :], rates[recipe.warmup_steps + 1 :], strict=False))
    middle = (recipe.warmup_steps + recipe.steps - 1) // 2
    assert rates[middle] == pytest.approx((recipe.learning_rate + recipe.min_learning_rate) / 2, rel=1e-3)


def test_weight_decay_acts_on_matrices_only(tiny_config):
    from ddl.model import LanguageModel

    model = LanguageModel(tiny_config("ddl-tc"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, load_scale("paper").training).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert "embedding.weight" in decayed_names
    assert not [
        name for name in decayed_names if "norm" in name or "bias" in name or "kernel" in name or "read" in name
    ]
