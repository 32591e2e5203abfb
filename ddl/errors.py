"""The base class of errors that a user can fix."""


class UserError(ValueError):
    """A user's mistake. The message is one line that names the file or key, what was expected and what was found.

    The command line prints the message and exits with code 2. Any other exception keeps its traceback.
    """
