"""Locks that end with their process."""

import os
import signal

import pytest

from ddl.locks import LockError, WorkflowLock, only_writer
from tests.helpers.tiny_run import FORKS


def hold(path, held) -> None:
    with only_writer(path):
        held.set()
        signal.pause()


def test_a_living_writer_is_named_and_a_killed_one_holds_nothing(tmp_path):
    path, held = tmp_path / "run/.lock", FORKS.Event()
    process = FORKS.Process(target=hold, args=(path, held))
    process.start()
    assert held.wait(60)
    with (
        pytest.raises(
            LockError, match=rf"/run: process {process.pid} on .+ is writing this run; wait until it has ended"
        ),
        only_writer(path),
    ):
        pass
    process.kill()
    process.join()
    with only_writer(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_locks_of_snakemake_are_removed_only_if_no_other_process_lives(tmp_path):
    def leave() -> None:
        (tmp_path / "locks").mkdir(exist_ok=True)
        (tmp_path / "locks/0.output.lock").write_text("paper.pdf\n")

    assert not WorkflowLock(tmp_path).removed
    leave()
    first = WorkflowLock(tmp_path)
    assert first.removed
    leave()
    second = WorkflowLock(tmp_path)
    assert not second.removed
    del first  # as if that process had ended; the second one lives
    assert not WorkflowLock(tmp_path).removed
    assert (tmp_path / "locks/0.output.lock").is_file()
