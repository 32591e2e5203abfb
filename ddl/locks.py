"""Locks that end with the process that holds them, however it ends.

They are locks of the operating system on a file (`flock`). The file stays, and says nothing by itself.
"""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddl.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # a file system that has none: go on without


class LockError(UserError):
    """Another living process writes to the same folder."""


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path` during the block.

    Raises:
        LockError: a living process holds it; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockError(
                f"{path.parent}: {file.read().strip() or 'another process'} is writing this run; "
                "wait until it has ended, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class WorkflowLock:
    """Removes the lock that a killed Snakemake left behind.

    Snakemake locks the files of a workflow by files in `.snakemake/locks`, which stay if it is killed. So each
    Snakemake also holds a shared lock as long as it lives, which several may do. If none but this one does, the files
    are of a dead one.

    Args:
        folder: the folder `.snakemake`.

    Attributes:
        removed: whether there was such a lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._held = open(folder / "alive", "a+", encoding="utf-8")  # noqa: SIM115 - open until this process ends
        locks = folder / "locks"
        self.removed = False
        try:
            with suppress(BlockingIOError):  # another one lives
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if locks.is_dir() and any(locks.iterdir()):
                    shutil.rmtree(locks)
                    self.removed = True
            fcntl.flock(self._held, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
