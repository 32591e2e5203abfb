"""The training loop: reproducible to the bit, also across interruptions, and never from another model's checkpoint."""

import errno
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddl.config import ConfigError, ModelConfig, load_scale
from ddl.data.shard_format import DataError, write_shard
from ddl.data.tokenizer import END_OF_TEXT, load_tokenizer
from ddl.files import sha256_file, write_json
from ddl.model.flops import flops_per_token
from ddl.model.run_files import load_model, snapshot_steps
from ddl.training import run as train_module
from ddl.training.errors import NotFiniteError, TrainingError
from ddl.training.learner import compile_layers, learning_rate, make_optimizer
from ddl.training.metrics import part_of
from ddl.training.run import Run
from tests.helpers.tiny_run import tiny_scale, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def start(data, tmp_path):
    """Create a run in the folder `name`."""

    def make(name, variant="ddl-cc", seed=0, stale="refuse", **recipe):
        return Run(tiny_scale(**recipe), "small", variant, seed, data, tmp_path / name, stale=stale)

    return make


@pytest.fixture
def other_code(monkeypatch):
    """Make later runs believe that the code of the residual rules has changed."""
    code = train_module.code_identity

    def change(digest="another rule"):
        changed = lambda *modules: code(*modules) | {"ddl/model/residual.py": digest}  # noqa: E731
        monkeypatch.setattr(train_module, "code_identity", changed)

    return change


@pytest.fixture
def stop_at(monkeypatch):
    """Run until a signal stops it after a step."""

    def run_until(run, last):
        step = run.learner.step

        def step_then_stop(batch, lr):
            result = step(batch, lr)
            if run.progress.step + 1 == last:
                signal.raise_signal(signal.SIGTERM)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(run.learner, "step", step_then_stop)
            assert not run.train()

    return run_until


def other_data(manifest):
    """Replace the training shard, as if the corpus had changed."""
    content = json.loads(manifest.read_text())
    write_shard(manifest.parent / "train_000000.bin", np.zeros(2000, dtype=np.int64))
    content["splits"]["train"]["shards"][0]["sha256"] = sha256_file(manifest.parent / "train_000000.bin")
    write_json(manifest, content)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder):
    """The metrics of a run without its speed, and the gradient norms of its parts."""
    metrics = [
        {key: value for key, value in record.items() if key not in ("seconds", "tok_per_s")}
        for record in records(folder)
    ]
    return metrics, (folder / "gradients.csv").read_text()


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
    found = records(tmp_path / "run")
    assert [record["step"] for record in found] == [0, 10, 20, 30, 40, 50, 60]
    assert found[0]["train_loss"] is None
    assert found[1]["val_loss"] is None
    assert found[-1]["train_loss"] < found[1]["train_loss"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"{summary['params']:,} parameters" in card
    assert f"| {summary['val_loss']:.3f} nats per token" in card
    assert "import ddl.model.transformers_model\n" in card
    named = set(re.findall(r"`([\w.]+/?)`", card.partition("## Files")[2]))
    written = {f"{path.name}{'/' * path.is_dir()}" for path in (tmp_path / "run").glob("[!.]*")}
    assert named - {"snapshots/"} == written - {"README.md"}
    assert summary["val_loss"] == found[-1]["val_loss"]
    assert summary["tokens"] == 60 * 4 * 16
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["settings"]["model"]["compressor"] == "cc"
    assert load_model(tmp_path / "run").config.compressor == "cc"
    assert load_tokenizer(tmp_path / "run" / "tokenizer.json").get_vocab() == {END_OF_TEXT: 0}


def test_a_run_says_how_often_it_repeats_its_data_and_where_its_model_is(start, tmp_path, capsys):
    run = start("run")
    repeated = len(run.batches.data) // run.recipe.batch_sequences + 1  # steps
    start("once", steps=repeated - 1).train()
    said = capsys.readouterr().out
    assert "warning" not in said
    assert f"ddl generate --run {tmp_path / 'once'}" in said
    start("twice", steps=2 * repeated).train()
    assert re.search(r"warning: the run passes over its training data 2\.\d times", capsys.readouterr().out)


@pytest.mark.parametrize("variant", ["baseline", "ddl-tc"])
def test_gradient_norms_of_the_parts_make_up_the_norm_of_the_whole_gradient(start, tmp_path, variant):
    run = start("run", variant)
    run.train()
    found = np.genfromtxt(tmp_path / "run" / "gradients.csv", delimiter=",", names=True, deletechars="")
    after_a_step = records(tmp_path / "run")[1:]
    assert found["step"].tolist() == [record["step"] for record in after_a_step]
    parts = found.dtype.names[1:]
    whole = np.sqrt(sum(found[part] ** 2 for part in parts))
    np.testing.assert_allclose(whole, [record["grad_norm"] for record in after_a_step], rtol=1e-5)
    assert set(parts) == {part_of(name) for name, _ in run.learner.model.named_parameters()}
    assert {"embedding", "blocks.0.attention", "blocks.0.mlp"} <= set(parts)
    assert ("blocks.0.attention_rule" in parts) == (variant != "baseline")
    norm = run.learner.model.embedding.weight.grad.norm().item()  # of the last step, clipped in place
    clip = min(1.0, run.recipe.grad_clip / (after_a_step[-1]["grad_norm"] + 1e-6))
    assert found["embedding"][-1] * clip == pytest.approx(norm, rel=1e-4)


def test_records_have_the_training_time_up_to_them(start, tmp_path, stop_at):
    stop_at(start("run"), 5)
    start("run").train()
    seconds = [record["seconds"] for record in records(tmp_path / "run")]
    assert seconds[0] == 0
    assert all(a < b for a, b in itertools.pairwise(seconds))
    assert seconds[-1] == json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]


