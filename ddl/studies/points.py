"""Train one run of a study and measure its loss on the whole validation split.

Compared with a run of the scale, a point has its own backbone, number of steps and learning rate. It writes
`point.json` with the row of the study and `documents.safetensors` with the loss of each validation document; its
checkpoints are removed. If training diverges, the row has no loss and says why.

    ddl study point --scale laptop --size small --backbone paper --variant ddl-cc --steps 512 --rate 0.008 --seed 0 \\
        --data results/laptop/data --out results/laptop/points/small/paper/ddl-cc/steps512/lr0.008/seed0
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from ddl.config import Scale
from ddl.data.sequences import TokenSequences
from ddl.data.tokenizer import end_of_text_id, load_tokenizer
from ddl.evaluation.stream_cosine import stream_cosine
from ddl.evaluation.validation import validation_loss
from ddl.files import write_json
from ddl.layout import Point
from ddl.model.language_model import parameter_count
from ddl.model.run_files import load_model
from ddl.provenance import provenance
from ddl.training.checkpoints import Stale
from ddl.training.errors import NotFiniteError
from ddl.training.run import Run

MEASURED = ("val_loss", "val_loss_stderr", "repeated_loss", "new_loss", "stream_cosine")
STREAM_SEQUENCES = 64  # of the validation split, for the similarity of streams


def train(scale: Scale, point: Point, data: Path, out: Path, stale: Stale = "refuse") -> bool:
    """Train and measure one point, and write its files; return whether it is complete. For `stale` see `Run`."""
    changed = scale.at(point)
    run = Run(changed, point.size, point.variant, point.seed, data, out, stale)
    reason = ""
    try:
        if not run.train():
            return False
    except NotFiniteError as error:
        reason = f"diverged: {str(error).partition(';')[0]}"
        run.say(reason)
    losses: dict[str, Any] = dict.fromkeys(MEASURED)
    if run.processes.leads:
        if not reason:
            sequences = TokenSequences(data, "val", scale.sequence_length)
            dtype, batch_tokens = getattr(torch, scale.training.dtype), scale.evaluation.batch_tokens
            end_of_text = end_of_text_id(load_tokenizer(run.tokenizer))
            model = load_model(out, run.processes.device)  # in one piece, even if several processes trained it
            losses, documents = validation_loss(model, sequences, batch_tokens, dtype, end_of_text)
            documents.save(out / "documents.safetensors")
            first, _ = sequences.batch(range(min(STREAM_SEQUENCES, len(sequences))))
            losses["stream_cosine"] = stream_cosine(model, first.to(run.processes.device))
        source = provenance()
        write_json(
            out / "point.json",
            {
                "scale": scale.name,
                "size": point.size,
                "backbone": point.backbone,
                "variant": point.variant,
                "steps": point.steps,
                "tokens": point.steps * scale.tokens_per_step,
                "learning_rate": point.rate,
                "seed": point.seed,
                **{name: losses[name] for name in MEASURED},
                "params": parameter_count(run.config)["total"],
                "seconds": run.progress.seconds,
                "reason": reason,
                "settings": changed.fingerprint(point.size, point.variant),
                "commit": source["commit"],
                "torch": source["versions"]["torch"],
                "device": source["device"],
            },
        )
        shutil.rmtree(run.checkpoints.folder.parent, ignore_errors=True)
    return True
