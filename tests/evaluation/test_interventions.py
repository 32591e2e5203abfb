"""Interventions: each does what it says, to the sublayers that it names, and leaves the model as it was."""

import numpy as np
import pytest
import torch

from ddl.data.sequences import TokenSequences
from ddl.evaluation.interventions import (
    constant,
    document_numbers,
    erase_only,
    intervene,
    part_means,
    plan,
    random_direction,
    replaced,
    scaled,
    skip,
    token_losses,
    write_only,
)
from ddl.evaluation.rule_parts import watched
from tests.helpers import rules
from tests.helpers.tiny_run import write_data

DELTA = [name for name in rules.DESIGNS if name != "baseline"]


def wide(X):
    return X if X.dim() == 4 else X.unsqueeze(-1)


def first(model, ids):
    """Rule and inputs of the first sublayer."""
    found = []
    with watched(model, lambda *seen: found.append(seen[1:3])), torch.no_grad():
        model.hidden(ids)
    return found[0]


@pytest.mark.parametrize("design", rules.DESIGNS)
def test_a_rule_that_is_replaced_by_itself_gives_the_same_losses(design):
    model, ids = rules.model(design), rules.tokens()
    before = token_losses(model, ids, ids.roll(-1, 1))
    with replaced(model, {index: lambda rule, inputs: rule(*inputs) for index in range(4)}):
        assert torch.equal(token_losses(model, ids, ids.roll(-1, 1)), before)
    with torch.no_grad():
        assert before.mean().item() == pytest.approx(model.loss(ids, ids.roll(-1, 1)).item())


@pytest.mark.parametrize("design", rules.DESIGNS)
@torch.no_grad()
def test_with_every_sublayer_closed_the_state_is_the_embedding(design):
    model, ids = rules.model(design), rules.tokens()
    embedded = model.norm(model.compress(model.expand(model.embedding(ids))))
    with replaced(model, dict.fromkeys(range(4), skip)):
        assert torch.equal(model.hidden(ids), embedded)
    assert not torch.equal(model.hidden(ids), embedded)


@pytest.mark.parametrize("design", DELTA)
@torch.no_grad()
def test_a_changed_delta_rule_is_its_formula(design):
    model = rules.model(design)
    rule, inputs = first(model, rules.tokens())
    k, v, beta = rule.generate(*inputs)
    X, beta = wide(inputs.X), beta.unsqueeze(-1)
    readout = torch.einsum("bti,btij->btj", k, X)

    def rewritten(beta, v, readout):
        return X + torch.einsum("bti,btj->btij", k, beta * (v - readout))

    expected = {
        "write off": (erase_only, rewritten(beta, torch.zeros_like(v), readout)),
        "erase off": (write_only, rewritten(beta, v, torch.zeros_like(readout))),
        "gate 1": (constant("gate", torch.tensor(1.0).double()), rewritten(1.0, v, readout)),
        "mean target": (constant("value", v.mean((0, 1))), rewritten(beta, v.mean((0, 1)), readout)),
        "half": (scaled(0.5), rewritten(beta / 2, v, readout)),
        "closed": (skip, X),
    }
    for name, (change, state) in expected.items():
        torch.testing.assert_close(wide(change(rule, inputs)), state, msg=lambda text, name=name: f"{name}: {text}")
    drawn = torch.randn(inputs.h.shape, generator=torch.Generator().manual_seed(5)).double()
    k = drawn / drawn.norm(dim=-1, keepdim=True)
    readout = torch.einsum("bti,btij->btj", k, X)
    found = random_direction(torch.Generator().manual_seed(5))(rule, inputs)
    torch.testing.assert_close(wide(found), rewritten(beta, v, readout))


@torch.no_grad()
def test_a_scaled_branch_of_the_baseline_is_added_in_part():
    rule, inputs = first(rules.model("baseline"), rules.tokens())
    torch.testing.assert_close(scaled(0.5)(rule, inputs), inputs.X + inputs.h / 2)