def test_the_summary_counts_three_forward_passes_per_training_token(start, tmp_path):
    run = start("run", "ddl-tc")
    run.train()
    forward = sum(flops_per_token(run.config))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train_flops_per_token"] == 3 * forward


def test_a_record_has_the_mean_loss_of_the_steps_since_the_record_before(start, tmp_path, monkeypatch):
    run, losses = start("run", log_interval=4, val_interval=12), []
    step = run.learner.step

    def step_and_note(batch, lr):
        loss, norms = step(batch, lr)
        losses.append(loss.item())
        return loss, norms

    monkeypatch.setattr(run.learner, "step", step_and_note)
    run.train()
    means = [np.mean(losses[first : first + 4]) for first in (0, 4, 8)]
    assert [record["train_loss"] for record in records(tmp_path / "run")] == [None, *map(pytest.approx, means)]


def test_validation_is_the_mean_over_all_sequences_in_micro_batches_of_unequal_size(start):
    run = start("run", val_sequences=7, micro_batch_sequences=2)
    ids, targets = (torch.cat(parts) for parts in zip(*run.validation, strict=True))
    assert len({len(part) for part, _ in run.validation}) == 2
    with torch.no_grad():
        assert run.validate() == pytest.approx(run.learner.model.loss(ids, targets).item(), rel=1e-6)


def snapshots(folder):
    return {path.name: path.read_bytes() for path in (folder / "snapshots").iterdir()}


def test_snapshots_hold_the_weights_of_their_steps_and_change_nothing_else(start, tmp_path):
    start("without", snapshots=()).train()
    start("with", snapshots=(0, 3, 8, 12, 99)).train()
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    assert not (tmp_path / "without" / "snapshots").exists()
    assert snapshot_steps(tmp_path / "with") == [0, 3, 8, 12]
    final, first, last = (load_model(tmp_path / "with", step=step).state_dict() for step in (None, 0, 12))
    fresh = start("fresh").learner.model.state_dict()
    assert all(torch.equal(last[name], final[name]) and torch.equal(first[name], fresh[name]) for name in final)
    assert not torch.equal(first["embedding.weight"], last["embedding.weight"])


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_stopped_run_ends_with_the_same_snapshots(start, tmp_path, stop_at, stop_after):
    start("whole", snapshots=(0, 3, 8)).train()
    stop_at(start("stopped", snapshots=(0, 3, 8)), stop_after)
    start("stopped", snapshots=(0, 3, 8)).train()
    assert snapshots(tmp_path / "stopped") == snapshots(tmp_path / "whole")


def test_snapshots_of_a_run_that_was_given_up_are_removed(start, tmp_path, stop_at):
    stop_at(start("run", snapshots=(0, 2, 3)), 5)
    assert start("run", snapshots=(0, 3), learning_rate=1e-3, stale="restart").train()
    start("whole", snapshots=(0, 3), learning_rate=1e-3).train()
    assert snapshots(tmp_path / "run") == snapshots(tmp_path / "whole")


def test_a_run_that_is_continued_with_other_code_keeps_its_snapshots(start, tmp_path, stop_at, other_code):
    stop_at(start("run", snapshots=(0, 3, 8)), 5)
    other_code()
    assert start("run", snapshots=(0, 3, 8), stale="continue").train()
    assert snapshot_steps(tmp_path / "run") == [0, 3, 8]


