"""The command line, in this process."""

from ddl.cli import main


def ddl(*arguments: object, code: int = 0) -> None:
    """Run `ddl *arguments` and check the exit code; what it prints is in pytest's `capsys`."""
    assert main([str(argument) for argument in arguments]) == code
