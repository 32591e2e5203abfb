"""FLOPs and memory per token, counted from the shapes of the weights."""

from ddl.model.flops import flops_per_token, memory_per_token
from ddl.model.language_model import LanguageModel


def test_the_backbone_takes_two_flops_per_weight_and_attention_reads_half_of_the_sequence(tiny_config):
    config = tiny_config("baseline")
    weights = sum(weight.numel() for _, weight in LanguageModel(config).named_matrices())  # the embedding is the head
    scores_and_values = 2 * (2 * config.width * config.sequence_length // 2)
    assert flops_per_token(config).backbone == 2 * weights + config.layers * scores_and_values


def test_memory_beyond_the_baseline_is_what_the_parts_of_a_design_keep(tiny_config):
    d, sublayers = 24, 4
    baseline = memory_per_token(tiny_config("baseline"))
    assert baseline.live == d

    def beyond(variant):
        memory = memory_per_token(tiny_config(variant))
        return memory.live, memory.kept - baseline.kept

    assert beyond("laurel-rw") == (d, sublayers * d)  # the outputs; norms keep the states in any case
    assert beyond("first-state") == (2 * d, 2 * d)  # the states before the weighted sums of the two blocks
    assert beyond("denseformer") == (3 * d, 2 * d)  # the outputs of the two blocks
    assert beyond("hc-static")[0] == beyond("ddl-cc")[0] == 4 * d
    assert beyond("attnres")[0] == (1 + sublayers) * d
    assert beyond("delta-attnres")[0] == (2 + sublayers) * d
