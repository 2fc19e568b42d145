"""Silence while transformers loads."""

import io
from contextlib import redirect_stderr

from transformers.utils import logging as transformers_logging


class Quiet:
    """Silence transformers' progress bars and advice while it loads; some bars heed no setting."""

    def __enter__(self) -> None:
        self.redirection = redirect_stderr(io.StringIO())
        self.redirection.__enter__()
        self.level = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
        if self.bars:
            transformers_logging.enable_progress_bar()
        self.redirection.__exit__(None, None, None)
