"""The loss curves that runs of the smoke scale must reproduce: tests/golden/smoke.json; the README beside it explains.

python -m tests.helpers.golden results/smoke    # store the curves of these results
"""

import json
import sys
from pathlib import Path
from typing import Any

from ddl.files import write_json
from ddl.layout import ROOT

KEPT = ROOT / "tests/golden/smoke.json"
RUNS = ("small/ddl-cc", "medium/ddl-tc")
TOLERANCE = 1e-4  # nats; tests/golden/README.md gives the reason


def curve(run: Path) -> dict[str, list[float]]:
    """The training and validation losses of a run in nats: name -> one value per record that contains it."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        name: [round(record[name], 6) for record in records if record[name] is not None]
        for name in ("train_loss", "val_loss")
    }


def shards(data: Path) -> dict[str, str]:
    """File name -> SHA-256 of the token shards in a data folder."""
    splits = json.loads((data / "manifest.json").read_text())["splits"]
    return {shard["file"]: shard["sha256"] for split in splits.values() for shard in split["shards"]}


def collect(results: Path) -> dict[str, Any]:
    """Collect the shards and curves that are stored from the results of a scale."""
    return {
        "shards": shards(results / "data"),
        "curves": {run: curve(results / "runs" / run / "seed0") for run in RUNS},
    }


def distance(found: dict[str, list[float]], kept: dict[str, list[float]]) -> float:
    """The largest difference between two curves, in nats."""
    assert {name: len(losses) for name, losses in found.items()} == {name: len(losses) for name, losses in kept.items()}
    return max(abs(a - b) for name in kept for a, b in zip(found[name], kept[name], strict=True))


if __name__ == "__main__":
    write_json(KEPT, collect(Path(sys.argv[1])))
