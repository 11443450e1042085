"""SVG of matplotlib made fit for pages: their colours and font, and values that show where a point is pointed at."""

import json
import math
import re
from collections.abc import Iterable
from xml.etree import ElementTree

# Of a line, and of two lines in each panel of a figure: so many marks show a value, evenly chosen, to keep pages small.
MARKS, MARKS_OF_FIGURE = 100, 3000
NAMESPACE, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
ROOT = {"xmlns": NAMESPACE, "fill": "currentColor", "stroke-linejoin": "round", "font-family": "system-ui, sans-serif"}
DROPPED = ("metadata", "style")  # the second holds for the whole page; ROOT has what it sets


def show_values(axis, x: Iterable[float], y: Iterable[float], texts: Iterable[str], shade: str) -> None:
    """Give points of an axis a text that a page shows where they are pointed at; points without a number have none."""
    points = [point for point in zip(x, y, texts, strict=True) if math.isfinite(point[1])]
    most = min(MARKS, max(1, MARKS_OF_FIGURE // (2 * len(axis.figure.axes))))
    if chosen := points[:: math.ceil(len(points) / most) or 1]:
        xs, ys, shown = zip(*chosen, strict=True)
        look = {"markersize": 10, "markeredgewidth": 0, "color": shade, "alpha": 0, "zorder": 10}
        axis.plot(xs, ys, "o", gid=json.dumps(shown), **look)


def fit_for_pages(svg: str, colours: Iterable[str]) -> str:
    """Return an SVG that may stand within a page.

    Colours become CSS variables, --c0 for the first of `colours`, with themselves where the page sets none; what is
    black has the colour of text. Fonts are the page's. Of ids only those remain that something refers to.
    """
    variables = {"#000000": "currentColor", "#ffffff": "var(--page, #ffffff)"}
    variables |= {shade: f"var(--c{i}, {shade})" for i, shade in enumerate(colours)}
    referenced = {*re.findall(r"#([\w-]+)", svg)}
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in [child for child in element if child.tag.rpartition("}")[2] in DROPPED]:
            element.remove(child)
    for element in [*root.iter()]:
        for name in {"d", "x", "y"} & element.attrib.keys():  # in points, of which a hundredth cannot be seen
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(element.attrib[name].split())))
        element.text, element.tail = ((text or "").strip("\n ") or None for text in (element.text, element.tail))
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        if "style" in element.attrib:
            style = re.sub(r"font-family: [^;]*(; )?", "", element.attrib["style"])
            element.set("style", re.sub("#[0-9a-f]{6}", lambda shade: variables.get(shade[0], shade[0]), style))
    for element in [*root.iter()]:
        if element.get("id") not in referenced:
            add_values(element, element.attrib.pop("id", ""))
    root.attrib |= {**ROOT, "style": f"--width: {root.get('width', '').removesuffix('pt')}px"}
    return ElementTree.tostring(root, encoding="unicode")


def add_values(group: ElementTree.Element, texts: str) -> None:
    """Turn the id that `show_values` gave to a group of marks into a title of each mark."""
    marks = [*group.iter("use")] if texts.startswith("[") else []
    if marks:
        group.attrib |= {"class": "values", "fill-opacity": "0", "style": marks[0].attrib["style"].split(";")[0]}
    shown = json.loads(texts) if marks else []
    if len(marks) == len(shown):  # else some lie outside the figure, and it is not known which
        for mark, text in zip(marks, shown, strict=True):
            del mark.attrib["style"]
            ElementTree.SubElement(mark, "title").text = text
