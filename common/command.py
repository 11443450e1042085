"""How every command ends: exit status 0, or one clear line and exit status 2 or 1; and parsers of arguments."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Failure(Exception):
    """A run or a check failed, through no wrong use: exit status 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type without one."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def positive(text: str) -> int:
    """Parse a count of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def size(text: str) -> int:
    """Parse a count of at least 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def within(low: float, high: float) -> Callable[[str], float]:
    """Make a parser of numbers from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return float(text)

    return number


def settings(kind: Any, args: argparse.Namespace) -> Any:
    """Make a data class of the arguments that are named like its fields."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a module's `main` and exit with its status.

    ValueError and OSError are wrong use or a full disk: their first line goes to stderr, exit status 2. So does an
    interrupt: every file is written atomically, so there is nothing to clean up. Failure is exit status 1.
    """
    name = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0]).removesuffix(".__main__")
    status = 2
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        message = "interrupted; run the same command again"
    except Failure as error:
        message, status = str(error), 1
    except IsADirectoryError as error:
        message = f"{error.filename2 or error.filename}: is a folder, and a file belongs there; move it away"
    except (ValueError, OSError) as error:
        message = first_line(error)
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(status)


def name(text: str) -> str:
    """Parse a text that is not empty, as that of an unset shell variable is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a value, or leave the option out")
    return text


def path(text: str) -> Path:
    """Parse a path; an empty one would be the current folder."""
    return Path(name(text))
