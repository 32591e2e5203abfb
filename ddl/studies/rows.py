"""Collect the runs of a study into one CSV with a row per run, and one file with their losses by document.

Committed rows of the same settings can stand in for runs, so that a study is extended without repeating it.
"""

import csv
import json
from pathlib import Path
from typing import Any

from ddl.config import Study, load_scale
from ddl.errors import UserError
from ddl.files import atomic
from ddl.layout import REFERENCE, STUDY_DOCUMENTS, STUDY_ROWS, Point
from ddl.model.flops import flops_per_token

COLUMNS = (
    "scale",
    "size",
    "backbone",
    "variant",
    "steps",
    "tokens",
    "learning_rate",
    "seed",
    "val_loss",  # nats per token, on the whole validation split; empty if the run diverged
    "val_loss_stderr",
    "repeated_loss",  # of targets that repeat a pair of tokens of their sequence; empty in rows that are older
    "new_loss",  # of the other targets
    "stream_cosine",  # mean cosine between two streams or value channels at the readout; empty if there is one
    "params",
    "flops_per_token",  # forward pass, multiply-add as two; empty if the rule does not count its operations
    "seconds",
    "reason",  # why there is no loss
    "settings",  # fingerprint of everything that determines the run
    "commit",
    "torch",
    "device",
)


class StudyError(UserError):
    """A study whose runs are not complete."""


def committed(study: Study, also: str = "") -> dict[Point, tuple[dict[str, str], str, int]]:
    """Committed rows of this study or any other of the same scale, whose settings are still those of this study.

    A run is known by its settings and seed. Another study may have it under another name, e.g. as a change of the
    backbone instead of the design; its row gets the name that it has here.

    Args:
        also: only studies that have this file too, as a pattern with `{study}`.

    Returns:
        Run -> its row, the study that it was found in, and the number of the row there.
    """
    scale = load_scale(study.scale)
    wanted: dict[tuple[str, int], list[Point]] = {}
    for point in study.points():
        settings = scale.at(point).fingerprint(point.size, point.variant)
        wanted.setdefault((settings, point.seed), []).append(point)
    found: dict[Point, tuple[dict[str, str], str, int]] = {}
    paths = [path for path in sorted(REFERENCE.glob(STUDY_ROWS.format(study="*"))) if "." not in path.stem]
    for path in sorted(paths, key=lambda path: path.stem != study.name):  # its own rows first
        if also and not (REFERENCE / also.format(study=path.stem)).is_file():
            continue
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file)):
                same = wanted.get((row["settings"], int(row["seed"])), []) if row["scale"] == scale.name else []
                for point in same:
                    renamed = row | {"size": point.size, "backbone": point.backbone, "variant": point.variant}
                    found.setdefault(point, (renamed, path.stem, number))
    return found


def divergence(run: Path) -> str:
    """Why a run has no weights, if it is a run of a study that diverged; otherwise empty."""
    row = run / "point.json"
    return str(json.loads(row.read_text(encoding="utf-8"))["reason"]) if row.is_file() else ""


def collect(study: Study, results: Path, reuse: bool = False, partial: bool = False) -> int:
    """Write the rows of a study and their losses by document to `results/studies/`.

    Args:
        results: folder of the scale, which contains the points.
        reuse: take committed rows, also those of other studies, for runs that are not there.
        partial: leave out runs that have not been trained.

    Returns:
        The number of rows.

    Raises:
        StudyError: a run is missing, and `partial` is not set.
    """
    import numpy as np
    from safetensors.numpy import load_file, save

    kept = committed(study) if reuse else {}
    sources = {name for _, name, _ in kept.values()}
    kept_losses = {name: load_file(REFERENCE / STUDY_DOCUMENTS.format(study=name)) for name in sources}
    rows: list[dict[str, Any]] = []
    losses: list[Any] = []
    tokens = None
    for point in study.points():
        folder = results / point.folder
        if (folder / "point.json").is_file():
            rows.append(json.loads((folder / "point.json").read_text(encoding="utf-8")) | flops_of(study.scale, point))
            if rows[-1]["reason"]:
                losses.append(None)
                continue
            documents = load_file(folder / "documents.safetensors")
            losses.append(documents["losses"])
            tokens = documents["tokens"]
        elif point in kept:
            row, name, number = kept[point]
            rows.append(row | flops_of(study.scale, point))
            losses.append(kept_losses[name]["losses"][number])
            tokens = kept_losses[name]["tokens"]
        elif not partial:
            raise StudyError(
                f"{folder}/point.json: not found: `snakemake --cores all study --config study={study.name}` trains all "
                "runs"
            )
    path = results / STUDY_ROWS.format(study=study.name)
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if tokens is not None:
        absent = np.full(len(tokens), np.nan, dtype=np.float32)
        matrix = np.stack([absent if loss is None else loss for loss in losses])
        with atomic(results / STUDY_DOCUMENTS.format(study=study.name)) as temporary:
            temporary.write_bytes(save({"losses": matrix, "tokens": tokens}))
    return len(rows)


def flops_of(scale: str, point: Point) -> dict[str, int | None]:
    """FLOPs per token of the model of a run, as a column; None if its rule does not count them."""
    flops = flops_per_token(load_scale(scale).at(point).model(point.size, point.variant))
    return {"flops_per_token": None if flops.state is None else flops.backbone + flops.state}
