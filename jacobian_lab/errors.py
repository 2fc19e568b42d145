"""The one exception that speaks to the user."""


class InputError(ValueError):
    """What was given cannot be used.

    The message says what was expected, what was got and what to do, in one line, whatever it
    quotes. The command line prints it as it is and exits with status 2.

    Args:
        message: The message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
