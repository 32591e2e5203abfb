"""FLOPs and memory per token, counted from the shapes of the weights."""

from ddl.model.flops import flops_per_token, state_bytes_per_token
from ddl.model.language_model import LanguageModel


def test_the_backbone_takes_two_flops_per_weight_and_attention_reads_half_of_the_sequence(tiny_config):
    config = tiny_config("baseline")
    weights = sum(weight.numel() for _, weight in LanguageModel(config).named_matrices())  # the embedding is the head
    scores_and_values = 2 * (2 * config.width * config.sequence_length // 2)
    assert flops_per_token(config).backbone == 2 * weights + config.layers * scores_and_values


def test_autograd_stores_a_state_for_each_of_the_two_sublayers_of_a_block(tiny_config):
    config = tiny_config("ddl-cc", layers=3)
    state = config.width * config.value_channels * 2
    assert state_bytes_per_token(config, 2) == {"state": state, "stored": 6 * state}
