"""The loss of each validation document, with which two models are compared document by document."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ddl.files import atomic


@dataclass(frozen=True)
class DocumentLosses:
    """Summed loss in nats, fp32, and number of predicted tokens, int32, of each document, in the order of the split."""

    losses: Tensor
    tokens: Tensor

    def save(self, path: Path) -> None:
        """Write both as safetensors."""
        from safetensors.torch import save

        with atomic(path) as temporary:
            temporary.write_bytes(save({"losses": self.losses, "tokens": self.tokens}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        return cls(**load_file(path))


def per_document(losses: Tensor, starts: Tensor) -> DocumentLosses:
    """Sum the losses of consecutive tokens by document.

    Args:
        losses: fp64 (tokens,), in the order of the split, which begins with a document.
        starts: bool (tokens,), True where the predicted token is the first of a document.
    """
    document = starts.long().cumsum(0)
    count = int(document[-1]) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, document, losses)
    return DocumentLosses(sums.float(), torch.bincount(document, minlength=count).int())
