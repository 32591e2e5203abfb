"""Cost: timings measure the named operation, and ratios are computed within a round."""

import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddl.config import load_scale
from ddl.model.language_model import LanguageModel
from ddl.training import cost
from tests.helpers.tiny_run import FORKS


@pytest.fixture
def scale():
    smoke = load_scale("smoke")
    return dataclasses.replace(smoke, cost=dataclasses.replace(smoke.cost, batch_sequences=1, rounds=3))


def test_ratios_are_formed_round_by_round(scale, tmp_path, monkeypatch):
    base = np.array([100.0, 200.0, 400.0])
    half = {"train": base / 2, "inference": base / 2}
    rates = dict.fromkeys(scale.variants, half) | {"baseline": {"train": base, "inference": base}}
    monkeypatch.setattr(cost, "throughput", lambda *_: rates)
    memory = {"baseline": 100}
    monkeypatch.setattr(cost, "peak_memory_apart", lambda s, z, v: {"bytes": memory.get(v, 125), "kind": "test"})
    cost.measure(scale, "small", tmp_path)
    row = json.loads((tmp_path / "ddl-cc.json").read_text())
    assert row["train_tok_per_s"] == {
        "median": 100.0,
        "p20": pytest.approx(70),
        "p80": pytest.approx(160),
        "repeats": 3,
    }
    # The machine's speed changed by a factor of four between rounds, but the ratio stayed constant.
    assert row["train_ratio"] == {"median": 0.5, "p20": 0.5, "p80": 0.5, "repeats": 3}
    assert row["peak_mem_factor"] == 1.25
    assert json.loads((tmp_path / "baseline.json").read_text())["train_ratio"]["median"] == 1.0
    assert {path.stem for path in tmp_path.iterdir()} == set(scale.variants)


def test_variants_take_turns_and_warm_up_rounds_are_left_out(scale, monkeypatch):
    turns = []
    seconds = cost.Subject.seconds

    def spy(self, work):
        turns.append((self.model.config, work.__name__))
        return seconds(self, work)

    monkeypatch.setattr(cost.Subject, "seconds", spy)
    rates = cost.throughput(scale, "small", together=True)
    one_round = turns[: len(turns) // 4]  # one warm-up round, three measured rounds
    assert [mode for _, mode in one_round] == ["train_step", "inference"] * len(scale.variants)
    assert len({config for config, _ in one_round}) == len(scale.variants)
    assert turns == one_round * 4
    assert all(len(values) == 3 and (values > 0).all() for modes in rates.values() for values in modes.values())


def test_models_that_do_not_fit_together_are_there_in_turn_and_train_on_where_they_were(scale, monkeypatch):
    def weights(together, rounds):
        torch.manual_seed(0)
        subjects = {"ddl-cc": cost.Subject(scale, LanguageModel(scale.model("small", "ddl-cc")))}
        for _ in range(rounds):
            cost.measure_round(scale, subjects, together)
        return [weight.detach() for weight in subjects["ddl-cc"].model.parameters()]

    moves = []
    move = cost.Subject.move
    monkeypatch.setattr(cost.Subject, "move", lambda self, device: (moves.append(device), move(self, device)))
    stayed = weights(together=True, rounds=6)
    assert not moves
    # A model that was away takes one more step, which is not timed.
    assert all(map(torch.equal, stayed, weights(together=False, rounds=3)))
    assert len(moves) == 6


def test_only_a_gpu_that_is_too_small_keeps_models_apart(monkeypatch):
    assert cost.fits(10**18)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16))
    assert cost.fits(16)
    assert not cost.fits(17)


def test_a_training_step_changes_the_weights_and_inference_does_not(scale):
    subject = cost.Subject(scale, LanguageModel(scale.model("small", "ddl-cc")))
    before = subject.model.embedding.weight.detach().clone()
    subject.inference()
    assert (subject.model.embedding.weight == before).all()
    subject.train_step()
    assert (subject.model.embedding.weight != before).any()


def peak(scale, size, variant, sequences):
    settings = dataclasses.replace(scale, cost=dataclasses.replace(scale.cost, batch_sequences=sequences))
    with ProcessPoolExecutor(1, FORKS) as process:  # a new process, because a peak never decreases
        return process.submit(cost.peak_memory, settings, size, variant).result()["bytes"]


def test_a_larger_batch_needs_more_peak_memory(scale):
    assert peak(scale, "medium", "ddl-tc", 64) > peak(scale, "medium", "ddl-tc", 1) + 50e6


def test_peak_memory_leaves_out_what_the_imports_need(scale):
    assert 0 < peak(scale, "small", "baseline", 1) < 100e6  # importing PyTorch alone takes more
