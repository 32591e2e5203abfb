"""Rebuilding earlier states from the last, the delta rule over time, and products of shortcuts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.model.language_model import LanguageModel
from ddl.model.residual import Delta
from ddl.ops.rewrite import normalize_direction, rewrite_reference, undo_rewrite_reference

SEEDS = st.integers(0, 2**31)
GATES = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 2))
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
few = settings(max_examples=40, deadline=None)


def stream(seed, gates, d=12, d_v=3, tokens=5):
    """A first state, and (k, v, beta) for each gate; fp64."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    rewrites = [
        (
            normalize_direction(normal(tokens, d), 0.0),
            normal(tokens, d_v),
            torch.full((tokens,), gate, dtype=torch.float64),
        )
        for gate in gates
    ]
    return normal(tokens, d, d_v), rewrites


def correction(X, k, v, beta):
    return beta[..., None] * (v - torch.einsum("...i,...ij->...j", k, X))


def run(X, rewrites):
    """All states, and the (k, delta) of each rewrite."""
    states, history = [X], []
    for k, v, beta in rewrites:
        history.append((k, correction(states[-1], k, v, beta)))
        states.append(rewrite_reference(states[-1], k, v, beta))
    return states, history


def rebuild(last, history):
    states = [last]
    for k, delta in reversed(history):
        states.append(undo_rewrite_reference(states[-1], k, delta))
    return states[::-1]


def assert_within_the_drift_bound(states, history):
    """Each rebuilt state is off by at most u times the sum of what was rounded since, element by element."""
    u = torch.finfo(states[0].dtype).eps / 2
    rebuilt = rebuild(states[-1], history)
    bound = torch.zeros_like(states[-1], dtype=torch.float64)
    for step in range(len(history) - 1, -1, -1):
        k, delta = (part.double() for part in history[step])
        added = (k[..., None] * delta[..., None, :]).abs()
        bound = bound + u * (states[step + 1].double().abs() + rebuilt[step].double().abs() + 2 * added)
        error = (rebuilt[step].double() - states[step].double()).abs()
        assert (error <= 1.01 * bound + torch.finfo(states[0].dtype).tiny).all()


@few
@given(GATES, SEEDS, st.floats(0.1, 1e3))
def test_undoing_a_rewrite_restores_the_state_to_two_roundings_at_every_gate(gate, seed, size):
    X, rewrites = stream(seed, [gate])
    X = size * X
    (_, after), history = run(X, rewrites)
    back = undo_rewrite_reference(after, *history[0])
    assert ((back - X).abs() <= torch.finfo(torch.float64).eps * (after.abs() + X.abs())).all()


@few
@given(GATES, SEEDS)
def test_a_rewrite_adds_the_outer_product_of_direction_and_correction(gate, seed):
    X, rewrites = stream(seed, [gate])
    (_, after), [(k, delta)] = run(X, rewrites)
    torch.testing.assert_close(after - X, k[..., None] * delta[..., None, :], rtol=0, atol=1e-13)


def test_undoing_needs_no_unit_direction():
    X, [(k, v, beta)] = stream(0, [1.3])
    (_, after), history = run(X, [(1e-3 * k, v, beta)])
    torch.testing.assert_close(undo_rewrite_reference(after, *history[0]), X, rtol=0, atol=1e-14)


def test_an_overwrite_cannot_be_undone_without_its_correction():
    X, [(k, v, beta)] = stream(0, [1.0])
    other = X + k[..., None] * torch.ones(3).double()
    after, after_other = (rewrite_reference(state, k, v, beta) for state in (X, other))
    torch.testing.assert_close(after, after_other, rtol=0, atol=1e-13)  # two states, one result
    back = undo_rewrite_reference(after, k, correction(other, k, v, beta))
    torch.testing.assert_close(back, other, rtol=0, atol=1e-13)  # the correction decides which it was


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@few
@given(gates=st.lists(GATES, min_size=1, max_size=24), seed=SEEDS)
def test_drift_over_many_rewrites_stays_below_the_sum_of_roundings(dtype, gates, seed):
    X, rewrites = stream(seed, gates)
    states, history = run(X.to(dtype), [tuple(part.to(dtype) for part in rewrite) for rewrite in rewrites])
    assert_within_the_drift_bound(states, history)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["ddl-dv1", "ddl-tc", "ddl-cc"])
@torch.no_grad()
def test_every_state_of_a_model_is_rebuilt_from_its_last(tiny_config, variant, dtype):
    model = LanguageModel(tiny_config(variant, layers=12, kernels="reference")).to(dtype)
    states, history = [], []

    def watch(rule, inputs, X_next):
        k, v, beta = rule.generate(*inputs)
        before, after = (X if X.dim() == 4 else X.unsqueeze(-1) for X in (inputs[0], X_next))
        states.extend([before, after] if not states else [after])
        history.append((k, correction(before, k, v, beta)))

    for rule in [module for module in model.modules() if isinstance(module, Delta)]:
        rule.register_forward_hook(watch)
    model(torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0)))
    assert len(history) == 24
    assert (states[-1] - states[0]).abs().max() > 0.1
    assert_within_the_drift_bound(states, history)


@few
@given(st.lists(GATES, min_size=1, max_size=32), SEEDS)
def test_the_rewrite_over_time_steps_is_deltanet_transposed(gates, seed):
    S, rewrites = stream(seed, gates)
    M = S.mT
    for k, v, beta in rewrites:
        S = rewrite_reference(S, k, v, beta)
        returned = torch.einsum("nji,ni->nj", M, k)
        M = M + beta[:, None, None] * (v - returned)[:, :, None] * k[:, None, :]
        torch.testing.assert_close(S, M.mT, rtol=1e-11, atol=1e-11)


def shortcut_product(seed, gates, d=9):
    """The product of the frozen shortcuts with random directions."""
    _, rewrites = stream(seed, gates, d=d, d_v=d, tokens=1)
    product = torch.eye(d, dtype=torch.float64)[None]
    for k, v, beta in rewrites:
        product = rewrite_reference(product, k, torch.zeros_like(v), beta)
    return product[0]


@few
@given(st.lists(st.sampled_from([0.0, 2.0]), min_size=1, max_size=32), SEEDS)
def test_a_product_of_closed_and_reflecting_gates_is_orthogonal(gates, seed):
    product = shortcut_product(seed, gates)
    torch.testing.assert_close(product.T @ product, torch.eye(9).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(product).item(), (-1.0) ** gates.count(2.0), rtol=0, atol=1e-11)


@few
@given(st.lists(GATES, min_size=1, max_size=16), st.floats(0.01, 1.99), SEEDS)
def test_one_gate_in_between_makes_a_product_contract_and_none_makes_it_stretch(gates, inner, seed):
    product = shortcut_product(seed, [*gates, inner])
    singular = torch.linalg.svdvals(product)
    assert singular[0] <= 1 + 1e-12
    assert singular[-1] <= abs(1 - inner) + 1e-12
    expected = torch.tensor([1 - gate for gate in [*gates, inner]], dtype=torch.float64).prod()
    torch.testing.assert_close(torch.linalg.det(product), expected, rtol=1e-9, atol=1e-12)


@few
@given(st.integers(1, 8), SEEDS)
def test_fewer_rewrites_than_features_leave_the_rest_of_the_state(count, seed):
    singular = torch.linalg.svdvals(shortcut_product(seed, [0.7] * count))
    assert (singular > 1 - 1e-12).sum() == 9 - count
