"""What a model remembers of the tokens it has read, so that each further token costs the work of one.

Every place where a token looks back has a store of its own:

- attention: keys, rotated and normalised as they enter the product, and values;
- each use of a TC compressor: the K - 1 newest states that its kernel still reaches. The two sublayers of a block share
  one compressor but read two different states, so a block has two of them, and the readout has one;
- EC: the K - 1 newest embeddings.

A sequence that is shorter than the others of its batch is padded on the left. A padded position holds the zero state:
its embedding is set to zero, and zero passes through every sublayer as zero, because none has a bias and the direction
of a zero vector is zero. So causal convolutions see behind the first token what they see in a sequence of its own,
nothing; attention is masked; and positions count from the first token.
"""

import torch
from torch import Tensor


class CacheError(ValueError):
    """Tokens that do not continue what a cache holds."""


class Window:
    """The newest inputs of one causal convolution over tokens; before the first token they are zero."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def extend(self, x: Tensor, count: int) -> Tensor:
        """Put the `count` inputs before x in front of it, and remember its newest for the next call.

        Args:
            x: (B, T, ...), inputs of the new tokens.
            count: K - 1, how far back the kernel reaches.

        Returns:
            (B, count + T, ...).
        """
        before = x.new_zeros(x.shape[0], count, *x.shape[2:]) if self.rows is None else self.rows
        x = torch.cat((before, x), dim=1)
        self.rows = x[:, x.shape[1] - count :].clone()  # a view would keep the whole of x
        return x

    def reorder(self, rows: Tensor) -> None:
        if self.rows is not None:
            self.rows = self.rows[rows]


class KeyValues:
    """Keys and values of one attention sublayer, of all tokens so far."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) keys and values of the new tokens; returns those of all tokens."""
        if self.stored is not None:
            k, v = torch.cat((self.stored[0], k), dim=2), torch.cat((self.stored[1], v), dim=2)
        self.stored = k, v
        return k, v

    def reorder(self, rows: Tensor) -> None:
        if self.stored is not None:
            self.stored = self.stored[0][rows], self.stored[1][rows]


class BlockCache:
    """The stores of one block: what its two sublayers read through the compressor, and attention."""

    def __init__(self) -> None:
        self.attention_input = Window()
        self.attention = KeyValues()
        self.mlp_input = Window()


class Cache:
    """The memory of a model for one batch of sequences; `LanguageModel.hidden` reads it and adds to it.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: int) -> None:
        self.length = 0  # tokens read, padding included
        self.real: Tensor | None = None  # bool (B, length), False where padding; None as long as there is none
        self.embedding = Window()
        self.blocks = [BlockCache() for _ in range(layers)]
        self.readout = Window()

    def advance(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Take note of new tokens, before the model reads them.

        Args:
            ids: int64 (B, T), the new tokens.
            real: bool (B, T), False where a new token is padding; None where none is.

        Returns:
            positions (T,), or (B, 1, T) if anything is padded; and which of all S tokens each new one attends to,
            bool (T, S) or (B, 1, T, S), None where the causal mask of new tokens alone says it.

        Raises:
            CacheError: tokens that follow padding which follows tokens.
        """
        past, (B, T) = self.length, ids.shape
        self.length += T
        padded = real is not None or self.real is not None
        row = torch.arange(past, self.length, device=ids.device)
        if not padded and (past == 0 or T == 1):
            return row, None
        column = torch.arange(self.length, device=ids.device)
        causal = column <= row.unsqueeze(-1)
        if not padded:
            return row, causal
        before = ids.new_ones(B, past, dtype=torch.bool) if self.real is None else self.real
        now = ids.new_ones(B, T, dtype=torch.bool) if real is None else real
        self.real = torch.cat((before, now), dim=1)
        if past and (self.real[:, :-1] & ~self.real[:, 1:]).any():
            raise CacheError("padding: expected before the first token of a sequence, found some after it")
        positions = (self.real.cumsum(1) - 1).clamp(min=0)[:, past:].unsqueeze(1)
        # A padded row attends to itself, to zeros: a softmax over nothing has no value.
        return positions, (causal & self.real[:, None, None]) | (column == row.unsqueeze(-1))

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from what sequence rows[i] was, as beam search needs it.

        Args:
            rows: int64 (B,).
        """
        stores = [store for block in self.blocks for store in (block.attention_input, block.attention, block.mlp_input)]
        for store in (self.embedding, *stores, self.readout):
            store.reorder(rows)
        if self.real is not None:
            self.real = self.real[rows]
