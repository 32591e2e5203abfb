"""Run the command `ddl` as `python -m ddl`."""

import sys

from ddl.cli import main

if __name__ == "__main__":  # not in the processes that a command starts, which import this file under another name
    sys.exit(main())
