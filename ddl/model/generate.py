"""Continue a prompt: `ddl generate --run results/laptop/runs/small/ddl-cc/seed0 --prompt "Returns the"`."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.errors import UserError
from ddl.model.cache import Cache
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model

WARM_UP = 4  # tokens that the speed leaves out: the prompt, and what operations set up at their first calls


class GenerationError(UserError):
    """A request that cannot be served; the message names the limit."""


def generate(
    model: LanguageModel, ids: Tensor, tokens: int, temperature: float = 0.0, seed: int = 0, use_cache: bool = True
) -> Iterator[Tensor]:
    """Continue prompts token by token; each token is computed when the iterator is asked for it.

    Args:
        model: the model, in evaluation mode.
        ids: int64 (B, T), prompts of equal length, on the model's device.
        tokens: number of tokens to generate per prompt.
        temperature: sampling temperature; 0 takes the most likely token.
        seed: seed of the random draws.
        use_cache: reuse the work on earlier tokens; otherwise the whole sequence is read again for each token.

    Returns:
        an iterator over int64 (B, 1), the next token of each sequence.

    Raises:
        GenerationError: prompt and continuation are longer than the model's sequences.
    """
    limit = model.config.sequence_length - ids.shape[1] + 1  # the model does not read the last token
    if limit < 1:
        raise GenerationError(
            f"prompt: expected at most {model.config.sequence_length} tokens, found {ids.shape[1]}, with the one that "
            "starts a document"
        )
    if tokens > limit:
        raise GenerationError(f"tokens: expected at most {limit} after a prompt of {ids.shape[1]}, found {tokens}")
    cache = Cache(model.config.layers) if use_cache else None
    return _tokens(model, ids, tokens, temperature, torch.Generator(ids.device).manual_seed(seed), cache)


@torch.inference_mode()
def _tokens(
    model: LanguageModel, unread: Tensor, tokens: int, temperature: float, draws: torch.Generator, cache: Cache | None
) -> Iterator[Tensor]:
    for _ in range(tokens):
        logits = model.logits(model.hidden(unread, cache=cache)[:, -1])
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draws)
        yield token
        unread = token if cache else torch.cat((unread, token), dim=1)


def write_on(run: Path, prompt: str, tokens: int, temperature: float, seed: int, use_cache: bool) -> None:
    """Print the prompt, its continuation as it is generated, and the speed.

    An end-of-text token before the prompt starts a new document, as in training. The text stops at the next one.

    Raises:
        GenerationError: the prompt and continuation are too long.
        ModelFileError, TokenizerError: the model or the tokenizer in `run` cannot be read.
    """
    model = load_model(run, "cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(run / "tokenizer.json")
    end = end_of_text_id(tokenizer)
    ids = torch.tensor([[end, *tokenizer.encode(prompt).ids]], device=model.embedding.weight.device)
    continuation = generate(model, ids, tokens, temperature, seed, use_cache)
    stream, times = DecodeStream(), []
    print(prompt, end="", flush=True)
    for token in continuation:
        times.append(time.perf_counter())
        if token.item() == end:
            break
        print(stream.step(tokenizer, int(token)) or "", end="", flush=True)  # None: an incomplete character
    print(f"\n[{report(times, temperature, seed, use_cache)}]")


def report(times: list[float], temperature: float, seed: int, use_cache: bool) -> str:
    """What was generated, and the speed after the first `WARM_UP` tokens.

    Args:
        times: when each token was there, in seconds.
    """
    how = f"sampled at temperature {temperature:g} with seed {seed}" if temperature else "the most likely ones"
    said = f"{len(times)} tokens, {how}"
    if len(times) <= WARM_UP + 1:
        return said
    rate = (len(times) - 1 - WARM_UP) / (times[-1] - times[WARM_UP])
    return f"{said}; {rate:,.0f} tokens/s {'with' if use_cache else 'without'} the cache after the first {WARM_UP}"
