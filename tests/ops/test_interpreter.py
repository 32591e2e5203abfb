"""The interpreter tier: all tests marked `interpreter`, in one process that has TRITON_INTERPRET=1 from its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no triton on this platform")


@pytest.mark.parametrize("tests", ["interpreter", pytest.param("interpreter and full", marks=pytest.mark.full)])
def test_kernels_pass_in_the_interpreter(tests):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", tests, Path(__file__).parents[1]],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(run.stdout.splitlines()[-1] if run.stdout else run.stderr)
    if run.returncode:
        pytest.fail(f"TRITON_INTERPRET=1 pytest -m '{tests}'\n{run.stdout}{run.stderr}", pytrace=False)
