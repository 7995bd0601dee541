"""Plotly figures as inert JSON beside the element that a script draws them into."""

import json

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from diffing.html.cells import words
from diffing.report import Figure


def figure_section(name: str, figure: Figure) -> Markup:
    return Markup(
        '<figure id="figure-{0}"><h3>{1}</h3><div class="plot" role="img" aria-label="{2}"></div>'
        '<script type="application/json">{3}</script><figcaption>{2}</figcaption></figure>'
    ).format(name, words(name), figure.about, inert_json(figure.plotly))


def inert_json(value: object) -> Markup:
    """JSON that can stand inside of a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def plotly_script() -> Markup:
    return Markup(get_plotlyjs())
