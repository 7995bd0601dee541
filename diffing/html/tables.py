"""Plain tables: sortable, with a filter, the meaning of each column at its head, and a bounded number of rows."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import pandas as pd
from markupsafe import Markup

from diffing.html.cells import cell, words
from diffing.html.views import notice, view_of
from diffing.report import NamedTensor, Table
from diffing.specs import JSON

MOST_ROWS = 500
"""Rows of one table that are written into the page; rows that a finding cites always are."""


KNOWN = Markup(
    '<span class="known" title="Agents who guess what the finetuning was about do not see this.">made with the '
    "training data</span>"
)


def row_id(table: str, row: int) -> str:
    return f"row-{table}-{row}"


def table_section(name: str, table: Table, cited: Sequence[int]) -> Markup:
    """Heading, view if it has one, and rows."""
    frame = table.frame.reset_index(drop=True)
    rows = _plain(name, table, frame, cited)
    if table.view is not None and len(frame):
        drawn = view_of(name, frame, table.view)
        rows = drawn + Markup('<details class="rows"><summary>Rows ({:,})</summary>{}</details>').format(
            len(frame), rows
        )
    known = KNOWN if table.ground_truth else ""
    return Markup('<section class="table" id="table-{0}"><h3>{1}</h3><p class="about">{2} {3}</p>{4}</section>').format(
        name, words(name), table.about, known, rows
    )


def _plain(name: str, table: Table, frame: pd.DataFrame, cited: Sequence[int]) -> Markup:
    if frame.empty:
        return Markup('<p class="note">This table has no rows.</p>')
    shown = sorted({*range(min(MOST_ROWS, len(frame))), *(row for row in cited if 0 <= row < len(frame))})
    exact = table.view.item if table.view is not None and table.view.kind == "tokens" else None
    numeric = [str(c) for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool]
    heads = Markup("").join(
        Markup('<th scope="col"{} title="{}"><button type="button">{}</button></th>').format(
            Markup(' class="n"') if column in numeric else "", about, words(column)
        )
        for column, about in ((str(c), table.columns[str(c)]) for c in frame.columns)
    )
    chosen = frame.iloc[shown]
    columns = [(chosen[c].tolist(), c == exact, str(c) in numeric) for c in frame.columns]
    body = Markup("").join(
        Markup('<tr id="{}"{}><th scope="row">{}</th>{}</tr>').format(
            row_id(name, row),
            Markup(' class="cited"') if row in cited else "",
            row,
            Markup("").join(cell(listed[i], *flags) for listed, *flags in columns),
        )
        for i, row in enumerate(shown)
    )
    return Markup(
        '<p class="filter"><label for="filter-{0}">Filter</label>'
        '<input id="filter-{0}" type="search" autocomplete="off"><output></output></p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Rows of {1}"><table class="data">'
        '<thead><tr><th scope="col" class="n" title="Number of the row, from 0"><button type="button">#</button></th>'
        "{2}</tr></thead><tbody>{3}</tbody></table></div>{4}"
    ).format(
        name,
        words(name),
        heads,
        body,
        notice(len(shown), len(frame), "are in this page, and only these are sorted and filtered"),
    )


def tensors_table(tensors: Mapping[str, NamedTensor]) -> Markup:
    rows = (
        (
            name,
            item.about,
            " \N{MULTIPLICATION SIGN} ".join(map(str, item.tensor.shape)) or "scalar",
            ", ".join(item.axes),
            _norm(item),
        )
        for name, item in tensors.items()
    )
    return simple_table(("name", "what it is", "shape", "axes", "norm"), rows)


def _norm(item: NamedTensor) -> float:
    """Euclidean norm over all entries, in float64."""
    return float(item.tensor.detach().double().norm())


def simple_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A small table whose first column names its rows."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(text) for text in heads)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(first, Markup("").join(map(cell, rest)))
        for first, *rest in rows
    )
    return Markup(
        '<div class="scroll"><table class="data"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, body)


def flattened(value: Mapping[str, object], above: str = "") -> list[tuple[str, object]]:
    """Nested settings as `a.b.c` and value."""
    return list(
        chain.from_iterable(
            flattened(item, f"{above}{key}.") if isinstance(item, Mapping) and item else [(f"{above}{key}", item)]
            for key, item in value.items()
        )
    )


def settings_table(value: Mapping[str, JSON]) -> Markup:
    return simple_table(("setting", "value"), flattened(value))
