"""The command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors(*errors: type[Exception]) -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and exit code 2; anything else keeps its traceback."""
    try:
        yield
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
