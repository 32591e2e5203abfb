"""How far the kept curves move if one thing changes: the table in tests/golden/README.md.

python -m tests.helpers.golden_spread results/smoke    # trains both runs for every change, and writes the table
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ddl.config import Scale, load_scale
from ddl.files import write_text
from ddl.layout import DATA_MANIFEST, ROOT
from ddl.training.run import Run
from tests.helpers.golden import KEPT, RUNS, curve, distance

PAGE = ROOT / "tests/golden/README.md"
BEGIN, END = "<!-- begin spread -->", "<!-- end spread -->"
PLAIN = {"state_memory": "stored", "kernels": "reference"}
COMPATIBLE = {"MKL_CBWR": "COMPATIBLE"}
# What is changed -> (environment, settings of the recipe, settings of the execution, settings of the model).
CHANGES: dict[str, list[tuple[dict[str, str], dict[str, Any], dict[str, Any], dict[str, Any]]]] = {
    "2 or 4 threads instead of 1": [({}, {"threads": threads}, {}, {}) for threads in (2, 4)],
    "PyTorch without vector instructions, or with AVX2 (`ATEN_CPU_CAPABILITY`)": [
        ({"ATEN_CPU_CAPABILITY": level}, {}, {}, {}) for level in ("default", "avx2")
    ],
    "MKL's compatible or AVX2 code path (`MKL_CBWR`), MKL or oneDNN limited to SSE4": [
        (environment, {}, {}, {})
        for environment in (
            COMPATIBLE,
            {"MKL_CBWR": "AVX2"},
            {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
            {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        )
    ],
    "2 or 8 sequences per micro-batch instead of 4": [({}, {"micro_batch_sequences": n}, {}, {}) for n in (2, 8)],
    "states stored, or plain autograd, instead of the fused rewrite": [
        ({}, {}, changed, {}) for changed in ({"state_memory": "stored"}, PLAIN)
    ],
    "**gate of 1.01 instead of 1 at the start**": [({}, {}, {}, {"gate_init": 1.01})],
    "**gate of 1.1 instead of 1 at the start**": [({}, {}, {}, {"gate_init": 1.1})],
    "**learning rate 1 % higher**": [({}, {"learning_rate": 1.01}, {}, {})],
    "**learning rate 10 % higher**": [({}, {"learning_rate": 1.1}, {}, {})],
}


def changed_scale(recipe: dict[str, Any], execution: dict[str, Any]) -> Scale:
    """The smoke scale with other settings; a learning rate is a factor."""
    scale = load_scale("smoke")
    recipe = recipe | {name: recipe[name] * scale.training.learning_rate for name in recipe if name == "learning_rate"}
    return dataclasses.replace(
        scale,
        training=dataclasses.replace(scale.training, **recipe),
        execution=dataclasses.replace(scale.execution, **execution),
    )


def moved(data: Path, run: str, recipe: dict[str, Any], execution: dict[str, Any], model: dict[str, Any]) -> float:
    """Train one run with these changes; the largest difference from its kept curve, in nats."""
    size, variant = run.split("/")
    scale = changed_scale(recipe, execution)
    config = dataclasses.replace(scale.model(size, variant), **model)
    Scale.model = lambda *_: config  # type: ignore[method-assign]  # this process trains nothing else
    with tempfile.TemporaryDirectory() as out:
        assert Run(scale, size, variant, 0, data, Path(out)).train()
        return distance(curve(Path(out)), json.loads(KEPT.read_text())["curves"][run])


def measured(data: Path) -> str:
    """The table, from runs that each have a process of their own."""
    lines = ["| what was changed | small DDL-CC | medium DDL-TC |", "|---|--:|--:|"]
    for what, changes in CHANGES.items():
        cells = []
        for run in RUNS:
            largest = 0.0
            for environment, *settings in changes:
                arguments = json.dumps([str(data), run, *settings])
                command = [sys.executable, "-m", "tests.helpers.golden_spread", "--one", arguments]
                done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
                largest = max(largest, float(done.stdout.splitlines()[-1]))
            cells.append(f"{largest:.0e}".replace("e-0", "e-") if largest else "0")
        lines.append(f"| {what} | {' | '.join(cells)} |")
        print(lines[-1])
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        folder, *rest = json.loads(sys.argv[2])
        print(moved(Path(folder), *rest))
    else:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        table = measured(Path(sys.argv[1]) / DATA_MANIFEST)
        write_text(PAGE, f"{before}{BEGIN}\n{table}\n{END}{after}")
