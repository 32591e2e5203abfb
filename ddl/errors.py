"""The base of every error that a user can put right."""


class UserError(ValueError):
    """A mistake of the user's: the message is one line that names the file or key, what was found and what fits.

    The command line prints it and ends with code 2; any other exception keeps its traceback.
    """
