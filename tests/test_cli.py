"""The command line: its commands, help, error messages and start-up time."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ddl import cli
from ddl.errors import UserError
from ddl.layout import ROOT
from tests.helpers.command import ddl

IN_ORDER = [
    *("data", "package-manifests", "benchmarks", "tasks", "train", "study"),
    *(
        "validate",
        "evaluate",
        "mechanism",
        "contamination",
        "cost",
        "describe",
        "generate",
        "progress",
        "notebook",
        "figure",
        "numbers",
        "verdict",
        "paper",
        "site",
        "keep",
        "compare",
        "readme",
        "lm-eval",
    ),
]
STUDY = ["point", "collect", "inside"]
VISIBLE = [*([name] for name in IN_ORDER if name != "lm-eval"), *(["study", name] for name in STUDY)]


def find(path: list[str]) -> click.Command:
    command = cli.commands
    for name in path:
        command = command.commands[name]
    return command


def test_commands_are_listed_in_the_order_of_the_data(capsys):
    ddl("--help")
    listed = capsys.readouterr().out.split("Commands:\n")[1]
    assert [line.split()[0] for line in listed.splitlines()] == IN_ORDER
    assert "..." not in listed  # no summary is truncated
    ddl("study", "--help")
    assert [line.split()[0] for line in capsys.readouterr().out.split("Commands:\n")[1].splitlines()] == STUDY


@pytest.mark.parametrize("path", VISIBLE, ids=" ".join)
def test_help_explains_every_option_and_shows_what_is_required_and_what_is_the_default(path, capsys):
    ddl(*path, "--help")
    text = capsys.readouterr().out
    for option in find(path).params:
        if not isinstance(option, click.Option):
            continue
        assert option.help, option.name
        assert option.help.endswith("."), option.name
        assert f"{option.opts[0]} " in text
        with click.Context(find(path)) as context:
            default, extra = option.to_info_dict()["default"], option.get_help_extra(context)
        assert extra.get("required", "") == ("required" if option.required else "")
        assert default in (None, False, ()) or extra.get("default"), option.name


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("cost", "speed (tokens/s) and peak memory (bytes)"),
        ("evaluate", "the accuracy (%)"),
        ("validate", "the loss (nats)"),
        ("evaluate", "[default: (0,1)]"),
        ("generate", "Maximum number of tokens to generate. [default: 64; x>=1]"),
        ("generate", "the speed in tokens/s"),
        ("data", "Maximum number of training tokens"),
        ("data", "[default: (all cores); x>=1]"),
        ("train", "[default: 1; x>=1]"),
        ("study point", "[x>0; required]"),
    ],
)
def test_help_says_units_ranges_and_defaults(command, shown, capsys):
    ddl(*command.split(), "--help")
    assert shown in " ".join(capsys.readouterr().out.split())


RUN = "train --scale smoke --size small --variant ddl-cc --seed 0 --data d --out o"
POINT = "study point --scale smoke --size small --backbone paper --variant ddl-cc --steps 8 --seed 0 --data d --out o"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("study pont", "No such command 'pont'. Did you mean 'point'?"),
        ("describe --scal smoke", "No such option '--scal'. Did you mean '--scale'?"),
        ("describe --sc=smoke", "No such option '--sc'. Did you mean '--scale'?"),
        ("describe", "Missing option '--scale'."),
        ("describe --scale", "Option '--scale' requires an argument."),
        ("describe --scale smoke more", "Got unexpected extra argument (more)"),
        ("describe --scale lapdog", "scale: expected one of h200, laptop, paper, smoke, workstation, found 'lapdog'"),
        (
            "cost --scale smoke --size smal --out o",
            "Invalid value for '--size': 'smal' is not one of 'small', 'medium'.",
        ),
        ("cost --scale smoke --out o", "Missing option '--size'. Choose from: small, medium"),
        (f"{RUN} --seed -1", "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."),
        (f"{RUN} --seed 1.5", "Invalid value for '--seed': '1.5' is not a valid integer range."),
        (f"{RUN} --processes -2", "Invalid value for '--processes': -2 is not in the range x>=1."),
        (f"{RUN} --restart --continue-anyway", "--restart and --continue-anyway exclude each other."),
        (f"{POINT} --rate 1e-3 --restart --continue-anyway", "--restart and --continue-anyway exclude each other."),
        (f"{POINT} --rate 0", "Invalid value for '--rate': 0.0 is not in the range x>0."),
        (f"{POINT} --rate nan", "Invalid value for '--rate': nan is not a finite number."),
        (f"{POINT} --rate inf", "Invalid value for '--rate': inf is not a finite number."),
        ("data --scale smoke --out o --workers 0", "Invalid value for '--workers': 0 is not in the range x>=1."),
        (
            "data --scale smoke --out o --max-tokens -1",
            "Invalid value for '--max-tokens': -1 is not in the range x>=1.",
        ),
        (
            "data --scale smoke --out Makefile/data",
            "Invalid value for '--out': cannot create Makefile/data: Makefile is a file.",
        ),
        (
            "notebook n.py --html /dev/null/n.html",
            "Invalid value for '--html': cannot create /dev/null/n.html: /dev/null is a file.",
        ),
        pytest.param(
            "data --scale smoke --out /proc/data",
            "Invalid value for '--out': cannot write /proc/data: /proc takes no files: No such file or directory.",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
        ("generate --run . --prompt \udcff", "Invalid value for '--prompt': '\\udcff' is not UTF-8."),
        ("data --scale smoke --out Makefile", "Invalid value for '--out': Directory 'Makefile' is a file."),
        ("evaluate --run . --shots 0,-1", "Invalid value for '--shots': -1 is not in the range x>=0."),
        ("evaluate --run . --shots 0,one", "Invalid value for '--shots': 'one' is not a valid integer range."),
        ("numbers --results no", "Invalid value for '--results': Directory 'no' does not exist."),
        ("paper --results . --out tests", "Invalid value for '--out': File 'tests' is a directory."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    ddl(*arguments.split(), code=2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("a.yaml: key"), 2, "error: a.yaml: key\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "error: f: No space left on device\n"),
        (MemoryError(), 2, "error: out of memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 2, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_a_users_error_and_what_the_machine_refuses_is_one_line_and_an_interruption_none(
    raised, code, said, capsys, monkeypatch
):
    monkeypatch.setattr("ddl.model.flops.describe", fail(raised))
    ddl("describe", "--scale", "smoke", code=code)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "raised",
    [ZeroDivisionError(), ValueError(), OSError("disk"), FileNotFoundError(errno.ENOENT, "", "f"), EOFError()],
    ids=repr,
)
def test_any_other_exception_keeps_its_traceback(raised, monkeypatch):
    monkeypatch.setattr("ddl.model.flops.describe", fail(raised))
    with pytest.raises(BaseException) as stopped:  # noqa: PT011
        cli.main(["describe", "--scale", "smoke"])
    assert raised in (stopped.value, stopped.value.__cause__)


def fail(error: BaseException):
    def describe(scale, families):
        raise error

    return describe


def test_what_a_training_does_with_stale_checkpoints_and_its_end_reach_the_command(tmp_path, monkeypatch):
    asked = []

    class Run:
        def __init__(self, *settings, stale):
            asked.append(stale)

        def train(self):
            return len(asked) < 3

    monkeypatch.setattr("ddl.training.run.Run", Run)
    for flags, code in ((["--restart"], 0), (["--continue-anyway"], 0), ([], 130)):
        ddl(*RUN.split(), *flags, code=code)
    assert asked == ["restart", "continue", "refuse"]


@pytest.mark.parametrize("arguments", [RUN, f"{POINT} --rate 1e-3"])
def test_several_processes_fail_in_one_line_after_their_own(arguments, tmp_path):
    """torchrun runs the same command in each process, which here finds no data."""
    given = [sys.executable, "-m", "ddl", *arguments.split(), "--processes", "2", "--out", str(tmp_path / "o")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, env=environment)
    missing = "error: d/manifest.json: No such file or directory: `ddl data` creates it"
    lines = done.stderr.splitlines()
    assert re.fullmatch("error: process [01] of 2 ended with exit code 2", lines.pop())
    assert done.returncode == 2
    assert set(lines) == {missing}


def test_a_run_that_asks_for_gpus_is_refused_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    ddl("train", "--scale", "h200", *RUN.split()[3:], code=2)
    assert capsys.readouterr().err == (
        "error: training.gpus: 1 per run, but this machine has no GPU that PyTorch can use; set it to 0 to train on "
        "the CPU\n"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    ddl(*RUN.split(), "--processes", 2, code=2)
    assert capsys.readouterr().err == "error: 2 processes need a GPU each, found 1\n"


def test_help_and_mistakes_wait_for_no_library():
    """Slow imports happen in the commands, after their arguments have been checked."""
    code = (
        "import sys, ddl.cli\n"
        "for arguments in (['--help'], ['train', '--help'], ['describe', '--scale', 'lapdog'], ['generate', '--x']):\n"
        "    ddl.cli.main(arguments)\n"
        "slow = {'torch', 'transformers', 'numpy', 'pandas', 'lm_eval', 'datasets', 'matplotlib', 'snakemake'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_ddl_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ddl", "trian"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: No such command 'trian'. Did you mean 'train'?\n")
