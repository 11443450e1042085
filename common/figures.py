"""Figures of panels, two in a row, as wide as a page's text, so that they can be read on a phone."""

import io
import re
from pathlib import Path

from common.files import atomic, digest, write_text
from common.svg import fit_for_pages

WIDTH, PANEL = 6.4, 2.0  # inches: of a figure, and a panel's height
COLOURS = ("#1f6f8b", "#b5483a", "#5b8c3e", "#7a5195", "#c17f1b", "#4a4e57", "#2a9d8f", "#d1679b")
LOOK = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def label(name: str) -> str:
    """Return a name as matplotlib shows it in a legend: as text, and also where it begins with "_"."""
    return (" " * name.startswith("_") + name).replace("$", r"\$")


def file_name(name: str) -> str:
    """Return a name, at most 100 characters of it, for figures' files that links can hold; different of each name."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[-100:]
    return safe if safe == name else f"{safe}-{digest([name])}"


def panels(count: int, height: float = PANEL, columns: int = 2, width: float = WIDTH, **options):
    """Make a figure and as many axes; `options` are pyplot's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(LOOK)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height * rows), layout="constrained", squeeze=False, **options
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def save(figure, path: Path, legend=None) -> None:
    """Write a figure as PNG and, for pages, as SVG; above all panels stands the legend of the axis `legend`."""
    from matplotlib import pyplot

    if legend:
        lines, names = legend.get_legend_handles_labels()
        across = max(1, 80 // (8 + max(map(len, names))))  # as many as fit
        figure.legend(lines, names, loc="outside upper left", ncols=across, frameon=False, handlelength=1.6)
    with atomic(path) as aside:
        figure.savefig(aside, dpi=200, format="png")
    drawn = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):  # ids are the same each time
        figure.savefig(drawn, dpi=200, format="svg", transparent=True)
    write_text(path.with_suffix(".svg"), fit_for_pages(drawn.getvalue(), COLOURS))
    pyplot.close(figure)
