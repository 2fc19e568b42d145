"""The command line: ``jacobian-lab COMMAND …``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jacobian_lab.cli.catalog import COMMANDS, OLD, PROGRAM, Command, overview
from jacobian_lab.errors import InputError, first_line

USABLE = "files that can be read and written"
"""State of the file system that every command expects."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, with the arguments of the process by default."""
    guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def script(name: str) -> None:
    """Run a script in ``analyses/`` with the arguments of the process."""
    guarded(lambda: _run_script(name, sys.argv[1:], f"{name}.py"))


def _main(words: list[str]) -> None:
    if not words or words[0] in {"-h", "--help", "--help-all"}:
        say(overview())
    elif words[0] == "--version":
        from jacobian_lab import __version__

        say(f"{PROGRAM} {__version__}")
    else:
        _dispatch(*words)


def _dispatch(name: str, *words: str) -> None:
    old = OLD.get(name)
    if old is not None and old.script:
        _run_script(old.script, words, f"{PROGRAM} {name}")
    else:
        current = name if old is None else old.new
        if current not in COMMANDS:
            raise InputError(f"expected a command of {', '.join(COMMANDS)}, got {name!r}: see {PROGRAM} --help")
        _run_command(COMMANDS[current], words, f"{PROGRAM} {current}")
    if old is not None:
        _tell(f"{name} is now called {PROGRAM} {old.new}")


def _run_command(command: Command, words: Sequence[str], program: str) -> None:
    examples = "\n".join(f"  {PROGRAM} {example}" for example in command.examples)
    _run(command.load(), f"{command.summary}\n\nExamples:\n{examples}", words, program)


def _run_script(name: str, words: Sequence[str], program: str) -> None:
    from jacobian_lab.cli.jobs import SCRIPTS

    _run(*SCRIPTS[name], words=words, program=program)


def _run(command: Any, description: str, words: Sequence[str], program: str) -> None:
    """Run a command, given as its class or with its defaults; say last what has another name now."""
    from jacobian_lab.cli.parsing import parse

    words, renamed = command.modern(words)
    parse(command, words, program, description).run()
    for line in renamed:
        _tell(line)


def guarded(command: Callable[[], Any]) -> None:
    """Run a command; bad input and lack of memory end it with a line and status 2, an interruption with status 130."""
    try:
        command()
    except InputError as error:
        _fail(error.by_option())
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(1)
    except OSError as error:  # a disk that is full, rights that changed under way, a host that is gone
        expected = "hosts that answer" if isinstance(error, ConnectionError | TimeoutError) else USABLE
        _fail(f"expected {expected}, got {first_line(error)}: mend that")
    except (MemoryError, RuntimeError) as error:
        from jacobian_lab.memory import out_of_memory

        if not out_of_memory(error):
            raise
        _fail(
            f"expected memory for all that is computed side by side, got too little ({first_line(error)}): give a "
            "smaller --anchors-per-batch or --corpus-length, shorter or fewer facts, --dtype bfloat16, or another "
            "device or host; what is finished is kept, and the same command goes on from there"
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{PROGRAM}: interrupted; the same command goes on where it stopped\n")
        sys.exit(130)


def _fail(text: str) -> None:
    _tell(text)
    sys.exit(2)


def _tell(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")


def say(text: str) -> None:
    """Print."""
    sys.stdout.write(text + "\n")
