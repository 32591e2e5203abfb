"""The interpreter tier: all tests marked `interpreter`, in one process that has TRITON_INTERPRET=1 from its start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no triton on this platform")
# Only files with such tests are collected: to import the others takes as long as many of these tests.
MARKED = re.compile(r"mark\.interpreter|def test_\w+\([^)]*\bdevice\b")
FILES = sorted(path for path in Path(__file__).parents[1].rglob("test_*.py") if MARKED.search(path.read_text()))


@pytest.mark.parametrize("tests", ["interpreter", pytest.param("interpreter and full", marks=pytest.mark.full)])
def test_kernels_pass_in_the_interpreter(tests):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", tests, *FILES],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(run.stdout.splitlines()[-1] if run.stdout else run.stderr)
    if run.returncode:
        pytest.fail(f"TRITON_INTERPRET=1 pytest -m '{tests}'\n{run.stdout}{run.stderr}", pytrace=False)
