"""Invented measurements of `ddl mechanism` for every run of a scale, for tests of the code that reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ddl.config import Scale
from ddl.layout import BASELINE, MECHANISM

DOCUMENTS = 12
GROUPS = ("all", "rare input", "frequent input", "rare target", "frequent target")
BOTH = ("write", "erase", "erase_share", "readout", "cosine", "change", "growth", "survival", "turn", "direction_rank")
GENERATED = ("gate", "gate_sd", "gate_p05", "gate_p50", "gate_p95", "gate_by_position", "gate_by_token", "target")
ENERGY = {"before": 0.1, "after": 0.3}


def write(results: Path, scale: Scale, rise: float = 0.25) -> None:
    """Write mechanism.json and interventions.json of every run.

    The changes of all sublayers raise the loss of every document by `rise` per token plus 0.01 times the seed.
    """
    random = np.random.default_rng(0)
    for size, shape in scale.sizes.items():
        for variant in scale.variants:
            for seed in scale.seeds:
                folder = results / MECHANISM.format(size=size, variant=variant, seed=seed)
                folder.mkdir(parents=True, exist_ok=True)
                made = _observed(2 * shape.layers, shape.width, variant != BASELINE, random)
                (folder / "mechanism.json").write_text(json.dumps(made))
                changed = _changed(2 * shape.layers, variant != BASELINE, rise + 0.01 * seed, random)
                (folder / "interventions.json").write_text(json.dumps(changed))


def _observed(count: int, width: int, delta: bool, random: np.random.Generator) -> dict[str, Any]:
    rows, stacks = [], []
    for step in (0, 8, 24):
        for sublayer in range(count):
            for group in GROUPS if step == 24 else GROUPS[:1]:
                row: dict[str, Any] = {"step": step, "sublayer": sublayer, "block": sublayer // 2, "n": 64}
                row |= {"kind": ("attention", "mlp")[sublayer % 2], "tokens": group}
                row |= {name: float(random.uniform(0.1, 0.4)) for name in BOTH}
                row |= {f"energy_{when}": share for when, share in ENERGY.items()}
                if delta:
                    row |= {name: float(value) for name, value in zip(GENERATED, random.random(8), strict=True)}
                    row["overwrites"] = 0.2
                rows.append(row)
        spread = {"mean": 0.5, "p05": 0.4, "p95": 0.6}
        stacks.append({"step": step, "rank": spread, "largest": spread, "smallest": spread, "alignment": [[1.0]]})
    return {"tokens": 64, "width": width, "sublayers": rows, "stacks": stacks}


def _changed(count: int, delta: bool, rise: float, random: np.random.Generator) -> dict[str, Any]:
    names = ["closed", "gate 1", "mean gate", "mean target", "random direction", "write off", "erase off"]
    names = names if delta else ["closed", "half", "double"]
    tokens = random.integers(5, 50, DOCUMENTS)
    unchanged = 4.0 * tokens
    places = [*map(str, range(count)), "all"]
    changes = [(name, place) for name in names for place in places]
    changes += [("closed", place) for number in range(1, count) for place in (f"{number}..", f"0..{number - 1}")]
    loss = (unchanged + rise * tokens).tolist()
    return {
        "documents": list(range(DOCUMENTS)),
        "tokens": tokens.tolist(),
        "loss": unchanged.tolist(),
        "changes": [{"change": name, "sublayers": place, "loss": loss} for name, place in changes],
    }
