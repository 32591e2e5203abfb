"""The parts of a residual rule compute their formulas and start where the settings say."""

import math

import pytest
import torch

from ddl.model.expanded_state import ChannelCompressor, Expand, TokenCompressor
from ddl.model.residual import Additive, Delta, Gate, MLPDirection, Value

MLP = {"direction": "mlp", "value_input": "output"}


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def inputs():
    """Different x_in, c and h, (2, 5, 24) each."""
    return draw(3, 2, 5, 24).unbind()


@pytest.mark.parametrize(("gate_init", "bias"), [(0.0, -15.0), (0.5, math.log(1 / 3)), (1.0, 0.0), (2.0, 15.0)])
def test_the_bias_of_a_gate_is_the_logit_of_its_start_within_limits(tiny_config, gate_init, bias):
    gate = Gate(tiny_config("ddl-dv1", gate_init=gate_init))
    assert gate.logit.bias.item() == pytest.approx(bias)


def test_a_gate_is_two_sigmoids_of_its_logit(tiny_config, inputs):
    _, c, _ = inputs
    linear, mlp = Gate(tiny_config("ddl-dv1")), Gate(tiny_config("ddl-dv1", gate="mlp"))
    expected = 2 / (1 + torch.exp(-(c @ linear.logit.weight[0] + linear.logit.bias)))
    torch.testing.assert_close(linear(c), expected)
    hidden = torch.tanh(c @ mlp.hidden.weight.T)
    torch.testing.assert_close(mlp(c), 2 / (1 + torch.exp(-(hidden @ mlp.logit.weight[0] + mlp.logit.bias))))


@pytest.mark.parametrize("position", range(3))
def test_a_value_reads_the_configured_input(tiny_config, inputs, position):
    name = ("compressed", "normed", "output")[position]
    value = Value(tiny_config("ddl-cc", value_input=name, value_bias_init=0.5))
    expected = inputs[position] @ value.linear.weight.T + 0.5
    torch.testing.assert_close(value(*inputs), expected)
    bounded = Value(tiny_config("ddl-cc", value_input=name, value_activation="sigmoid4", value_bias_init=0.5))
    bounded.load_state_dict(value.state_dict())
    torch.testing.assert_close(bounded(*inputs), 4 / (1 + torch.exp(-expected)))


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_an_mlp_direction_reads_the_pooled_state(tiny_config, pool):
    direction = MLPDirection(tiny_config("ddl-cc", direction_pool=pool, **MLP))
    X = draw(2, 5, 24, 4)
    pooled = X.sum(-1) / 4 if pool == "mean" else X.reshape(2, 5, 96)  # feature by feature
    hidden = pooled @ direction.up.weight.T
    torch.testing.assert_close(direction(X), (hidden / (1 + torch.exp(-hidden))) @ direction.down.weight.T)


def test_all_readouts_and_expansions_start_as_mean_and_repetition(tiny_config):
    X, x = draw(2, 5, 24, 4), draw(2, 5, 24)
    mean, repeated = X.sum(-1) / 4, torch.stack([x] * 4, dim=-1)
    torch.testing.assert_close(TokenCompressor(tiny_config("ddl-tc"))(X), mean)
    torch.testing.assert_close(ChannelCompressor(tiny_config("ddl-cc"))(X), mean)
    torch.testing.assert_close(Expand(tiny_config("ddl-tc"))(x), repeated)
    torch.testing.assert_close(Expand(tiny_config("ddl-tc-noec"))(x), repeated)


def test_a_convolution_reads_the_current_and_earlier_tokens(tiny_config):
    compressor, X = TokenCompressor(tiny_config("ddl-tc")), draw(2, 5, 24, 4)
    with torch.no_grad():
        compressor.kernel.copy_(draw(24, 4, 4))
        compressor.read.copy_(draw(4))
    expected = torch.zeros(2, 5, 24)
    for t in range(5):
        for s in range(min(t, 3) + 1):
            expected[:, t] += (compressor.kernel[..., s] * compressor.read * X[:, t - s]).sum(-1)
    torch.testing.assert_close(compressor(X), expected)


def test_the_baseline_adds(tiny_config, inputs):
    X, c, h = inputs
    torch.testing.assert_close(Additive(tiny_config("baseline"))(X, X, c, h), X - (-h))


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_the_delta_rule_replaces_a_share_of_the_readout_by_the_value_of_the_context(tiny_config, inputs, kernels):
    rule, (x_in, c, h) = Delta(tiny_config("ddl-cc", kernels=kernels)), inputs
    X, (v, beta) = draw(2, 5, 24, 4), (rule.value(x_in, c, h), rule.gate(c))
    k = h / (h.square().sum(-1, keepdim=True) + 1e-10).sqrt()
    readout = torch.einsum("btd,btdj->btj", k, X)
    expected = X + torch.einsum("bt,btd,btj->btdj", beta, k, v - readout)
    torch.testing.assert_close(rule(X, x_in, c, h), expected, rtol=1e-4, atol=1e-5)