def test_only_the_named_sublayer_changes_and_the_rules_come_back():
    model = rules.model("scalar")
    originals = model.rules()

    def in_place():
        return [rule for block in model.blocks for rule in (block.attention_rule, block.mlp_rule)]

    with replaced(model, {2: skip}):
        assert [rule is original for rule, original in zip(in_place(), originals, strict=True)] == [1, 1, 0, 1]
    assert in_place() == originals

    def fail(rule, inputs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replaced(model, {0: fail}):
        model.hidden(rules.tokens())
    assert in_place() == originals


def test_means_are_over_all_tokens_of_all_batches():
    model, ids = rules.model("expanded"), rules.tokens()
    found = part_means(model, [(ids[:2], ids[:2]), (ids[2:], ids[2:])])
    gates, values = [], []
    with (
        watched(
            model,
            lambda i, rule, inputs, _: (gates.append(rule.gate(inputs.c)), values.append(rule.value(*inputs[1:]))),
        ),
        torch.no_grad(),
    ):
        model.hidden(ids)
    for mean, gate, value in zip(found, gates, values, strict=True):
        torch.testing.assert_close(mean["gate"], gate.mean().float())
        torch.testing.assert_close(mean["value"], value.mean((0, 1)).float())
    assert part_means(rules.model("baseline"), [(ids, ids)]) == [{}, {}, {}, {}]


def test_every_change_is_made_in_single_sublayers_and_in_all():
    model, ids = rules.model("scalar"), rules.tokens()
    planned = list(plan(model, part_means(model, [(ids, ids)]), erases=True))
    by_change = {}
    for change, sublayers, changes in planned:
        by_change.setdefault(change, []).append(sublayers)
        last = {"all": range(4), "1..": range(1, 4), "0..1": range(2)}.get(sublayers)
        assert last is None or list(changes) == list(last)
    single = ["0", "1", "2", "3", "all"]
    assert by_change.pop("closed") == ["0", "1", "2", "3", "1..", "0..0", "2..", "0..1", "3..", "0..2", "all"]
    assert by_change == dict.fromkeys(
        ["gate 1", "mean gate", "mean target", "random direction", "write off", "erase off"], single
    )
    baseline = plan(rules.model("baseline"), [{}] * 4, erases=False)
    assert {change for change, _, _ in baseline} == {"closed", "half", "double"}


def test_losses_are_summed_by_the_document_of_the_predicted_token(tmp_path):
    data = TokenSequences(write_data(tmp_path / "data"), "val", 12)
    chosen = np.array([0, 3, 4, 20])
    _, every = data.batch(range(len(data)))
    numbers = np.cumsum(every.flatten().numpy() == 0).reshape(every.shape)  # documents start with token 0
    assert document_numbers(data, chosen, 0).tolist() == numbers[chosen].tolist()
    model = rules.model("scalar").float()
    found = intervene(model, data, chosen, 0, batch_tokens=24)
    assert found["documents"] == sorted(set(numbers[chosen].flatten().tolist()))
    assert sum(found["tokens"]) == chosen.size * 12
    ids, targets = data.batch(chosen)
    losses = token_losses(model, ids, targets).numpy()
    sums = [losses[numbers[chosen].flatten() == document].sum() for document in found["documents"]]
    assert found["loss"] == pytest.approx(sums, abs=1e-3)
    closed = next(row for row in found["changes"] if (row["change"], row["sublayers"]) == ("closed", "all"))
    assert closed["loss"] != pytest.approx(sums, abs=1e-3)
    assert {"erase off", "write off"} <= {row["change"] for row in found["changes"]}


def test_random_directions_differ_between_sublayers_and_repeat_between_runs(tmp_path):
    model, ids = rules.model("scalar"), rules.tokens()
    states = []
    for _ in range(2):
        planned = list(plan(model, part_means(model, [(ids, ids)]), erases=False))
        changes = next(found for name, where, found in planned if (name, where) == ("random direction", "all"))
        rule, inputs = first(model, ids)
        states.append([changes[index](rule, inputs) for index in (0, 1)])
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.equal(states[0][0], states[0][1])
