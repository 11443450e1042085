"""How every command ends: status 0, or one clear line and status 2; and parsers of numbers."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return str(error).split("\n")[0] or type(error).__name__


def positive(text: str) -> int:
    """Parse a count of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def within(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of numbers from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return float(text)

    return number


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a module's `main` and leave with its status.

    ValueError and OSError are wrong use or a full disk: their first line goes to stderr, and the status is 2. So is
    an interrupt's: every file is written aside and renamed, so there is nothing to clean up.
    """
    name = sys.modules["__main__"].__spec__.name
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        message = "interrupted; run the same command again"
    except (ValueError, OSError) as error:
        message = first_line(error)
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)
