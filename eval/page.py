"""How a report is written down: cells that are text and number at once, Markdown, one HTML page, and a JSON."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from common.files import write_text

STYLE = Path(__file__).with_name("page.css")
HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'


class Cell(NamedTuple):
    """What a table shows, and what report.json has of it."""

    text: str
    value: Any


def number(value: float | None, form: str = ",.0f") -> Cell:
    """Return a number formatted; "-" for None."""
    return Cell("-" if value is None else format(value, form), value)


def percent(share: float | None, bounds: tuple[float, float] | None = None, signed: bool = False) -> Cell:
    """Return "41.2 [38.0, 44.5]" of a share (0 to 1) and its interval, which report.json has as shares."""
    if share is None:
        return Cell("-", None)
    value, *ends = (round(100 * number, 1) + 0.0 for number in (share, *(bounds or ())))  # + 0.0: no "-0.0"
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    if bounds is None:
        return Cell(text, share)
    return Cell(f"{text} [{ends[0]:.1f}, {ends[1]:.1f}]", {"value": share, "low": bounds[0], "high": bounds[1]})


class Report:
    """A report as it grows: Markdown, the numbers of its tables, and its pictures beside it."""

    def __init__(self, title: str, folder: Path):
        self.title, self.folder = title, folder
        self.parts = [f"# {title}"]
        self.numbers: dict[str, Any] = {"title": title, "units": "shares are 0 to 1; lengths are tokens", "tables": {}}

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs of Markdown."""
        self.parts += paragraphs

    def table(self, name: str, rows: list[list[Cell | str]]) -> None:
        """Add rows, the header first, under a name in report.json."""
        header, *body = [[cell if isinstance(cell, Cell) else Cell(cell, cell) for cell in row] for row in rows]
        lines = [[cell.text.replace("|", r"\|") for cell in row] for row in (header, *body)]
        for i in range(len(lines) - 1, 0, -1):
            if lines[i][0] == lines[i - 1][0]:
                lines[i][0] = ""
        # A column of numbers is set to the right.
        marks = ["---" if all(isinstance(row[i].value, str) for row in body) else "---:" for i in range(len(header))]
        self.parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], marks, *lines[1:]]))
        names = [cell.text for cell in header]
        self.numbers["tables"][name] = [dict(zip(names, (c.value for c in row), strict=True)) for row in body]

    def picture(self, name: str, description: str) -> Path:
        """Add a picture; return the path in the report's folder where it belongs."""
        self.parts.append(f"![{description}]({name})")
        return self.folder / name

    def write(self) -> None:
        """Write report.md, report.html (one file, its pictures inside) and report.json, each whole."""
        text = "\n\n".join(self.parts) + "\n"
        write_text(self.folder / "report.md", text)
        write_text(self.folder / "report.html", as_html(self.title, text, self.folder))
        write_text(self.folder / "report.json", json.dumps(self.numbers, indent=1, allow_nan=False) + "\n")


def as_html(title: str, text: str, folder: Path) -> str:
    """Return a Markdown report as one HTML page, the pictures that it names in `folder` inside."""
    import markdown_it

    def inlined(match: re.Match) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{match[2]}"></figure>'

    body = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<p><img src="([\w.-]+\.png)" alt="([^"]*)" /></p>', inlined, body)
    body = body.replace('style="text-align:right"', 'class="number"')
    body = re.sub('(?<=<td class="number">)[^<]+', lambda cell: cell[0].replace(", ", ",&nbsp;"), body)
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    head = f"<head>{HEAD}<title>{html.escape(title)}</title><style>{STYLE.read_text()}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>\n{body}</body></html>\n'
