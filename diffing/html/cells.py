"""How single values are written: numbers to four significant digits, strings with their white space made visible.

Everything here returns `Markup`: `Markup.format` escapes what it is given unless that is `Markup` itself, so a string
from a report cannot become an element anywhere in the page.
"""

import json
import math
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from markupsafe import Markup

_DASH = "\N{EN DASH}"
MISSING = Markup('<span class="missing">{}</span>').format(_DASH)
_ACRONYMS = {"kl", "pca", "sae", "cka", "l0", "l1", "l2"}
_LONG_LIST = 12
_SHORT_TEXT = 60
_MARKED = {" ": "sp", "\n": "nl", "\t": "tab"}
_UNSEEN = re.compile("[\\s\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def number(value: int | float | np.number) -> str:
    """Four significant digits, exponents only for what is tiny or huge. Integers are in full, as they may be ids."""
    if isinstance(value, int | np.integer):
        return str(value)
    value = float(value)
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return _DASH if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if 1e3 <= abs(value) < 1e7 or (value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def visible(text: str, spaces: bool = True) -> Markup:
    """`text` with marks where it has white space, and `\\u200b`-like escapes for characters that cannot be seen.

    The marks are drawn by the style sheet around the real character, so that searching and copying give the exact
    string. `spaces=False` leaves plain spaces as they are, which suits running text.
    """
    if not text:
        return Markup('<span class="missing">empty</span>')
    pieces, start = [], 0
    for match in _UNSEEN.finditer(text):
        pieces += [Markup.escape(text[start : match.start()]), _mark(match[0], spaces)]
        start = match.end()
    return Markup("").join([*pieces, Markup.escape(text[start:])])


def _mark(character: str, spaces: bool) -> Markup:
    if character == " " and not spaces:
        return Markup(" ")
    if character in _MARKED:
        return Markup('<span class="ws {}">{}</span>').format(_MARKED[character], character)
    return Markup('<span class="esc">{}</span>').format(json.dumps(character)[1:-1].replace("\x7f", "\\u007f"))


def is_missing(value: object) -> bool:
    """None, NaN, NaT or NA; never a list, whatever it holds."""
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))


def plain(value: object) -> str:
    """One line of text for a value: for labels, tooltips and cells."""
    if is_missing(value):
        return _DASH
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | float | np.number):
        return number(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        shown = ", ".join(plain(item) for item in value[:_LONG_LIST])
        return f"[{shown}, … {len(value)} in all]" if len(value) > _LONG_LIST else f"[{shown}]"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def label(value: object) -> Markup:
    """A value as a heading or caption: short strings with visible white space at their ends, long ones as they are."""
    if is_missing(value):
        return MISSING
    if isinstance(value, str) and (not value or (value != value.strip() and len(value) <= _SHORT_TEXT)):
        return visible(value)
    return Markup.escape(plain(value))


def words(name: str) -> str:
    """A lower_snake_case name as words, acronyms in capitals."""
    return " ".join(part.upper() if part in _ACRONYMS else part for part in name.split("_"))


def cell(value: object, exact: bool = False, numeric: bool = False) -> Markup:
    """A table cell. Numbers carry their full value for sorting; `exact` marks white space (a token).

    `numeric` says that the column is, which matters where a value is missing.
    """
    if is_missing(value):
        return Markup("<td{}>{}</td>").format(Markup(' class="n"') if numeric else "", MISSING)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        full, shown = repr(value.item() if isinstance(value, np.number) else value), number(value)
        title = Markup(' title="{}"').format(full) if full != shown else ""
        return Markup('<td class="n" data-v="{}"{}>{}</td>').format(full, title, shown)
    if isinstance(value, str):
        if exact and len(value) <= _SHORT_TEXT:
            return Markup('<td class="tok">{}</td>').format(visible(value))
        return Markup("<td>{}</td>").format(label(value) if len(value) <= _SHORT_TEXT else _clamped(value))
    text = plain(value)
    return Markup("<td>{}</td>").format(text if len(text) <= _SHORT_TEXT else _clamped(text))


def _clamped(text: str) -> Markup:
    return Markup('<div class="long">{}</div>').format(visible(text, spaces=False))
