"""Several processes: the same seed gives the same curve, and no process continues alone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ddl.config import ConfigError, load_scale
from ddl.data.sequences import TokenSequences
from ddl.layout import ROOT
from ddl.training.batches import TrainingBatches, validation_batch
from ddl.training.distributed import Processes
from tests.helpers.command import ddl
from tests.helpers.project import copy_project
from tests.helpers.tiny_run import FORKS, become, free_port, tiny_scale, write_data


def train(rank: int, count: int, port: int, recipe: dict, data: Path, out: Path, end: str) -> None:
    """Run one process of a run.

    Args:
        end: "whole" for a complete run; at step 5 of the last process, "signal" sends SIGTERM and "dies" kills it.
    """
    become(rank, count, port, nodes=2 if recipe.get("sharding") == "hsdp" else 1)
    with open(out.parent / f"{out.name}-{count}-{rank}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from ddl.training.errors import TrainingError
    from ddl.training.run import Run

    stale = recipe.pop("stale", "refuse")
    run = Run(tiny_scale(**recipe), "small", "ddl-cc", 0, data, out, stale=stale)
    step = run.learner.step

    def interrupted(batch, lr):
        if run.progress.step == 5 and rank == count - 1:
            if end == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, lr)

    if end != "whole":
        run.learner.step = interrupted
    try:
        sys.exit(0 if run.train() else 130)
    except TrainingError as error:
        print(error)
        sys.exit(2)


@pytest.fixture
def start(tmp_path):
    """Train with `count` processes in the folder `name`; return their exit codes."""
    data = write_data(tmp_path / "data")

    def run(name: str, count: int, end: str = "whole", **recipe) -> list[int]:
        recipe = {"batch_sequences": 8, "micro_batch_sequences": 2} | recipe
        port = free_port()
        processes = [
            FORKS.Process(target=train, args=(rank, count, port, recipe, data, tmp_path / name, end))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        return codes

    return run


def curve(folder: Path) -> np.ndarray:
    """Training and validation losses and gradient norms of a run, also those of the parts of the model."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "train_loss", "val_loss", "grad_norm")
    whole = np.array([[np.nan if record[name] is None else record[name] for name in names] for record in records])
    parts = np.loadtxt(folder / "gradients.csv", delimiter=",", skiprows=1)  # no row for step 0
    assert parts[:, 0].tolist() == whole[1:, 0].tolist()
    return np.hstack([whole, np.vstack([np.full(parts.shape[1] - 1, np.nan), parts[:, 1:]])])


def assert_same_weights(a: Path, b: Path) -> None:
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2e-5, err_msg=name)


def test_one_two_and_four_processes_give_the_same_curve(start, tmp_path):
    runs = (("one", 1, "ddp"), ("two", 2, "ddp"), ("four", 4, "ddp"), ("shares", 2, "fsdp"), ("copies", 4, "hsdp"))
    for name, count, sharding in runs:
        assert start(name, count, sharding=sharding) == [0] * count
    one = curve(tmp_path / "one")
    print("largest difference from one process in train_loss, val_loss, grad_norm:")
    for name in ("two", "four", "shares", "copies"):
        difference = np.nanmax(np.abs(curve(tmp_path / name) - one), axis=0)
        print(f"{name:7}", *(f"{value:.1e}" for value in difference[1:4]))
        np.testing.assert_allclose(curve(tmp_path / name), one, rtol=2e-5)
        assert_same_weights(tmp_path / name, tmp_path / "one")
    # Rounding must differ; otherwise the batch was not shared.
    assert (tmp_path / "four/model.safetensors").read_bytes() != (tmp_path / "one/model.safetensors").read_bytes()


def test_a_run_continues_with_another_number_of_processes(start, tmp_path):
    start("whole", 1)
    assert start("changed", 4, end="signal", sharding="hsdp") == [130] * 4  # stops at the next record, step 6
    assert start("changed", 2, end="signal", sharding="fsdp") == [0, 0]
    assert "resumed from step 6 " in (tmp_path / "changed-2-0.log").read_text()
    np.testing.assert_allclose(curve(tmp_path / "changed"), curve(tmp_path / "whole"), rtol=2e-5)
    assert_same_weights(tmp_path / "changed", tmp_path / "whole")
    assert json.loads((tmp_path / "changed/provenance.json").read_text())["processes"] == 2


