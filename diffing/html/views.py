"""The three drawings that a table may ask for: token clouds, texts side by side, and token windows in colour."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from markupsafe import Markup

from diffing.errors import SchemaMismatch
from diffing.html.cells import MISSING, is_missing, number, plain, visible, words
from diffing.html.layout import grid, layout_of, panels, within
from diffing.report import View

MOST_TOKENS = 8_000
"""Tokens drawn in the clouds of one table."""
MOST_SAMPLES = 600
MOST_WINDOW_TOKENS = 24_000
_SHORT = 40


def view_of(name: str, frame: pd.DataFrame, view: View) -> Markup:
    """What `view` asks for, with a notice if not all of it is drawn. `frame` has a default index."""
    draw = {"tokens": _tokens, "samples": _samples, "heat": _heat}[view.kind]
    drawn, shown = draw(name, frame, view)
    return drawn + notice(len(shown), len(frame), "drawn above; the rest is in the stored table")


def notice(shown: int, total: int, where: str) -> Markup:
    if shown == total:
        return Markup("")
    return Markup('<p class="note">{:,} of {:,} rows {} ({:,} hidden).</p>').format(shown, total, where, total - shown)


def _others(frame: pd.DataFrame, view: View, used: Sequence[str]) -> list[str]:
    """Columns that the drawing does not show by itself and that fit on a line."""
    return [
        str(name)
        for name in frame.columns
        if name not in (*used, view.item) and not frame[name].map(lambda v: len(plain(v)) > _SHORT).any()
    ]


def _telling(frame: pd.DataFrame, others: Sequence[str], view: View) -> list[str]:
    """Those of `others` that differ between rows, and not just because the rows stand in different columns."""
    told = frame[list(others)].map(plain)
    if view.compare is not None:
        return [name for name in others if told[name].groupby(frame[view.compare], dropna=False).nunique().max() > 1]
    return [name for name in others if told[name].nunique() > 1]


def _tokens(name: str, frame: pd.DataFrame, view: View) -> tuple[Markup, pd.DataFrame]:
    layout = layout_of(view, frame)
    frame = within(frame, layout, pd.Series(1, frame.index), MOST_TOKENS)
    others = _others(frame, view, layout.used)

    def panel(rows: pd.DataFrame) -> Markup:
        largest = float(_weights(rows, view).max()) if view.weight else 1.0
        return grid(rows, layout, partial(_cloud, view=view, others=others, largest=largest))

    caption = Markup("")
    if view.weight:
        caption = Markup('<p class="key">Area and colour: {}, to one scale within what is shown.</p>').format(
            words(view.weight)
        )
    return panels(name, frame, layout, panel) + caption, frame


def _weights(frame: pd.DataFrame, view: View) -> "pd.Series[float]":
    return pd.to_numeric(frame[view.weight]).abs().astype(float).fillna(0.0)


def _cloud(frame: pd.DataFrame, view: View, others: Sequence[str], largest: float) -> Markup:
    """Font size goes with the square root of the weight, so that area goes with the weight."""
    weights = _weights(frame, view).tolist() if view.weight else [largest] * len(frame)
    signed = pd.to_numeric(frame[view.weight]).tolist() if view.weight else weights
    tips = [_facts(row) for row in frame[list(others)].to_dict("records")]
    return Markup('<ul class="cloud">{}</ul>').format(
        Markup("").join(
            Markup('<li{} style="--w:{:.3f}" title="{}">{}</li>').format(
                Markup(' class="neg"') if sign < 0 else "",
                min(1.0, weight / largest) ** 0.5 if largest > 0 else 0.0,
                tip,
                MISSING if is_missing(token) else visible(str(token)),
            )
            for token, weight, sign, tip in zip(frame[view.item].tolist(), weights, signed, tips, strict=True)
        )
    )


def _facts(row: dict) -> str:
    return " · ".join(f"{words(str(name))} {plain(value)}" for name, value in row.items())


def _samples(name: str, frame: pd.DataFrame, view: View) -> tuple[Markup, pd.DataFrame]:
    layout = layout_of(view, frame)
    frame = within(frame, layout, pd.Series(1, frame.index), MOST_SAMPLES)
    others = _telling(frame, _others(frame, view, layout.used), view)

    def stack(rows: pd.DataFrame) -> Markup:
        facts = [_facts(row) for row in rows[others].to_dict("records")]
        texts = (
            Markup("<li>{}<p>{}</p></li>").format(
                Markup("<small>{}</small>").format(fact) if fact else "",
                MISSING if is_missing(text) else visible(str(text), spaces=False),
            )
            for fact, text in zip(facts, rows[view.item].tolist(), strict=True)
        )
        return Markup('<ul class="stack" tabindex="0">{}</ul>').format(Markup("").join(texts))

    return panels(name, frame, layout, lambda rows: grid(rows, layout, stack, banded=True)), frame


def _heat(name: str, frame: pd.DataFrame, view: View) -> tuple[Markup, pd.DataFrame]:
    layout = layout_of(view, frame)
    frame = within(frame, layout, frame[view.item].map(lambda tokens: np.size(tokens)), MOST_WINDOW_TOKENS)
    others = _telling(frame, _others(frame, view, [*layout.used, *([view.weight] if view.weight else [])]), view)
    numbers = [_numbers(v) for v in frame[view.weight]] if view.weight else []
    flat = np.concatenate([v[np.isfinite(v)] for v in numbers] or [np.zeros(0)])
    top = float(np.quantile(np.abs(flat), 0.995)) if flat.size else 0.0
    lines = partial(_windows, view=view, others=others, top=top)
    drawn = panels(name, frame, layout, lambda rows: grid(rows, layout, lines, banded=True))
    return _legend(view, top, bool((flat < 0).any())) + drawn, frame


def _numbers(value: object) -> np.ndarray:
    return np.zeros(0) if is_missing(value) else np.asarray(value, dtype=float)


def _windows(frame: pd.DataFrame, view: View, others: Sequence[str], top: float) -> Markup:
    facts = [_facts(row) for row in frame[list(others)].to_dict("records")]
    values = frame[view.weight].tolist() if view.weight else [None] * len(frame)
    return Markup('<ul class="windows">{}</ul>').format(
        Markup("").join(
            Markup("<li>{}<p>{}</p></li>").format(
                Markup("<small>{}</small>").format(fact) if fact else "", _window(tokens, _numbers(value), top)
            )
            for fact, tokens, value in zip(facts, frame[view.item].tolist(), values, strict=True)
        )
    )


def _window(tokens: object, values: np.ndarray, top: float) -> Markup:
    if is_missing(tokens):
        return MISSING
    listed = [str(token) for token in tokens]  # type: ignore[attr-defined]
    if values.size == 0:
        values = np.full(len(listed), np.nan)
    if len(values) != len(listed):
        raise SchemaMismatch(f"a heat view needs one value for each token; a row has {len(listed)} and {len(values)}")
    return Markup("").join(_warm(token, float(value), top) for token, value in zip(listed, values, strict=True))


def _warm(token: str, value: float, top: float) -> Markup:
    shown = visible(token, spaces=False)
    if not np.isfinite(value):
        return Markup("<span>{}</span>").format(shown)
    strength = min(1.0, abs(value) / top) if top > 0 else 0.0
    sign = Markup(' class="neg"') if value < 0 else ""
    return Markup('<span{} style="--v:{:.2f}" title="{}">{}</span>').format(sign, strength, number(value), shown)


def _legend(view: View, top: float, diverging: bool) -> Markup:
    if view.weight is None:
        return Markup("")
    low = f"≤ {number(-top)}" if diverging else "0"
    return Markup(
        '<p class="key legend">{}<span>{}</span><i class="bar{}" aria-hidden="true"></i><span>≥ {}</span></p>'
    ).format(words(view.weight), low, " diverging" if diverging else "", number(top))
