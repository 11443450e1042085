"""Text and fractions within Markdown."""

import re

# Brackets alone are text: only before another bracket do they make a link.
SPECIAL = re.compile(r"[\\`*<&|~$]|(?<=\])[(\[]|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: object) -> str:
    """Return a name or a path as it stands, in a paragraph, a heading or a table's cell."""
    return SPECIAL.sub(r"\\\g<0>", str(text))


def percent(value: float | dict, sign: str = "") -> str:
    """Format a fraction as "41.2", or one with its interval as "41.2 [38.0, 44.5]"."""
    fractions = value.values() if isinstance(value, dict) else (value,)
    middle, *ends = (round(100 * fraction, 1) + 0.0 for fraction in fractions)  # + 0.0: no "-0.0"
    return f"{middle:{sign}.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def signed_percent(value: dict) -> str:
    return percent(value, sign="+")
