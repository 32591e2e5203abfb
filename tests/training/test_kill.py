"""Kill data preparation, training or checkpoint writing at any moment; the rerun ends with the same weights to the bit.

A moment is a line of the package that the main thread is about to execute. One uninterrupted run records all of them.
Then 8 are drawn with a fixed seed, and 20 others under the mark `full`. For each, a new run is killed (SIGKILL) at that
moment, started again, and compared by the SHA-256 of its weights. `pytest -rP tests/training/test_kill.py` prints the
moments.
"""

import dataclasses
import os
import random
import re
import signal
import sys
from pathlib import Path

import pytest

from ddl.config import Scale, TextFiles, TokenizerConfig, load_scale
from ddl.files import sha256_file
from ddl.layout import ROOT
from ddl.training.checkpoints import Checkpoints
from tests.helpers.tiny_run import FORKS

PACKAGE = str(ROOT / "ddl") + os.sep
SAVE = Checkpoints.save.__code__
KILLS = {"data preparation": 2, "checkpoint writing": 3, "training": 3}
MORE_KILLS = {"data preparation": 5, "checkpoint writing": 7, "training": 8}


def tiny_scale(corpus: Path) -> Scale:
    smoke = load_scale("smoke")
    changes = {"steps": 8, "batch_sequences": 4, "micro_batch_sequences": 2, "warmup_steps": 2, "val_sequences": 4}
    recipe = dataclasses.replace(smoke.training, **changes, val_interval=5, log_interval=3, checkpoint_interval=2)
    return dataclasses.replace(
        smoke,
        sequence_length=16,
        training=recipe,
        corpus=TextFiles(val_fraction=0.2, path=str(corpus)),
        tokenizer=TokenizerConfig(name="bpe", vocab_size=280),
    )


def prepare_and_train(corpus: Path, folder: Path, kill_at: int | None) -> None:
    """Prepare the data unless they exist, then train, as the workflow does; kill this process at moment `kill_at`."""
    with open(folder / "log", "w") as log:
        os.dup2(log.fileno(), 1)
    from ddl.data import build as data
    from ddl.training import run as train

    moments: list[str] = []
    stage = "data preparation"
    saving = 0

    def line(frame, event, argument):
        nonlocal saving
        if event == "line":
            if len(moments) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            path = frame.f_code.co_filename.removeprefix(PACKAGE)
            moments.append(f"{'checkpoint writing' if saving else stage}\t{path}:{frame.f_lineno}")
        elif event == "return" and frame.f_code is SAVE:
            saving -= 1
        return line

    def call(frame, event, argument):
        nonlocal saving
        saving += frame.f_code is SAVE
        return line if frame.f_code.co_filename.startswith(PACKAGE) else None

    scale = tiny_scale(corpus)
    data.code_identity = train.code_identity = lambda *_: {}  # it would run most of the lines, to parse the package
    sys.settrace(call)
    if not (folder / "data/manifest.json").is_file():
        data.build(scale, folder / "data", workers=1)
    stage = "training"
    assert train.Run(scale, "small", "ddl-cc", 0, folder / "data/manifest.json", folder / "run").train()
    sys.settrace(None)
    (folder / "moments").write_text("\n".join(moments))


@pytest.fixture
def start(tmp_path):
    """Run in a new process, in the folder `name`; return the exit code."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = random.Random(0)
    for number in range(30):
        text = " ".join(words.choice(["rewrite", "gate", "state", "value", "target", "read"]) for _ in range(60))
        (corpus / f"{number:02d}.txt").write_text(f"Document {number}. {text}.")

    def run(name: str, kill_at: int | None = None) -> int:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        process = FORKS.Process(target=prepare_and_train, args=(corpus, folder, kill_at))
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.mark.parametrize(("kills", "seed"), [(KILLS, 1), pytest.param(MORE_KILLS, 0, marks=pytest.mark.full)])
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_bits(start, tmp_path, kills, seed):
    assert start("whole") == 0
    files = ("model.safetensors", "gradients.csv")
    expected = {file: sha256_file(tmp_path / "whole/run" / file) for file in files}
    moments = (tmp_path / "whole/moments").read_text().splitlines()
    draw = random.Random(seed)
    for stage, count in kills.items():
        visits = {}  # draw lines, not visits: most visits are in a few loops
        for moment, place in enumerate(moments):
            if place.startswith(stage):
                visits.setdefault(place, []).append(moment)
        for moment in sorted(draw.choice(visits[place]) for place in draw.sample(sorted(visits), count)):
            name = f"killed-{moment}"
            assert start(name, kill_at=moment) == -signal.SIGKILL
            assert start(name) == 0
            resumed = re.search(r"resumed from step (\d+)", (tmp_path / name / "log").read_text())
            found = {file: sha256_file(tmp_path / name / "run" / file) for file in files}
            bits = found["model.safetensors"][:16]
            print(
                f"{stage:18}  line {moment:6,} of {len(moments):,}, {moments[moment].partition(chr(9))[2]:22}  "
                f"{'from step ' + resumed[1] if resumed else 'from the start'}  weights {bits}"
            )
            assert found == expected
            left = [path.name for path in (tmp_path / name / "run").rglob("*") if path.name.endswith(".tmp")]
            assert left == []
