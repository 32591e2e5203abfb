"""`benchmarks.gradient_error` compares what it says, and the scales follow its rule and its kept rows."""

import csv

import pytest
import torch

from benchmarks import gradient_error
from benchmarks.gradient_error import ARITHMETIC, MOST, Watch, columns, gradient, groups, sums
from benchmarks.measure import ORIGIN
from ddl.config import load_scale, scale_names
from ddl.layout import ROOT
from ddl.model.language_model import LanguageModel
from ddl.ops import fused_rewrite
from tests.helpers.tiny_run import write_data


def test_every_parameter_belongs_to_one_kind_and_every_parameter_of_a_block_to_one_layer(tiny_config):
    for variant in ("ddl-dv1", "ddl-tc", "ddl-cc"):
        names = [name for name, _ in LanguageModel(tiny_config(variant)).named_parameters()]
        found = groups(names, layers=2)
        assert found.pop("all") == names
        layers = [name for group, members in found.items() if group.startswith("layer ") for name in members]
        kinds = [name for group, members in found.items() if not group.startswith("layer ") for name in members]
        assert sorted(layers) == sorted(name for name in names if name.startswith("blocks."))
        assert sorted(kinds) == sorted(names)


def test_errors_are_relative_to_the_exact_gradient_of_the_group():
    exact = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}
    stored = {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([0.0, 4.0])}
    rebuilt = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([0.0, 4.0])}
    other = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([0.0, 0.0])}
    each = sums(exact, stored, rebuilt, other)
    row = columns(each, ["a", "b"], large={"a"})
    assert [row[key] for key in ("stored", "rebuilt", "difference", "other_text")] == [0.1, 0.2, 0.1, 1.0]
    assert (row["worst_tensor"], row["worst_stored"], row["worst_rebuilt"]) == ("a", 0.5 / 3, 1 / 3)
    cosine = torch.nn.functional.cosine_similarity(*(torch.cat([*part.values()]) for part in (stored, rebuilt)), dim=0)
    assert row["cosine"] == pytest.approx(float(cosine))


def observed(config, prepare):
    model, generator = LanguageModel(config), torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (2, config.sequence_length + 1), generator=generator)
    return gradient(config, model.state_dict(), (ids[:, :-1], ids[:, 1:]), prepare=prepare)


@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-tc", "ddl-cc"])
def test_rebuilt_states_are_compared_with_those_of_the_forward_pass(tiny_config, variant):
    config = tiny_config(variant, state_memory="rebuilt")
    watch = Watch()
    watched, plain = observed(config, watch.attach), observed(config, lambda model: None)
    rows = watch.rows()
    assert [row["state"] for row in rows] == [0, 1, 2, 3]
    assert all(0 < row["error"] <= row["worst_token"] < 1e-5 for row in rows[:-1])
    assert rows[0]["growth"] > rows[-1]["growth"]
    for name, expected in plain.items():
        assert torch.equal(watched[name], expected), name


def test_a_state_that_is_not_restored_is_noticed(tiny_config, monkeypatch):
    backward = fused_rewrite.backward_pass

    def forgets(S, *arguments, **keywords):
        after = S.clone()
        gradients = backward(S, *arguments, **keywords)
        S.copy_(after)
        return gradients

    monkeypatch.setattr(fused_rewrite, "backward_pass", forgets)
    watch = Watch()
    observed(tiny_config("ddl-cc", state_memory="rebuilt"), watch.attach)
    assert min(row["error"] for row in watch.rows()) > 0.1


def rows_of(path):
    """The rows of a file without their origin."""
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if key not in ORIGIN} for row in csv.DictReader(file)]


def test_an_interrupted_measurement_continues_and_writes_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_error, "LENGTH", 32)
    monkeypatch.setattr(gradient_error, "EVERY", 2)
    data = write_data(tmp_path / "data")

    def run(name):
        shape = ["--layers", "1", "--width", "16", "--heads", "2", "--steps", "5", "--measured", "0", "3", "5"]
        place = ["--data", str(data), "--out", str(tmp_path / name), "--checkpoint", str(tmp_path / name / "state.pt")]
        gradient_error.main(shape + place)
        return [rows_of(tmp_path / name / file) for file in ("gradient_error.csv", "rebuilt_states.csv")]

    whole = run("whole")
    measure = gradient_error.measure

    def stopped(config, weights, texts, subject, *rows):
        if subject["step"] == "3":
            raise KeyboardInterrupt
        measure(config, weights, texts, subject, *rows)

    monkeypatch.setattr(gradient_error, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    monkeypatch.setattr(gradient_error, "measure", measure)
    assert run("parts") == whole
    assert run("parts") == whole
    assert [len(rows) for rows in whole] == [3 * 3 * 10, 3 * 3 * 2]


def test_a_scale_rebuilds_states_where_the_kept_measurements_accept_it_and_only_there():
    accepted = dict.fromkeys(ARITHMETIC, True)
    with open(ROOT / "results" / "reference" / "kernels" / "gradient_error.csv", newline="") as file:
        for row in csv.DictReader(file):
            negligible = row["arithmetic"] == "fp32" and float(row["rebuilt"]) < 1e-4
            accepted[row["arithmetic"]] &= negligible or float(row["rebuilt"]) <= MOST * float(row["stored"])
    names = {setting: name for name, setting in ARITHMETIC.items()}
    for scale in map(load_scale, scale_names()):
        name = names[scale.training.dtype == "bfloat16", scale.execution.state_dtype]
        assert (scale.execution.state_memory == "rebuilt") == accepted[name], scale.name
