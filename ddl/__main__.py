"""Run the command `ddl` as `python -m ddl`."""

import sys

from ddl.cli import main

sys.exit(main())
