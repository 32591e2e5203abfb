"""What is observed in a model: every quantity against its formula, in fp64, and the files of a run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ddl.evaluation.interventions import erases, part_means, plan, replaced, token_losses
from ddl.evaluation.mechanism import (
    Observer,
    explained,
    extreme_singular_values,
    measure_run,
    observe,
    rare,
    spread_sequences,
)
from ddl.evaluation.model_check import EvaluationError
from ddl.evaluation.rule_parts import carry, direction, held, watched, with_parts, write
from ddl.model.run_files import ModelFileError
from ddl.training.run import Run
from tests.helpers import rules
from tests.helpers.tiny_run import tiny_scale, write_data

DELTA = [name for name in rules.DESIGNS if name != "baseline"]


def seen(model, ids):
    """(rule, inputs, next state) of every sublayer."""
    found = []
    with watched(model, lambda index, rule, inputs, X_next: found.append((rule, inputs, X_next))), torch.no_grad():
        model.hidden(ids)
    return found


def wide(X):
    return X if X.dim() == 4 else X.unsqueeze(-1)


def parts(rule, inputs):
    """k, v, beta and r = k^T X of a delta rule."""
    k, v, beta = rule.generate(*inputs)
    return k, v, beta, torch.einsum("bti,btij->btj", k, wide(inputs.X))


def outer(k, r):
    return torch.einsum("bti,btj->btij", k, r)


@pytest.mark.parametrize("design", DELTA)
def test_a_delta_rule_writes_the_target_and_erases_the_readout(design):
    for rule, inputs, X_next in seen(rules.model(design), rules.tokens()):
        k, v, beta, r = parts(rule, inputs)
        written, erased = outer(k, beta.unsqueeze(-1) * v), -outer(k, beta.unsqueeze(-1) * r)
        torch.testing.assert_close(wide(write(rule, inputs)), written)
        torch.testing.assert_close(wide(carry(rule, inputs, inputs.X) - inputs.X), erased)
        torch.testing.assert_close(wide(X_next), wide(inputs.X) + written + erased)
        torch.testing.assert_close(direction(rule, inputs), k, atol=1e-8, rtol=1e-8)  # k has a guard in its length


def test_the_baseline_writes_its_branch_and_erases_nothing():
    for rule, inputs, _ in seen(rules.model("baseline"), rules.tokens()):
        assert torch.equal(write(rule, inputs), inputs.h)
        torch.testing.assert_close(carry(rule, inputs, inputs.X), inputs.X)
        torch.testing.assert_close(direction(rule, inputs), inputs.h / inputs.h.norm(dim=-1, keepdim=True))


def test_changed_parts_leave_the_rule_as_it_is():
    (rule, inputs, X_next), *_ = seen(rules.model("scalar"), rules.tokens())
    half = with_parts(rule, gate=torch.nn.Identity())
    assert isinstance(half.gate, torch.nn.Identity)
    assert not isinstance(rule.gate, torch.nn.Identity)
    assert half.value is rule.value
    assert torch.equal(rule(*inputs), X_next)


def test_the_direction_is_held_while_another_state_is_carried():
    (rule, inputs, X_next), *_ = seen(rules.model("mlp direction"), rules.tokens())
    other = torch.randn_like(inputs.X)
    k, _, beta, _ = parts(rule, inputs)
    expected = other - beta.unsqueeze(-1) * k * (k * other).sum(-1, keepdim=True)
    torch.testing.assert_close(carry(rule, inputs, other), expected)
    assert torch.equal(held(rule, inputs)(*inputs), X_next)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("design", DELTA)
def test_quantities_are_their_formulas(design, seed):
    model, ids = rules.model(design, seed), rules.tokens(seed)
    observer = Observer(model)
    observer.observe(ids[:3])
    observer.observe(ids[3:])
    records = seen(model, ids)
    start, kept, previous = records[0][1].X, wide(records[0][1].X), None
    for (rule, inputs, X_next), found in zip(records, observer.tokens, strict=True):
        k, v, beta, r = parts(rule, inputs)
        X, Y, b = wide(inputs.X), wide(X_next), beta.unsqueeze(-1)
        kept = kept - outer(k, b * torch.einsum("bti,btij->btj", k, kept))
        after = torch.einsum("bti,btij->btj", k, Y)
        expected = {
            "gate": beta,
            "target": v.norm(dim=-1),
            "readout": r.norm(dim=-1),
            "write": (b * v).norm(dim=-1),
            "erase": (b * r).norm(dim=-1),
            "erase_share": r.norm(dim=-1) / (r.norm(dim=-1) + v.norm(dim=-1)),
            "cosine": (r * v).sum(-1) / (r.norm(dim=-1) * v.norm(dim=-1)),
            "overwrites": (r.norm(dim=-1) > v.norm(dim=-1)).double(),
            "energy_before": (r**2).sum(-1) / (X**2).sum((2, 3)),
            "energy_after": (after**2).sum(-1) / (Y**2).sum((2, 3)),
            "change": ((Y - X) ** 2).sum((2, 3)).sqrt() / (X**2).sum((2, 3)).sqrt(),
            "growth": ((Y**2).sum((2, 3)) / (wide(start) ** 2).sum((2, 3))).sqrt(),
            "survival": (wide(start) * kept).sum((2, 3)) / (wide(start) ** 2).sum((2, 3)),
        }
        if previous is not None:
            expected["turn"] = (k * previous).sum(-1)
        previous = k
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(
                found[name], values.flatten().float(), msg=lambda text, name=name: f"{name} {text}"
            )


def test_directions_are_compared_within_tokens_and_over_tokens():
    model, ids = rules.model("expanded"), rules.tokens()
    observer = Observer(model)
    observer.observe(ids)
    k = torch.stack([parts(rule, inputs)[0].flatten(0, 1) for rule, inputs, _ in seen(model, ids)], dim=1)  # (N, L, d)
    gram = torch.einsum("nld,nmd->nlm", k, k)
    torch.testing.assert_close(observer.alignment, gram.square().mean(0).float())
    eigenvalues = torch.linalg.eigvalsh(gram)
    torch.testing.assert_close(
        observer.whole["rank"], (eigenvalues.sum(1) ** 2 / eigenvalues.square().sum(1)).float(), rtol=1e-4, atol=1e-4
    )
    for found, directions in zip(observer.spread, k.unbind(1), strict=True):
        eigenvalues = torch.linalg.eigvalsh(directions.mT @ directions)
        torch.testing.assert_close(found, (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).float())


@pytest.mark.parametrize(("sublayers", "d"), [(1, 6), (4, 6), (9, 6)])  # fewer and more directions than dimensions
def test_singular_values_are_those_of_the_product(sublayers, d):
    generator = torch.Generator().manual_seed(sublayers)
    k = torch.nn.functional.normalize(torch.randn(7, sublayers, d, generator=generator).double(), dim=-1)
    b = 2 * torch.rand(7, sublayers, generator=generator).double()
    product = torch.eye(d).double().expand(7, d, d)
    for q, share in zip(k.unbind(1), b.unbind(1), strict=True):
        product = (torch.eye(d).double() - share[:, None, None] * q.unsqueeze(2) * q.unsqueeze(1)) @ product
    expected = torch.linalg.svdvals(product)
    largest, smallest = extreme_singular_values(k, b)
    torch.testing.assert_close(largest, expected[:, 0])
    torch.testing.assert_close(smallest, expected[:, -1])


def test_explained_variance_is_one_for_a_function_of_the_group_and_zero_for_noise():
    groups = torch.arange(2000) % 50
    assert explained(groups.double() ** 2, groups) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    shares = [explained(torch.randn(2000, generator=generator), torch.arange(2000) // 4) for _ in range(30)]
    assert abs(np.mean(shares)) < 4 * np.std(shares) / 30**0.5  # many small groups, and yet no share on average
    assert explained(torch.ones(10), torch.arange(10) // 2) is None
    assert explained(torch.randn(10, generator=generator), torch.arange(10)) is None


def test_rare_tokens_occur_less_often_than_the_median_token():
    ids = torch.tensor([7, 7, 7, 7, 3, 3, 3, 5, 5, 1])  # occurrences of each token: 4 4 4 4 3 3 3 2 2 1
    assert rare(ids).tolist() == [False] * 7 + [True] * 3


def test_a_quantity_that_a_rule_does_not_have_is_left_out():
    ids = rules.tokens(rows=8)
    rows, stack = observe(rules.model("baseline"), ids, ids.roll(-1, 1), 24, split=False)
    assert [(row["sublayer"], row["block"], row["kind"]) for row in rows[:3]] == [
        (0, 0, "attention"),
        (1, 0, "mlp"),
        (2, 1, "attention"),
    ]
    assert all({"gate", "target", "overwrites", "gate_histogram"}.isdisjoint(row) for row in rows)
    assert all(row["erase_share"] == pytest.approx(0, abs=1e-12) for row in rows)
    assert all(row["survival"] == pytest.approx(1) for row in rows)
    assert stack["smallest"]["mean"] == pytest.approx(1)


@pytest.mark.parametrize("design", rules.CONTROLS)
def test_controls_are_observed_by_what_they_do_and_not_by_their_settings(design):
    model, ids = rules.model(design), rules.tokens(rows=8)
    for rule, inputs, X_next in seen(model, ids):
        left = carry(rule, inputs, inputs.X)
        torch.testing.assert_close(X_next, left + write(rule, inputs))
        if design in ("write-only", "unnormalised write", "normalised branch"):
            torch.testing.assert_close(left, inputs.X)
        elif design in ("separate gates", "additive erase"):
            k = direction(rule, inputs)
            beta = (rule.erase_gate if design == "separate gates" else rule.gate)(inputs.c).unsqueeze(-1)
            torch.testing.assert_close(left, inputs.X - beta * k * (k * inputs.X).sum(-1, keepdim=True))
    rows, _ = observe(model, ids, ids.roll(-1, 1), 24, split=False)
    assert len(rows) == 4
    assert (max(row["erase_share"] for row in rows) > 1e-3) == erases(model, ids)
    planned = list(plan(model, part_means(model, [(ids, ids)]), erases(model, ids)))
    for _, _, changes in planned:
        with replaced(model, changes):
            assert token_losses(model, ids, ids).isfinite().all()


def test_rows_of_groups_of_tokens_average_to_the_row_of_all():
    ids = rules.tokens(rows=8)
    rows, _ = observe(rules.model("scalar"), ids, ids.roll(-1, 1), 24, split=True)
    by = {(row["sublayer"], row["tokens"]): row for row in rows}
    assert len(by) == 4 * 5
    for side in ("input", "target"):
        pair = [by[2, f"{kind} {side}"] for kind in ("rare", "frequent")]
        assert sum(row["n"] for row in pair) == by[2, "all"]["n"] == ids.numel()
        mean = sum(row["n"] * row["gate"] for row in pair) / ids.numel()
        assert mean == pytest.approx(by[2, "all"]["gate"], rel=1e-4)
    assert sum(by[2, "all"]["gate_histogram"]) == ids.numel()
    assert by[2, "all"]["gate_p05"] < by[2, "all"]["gate_p50"] < by[2, "all"]["gate_p95"]


def test_sequences_are_spread_over_the_split():
    class Split:
        sequence_length = 10

        def __len__(self):
            return 9

    assert spread_sequences(Split(), 30).tolist() == [0, 4, 8]
    assert spread_sequences(Split(), 1000).tolist() == list(range(9))
    assert spread_sequences(Split(), 1).tolist() == [0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run with snapshots, and its data."""
    folder = tmp_path_factory.mktemp("run")
    manifest = write_data(folder / "data")
    assert Run(tiny_scale(snapshots=(0, 4)), "small", "ddl-cc", 0, manifest, folder / "run").train()
    return folder


