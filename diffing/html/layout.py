"""Where the group columns of a view go: one side by side, one downwards, the others into selectors.

Each combination of the selectors' values is a panel; a script shows one panel at a time, and without scripts all show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd
from markupsafe import Markup

from diffing.html.cells import MISSING, label, plain, words
from diffing.report import View

MOST_COLUMNS = 6
_MOST_BUTTONS = 5


@dataclass(frozen=True)
class Layout:
    """Names of table columns, by what their values become."""

    columns: str | None
    rows: str | None
    selectors: Sequence[str]

    @property
    def used(self) -> list[str]:
        return [name for name in (self.columns, self.rows, *self.selectors) if name is not None]


def layout_of(view: View, frame: pd.DataFrame) -> Layout:
    """`compare` goes side by side; else, for token lists, the first group column with two to six values does.

    The next group column goes downwards; what is left becomes selectors.
    """
    free = [name for name in view.group if name != view.compare]
    columns = view.compare
    if columns is None and view.kind == "tokens" and len(free) > 1:
        columns = next((name for name in free if 2 <= len(values(frame, name)) <= MOST_COLUMNS), None)
        free = [name for name in free if name != columns]
    return Layout(columns, free[0] if free else None, free[1:])


def values(frame: pd.DataFrame, name: str) -> list[object]:
    """Distinct values of a column: numbers in order, others as they first appear; missing ones last."""
    found = frame[name].drop_duplicates()
    present = found.dropna()
    if pd.api.types.is_numeric_dtype(present):
        present = present.sort_values()
    return [*present.tolist(), *([None] if len(present) < len(found) else [])]


def having(frame: pd.DataFrame, name: str, value: object) -> pd.DataFrame:
    """The rows in which a column has `value`, None being any missing one."""
    return frame[frame[name].isna() if value is None else frame[name] == value]


def within(frame: pd.DataFrame, layout: Layout, cost: "pd.Series[int]", limit: int) -> pd.DataFrame:
    """As many leading rows as cost at most `limit`, without tearing one row of a panel apart if that can be helped."""
    if int(cost.sum()) <= limit:
        return frame
    units = [*layout.selectors, *([layout.rows] if layout.rows is not None else [])]
    if units:
        number = frame.groupby(units, sort=False, dropna=False).ngroup()
        spent = cost.groupby(number).sum().cumsum()
        if kept := spent.index[spent <= limit].tolist():
            return frame[number.isin(kept)]
    return frame[cost.cumsum() <= limit]


def panels(name: str, frame: pd.DataFrame, layout: Layout, draw: Callable[[pd.DataFrame], Markup]) -> Markup:
    """Selectors and one panel for each combination of their values that has rows. `name` is the table's."""
    choices = {column: values(frame, column) for column in layout.selectors}
    found = _combinations(frame, layout.selectors, choices)
    drawn = Markup("").join(
        Markup('<div class="panel{}" data-at="{}">{}{}</div>').format(
            "" if number else " on", " ".join(map(str, at)), _caption(choices, at), draw(rows)
        )
        for number, (at, rows) in enumerate(found)
    )
    if len(found) < 2:
        return drawn
    pickers = Markup("").join(
        _picker(f"pick-{name}-{column}", i, column, options, found[0][0][i])
        if len(options) > 1
        else _chip(column, options)
        for i, (column, options) in enumerate(choices.items())
    )
    nothing = Markup('<p class="nothing note" hidden role="status">No rows for this choice.</p>')
    return Markup('<div class="panels"><div class="pickers">{}</div>{}{}</div>').format(pickers, drawn, nothing)


def _combinations(
    frame: pd.DataFrame, selectors: Sequence[str], choices: dict[str, list[object]]
) -> list[tuple[tuple[int, ...], pd.DataFrame]]:
    """Indices into the choices, and the rows there; only where there are any."""
    found: list[tuple[tuple[int, ...], pd.DataFrame]] = [((), frame)]
    for column in selectors:
        split = (((*at, i), having(rows, column, v)) for at, rows in found for i, v in enumerate(choices[column]))
        found = [(at, rows) for at, rows in split if len(rows)]
    return found