def test_a_stopped_shared_run_continues_to_the_same_bits(start, tmp_path):
    for name, end in (("whole", "whole"), ("stopped", "signal")):
        codes = start(name, 2, end=end)
    assert codes == [130, 130]
    assert start("stopped", 2) == [0, 0]
    bits = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert bits[0] == bits[1]


def test_all_processes_decide_alike_about_checkpoints_of_other_settings(start, tmp_path):
    assert start("run", 2, end="signal") == [130, 130]
    assert start("run", 2, learning_rate=1e-3) == [2, 2]
    assert "settings training.learning_rate was 0.008, is 0.001" in (tmp_path / "run-2-1.log").read_text()
    assert start("run", 2, learning_rate=1e-3, stale="continue", sharding="fsdp") == [0, 0]
    assert [entry["step"] for entry in json.loads((tmp_path / "run/provenance.json").read_text())["continued"]] == [6]


def test_when_one_process_dies_the_others_end_with_a_sentence(start, tmp_path):
    codes = start("run", 4, end="dies")
    assert codes[3] == -signal.SIGKILL
    assert codes[:3] == [2, 2, 2]
    said = (tmp_path / "run-4-0.log").read_text()
    assert "process 0 of 4: another process of this run has stopped or cannot be reached" in said
    assert not (tmp_path / "run/model.safetensors").exists()
    assert start("run", 1) == [0]
    assert "resumed from step 4 " in (tmp_path / "run-1-0.log").read_text()


def test_processes_take_the_micro_batches_in_turn_and_none_twice(tmp_path, monkeypatch):
    sequences = TokenSequences(write_data(tmp_path / "data"), "train", 16)
    recipe = tiny_scale(batch_sequences=12, micro_batch_sequences=2).training
    processes = Processes()
    whole = TrainingBatches(sequences, recipe, 0, processes)
    expected = [ids[:, 0].tolist() for ids, _ in next(whole.stream(range(3, 4)))]
    processes.count = 3
    found = []
    for processes.rank in range(3):
        found.append([ids[:, 0].tolist() for ids, _ in next(whole.stream(range(3, 4)))])
    assert [part for turn in zip(*found, strict=True) for part in turn] == expected


@pytest.mark.parametrize("count", [3, 8])
def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(tmp_path, count):
    scale = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    arguments = ["--scale", "smoke", "--size", "small", "--variant", "baseline", "--seed", "0"]
    places = ["--data", str(tmp_path), "--out", str(tmp_path), "--processes", str(count)]
    done = subprocess.run([sys.executable, "-m", "ddl", "train", *arguments, *places], **scale)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {count} processes cannot share a batch of 2 micro-batches (training.batch_sequences 8, "
        "training.micro_batch_sequences 4) equally: expected 1, 2\n"
    )


def test_fewer_validation_sequences_than_processes_are_refused(tmp_path):
    sequences = TokenSequences(write_data(tmp_path / "data"), "val", 16)
    processes = Processes()
    processes.count = 8
    with pytest.raises(ConfigError, match="val_sequences: expected at least one for each of 8 processes, found 4"):
        validation_batch(sequences, tiny_scale(val_sequences=4).training, processes)