def test_a_run_is_observed_at_every_snapshot_and_at_the_end(trained, tmp_path):
    measure_run(tiny_scale(), trained / "run", trained / "data", tmp_path)
    made = json.loads((tmp_path / "mechanism.json").read_text())
    rows = {(row["step"], row["sublayer"]): row for row in made["sublayers"] if row["tokens"] == "all"}
    assert sorted(rows) == [(step, sublayer) for step in (0, 4, 12) for sublayer in (0, 1)]
    assert [stack["step"] for stack in made["stacks"]] == [0, 4, 12]
    assert len({rows[step, 0]["gate"] for step in (0, 4, 12)}) == 3
    losses = json.loads((tmp_path / "interventions.json").read_text())
    assert sum(losses["tokens"]) == made["tokens"]
    summary = json.loads((trained / "run" / "summary.json").read_text())
    assert sum(losses["loss"]) / sum(losses["tokens"]) == pytest.approx(summary["val_loss"], rel=0.02)


def test_a_state_of_several_tensors_is_refused(trained, tmp_path):
    assert Run(tiny_scale(), "small", "ihc", 0, trained / "data/manifest.json", tmp_path / "run").train()
    with pytest.raises(EvaluationError, match="found reader 'identity-mixing', with which the state is several"):
        measure_run(tiny_scale(), tmp_path / "run", trained / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_scale_is_refused(trained, tmp_path):
    with pytest.raises(EvaluationError, match="sequences of 8 tokens"):
        measure_run(dataclasses.replace(tiny_scale(), sequence_length=8), trained / "run", trained / "data", tmp_path)
    with pytest.raises(ModelFileError, match="not found, expected a trained model"):
        measure_run(tiny_scale(), tmp_path, trained / "data", tmp_path)