def _caption(choices: dict[str, list[object]], at: tuple[int, ...]) -> Markup:
    if not choices:
        return Markup("")
    chips = (_chip(name, [options[i]]) for (name, options), i in zip(choices.items(), at, strict=True))
    return Markup('<p class="caption">{}</p>').format(Markup("").join(chips))


def _chip(name: str, only: Sequence[object]) -> Markup:
    return Markup('<span class="fixed"><b>{}</b> {}</span>').format(words(name), label(only[0]))


def _picker(key: str, axis: int, column: str, options: list[object], first: int) -> Markup:
    """Radio buttons for a few options, a drop-down list for many; their values are indices into `options`."""
    if len(options) > _MOST_BUTTONS:
        listed = Markup("").join(
            Markup('<option value="{}"{}>{}</option>').format(i, _flag("selected", i == first), plain(v) or "empty")
            for i, v in enumerate(options)
        )
        return Markup(
            '<p class="picker" data-axis="{3}"><label for="{0}">{1}</label><select id="{0}">{2}</select></p>'
        ).format(key, words(column), listed, axis)
    buttons = Markup("").join(
        Markup('<label><input type="radio" name="{}" value="{}"{}><span>{}</span></label>').format(
            key, i, _flag("checked", i == first), label(v)
        )
        for i, v in enumerate(options)
    )
    return Markup('<fieldset class="picker" data-axis="{}"><legend>{}</legend><div>{}</div></fieldset>').format(
        axis, words(column), buttons
    )


def _flag(name: str, on: bool) -> Markup:
    return Markup(f" {name}") if on else Markup("")


def grid(frame: pd.DataFrame, layout: Layout, draw: Callable[[pd.DataFrame], Markup], banded: bool = False) -> Markup:
    """A table of drawings: columns side by side, rows downwards; `banded` puts the row headings above their row."""
    rows = layout.rows
    across = values(frame, layout.columns) if layout.columns is not None else []
    corner = [Markup('<th scope="col">{}</th>').format(words(rows))] if rows is not None and not banded else []
    heads = chain(corner, (Markup('<th scope="col">{}</th>').format(label(value)) for value in across))
    head = Markup("<thead><tr>{}</tr></thead>").format(Markup("").join(heads)) if across else ""
    lines = []
    for value in values(frame, rows) if rows is not None else [None]:
        part = frame if rows is None else having(frame, rows, value)
        cells = _cells(part, layout.columns, across, draw)
        above = beside = Markup("")
        if rows is not None and banded:
            above = Markup('<tr><th colspan="{}" scope="rowgroup">{}</th></tr>').format(
                max(1, len(across)), _named(rows, value)
            )
        elif rows is not None:
            beside = Markup('<th scope="row">{}</th>').format(label(value) if across else _named(rows, value))
        lines.append(Markup("<tbody>{}<tr>{}{}</tr></tbody>").format(above, beside, cells))
    return Markup('<div class="grid{}{}"><table>{}{}</table></div>').format(
        " wide" if len(across) > 4 else "", " banded" if banded else "", head, Markup("").join(lines)
    )


def _cells(
    frame: pd.DataFrame, columns: str | None, across: Sequence[object], draw: Callable[[pd.DataFrame], Markup]
) -> Markup:
    parts = [frame] if columns is None else [having(frame, columns, value) for value in across]
    return Markup("").join(Markup("<td>{}</td>").format(draw(part) if len(part) else MISSING) for part in parts)


def _named(name: str, value: object) -> Markup:
    """A row's heading where nothing names the column: a text speaks for itself, a bare number does not."""
    return label(value) if isinstance(value, str) else Markup("{} {}").format(words(name), label(value))
