"""Which targets repeat a pair of tokens of their sequence."""

import torch

from ddl.evaluation.repeated_pairs import repeats_a_pair


def test_a_target_is_repeated_if_its_pair_occurred_before_in_its_own_sequence():
    tokens = torch.tensor([[1, 2, 3, 1, 2, 4, 1, 2], [3, 1, 5, 5, 5, 5, 3, 1]])
    found = repeats_a_pair(tokens[:, :-1], tokens[:, 1:])
    assert found.int().tolist() == [[0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 1]]
