"""The one exception that speaks to the user."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line: what was expected, what was got, what to do. The command line prints
    it as it is and exits with status 2.
    """
