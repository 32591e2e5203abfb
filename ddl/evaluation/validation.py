"""Measure the loss of a model on the whole validation split (Table 3).

    ddl validate --scale laptop --data results/laptop/data --run results/laptop/runs/small/ddl-cc/seed0 \\
        --out results/laptop/evals/small/ddl-cc/seed0
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ddl.config import Scale
from ddl.data.sequences import TokenSequences, load_manifest
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.document_losses import DocumentLosses, per_document
from ddl.evaluation.loglikelihood import head
from ddl.evaluation.model_check import check_model
from ddl.evaluation.repeated_pairs import repeats_a_pair
from ddl.files import write_json
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model
from ddl.provenance import provenance


@torch.inference_mode()
def validation_loss(
    model: LanguageModel, data: TokenSequences, batch_tokens: int, dtype: torch.dtype, end_of_text: int
) -> tuple[dict[str, Any], DocumentLosses]:
    """Mean loss per token over the whole split, in nats, and the loss of each document.

    Returns:
        val_loss; val_loss_stderr, from the spread of the means of the sequences, assuming independent sequences;
        val_perplexity; repeated_loss and new_loss, for targets that repeat a pair of tokens of their sequence and for
        the others, None if there are none; tokens, the number of predictions. And the documents, which the token
        `end_of_text` starts.
    """
    device = model.embedding.weight.device
    rows = max(1, batch_tokens // data.sequence_length)
    losses, starts, repeats = [], [], []
    for start in range(0, len(data), rows):
        inputs, targets = data.batch(range(start, min(start + rows, len(data))))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden(inputs.to(device)).flatten(0, 1)
            parts = [
                F.cross_entropy(logits, part, reduction="none")
                for logits, part in head(model.logits, hidden, targets.to(device).flatten())
            ]
        losses.append(torch.cat(parts).view(len(inputs), -1).double().cpu())
        starts.append(targets == end_of_text)
        repeats.append(repeats_a_pair(inputs, targets))
    by_token = torch.cat(losses)
    repeated = torch.cat(repeats)
    means = by_token.mean(1)
    loss = float(means.mean())
    summary = {
        "val_loss": loss,
        "val_loss_stderr": float(means.std() / math.sqrt(len(means))) if len(means) > 1 else None,
        "val_perplexity": math.exp(loss),
        "repeated_loss": float(by_token[repeated].mean()) if repeated.any() else None,
        "new_loss": float(by_token[~repeated].mean()) if not repeated.all() else None,
        "tokens": len(means) * data.sequence_length,
    }
    return summary, per_document(by_token.flatten(), torch.cat(starts).flatten())


def validate(scale: Scale, run: Path, data: Path, out: Path) -> None:
    """Measure a trained model with the settings and data of a scale, and write `validation.json`.

    Args:
        run: folder of the model.
        data: results/<scale>/data.
        out: folder of the file.

    Raises:
        DataError, ModelFileError, TokenizerError, EvaluationError: the data, model or tokenizer are missing, invalid or
            do not match.
    """
    torch.set_num_threads(scale.training.threads)
    started = time.monotonic()
    tokenizer = load_manifest(data / "manifest.json")["tokenizer"]
    model = load_model(run, "cuda" if torch.cuda.is_available() else "cpu")
    check_model(scale, model, tokenizer["vocab_size"], data)
    sequences = TokenSequences(data / "manifest.json", "val", scale.sequence_length)
    end_of_text = end_of_text_id(load_tokenizer(data / tokenizer["file"]))
    dtype = getattr(torch, scale.training.dtype)
    loss, _ = validation_loss(model, sequences, scale.evaluation.batch_tokens, dtype, end_of_text)
    write_json(out / "validation.json", loss | {"provenance": provenance()})
    print(
        f"validation: loss {loss['val_loss']:.4f} nats, perplexity {loss['val_perplexity']:.2f}, "
        f"{loss['tokens']} tokens, {time.monotonic() - started:.1f} s"
    )
