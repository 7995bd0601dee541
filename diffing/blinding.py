"""Reports without names: copies in which nothing says whose models and texts they are about, and a guard.

Names are replaced inside of every name, description, claim and cell: a corpus becomes `corpus_1`, any other name
`withheld`. What was made with the ground truth is left out. The guard is a second line: it searches texts on their way
out and raises `Leak`.

A name of one plain word ("caps", "tea") cannot be told from the evidence that a method should find. It is replaced
where the method writes (names, descriptions) and where a column lists corpora, but not in tokens, samples and claims.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from diffing.errors import DiffingError
from diffing.report import Finding, NamedTensor, Report, Scalar, Table, View

WITHHELD = "withheld"

# fmt: off
_GENERIC = frozenset((
    "adapter", "adapters", "base", "chat", "checkpoint", "corpora", "corpus", "data", "dataset", "datasets",
    "default", "difference", "docs", "documents", "final", "finetuned", "layer", "lora", "main", "model", "models",
    "no", "output", "outputs", "position", "report", "results", "rows", "source", "table", "test", "text", "texts",
    "token", "tokens", "train", "training", "tune", "tuned",
))
# fmt: on
"""A name made of these words alone (and numbers) gives nothing away."""


class Leak(DiffingError):
    """A text for an agent names what is diffed. The message does not repeat the name."""

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(f"expected a text without names of the pair, got one that holds a name of class '{kind}'")


@dataclass(frozen=True)
class Secret:
    """A term that no agent may read, its class (model, adapter, organism, artifact or corpus) and what replaces it."""

    text: str
    kind: str
    shown: str = WITHHELD


@dataclass(frozen=True)
class Blinded:
    """The parts of a report that may be shown, under the names that agents use. Columns of text have dtype object."""

    method: str
    no_difference: bool
    scalars: Mapping[str, Scalar]
    tables: Mapping[str, Table]
    tensors: Mapping[str, NamedTensor]
    findings: Sequence[Finding]


class Blinding:
    """The names in the specs of some reports, and how to hide them. Equal corpus names get equal ids."""

    def __init__(self, reports: Sequence[Report]):
        names = dict.fromkeys(corpus.name for report in reports for corpus in report.corpora)
        self._corpus_ids = {name: f"corpus_{number}" for number, name in enumerate(names, start=1)}
        named = [secret for report in reports for secret in _named(report, self._corpus_ids)]
        self.secrets: tuple[Secret, ...] = tuple(_distinct(named, plain=False))
        """What the guard looks for."""
        self._free = _Pattern(self.secrets)
        self._written = _Pattern(tuple(_distinct(named, plain=True)))

    def guard(self, text: str, guessed: Collection[str] = ()) -> None:
        """Raises Leak if `text` holds one of `secrets`, those `guessed` excepted."""
        if secret := self._unless(guessed).first(text):
            raise Leak(secret.kind)

    def unnamed(self, text: str, guessed: Collection[str] = ()) -> str:
        """A text that somebody else wrote, without the names that the guard looks for."""
        return self._unless(guessed).replace(text)

    def named(self, text: str) -> set[str]:
        """The names that the guard looks for and `text` holds, whatever marks and spaces part their words."""
        said = f" {_words(text)} "
        return {secret.text for secret in self.secrets if f" {_words(secret.text)} " in said}

    def _unless(self, guessed: Collection[str]) -> "_Pattern":
        return _Pattern([each for each in self.secrets if each.text not in guessed]) if guessed else self._free

    def written(self, text: str) -> str:
        """A text that a method or this package wrote, without any name."""
        return self._written.replace(text)

    def report(self, report: Report) -> Blinded:
        tables = self._renamed({name: table for name, table in report.tables.items() if not table.ground_truth})
        scalars = {name: scalar for name, scalar in report.scalars.items() if not scalar.ground_truth}
        return Blinded(
            method=self.written(report.method),
            no_difference=report.no_difference,
            scalars={
                shown: replace(report.scalars[name], about=self.written(report.scalars[name].about))
                for name, shown in self._renamed(scalars).items()
            },
            tables={shown: self._table(report.tables[name]) for name, shown in tables.items()},
            tensors={
                shown: self._tensor(report.tensors[name]) for name, shown in self._renamed(report.tensors).items()
            },
            findings=[
                replace(
                    finding,
                    claim=self._free.replace(finding.claim),
                    table=tables[finding.table] if finding.table else None,
                )
                for finding in report.findings
                if finding.table is None or finding.table in tables
            ],
        )

    def _tensor(self, item: NamedTensor) -> NamedTensor:
        directions = item.directions and replace(
            item.directions,
            names=[self.written(name) for name in item.directions.names],
            unit=self.written(item.directions.unit),
        )
        axes = [self.written(axis) for axis in item.axes]
        return replace(item, about=self.written(item.about), axes=axes, directions=directions)

    def _table(self, table: Table) -> Table:
        names = self._renamed(table.columns)
        frame = table.frame.reset_index(drop=True)
        view = table.view and View(
            kind=table.view.kind,
            item=names[table.view.item],
            group=[names[name] for name in table.view.group],
            weight=names[table.view.weight] if table.view.weight else None,
            compare=names[table.view.compare] if table.view.compare else None,
        )
        return Table(
            pd.DataFrame({names[str(name)]: self._column(frame[name]) for name in frame.columns}, index=frame.index),
            self.written(table.about),
            {shown: self.written(table.columns[name]) for name, shown in names.items()},
            view,
        )

    def _column(self, column: pd.Series) -> pd.Series:
        if is_numeric_dtype(column):
            return column
        cells = [plain(cell) for cell in column]
        texts = {cell for cell in cells if isinstance(cell, str)}
        if texts and texts <= self._corpus_ids.keys():
            cells = [self._corpus_ids[cell] if isinstance(cell, str) else cell for cell in cells]
        return pd.Series([self._cell(cell) for cell in cells], index=column.index, dtype=object)

    def _cell(self, cell: object) -> object:
        if isinstance(cell, list):
            return [self._cell(item) for item in cell]
        return self._free.replace(cell) if isinstance(cell, str) else cell

    def _renamed(self, names: Mapping[str, object]) -> dict[str, str]:
        """What each name is shown as; names that blinding makes equal are told apart by underscores."""
        shown: dict[str, str] = {}
        for name in names:
            new = self.written(name)
            while new in shown.values():
                new += "_"
            shown[name] = new
        return shown


class _Pattern:
    """Secrets as one pattern: any case, bounded by anything but letters and digits, longest first."""

    def __init__(self, secrets: Sequence[Secret]):
        self._secrets = sorted(secrets, key=lambda secret: -len(secret.text))
        terms = "|".join(f"({re.escape(secret.text)})" for secret in self._secrets)
        self._pattern = re.compile(rf"(?<![^\W_])(?:{terms or '(?!)'})(?![^\W_])", re.IGNORECASE)

    def _secret(self, match: re.Match[str]) -> Secret:
        return self._secrets[(match.lastindex or 0) - 1]

    def first(self, text: str) -> Secret | None:
        match = self._pattern.search(text)
        return self._secret(match) if match else None

    def replace(self, text: str) -> str:
        shown: Callable[[re.Match[str]], str] = lambda match: self._secret(match).shown  # noqa: E731
        return self._pattern.sub(shown, text)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def plain(cell: object) -> object:
    """A cell as JSON knows it, however the frame came to hold it; what is missing or not finite becomes None."""
    if isinstance(cell, np.ndarray | list | tuple):
        return [plain(item) for item in cell]
    if isinstance(cell, np.generic):
        return plain(cell.item())
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and not math.isfinite(cell)):
        return None
    return cell if isinstance(cell, str | bool | int | float) else str(cell)


def _named(report: Report, corpus_ids: Mapping[str, str]) -> Iterator[Secret]:
    """Every name in the specs of a report, whole."""
    pair, base, finetuned = report.pair, report.pair.base, report.pair.finetuned
    for text in (base.name, base.id, base.subfolder, base.tokenizer_id or "", base.bundled or ""):
        yield Secret(text, "model")
    for text in (finetuned.id, finetuned.subfolder):
        yield Secret(text, "adapter")
    for text in (pair.organism, pair.variant):
        yield Secret(text, "organism")
    yield Secret(f"{base.name}-{pair.organism}-{pair.variant}", "artifact")
    for corpus in report.corpora:
        for text in (corpus.name, corpus.id, corpus.subset or ""):
            yield Secret(text, "corpus", corpus_ids[corpus.name])


def _distinct(named: Sequence[Secret], plain: bool) -> Iterator[Secret]:
    """Each form of each name once. With `plain` also the organisms and corpora whose name is one plain word."""
    seen: set[str] = set()
    for secret in named:
        for form in _forms(secret.text, spaced=secret.kind in ("organism", "adapter")):
            word = form.isalpha() and form in (form.lower(), form.capitalize(), form.upper())
            if word and not (plain and secret.kind in ("organism", "corpus") and form == secret.text):
                continue
            words = re.split(r"[\W_]+", form.lower())
            generic = all(word in _GENERIC or not any(map(str.isalpha, word)) for word in words)
            if len(form) >= 4 and not generic and form.lower() not in seen:
                seen.add(form.lower())
                yield replace(secret, text=form)


def _forms(name: str, spaced: bool) -> Iterator[str]:
    """A name whole and its path components, each with and without a file ending, if `spaced` also as words."""
    whole = re.sub(r"^\w+://", "", name).strip().strip("/")
    for form in (name.strip(), whole, *re.split(r"[/\\]", whole)):
        for text in (form, re.sub(r"\.(jsonl?|parquet|txt|csv|gguf|safetensors)$", "", form)):
            yield text
            if spaced:
                yield re.sub(r"[\W_]+", " ", text).strip()
