"""The model interface of lm-evaluation-harness.

    ddl lm-eval --model ddl --model_args pretrained=RUN --tasks arc_easy

The harness makes prompts and computes accuracies. It asks the model for log-likelihoods, which
`ddl.evaluation.loglikelihood` computes. Importing this module registers the model "ddl" with the harness. The import
takes seconds, because it imports the harness, so other modules import this one inside the functions that need it.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 - registers the harness's models, which it later does only if none is registered
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.loglikelihood import BATCH_TOKENS, ForeignModel, OwnModel, Scored, Scorer
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import ModelFileError, load_model

Encode = Callable[[str], list[int]]


@register_model("ddl")
class DDL(TemplateLM):
    """A model of this package, or any causal model of transformers, in fp32.

    No token is prepended to a prompt. An empty prompt becomes the end-of-text token, or, for another model of
    transformers, its beginning-of-sequence token if it has one.

    Args:
        pretrained: a model, or a folder with one: a run of `ddl.training.run` or a folder that `save_pretrained` wrote.
        tokenizer: path of a tokenizer.json; None for the tokenizer in the folder.
        batch_tokens: tokens per forward pass, padding included.
        device: e.g. "cuda:1"; None for a GPU if there is one. Without any, a GPU becomes the CPU, with a warning.
        share: whether the choices of a question share the computation of their context.
        unused: other arguments of the harness, such as a batch size in requests, which are ignored.
    """

    def __init__(
        self,
        pretrained: str | Path | LanguageModel | None = None,
        tokenizer: str | Path | None = None,
        batch_tokens: int = BATCH_TOKENS,
        device: str | None = None,
        share: bool = True,
        **unused: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:  # the harness passes what --model_args has, and no more
            raise ModelFileError("expected --model_args pretrained=FOLDER, the folder of a trained model")
        self._device = available(device)
        model, self._encode, self._end, self._begin = load(pretrained, tokenizer, self._device)
        self.scorer = Scorer(model, batch_tokens, share)

    @property
    def eot_token_id(self) -> int:
        return self._end

    @property
    def prefix_token_id(self) -> int:
        return self._begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        return self._encode(string)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return self.scorer.score(pairs, progress=not disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, cut into windows of the model's sequence length."""
        length, stretches = self.scorer.model.sequence_length, []
        for index, request in enumerate(requests):
            tokens = self._encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self._begin, length, 1):
                stretches.append((index, make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        scores = self.scorer.score([pair for _, pair in stretches], progress=not disable_tqdm)
        for (index, _), (score, _) in zip(stretches, scores, strict=True):
            totals[index] += score
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("--model ddl only scores texts; use --model hf for tasks that generate text")


def available(device: str | None) -> torch.device:
    """The device that was asked for, but the CPU instead of a GPU if PyTorch can use none.

    The harness asks for cuda:0 if its user does not say anything.
    """
    if torch.cuda.is_available():
        return torch.device(device or "cuda")
    if device and device.startswith("cuda"):
        print(f"warning: device {device}: PyTorch can use no GPU here, so the CPU scores", file=sys.stderr)
        return torch.device("cpu")
    return torch.device(device or "cpu")


def load(
    pretrained: str | Path | LanguageModel, tokenizer: str | Path | None, device: torch.device
) -> tuple[Scored, Encode, int, int]:
    """Load a model onto its device; returns it with its encoder, end-of-text token and token for an empty prompt.

    Raises:
        ModelFileError: the folder does not contain a complete model.
        TokenizerError: the tokenizer is missing or not readable.
    """
    if isinstance(pretrained, LanguageModel):
        if tokenizer is None:
            raise ModelFileError("a model without a folder needs tokenizer=PATH")
        return _own(pretrained.to(device), Path(tokenizer))
    folder = Path(pretrained)
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ModelFileError(f"{folder / 'config.json'}: not found or not a model config, expected a model") from None
    if kind == "ddl":
        return _own(load_model(folder, device), Path(tokenizer or folder / "tokenizer.json"))
    return _foreign(folder, tokenizer, device)


def _own(model: LanguageModel, path: Path) -> tuple[Scored, Encode, int, int]:
    tokenizer = load_tokenizer(path)
    end = end_of_text_id(tokenizer)
    return OwnModel(model), _encoder(tokenizer), end, end


def _foreign(folder: Path, tokenizer: str | Path | None, device: torch.device) -> tuple[Scored, Encode, int, int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found = AutoTokenizer.from_pretrained(Path(tokenizer).parent if tokenizer else folder)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder}: not a causal model that transformers can read: {str(error).strip()}") from None

    def encode(text: str) -> list[int]:
        return found.encode(text, add_special_tokens=False)

    begin = found.eos_token_id if found.bos_token_id is None else found.bos_token_id
    return ForeignModel(model.to(device)), functools.lru_cache(maxsize=1024)(encode), found.eos_token_id, begin


def _encoder(tokenizer: Tokenizer) -> Encode:
    @functools.lru_cache(maxsize=1024)  # consecutive requests are choices of one item, with the same prompt
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode
