"""The cache for generation: stores what a model has computed, so that each new token is processed alone.

Each operation that looks back in time has a separate store:

- attention: values, and keys after rotation and normalisation;
- each use of a TC compressor: the K - 1 newest states, which its kernel still reaches. The two sublayers of a block
  share one compressor but read two different states, so a block has two such stores; the readout has one;
- EC: the K - 1 newest embeddings.

A sequence that is shorter than the others in its batch is padded on the left. A padded position holds the zero state:
its embedding is set to zero, and every sublayer maps zero to zero, because no sublayer has a bias and the direction of
a zero vector is zero. Padding therefore does not change the result: causal convolutions read zeros before the first
token, as they do without padding; attention masks the padding; and positions count from the first token.
"""

import torch
from torch import Tensor


class CacheError(ValueError):
    """Tokens that do not continue what a cache holds."""


class Window:
    """The newest inputs of one causal convolution over tokens; inputs before the first token are zero."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def extend(self, x: Tensor, count: int) -> Tensor:
        """Prepend the `count` preceding inputs to x, and store the newest ones for the next call.

        Args:
            x: (B, T, ...), inputs of the new tokens.
            count: K - 1, the number of earlier inputs that the kernel reaches.

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
    """The keys and values of one attention sublayer, for all tokens read."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, H, T, D) of the new tokens, and return the keys and values of all tokens."""
        if self.stored is not None:
            k, v = torch.cat((self.stored[0], k), dim=2), torch.cat((self.stored[1], v), dim=2)
        self.stored = k, v
        return k, v

    def reorder(self, rows: Tensor) -> None:
        if self.stored is not None:
            self.stored = self.stored[0][rows], self.stored[1][rows]


class BlockCache:
    """The stores of one block: the compressor inputs of both sublayers, and the keys and values of attention."""

    def __init__(self) -> None:
        self.attention_input = Window()
        self.attention = KeyValues()
        self.mlp_input = Window()


class Cache:
    """All stores of a model for one batch of sequences; `LanguageModel.hidden` reads and extends them.

    Args:
        layers: number of blocks in the model.
    """

    def __init__(self, layers: int) -> None:
        self.length = 0  # tokens read, padding included
        self.real: Tensor | None = None  # bool (B, length), False for padding; None while there is no padding
        self.embedding = Window()
        self.blocks = [BlockCache() for _ in range(layers)]
        self.readout = Window()

    def advance(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Record new tokens before the model reads them, and return their positions and attention mask.

        Args:
            ids: int64 (B, T), the new tokens.
            real: bool (B, T), False where a new token is padding; None if none is.

        Returns:
            The positions: (T,), or (B, 1, T) with padding. The mask: bool (T, S), or (B, 1, T, S) with padding, True
            where a new token attends to one of all S tokens; None if the causal mask of the new tokens suffices.

        Raises:
            CacheError: a continued sequence has padding after its first token.
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
        # A padded row attends to itself, whose values are zero: a softmax over no tokens is undefined.
        return positions, (causal & self.real[:, None, None]) | (column == row.unsqueeze(-1))

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue sequence rows[i], as beam search needs it.

        Args:
            rows: int64 (B,).
        """
        stores = [store for block in self.blocks for store in (block.attention_input, block.attention, block.mlp_input)]
        for store in (self.embedding, *stores, self.readout):
            store.reorder(rows)
        if self.real is not None:
            self.real = self.real[rows]