@pytest.mark.parametrize("stop_after", [1, 4, 5, 11])
def test_a_stopped_run_continues_to_the_same_bits(start, tmp_path, stop_at, stop_after):
    start("whole").train()
    stop_at(start("stopped"), stop_after)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    again = start("stopped")
    assert again.train()
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_killed_run_loses_at_most_one_checkpoint_interval(start, tmp_path, monkeypatch, capsys):
    start("whole").train()
    run = start("killed")
    monkeypatch.setattr(run, "validate", lambda: (_ for _ in ()).throw(KeyboardInterrupt) if run.progress.step else 4.0)
    with pytest.raises(KeyboardInterrupt):  # at step 5; the last checkpoint is from step 4
        run.train()
    start("killed").train()
    assert "resumed from step 4 " in capsys.readouterr().out
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_finished_run_that_is_started_again_only_writes_its_files(start, tmp_path, monkeypatch):
    start("run").train()
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    again = start("run")
    monkeypatch.setattr(again.learner, "step", lambda *_: pytest.fail("trained again"))
    again.train()
    assert weights(tmp_path / "run") == before


def test_no_checkpoint_serves_other_settings_data_or_code(start, data, monkeypatch, other_code):
    def fingerprint(seed=0, **recipe):
        return start("run", seed=seed, **recipe).checkpoints.origin.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(learning_rate=1e-3) != first
    assert fingerprint(seed=1) != first
    with monkeypatch.context() as patch:
        patch.setattr(ModelConfig, "mlp_hidden", property(lambda self: 4 * self.width))
        assert fingerprint() != first
    other_code()
    assert fingerprint() != first
    monkeypatch.undo()
    other_data(data)
    assert fingerprint() != first


def test_a_checkpoint_serves_any_number_of_processes_and_any_micro_batch(start):
    first = start("run").checkpoints.origin.fingerprint
    others = {"sharding": "fsdp", "compile": False, "snapshots": (1,)}
    changed = start("run", gpus=4, micro_batch_sequences=1, checkpoint_interval=2, **others)
    assert changed.checkpoints.origin.fingerprint == first


def test_fingerprint_covers_the_code_of_model_and_rules(start):
    code = start("run").checkpoints.origin.code
    assert {"ddl/training/learner.py", "ddl/model/language_model.py", "ddl/model/residual.py"} <= set(code)
    assert {"ddl/ops/rewrite.py", "ddl/ops/rewrite_triton.py", "ddl/data/sequences.py"} <= set(code)


def test_a_run_whose_data_changed_is_refused_and_says_what_changed(start, data, tmp_path, stop_at):
    stop_at(start("run"), 5)
    before = sha256_file(data.parent / "train_000000.bin")
    other_data(data)
    now = sha256_file(data.parent / "train_000000.bin")
    for stale in ("refuse", "continue"):  # no run may mix two corpora
        with pytest.raises(TrainingError) as refused:
            start("run", stale=stale).train()
        assert f"data train_000000.bin was {before[:12]}, is {now[:12]}; restore that data" in str(refused.value)
        assert "at step 5 of 12, are from a different run" in str(refused.value)
        assert "--continue-anyway" not in str(refused.value)
    assert start("run", stale="restart").train()


