"""Tables of values as Markdown, and Markdown as one HTML page."""

import argparse
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markdown_it
import pandas as pd
from markupsafe import Markup

from common.command import path
from common.figures import file_name
from common.files import write_text
from common.markdown import escaped, percent
from common.svg import NAMESPACE

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
    trim_blocks=True,
    lstrip_blocks=True,
)
MADE = "## How it was made"  # the last section of a page; a file without it is another's

Format = str | Callable[[Any], str]


def listed(names: Iterable[str]) -> str:
    """Join names as "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def counted(verdicts: Iterable[str]) -> str:
    """Count verdicts as "2 better, 1 cannot be told apart"; "unclear" is the latter."""
    words = Counter("cannot be told apart" if word == "unclear" else word for word in verdicts)
    return ", ".join(f"{number} {word}" for word, number in words.items())


def interval_cell(value: float, bounds: tuple[float, float], *_) -> dict[str, float]:
    """Return what report.json has of a fraction with its interval."""
    return {"value": value, "low": bounds[0], "high": bounds[1]}


class Table(NamedTuple):
    """Rows of values, as report.json has them, and how columns show theirs: a format, or a function; else percent."""

    rows: list[dict[str, Any]]
    formats: dict[str, Format] = {}  # noqa: RUF012

    def markdown(self) -> str:
        """Format the table, with columns of numbers set to the right, and a name that repeats shown once."""
        values = pd.DataFrame(self.rows, dtype=object)
        shown = values.apply(lambda column: [self._text(column.name, value) for value in column])
        first = shown.columns[0]
        shown[first] = shown[first].mask(shown[first].duplicated(), "")
        is_text = values.apply(lambda column: column.map(lambda value: isinstance(value, str)).all())
        marks = ["---" if text else "---:" for text in is_text]
        lines = [[escaped(column) for column in shown], marks, *shown.to_numpy().tolist()]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def _text(self, column: str, value: Any) -> str:
        form = self.formats.get(column, percent)
        if value is None or isinstance(value, str):
            return "-" if value is None else escaped(value)
        return form(value) if callable(form) else format(value, form)


TEMPLATES.filters |= {"table": Table.markdown, "listed": listed, "escaped": escaped}


def render_markdown(template: str, **context) -> str:
    text = TEMPLATES.get_template(template).render(**context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def page_path(text: str) -> Path:
    """Parse the name of a page of the documents: a Markdown file that is not there, or that a report was written to."""
    page = path(text)
    if page.suffix != ".md" or (page.exists() and MADE not in page.read_text(encoding="utf-8", errors="replace")):
        raise argparse.ArgumentTypeError(f"{page}: not a .md file, or not written by eval.report; give another file")
    return page


def write_page(page: Path, text: str, folder: Path) -> None:
    """Write a report of `folder` as a page of the documents, with its figures beside it under the page's name.

    A paragraph with a link to another page of the report is left out.
    """
    page.parent.mkdir(parents=True, exist_ok=True)

    def copied(match: re.Match) -> str:
        name = f"{file_name(page.stem)}_{match[2]}"
        shutil.copyfile(folder / match[2], page.with_name(name))
        return f"{match[1]}({name})"

    text = re.sub(r"^\[.*\]\([\w.-]+\.html\).*\n\n", "", text, flags=re.M)
    # A response that is shown is indented: what it links to is left alone.
    write_text(page, re.sub(r"^(!\[.*\])\(([\w.-]+\.png)\)$", copied, text, flags=re.M))


def render_page(title: str, text: str, folder: Path, samples: bool = False) -> str:
    """Turn a Markdown report into one HTML page, with its contents and the figures that it names in `folder` inside.

    Args:
        samples: whether `samples.html` lies beside it.
    """
    contents: dict[str, str] = {}

    def inlined(match: re.Match) -> str:
        drawn = (folder / match[1]).with_suffix(".svg").read_text(encoding="utf-8").replace(f' xmlns="{NAMESPACE}"', "")
        labelled = drawn.replace("<svg", f'<svg role="img" aria-label="{match[2]}"', 1)
        return f'<figure tabindex="0">{labelled}</figure>'

    def anchored(match: re.Match) -> str:
        shown = Markup(match[1]).striptags()
        anchor = re.sub(r"\W+", "-", shown.lower()).strip("-")
        while anchor in contents:
            anchor += "-2"
        contents[anchor] = shown
        return f'<h2 id="{anchor}">{match[1]}</h2>'

    body = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<p><img src="([\w.-]+\.png)" alt="([^"]*)" /></p>', inlined, body)
    body = re.sub("<h2>(.*)</h2>", anchored, body)
    body = body.replace('style="text-align:right"', 'class="number"')
    body = re.sub('(?<=<td class="number">)[^<]+', lambda cell: cell[0].replace(", ", ",&nbsp;"), body)
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    links = {f"#{anchor}": shown for anchor, shown in contents.items()}
    links |= {"samples.html": "Samples side by side"} if samples else {}
    return TEMPLATES.get_template("page.html.j2").render(title=title, body=Markup(body), links=links)
