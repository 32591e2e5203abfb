"""How alike the streams, or value channels, of a model's last state are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddl.model.cache import Cache
from ddl.model.language_model import LanguageModel


@torch.inference_mode()
def stream_cosine(model: LanguageModel, ids: Tensor) -> float | None:
    """Mean cosine between two streams of the state that the readout reads; None if the state has one stream.

    If it is one, all streams are the same up to their lengths.

    Args:
        ids: int64 (B, T); the mean is over its tokens and over pairs of streams.
    """
    if model.config.value_channels == 1:
        return None
    found: list[Tensor] = []
    hook = model.reader.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        model.hidden(ids, cache=Cache(model.config.layers))  # with a cache, the model calls its readers one by one
    finally:
        hook.remove()
    units = F.normalize(found[0].float(), dim=-2)  # (B, T, d, n)
    cosines = (units.mT @ units).mean((0, 1))
    pairs = torch.ones_like(cosines).triu(1).bool()
    return float(cosines[pairs].mean())
