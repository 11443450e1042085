"""Text within Markdown."""

import re

# Brackets alone are text: only before another bracket do they make a link.
SPECIAL = re.compile(r"[\\`*<&|~$]|(?<=\])[(\[]|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: object) -> str:
    """Return a name or a path as it stands, in a paragraph, a heading or a table's cell."""
    return SPECIAL.sub(r"\\\g<0>", str(text))
