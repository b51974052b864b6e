"""A matplotlib figure as SVG inside an HTML page: small, with the page's colours, and free of addresses."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

from partwise.experiment.drawing import COLOURS, GRID, INK, LINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

# The page decides what these look like, on light and on dark paper.
_VARIABLES = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    GRID: "var(--grid)",
    "#ffffff": "var(--paper)",
    **{colour: f"var(--run-{at})" for at, colour in enumerate(COLOURS)},
}
_NOT_SVG = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
_STYLE = re.compile(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", re.DOTALL)  # would reach the whole page
_ROOT = re.compile(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_GROUP_ID = re.compile(r"<g id=\"[^\"]*\"")
_ID = re.compile(r"(\bid=\"|url\(#|href=\"#)")
_FONT = re.compile(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*|font-family: [^;\"]*;? ?")
_UNROTATED = re.compile(r" transform=\"rotate\(-?0 [^)]*\)\"")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: in the looks of `plots`.
        name: letters and digits that no other figure of the page has.
        description: what it shows, for those who cannot see it.
    """
    import matplotlib as mpl

    file = io.StringIO()
    how: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "partwise", "path.simplify_threshold": 0.2}
    with mpl.rc_context(how), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from", UserWarning
        )  # the page has more fonts than matplotlib
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = _NOT_SVG.sub("", file.getvalue())
    text = _STYLE.sub("", text).replace("xlink:href", "href")
    text = _GROUP_ID.sub("<g", text)
    text = _ID.sub(rf"\g<1>{name}-", text)
    text = _UNROTATED.sub("", _FONT.sub(_font_size, text))
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    label = escape(description, quote=True)
    text = _ROOT.sub(rf'<svg viewBox="\1" role="img" aria-label="{_literal(label)}">', text, count=1)
    return re.sub(r"\n\s*", "\n", text).strip()


def _font_size(found: re.Match[str]) -> str:
    """The size alone; the page has a font."""
    return f"font-size: {found[2]}px" if found[2] else ""


def _literal(text: str) -> str:
    """The text as a replacement in which nothing stands for a group."""
    return text.replace("\\", r"\\")
