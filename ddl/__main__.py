"""`python -m ddl` is the command `ddl`."""

import sys

from ddl.cli import main

sys.exit(main())
