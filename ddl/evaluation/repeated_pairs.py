"""Which tokens a model could copy: those that followed the same token before, in the same sequence."""

from torch import Tensor


def repeats_a_pair(inputs: Tensor, targets: Tensor) -> Tensor:
    """Where a token and its successor both occurred one after the other earlier in the sequence.

    An induction head (Olsson et al., 2022) predicts these targets from the context alone.

    Args:
        inputs: int64 (B, T).
        targets: int64 (B, T), the successors of `inputs`.

    Returns:
        bool (B, T).
    """
    same = (inputs[:, :, None] == inputs[:, None, :]) & (targets[:, :, None] == targets[:, None, :])
    return same.tril(-1).any(-1)
