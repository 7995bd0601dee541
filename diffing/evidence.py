"""An agent's whole world: what Reports found, blinded, and the questions that may be asked about it.

Built from Reports alone: it knows no tracker and no model. Names are replaced once, when an `Evidence` is built
(`diffing.blinding`), and every answer passes the guard on its way out. Answers are JSON.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from diffing.blinding import Blinded, Blinding, Secret, plain
from diffing.errors import DiffingError, nearest_first
from diffing.report import Directions, NamedTensor, Report, Table

MAX_ROWS = 200
MAX_CHARS = 30_000
MAX_CELL = 2_000
TENSOR_ROWS = 16
NAMES = 12
"""Names of directions that an overview lists; `Evidence.tensor` has all of them."""
DISTINCT = 12
"""A column with at most so many short values has them listed."""

T = TypeVar("T")


class EvidenceError(DiffingError):
    """A question about evidence that is not there; its text tells the agent what is.

    It never repeats what was asked for: blinded, that would tell an agent whether a name that it tried is one.
    """


@dataclass(frozen=True)
class _Detail:
    """How much an overview tells."""

    rows: int = 5
    findings: int = 50
    scalars: int = 50
    described: bool = True
    abouts: bool = True
    names: int = NAMES


@dataclass(frozen=True)
class Direction:
    """A row of a tensor, which models can be steered with. Everything in it is blinded."""

    name: str
    layer: int
    unit: str
    """What strength 1 is."""
    length: float
    """L2 norm of what strength 1 adds (residual stream units); 0 where the row is."""
    item: NamedTensor
    row: int

    def added(self, strength: float = 1.0) -> tuple[float, ...]:
        """What steering adds to the residual stream at the output of block `layer`."""
        return tuple(self.item.added(self.row, strength).tolist())


_LADDER = (
    (_Detail(), ""),
    (_Detail(names=2), "names of directions beyond 2 of each tensor"),
    (_Detail(rows=2, names=2), "sample rows beyond 2 of each table"),
    (_Detail(rows=0, names=2), "all sample rows"),
    (_Detail(rows=0, findings=8, scalars=12, names=2), "findings beyond 8 and scalars beyond 12 of each report"),
    (_Detail(rows=0, findings=8, scalars=12, described=False, names=2), "descriptions of columns"),
    (
        _Detail(rows=0, findings=0, scalars=0, described=False, abouts=False, names=0),
        "findings, scalars, all descriptions and all names of directions",
    ),
)
"""What an overview gives up, in this order, until it fits."""


class Evidence:
    """Blinded reports, called `R1`, `R2`, ... in the order given. Wrong questions raise EvidenceError."""

    def __init__(self, reports: Sequence[Report]):
        if not reports:
            raise EvidenceError("evidence needs at least one report, got none")
        self._blinding = Blinding(reports)
        self._reports = {f"R{number}": self._blinding.report(report) for number, report in enumerate(reports, start=1)}

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The terms that the guard looks for."""
        return self._blinding.secrets

    def digest(self) -> str:
        """Of everything that can be asked for: the same for the same evidence alone."""
        found = hashlib.sha256()
        for report in self._reports.values():
            told = [report.method, report.no_difference, report.scalars, report.findings]
            told += [(name, table.about, table.columns, table.view) for name, table in report.tables.items()]
            told += [(name, item.about, item.axes, item.directions) for name, item in report.tensors.items()]
            found.update(repr(told).encode())
            for table in report.tables.values():
                found.update(str(table.frame.to_json(orient="split", double_precision=15)).encode())
            for item in report.tensors.values():
                found.update(item.tensor.double().cpu().numpy().tobytes())
        return found.hexdigest()

    def guard(self, text: str, guessed: Collection[str] = ()) -> None:
        """Raises Leak if `text` holds one of `secrets`, those `guessed` excepted."""
        self._blinding.guard(text, guessed)

    def withheld(self, text: str, guessed: Collection[str] = ()) -> str:
        """A text that passes the guard: one that a model or a library wrote, without the names in it.

        Names that the agent wrote before anybody told it (`guessed`) stay: to take out a right guess, and leave all
        wrong ones, would confirm it.
        """
        return self._blinding.unnamed(text, guessed)

    def named(self, text: str) -> set[str]:
        """Those of `secrets` that a text of the agent holds, in whatever spelling."""
        return self._blinding.named(text)

    def overview(self, max_chars: int = 12_000) -> str:
        """All reports in brief, in at most `max_chars` characters; `dropped` says what had to go for that."""
        dropped: list[str] = []
        before: list[dict[str, object]] = []
        text = ""
        for detail, given_up in _LADDER:
            reports = [_brief(name, report, detail) for name, report in self._reports.items()]
            dropped += [given_up] if before and reports != before else []
            before = reports
            text = _dumps({"reports": reports} | ({"dropped": dropped} if dropped else {}))
            if len(text) <= max_chars:
                return self._checked(text)
        raise self._error(f"an overview of this evidence needs {len(text)} characters, but may have only {max_chars}")

    def rows(
        self,
        report: str,
        table: str,
        *,
        sort: str | None = None,
        descending: bool = True,
        where: Mapping[str, object] | None = None,
        columns: Sequence[str] | None = None,
        limit: int = 20,
        offset: int = 0,
    ) -> str:
        """Rows of a table whose columns equal `where` (a list: any of it), sorted, from `offset` on.

        At most MAX_ROWS rows and MAX_CHARS characters; `notice` says what else there is.
        """
        shown = self._find(self._find(self._reports, "report", report).tables, "table", table)
        wanted = list(columns) if columns else [str(name) for name in shown.frame.columns]
        for name in (*wanted, *([sort] if sort else []), *(where or {})):
            self._find(shown.columns, f"column of table '{table}'", name)
        if limit < 1 or offset < 0:
            raise self._error(f"limit must be at least 1 and offset at least 0, got {limit} and {offset}")
        frame = shown.frame
        for name, value in (where or {}).items():
            frame = frame[self._equals(frame[name], name, value)]
        if sort:
            frame = _sorted(frame, sort, descending)
        page = [_cells(row, MAX_CELL) for row in _tuples(frame[wanted].iloc[offset : offset + min(limit, MAX_ROWS)])]
        answer: dict[str, object] = {"report": report, "table": table, "total": len(frame), "offset": offset}
        answer["columns"] = {name: shown.columns[name] for name in wanted}
        if frame.empty and where:
            answer["notice"] = "no row matches; " + "; ".join(_known(name, shown.frame[name]) for name in where)
        return self._checked(_fitted(answer, page))

    def tensor(self, report: str, name: str, offset: int = 0) -> str:
        """Shape, axes and, for TENSOR_ROWS rows from `offset` on, norms along the last axis and cosines of each pair.

        Leading axes are flattened to rows; `index` holds each row's place in them.
        """
        item = self._find(self._find(self._reports, "report", report).tensors, "tensor", name)
        shape = [int(size) for size in item.tensor.shape]
        values = item.tensor.detach().cpu().float().numpy()
        values = values.reshape(int(np.prod(shape[:-1])), shape[-1] if shape else 1)
        if not 0 <= offset < max(len(values), 1):
            raise self._error(f"offset must be from 0 to {len(values) - 1}, the last row, got {offset}")
        rows = values[offset : offset + TENSOR_ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = (rows @ rows.T) / np.outer(norms, norms)
        places = [np.unravel_index(offset + row, shape[:-1]) if shape[1:] else () for row in range(len(rows))]
        answer: dict[str, object] = {
            "report": report,
            "tensor": name,
            "about": item.about,
            "axes": list(item.axes),
            "shape": shape,
        }
        answer |= {"total": len(values), "offset": offset, "index": [[int(i) for i in place] for place in places]}
        answer |= {"norms": _cells(norms, MAX_CELL), "cosines": [_cells(row, MAX_CELL) for row in cosines]}
        if item.directions is not None:
            answer["directions"] = _brief_directions(item.directions, offset, TENSOR_ROWS)
        if offset + len(rows) < len(values):
            answer["notice"] = _more(offset, len(rows), len(values))
        return self._checked(_dumps(answer))

    @property
    def has_directions(self) -> bool:
        """Whether any report has one."""
        return any(item.directions for report in self._reports.values() for item in report.tensors.values())

    def direction(self, report: str, tensor: str, row: int | str) -> Direction:
        """The direction that is a row of a tensor; rows are numbered from 0, and have names, as `overview` says."""
        tensors = self._find(self._reports, "report", report).tensors
        item = self._find(tensors, "tensor", tensor)
        known = item.directions
        if known is None:
            having = ", ".join(name for name, each in tensors.items() if each.directions) or "none"
            raise self._error(f"the rows of tensor '{tensor}' are no directions; those of these are: {having}")
        number = self._row(known.names, row)
        length = float(item.added(number, 1.0).norm())
        return Direction(known.names[number], known.layer, known.unit, length, item, number)

    def _row(self, names: Sequence[str], row: int | str) -> int:
        """A row by its name, else by its number, which may come as a text."""
        found = [number for number, name in enumerate(names) if name == row]
        if len(found) > 1:
            raise self._error(f"rows {found} have that name; ask for one of these numbers")
        if not found and re.fullmatch(r"\d+", str(row)) and int(row) < len(names):
            found = [int(row)]
        if not found:
            nearest = nearest_first(str(row), list(dict.fromkeys(names)))
            listed = ", ".join(f"'{name}'" for name in nearest[:TENSOR_ROWS]) or "none"
            raise self._error(f"expected the number of a row, from 0 to {len(names) - 1}, or a name; nearest: {listed}")
        return found[0]

    def _checked(self, text: str) -> str:
        self.guard(text)
        return text

    def _error(self, message: str) -> EvidenceError:
        return EvidenceError(self._blinding.written(message))

    def _find(self, known: Mapping[str, T], what: str, name: str) -> T:
        if name not in known:
            listed = ", ".join(nearest_first(name, list(known))) or "none exist"
            raise self._error(f"unknown {what}; known, nearest first: {listed}")
        return known[name]

    def _equals(self, column: pd.Series, name: str, value: object) -> pd.Series:
        allowed = list(value) if isinstance(value, list | tuple) else [value]
        if not is_numeric_dtype(column):
            return column.map(str).isin([str(item) for item in allowed])
        try:
            return column.astype(float).isin([float(item if isinstance(item, bool) else str(item)) for item in allowed])
        except ValueError:
            raise self._error(f"column '{name}' holds numbers; `where` asks for something else") from None


def _brief(name: str, report: Blinded, detail: _Detail) -> dict[str, object]:
    brief: dict[str, object] = {"report": name, "method": report.method, "no_difference": report.no_difference}
    brief["findings"] = [
        {"claim": _cell(finding.claim, 500)}
        | ({"table": finding.table, "rows": list(finding.rows[:5])} if finding.table else {})
        for finding in report.findings[: detail.findings]
    ]
    brief["scalars"] = {
        key: {"value": _cell(scalar.value, MAX_CELL), "about": scalar.about}
        for key, scalar in list(report.scalars.items())[: detail.scalars]
    }
    brief["tables"] = {key: _brief_table(table, detail) for key, table in report.tables.items()}
    brief["tensors"] = {
        key: {"shape": list(item.tensor.shape), "axes": list(item.axes)}
        | ({"about": item.about} if detail.abouts else {})
        | ({"directions": _brief_directions(item.directions, 0, detail.names)} if item.directions else {})
        for key, item in report.tensors.items()
    }
    return brief


def _brief_directions(directions: Directions, start: int, count: int) -> dict[str, object]:
    """Names of the rows from `start` on, and how to see the others."""
    names = list(directions.names[start : start + count])
    brief: dict[str, object] = {"layer": directions.layer, "unit": directions.unit, "names": names}
    if len(names) < len(directions.names):
        first = f" from row {start} on" if start else ""
        brief["notice"] = f"{len(names)} of {len(directions.names)} names{first}; tensor_summary has more"
    return brief


def _brief_table(table: Table, detail: _Detail) -> dict[str, object]:
    brief: dict[str, object] = {"about": table.about} if detail.abouts else {}
    brief["rows"] = len(table.frame)
    columns = {str(name): table.columns[str(name)] for name in table.frame.columns}  # in the order of a row
    brief["columns"] = columns if detail.described else list(columns)
    values = {str(name): _distinct_values(table.frame[name]) for name in table.frame.columns}
    brief["values"] = {name: known for name, known in values.items() if known}
    if table.view:
        brief["view"] = {key: value for key, value in asdict(table.view).items() if value}
    if detail.rows:
        brief["first_rows"] = [_cells(row, 160) for row in _tuples(table.frame.head(detail.rows))]
    return brief


def _distinct_values(column: pd.Series) -> list[str] | list[int]:
    """The values of a column that takes few and short ones, words or whole numbers; otherwise none."""
    if column.dtype.kind in "iub":
        numbers = column.unique()
        return sorted(map(int, numbers)) if len(numbers) <= DISTINCT else []
    words: set[str] = set()
    for cell in column:
        if not isinstance(cell, str) or len(cell) > 40 or len(words) > DISTINCT:
            return []
        words.add(cell)
    return sorted(words) if len(words) <= DISTINCT else []


def _known(name: str, column: pd.Series) -> str:
    values = _distinct_values(column)
    return f"{name} is one of {values}" if values else f"{name} takes many values"


def _more(offset: int, count: int, total: int) -> str:
    return f"{count} of {total} rows, from {offset} on; ask with offset={offset + count} for more"


def _sorted(frame: pd.DataFrame, column: str, descending: bool) -> pd.DataFrame:
    key: Callable[[pd.Series], pd.Series] | None = None
    if not is_numeric_dtype(frame[column]):
        key = lambda cells: cells.map(str)  # noqa: E731
    return frame.sort_values(column, ascending=not descending, kind="stable", key=key)


def _tuples(frame: pd.DataFrame) -> Iterator[tuple]:
    return frame.itertuples(index=False, name=None)


def _fitted(answer: Mapping[str, object], page: Sequence[object]) -> str:
    """`answer` with as many rows of `page` as MAX_CHARS allows, at least one if there is one, and a notice if cut."""
    count, offset, total = len(page), int(str(answer["offset"])), int(str(answer["total"]))
    while True:
        notice = {"notice": _more(offset, count, total)} if count and offset + count < total else {}
        text = _dumps({**answer, **notice, "rows": page[:count]})
        if len(text) <= MAX_CHARS or count <= 1:
            return text
        count = max(1, min(count - 1, count * MAX_CHARS // len(text)))


def _cell(cell: object, max_chars: int) -> object:
    """A cell as JSON: four significant digits; long lists and texts are cut, texts with a note of how much."""
    value = plain(cell)
    if isinstance(value, list):
        return [_cell(item, max_chars) for item in value[:100]]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, str) and len(value) > max_chars:
        kept = re.sub(r"[^\W_]+\Z", "", value[:max_chars]) or value[:max_chars]  # half a word may be a name
        return f"{kept} [... {len(value) - len(kept)} characters more]"
    return value


def _cells(row: Sequence[object] | np.ndarray, max_chars: int) -> list[object]:
    return [_cell(cell, max_chars) for cell in row]


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
