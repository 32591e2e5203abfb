"""Check that a model and data belong together."""

from pathlib import Path

from ddl.config import Scale
from ddl.errors import UserError
from ddl.model.language_model import LanguageModel


class EvaluationError(UserError):
    """A model and data that do not match."""


def check_model(scale: Scale, model: LanguageModel, vocab_size: int, data: Path) -> None:
    """Check that a model has the vocabulary of the data and the sequence length of the scale.

    Raises:
        EvaluationError: it does not.
    """
    if (model.config.vocab_size, model.config.sequence_length) != (vocab_size, scale.sequence_length):
        raise EvaluationError(
            f"expected a model with vocabulary {vocab_size} ({data}) and sequences of "
            f"{scale.sequence_length} tokens ({scale.name}), "
            f"found {model.config.vocab_size} and {model.config.sequence_length}"
        )
