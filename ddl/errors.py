"""Errors that end in one line instead of a traceback: a user's mistake, and what the machine refuses."""

import errno

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM


class UserError(ValueError):
    """A user's mistake. The message is one line that names the file or key, what was expected and what was found.

    The command line prints the message and exits with code 2. Any other exception keeps its traceback, unless
    `refused` describes it.
    """


# What a file system refuses whatever the program does. ENOENT is not among them: a missing file can be our mistake.
FILE_SYSTEM = frozenset(
    getattr(errno, name) for name in ("EACCES", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ENOSPC", "EPERM", "EROFS")
)
OUT_OF_MEMORY = "out of memory"
# Parts of messages of PyTorch, of Python's threads and of the dynamic linker, which have no exception of their own.
NO_MEMORY = ("out of memory", "can't allocate memory", "can't start new thread", "failed to map segment")


def refused(error: BaseException) -> str | None:
    """Describe an error that comes from the machine: too little memory, or a file that cannot be written or read.

    Returns:
        One line, or None for any other error.
    """
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, (RuntimeError, ImportError)) and any(sign in str(error) for sign in NO_MEMORY):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in FILE_SYSTEM:
        return f"{error.filename2 or error.filename or 'a file'}: {error.strerror}"
    return None
