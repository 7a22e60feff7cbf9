"""Panels as figures for print: PNG, SVG and PDF of the page's own pictures, in its light colours.

Widths are those of one column or of the whole page of a paper. ``vl-convert`` (resvg) turns SVG into the other formats
with fonts of its own, so a figure looks alike on every machine.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jaxablate import files
from jaxablate.reports import html, svg
from jaxablate.reports.panels import Bars, Curves, Panel

COLUMN, PAGE = 3.4, 7.0
"""Width in inches of one column, and of the page, of a paper."""
TALLEST = 8.6
"""Inches; a higher picture is made narrower."""
UNITS = 900 / PAGE
"""Units of a picture to an inch: letters of 11 units are of 6 points."""
DPI = 300
"""Dots an inch of PNG files."""
FORMATS = ("png", "svg", "pdf")


def write_figure(panel: Panel, path_without_suffix: str | os.PathLike[str], formats: Sequence[str] = ("png", "svg")
                 ) -> list[Path]:
    """Draws a panel and writes it, one file for each format of `FORMATS`; the folder is made. Returns the files.

    Raises:
      FileError: a file cannot be written; each is there whole or not at all.
      ValueError: an unknown format, or a panel that is no picture.
    """
    base = Path(path_without_suffix)
    return [files.write(base.with_name(f"{base.name}.{suffix}"), content)
            for suffix, content in figure_bytes(panel, formats).items()]


def figure_bytes(panel: Panel, formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Content of the files that `write_figure` writes, by format.

    SVG and PNG are the same bytes for the same panel; the objects of a PDF come in another order each time.
    """
    import vl_convert

    picture = standalone(panel)
    writers = {"svg": lambda: picture.encode(), "png": lambda: vl_convert.svg_to_png(picture, ppi=DPI * 72 / 96),
               "pdf": lambda: vl_convert.svg_to_pdf(picture)}
    unknown = [f for f in formats if f not in writers]
    if unknown:
        raise ValueError(f"figure format {unknown[0]!r} is none of {', '.join(FORMATS)}")
    return {suffix: writers[suffix]() for suffix in formats}


def standalone(panel: Panel) -> str:
    """A panel as an SVG document that carries its style, as wide as a column or the page of a paper.

    Raises:
      ValueError: the panel is no picture.
    """
    column = round(COLUMN * UNITS)
    if isinstance(panel, Curves):
        drawing = svg.curves(panel, width=column)
    elif isinstance(panel, Bars) and max((len(bar.label) for bar in panel.bars), default=0) <= 16:
        drawing = svg.bars(panel, width=column)
    else:
        drawing = html.draw(panel)
    head = re.match(r'<svg(?: class="circuit")? viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', drawing)
    if head is None:
        raise ValueError(f"a panel of kind {panel.kind!r} is no picture")
    width, height = float(head[1]), float(head[2])
    inches = min(COLUMN if width < 1.1 * column else PAGE, TALLEST * width / height)
    root = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{inches:.3f}in" '
            f'height="{inches * height / width:.3f}in">')
    return f'{root}<style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{drawing[head.end():]}'


@functools.cache
def _style() -> str:
    """The rules of the page's style that are of pictures, in light colours, for programs that know no variables."""
    page = html.template("style.html").render()
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", page.split("@media")[0]))
    rules = [rule for rule in re.findall(r"svg[^{}]*\{[^{}]*\}", page)
             if not re.search(r":hover|:focus|\.some|\.on\b|inherit", rule)]
    style = re.sub(r"var\(--([\w-]+)\)", lambda name: colours[name[1]], " ".join(rules))
    return f'svg {{ font-family: "DejaVu Sans", "Liberation Sans", sans-serif; }} {style}'
