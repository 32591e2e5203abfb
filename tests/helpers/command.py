"""Run the command line in this process."""

from ddl.cli import main


def ddl(*arguments: object, code: int = 0) -> None:
    """Run `ddl *arguments` and check the exit code; pytest's `capsys` captures the output."""
    assert main([str(argument) for argument in arguments]) == code