def saved(folder):
    """Contents of all checkpoints below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*.pt")}


@pytest.mark.parametrize("last", [5, 12])  # unfinished, finished
def test_changed_code_or_settings_stop_a_run_and_nothing_is_lost(start, tmp_path, stop_at, other_code, last):
    stop_at(start("run"), last) if last < 12 else start("run").train()
    before = saved(tmp_path / "run")
    other_code()
    with pytest.raises(TrainingError) as refused:
        start("run", learning_rate=1e-3).train()
    assert "\n" not in str(refused.value)
    assert (
        f"at step {last} of 12, are from a different run: settings training.learning_rate was 0.008, is 0.001; "
        "code ddl/model/residual.py has changed; resume from them with --continue-anyway, or start over with --restart"
    ) in str(refused.value)
    assert "snakemake --config stale=continue or stale=restart" in str(refused.value)
    assert saved(tmp_path / "run") == before


def test_restart_trains_from_the_first_step_and_keeps_the_old_checkpoints(start, tmp_path, stop_at, capsys):
    stop_at(start("run"), 5)
    before = saved(tmp_path / "run")
    assert start("run", learning_rate=1e-3, stale="restart").train()
    assert (
        "step 5 is from a different run: settings training.learning_rate was 0.008, is 0.001" in capsys.readouterr().out
    )
    assert before.items() <= saved(tmp_path / "run").items()
    start("whole", learning_rate=1e-3).train()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_restarted_run_that_is_stopped_resumes_its_own_checkpoints(start, stop_at, capsys):
    stop_at(start("run"), 5)
    stop_at(start("run", learning_rate=1e-3, stale="restart"), 7)
    assert start("run", learning_rate=1e-3, stale="restart").train()
    assert "resumed from step 7 " in capsys.readouterr().out


def test_continue_anyway_resumes_and_records_both_identities(start, tmp_path, stop_at, other_code):
    start("whole").train()
    first = start("run")
    stop_at(first, 5)
    code = first.checkpoints.origin.code["ddl/model/residual.py"]
    other_code()
    stop_at(start("run", stale="continue"), 7)  # its origin must survive the next stop
    second = start("run")
    assert second.train()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["fingerprint"] == second.checkpoints.origin.fingerprint
    assert provenance["continued"] == [
        {
            "step": 5,
            "fingerprint": first.checkpoints.origin.fingerprint,
            "differences": [
                {"kind": "code", "key": "ddl/model/residual.py", "was": code, "now": "another rule"},
            ],
        }
    ]


def test_a_finished_run_of_other_code_is_taken_over_without_a_step(start, tmp_path, monkeypatch, other_code):
    start("run").train()
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    other_code()
    again = start("run", stale="continue")
    monkeypatch.setattr(again.learner, "step", lambda *_: pytest.fail("trained again"))
    assert again.train()
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "baseline"}, r"the checkpoint is from a model with different parameters: blocks\.0\.\S+ was \["),
        (
            {"steps": 4},
            r"at step 5 of 4, are from a different run: settings training\.steps was 12, is 4; start over with",
        ),
    ],
)
def test_what_cannot_be_continued_is_a_sentence(start, stop_at, change, message):
    stop_at(start("run"), 5)
    with pytest.raises(TrainingError, match=message):
        start("run", stale="continue", **change).train()


def test_the_newest_checkpoint_of_another_origin_is_the_one_that_is_continued(start, tmp_path, stop_at, other_code):
    for number, step in ((1, 9), (2, 5)):
        other_code(f"rule {number}")
        run = start("run", stale="restart")
        stop_at(run, step)
        for path in run.checkpoints.folder.iterdir():
            os.utime(path, (number, number))
    other_code("rule 3")
    assert start("run", stale="continue").train()
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [entry["step"] for entry in provenance["continued"]] == [5]


def test_a_shard_that_is_gone_is_named(start, data, stop_at):
    stop_at(start("run"), 5)
    (data.parent / "train_000000.bin").unlink()
    with pytest.raises(DataError, match=r"train_000000\.bin: no such shard"):
        start("run")


def test_every_epoch_sees_each_sequence_once_and_in_another_order(start):
    batches = start("run").batches
    count = len(batches.data)
    steps = 2 * count // 4
    seen = np.concatenate([batches.indices(step) for step in range(steps + 1)])
    epochs = seen[: 2 * count].reshape(2, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_more_sequences_in_a_batch_than_in_the_split_are_refused(start):
    with pytest.raises(DataError, match="training split: expected at least 1000 sequences, found 124"):
        start("run", batch_sequences=1000).train()


def test_micro_batches_add_up_to_the_whole_batch(start):
    whole, parts = (start(name, micro_batch_sequences=n, grad_clip=1e9) for name, n in (("a", 4), ("b", 1)))
    for run in (whole, parts):
        run.learner.step(next(run.batches.stream(range(1))), 1e-3)
    for a, b in zip(whole.learner.model.parameters(), parts.learner.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad_step", [6, 8, 11])
def test_a_step_that_is_not_finite_is_named_and_never_saved(start, tmp_path, monkeypatch, bad_step):
    """Step 8 writes a checkpoint but no record, step 6 writes a record, and step 11 writes neither."""
    run = start("run")
    loss = run.learner.model.loss
    calls = iter(range(1000))

    def loss_with_a_spike(ids, targets):
        bad = torch.is_grad_enabled() and next(calls) // 2 + 1 == bad_step
        return loss(ids, targets) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(run.learner.model, "loss", loss_with_a_spike)
    with pytest.raises(NotFiniteError, match=f"^step {bad_step}: loss nan, gradient not finite in all parameters;"):
        run.train()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    saved = [int(path.name[4:12]) for path in (tmp_path / "run" / "checkpoints").rglob("*.pt")]
    assert max(saved) == (bad_step - 1) // 4 * 4
    assert start("run").train()  # continues from the last good checkpoint
    start("whole").train()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_parameters_with_a_bad_gradient_are_named(start, monkeypatch):
    run = start("run")
    run.learner.model.blocks[0].mlp.out.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NotFiniteError) as stopped:
        run.train()
    assert re.search(
        r"step 1: loss [\d.]+, gradient not finite in 1 of \d+ parameters \(blocks\.0\.mlp\);", str(stopped.value)
    )


def test_data_of_another_vocabulary_is_refused(data, tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: expected tokenizer\.vocab_size 1024, .* smoke, found 64$"):
        Run(load_scale("smoke"), "small", "ddl-cc", 0, data, tmp_path / "run")


def test_a_full_disk_leaves_the_checkpoints_of_before_and_nothing_half_written(start, tmp_path, monkeypatch):
    run = start("run")
    save, write = run.checkpoints.save, Path.write_bytes

    def fill_the_disk(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def save_on_a_full_disk(step, state):
        if step == 8:
            monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
        save(step, state)

    monkeypatch.setattr(run.checkpoints, "save", save_on_a_full_disk)
    with pytest.raises(
        TrainingError,
        match=r"^.*step00000008.*: No space left on device; run the command again to continue from the last",
    ):
        run.train()
    monkeypatch.undo()
    names = sorted(path.name for path in run.checkpoints.folder.iterdir())
    assert len(names) == 2
    assert names[0] == "origin.json"
    assert names[1].startswith("step00000004-")
    assert start("run").train()
    start("whole").train()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(), "allocator"]
)
def test_out_of_memory_names_the_settings_to_lower(start, monkeypatch, error):
    run = start("run")

    def step(*_):
        if error == "allocator":
            torch.empty(2**60)
        raise error

    monkeypatch.setattr(run.learner, "step", step)
    with pytest.raises(TrainingError, match=r"^out of memory: lower training\.micro_batch_sequences.*sharding: fsdp"):
        run.train()


def test_an_error_of_the_program_keeps_its_traceback(start, monkeypatch):
    run = start("run")
    monkeypatch.setattr(run.learner, "step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run.train()


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
    from ddl.model.language_model import LanguageModel

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


def test_tensorboard_shows_the_records_and_an_interruption_leaves_no_trace(start, tmp_path, stop_at):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop_at(start("run", tensorboard=True), 5)
    assert start("run", tensorboard=True).train()
    shown = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    for name in ("train_loss", "val_loss", "lr", "grad_norm", "tok_per_s"):
        expected = [(r["step"], r[name]) for r in records(tmp_path / "run") if r[name] is not None]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in expected]


def test_tensorboard_that_is_not_installed_is_a_sentence(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"^training\.tensorboard: the package tensorboard is not installed"):
        start("run", tensorboard=True).train()
    assert start("run").train()


def test_compiled_layers_compute_the_same(start):
    run, compiled = start("a", "ddl-tc"), start("b", "ddl-tc")
    compile_layers(compiled.learner.model, backend="eager")
    for one in (run, compiled):
        one.learner.step(next(one.batches.stream(range(1))), 1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for a, b in zip(run.learner.model.parameters(), compiled.learner.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_batches_are_read_ahead_in_a_thread_and_its_errors_reach_the_loop(start, data, monkeypatch):
    run = start("run")
    read, batch = [], run.batches.data.batch

    def spy(indices):
        read.append(threading.current_thread().name)
        if len(read) > 6:
            raise DataError("no more")
        return batch(indices)

    monkeypatch.setattr(run.batches.data, "batch", spy)
    stream = run.batches.stream(range(10))
    next(stream)
    while len(read) < 4:  # two micro-batches per step: the next step is read in advance
        time.sleep(0.01)
    assert {name.partition("_")[0] for name in read} == {"batches"}
    with pytest.raises(DataError, match="no more"):
        list(stream)


def test_the_host_waits_for_the_device_at_records_and_checkpoints_only(start, monkeypatch):
    """Count the calls that copy numbers to the host; steps between records must make none."""
    run = start("run", log_interval=6, val_interval=12, checkpoint_interval=12)
    waits = []
    for name in ("item", "tolist"):
        method = getattr(torch.Tensor, name)

        def spy(tensor, method=method):
            waits.append(run.progress.step)
            return method(tensor)

        monkeypatch.setattr(torch.Tensor, name, spy)
    run.train()
    assert set(waits) == {0, 6, 12}