def test_validation_sequences_are_spread_over_the_split(tmp_path):
    sequences = TokenSequences(write_data(tmp_path / "data"), "val", 16)
    batch, count = validation_batch(sequences, tiny_scale(val_sequences=3).training, Processes())
    last = len(sequences) - 1
    assert last > 3 == count
    expected = sequences.batch([0, last // 2, last])[0]
    assert torch.equal(torch.cat([ids for ids, _ in batch]), expected)


def test_torchrun_is_started_and_ends_all_when_one_is_killed(tmp_path):
    """Kill one of the two processes of the workflow's training command at the smoke scale."""
    data = write_data(tmp_path / "data", load_scale("smoke").tokenizer.vocab_size)
    arguments = ["--scale", "smoke", "--size", "small", "--variant", "baseline", "--seed", "0", "--processes", "2"]
    places = ["--data", str(data.parent), "--out", str(tmp_path / "run")]
    log = open(tmp_path / "log", "w+")  # noqa: SIM115
    command = [sys.executable, "-m", "ddl", "train", *arguments, *places]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    try:
        while "on 2 x cpu" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        assert launcher.wait(60) != 0
    finally:
        launcher.kill()
        log.close()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.fixture
def two_nodes(tmp_path):
    """A function that starts two "nodes" of two processes each, on this machine; returns their launchers and logs."""
    project = copy_project(tmp_path / "project")
    scale = project / "config/scales/smoke.yaml"
    text = re.sub(r"micro_batch_sequences: \d", "micro_batch_sequences: 2", scale.read_text())
    scale.write_text(text.replace("  gpus: 0\n", "  gpus: 0\n  sharding: hsdp\n"))
    assert "hsdp" in scale.read_text()
    data = write_data(tmp_path / "data", load_scale("smoke").tokenizer.vocab_size, val_tokens=1100)
    launchers = []

    def start(out: str, nodes: int = 2) -> list[tuple[subprocess.Popen, Path]]:
        """The first node is the one at which they meet."""
        arguments = ["--scale", "smoke", "--size", "small", "--variant", "ddl-cc", "--seed", "0"]
        places = ["--data", str(data.parent), "--out", str(tmp_path / out)]
        port = free_port()
        shared = ["--nodes", str(nodes), "--processes", "2", "--rendezvous", f"127.0.0.1:{port}"]
        command = [sys.executable, "-m", "ddl", "train", *arguments, *places, *shared]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
        started = []
        for node in range(nodes):
            log = tmp_path / f"{out}-{node}.log"
            with open(log, "w") as file:
                options = {"stdout": file, "stderr": file, "env": environment, "start_new_session": True}
                launchers.append(subprocess.Popen(command, cwd=project, **options))
            started.append((launchers[-1], log))
            while nodes > 1 and launchers[-1].poll() is None and not listens(port):
                time.sleep(0.05)
        return started

    yield start
    for launcher in launchers:
        kill_node(launcher)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill_node(launcher: subprocess.Popen) -> None:
    """Kill a launcher and all processes that it started; torchrun gives these sessions of their own."""
    found = [launcher.pid]
    for pid in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("lost", [0, 1], ids=["the node where they meet", "another node"])
def test_two_nodes_give_the_curve_of_one_and_go_on_after_one_was_lost(two_nodes, tmp_path, lost):
    assert [launcher.wait(120) for launcher, _ in two_nodes("one", nodes=1)] == [0]
    nodes = two_nodes("two")
    gone, kept, log = nodes[lost][0], *nodes[1 - lost]
    deadline = time.monotonic() + 120
    while not list((tmp_path / "two").glob("checkpoints/*/step*")):
        assert [launcher.poll() for launcher, _ in nodes] == [None, None], [file.read_text() for _, file in nodes]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_node(gone)
    assert kept.wait(120) == 2
    said = log.read_text()
    assert "Traceback" not in said, said
    assert "error: " in said.splitlines()[-1]
    assert not (tmp_path / "two/model.safetensors").exists()

    assert [launcher.wait(120) for launcher, _ in two_nodes("two")] == [0, 0]
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=2e-5)
    provenance = json.loads((tmp_path / "two/provenance.json").read_text())
    assert provenance["processes"] == 4


NEEDED = "--rendezvous: 2 nodes need the name or IPv4 address of one of them and a port, e.g. node01:29500, found "


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("--nodes 2", NEEDED + "none"),
        ("--nodes 2 --rendezvous node01", NEEDED + "node01"),
        ("--nodes 2 --rendezvous node01:99999", NEEDED + "node01:99999"),
        ("--nodes 2 --rendezvous [::1]:29500", NEEDED + "[::1]:29500"),
        (
            "--nodes 2 --rendezvous no.host.invalid:29500",
            "--rendezvous: no.host.invalid cannot be resolved: ",
        ),
        ("--rendezvous 127.0.0.1:29500", "--rendezvous needs --nodes."),
    ],
)
def test_nodes_without_a_place_to_meet_are_refused(tmp_path, capsys, places, message):
    arguments = ["--scale", "smoke", "--size", "small", "--variant", "baseline", "--seed", "0", *places.split()]
    ddl("train", *arguments, "--data", tmp_path, "--out", tmp_path, code=2)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
