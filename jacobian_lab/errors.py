"""The one exception that speaks to the user, and how others are quoted in it."""


class InputError(ValueError):
    """What was given cannot be used.

    The message says what was expected, what was got and what to do, in one line, whatever it
    quotes. The command line prints it as it is and exits with status 2.

    Args:
        message: The message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException) -> str:
    """What an exception says, in short.

    Args:
        error: The exception.

    Returns:
        The first line of its text, 200 characters at most; its kind if it says nothing.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
