"""The one exception that speaks to the user, and how others are quoted in it."""

import re
from collections.abc import Callable

_FIELD = re.compile(r"⟨([a-z0-9_.]+)⟩")
"""How a message names a setting, so that the command line can make an option of it."""


class InputError(ValueError):
    """Input that cannot be used.

    The message says what was expected, what was got and what to do, in one line, whatever it
    quotes. Settings stand in it as ``⟨anchor.lr⟩``; as text they are called by their field's name, and the
    command line, which exits with status 2, calls them by their option.

    Args:
        message: The message.

    Examples:
        >>> import jacobian_lab as jl
        >>> try:
        ...     jl.load_facts("builtin", "5:2")
        ... except jl.InputError as error:
        ...     print(error)
        expected a slice A:B with 0 <= A < B <= 274 (the number of facts), got '5:2': choose one inside the file
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(_named(self.message, str))

    def by_option(self) -> str:
        """The message as the command line prints it.

        Returns:
            One line, with ``--anchor.lr`` for ``anchor.lr``.
        """
        return _named(self.message, lambda field: "--" + field.replace("_", "-"))


def _named(message: str, name: Callable[[str], str]) -> str:
    return _FIELD.sub(lambda match: name(match[1]), message)


def first_line(error: BaseException) -> str:
    """Quote an exception in short.

    Args:
        error: The exception.

    Returns:
        The first line of its text, 200 characters at most; its kind if it says nothing.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
