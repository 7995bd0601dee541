"""The one schema of results: what a method returns, what is stored, and what people and agents read.

    report.json            written last: everything below is indexed there
    tables/<name>.parquet  every column carries a description with its unit
    tensors.safetensors    named vectors
    figures/<name>.json    Plotly figures

A folder without `report.json` is not a report.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
from safetensors import SafetensorError

from diffing.errors import MissingInput, SchemaMismatch
from diffing.specs import JSON, CorpusSpec, ModelSpec, PairSpec, VariantSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCHEMA_VERSION = 1
_VIEWS = Literal["tokens", "samples", "heat"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of figures (Okabe and Ito): told apart by colour-blind eyes."""


def slug(name: str) -> str:
    """`name` as part of the lower_snake_case names that a report's entries have."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Scalar:
    """One number and what it means, with its unit."""

    value: float | int
    about: str
    ground_truth: bool = False
    """As of a table."""


@dataclass(frozen=True)
class View:
    """How a table wants to be seen; plain rows if it has none.

    `tokens`: weighted token lists, one per value of `group`, drawn as clouds (`item` is the token, `weight` its size).
    `samples`: texts that belong together, one row of columns per value of `group` (`item` is the text, `compare` names
    the columns). `heat`: token windows, one per row (`item` holds lists of tokens, `weight` lists of values).
    """

    kind: _VIEWS
    item: str
    group: Sequence[str] = ()
    weight: str | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(_VIEWS):
            raise SchemaMismatch(f"view '{self.kind}'; expected one of {get_args(_VIEWS)}")
        object.__setattr__(self, "group", tuple(self.group))


@dataclass(frozen=True)
class Table:
    """Rows of a result. `columns` describes every column, with units; a column without a description raises."""

    frame: pd.DataFrame
    about: str
    columns: Mapping[str, str]
    view: View | None = None
    ground_truth: bool = False
    """Made with the organism's training data or description: for people. Agents who guess them never see it, nor the
    findings that point at it."""

    def __post_init__(self) -> None:
        undescribed = [str(name) for name in self.frame.columns if not self.columns.get(str(name), "").strip()]
        unknown = [name for name in self.columns if name not in self.frame.columns]
        if undescribed or unknown:
            raise SchemaMismatch(
                f"table '{self.about}': columns without a description: {undescribed}; described but absent: {unknown}"
            )
        if self.view is not None:
            named = [self.view.item, *self.view.group, self.view.weight, self.view.compare]
            if missing := [name for name in named if name is not None and name not in self.frame.columns]:
                raise SchemaMismatch(f"table '{self.about}': its view names absent columns {missing}")


@dataclass(frozen=True)
class Directions:
    """Makes rows of a tensor vectors that can be added to the residual stream, at the output of block `layer`.

    Leading axes are flattened to rows; the first `len(names)` of them can be added.
    """

    layer: int
    names: Sequence[str]
    """One per row, for people and agents: `position 3`."""
    lengths: Sequence[float]
    """L2 norm of what strength 1 adds, one per row (residual stream units)."""
    unit: str
    """What strength 1 is."""


@dataclass(frozen=True)
class NamedTensor:
    """A tensor, what it means, and the name of each of its axes."""

    tensor: "Tensor"
    about: str
    axes: Sequence[str]
    directions: Directions | None = None
    """If models can be steered with its rows. The last axis is then `d_model`."""

    def __post_init__(self) -> None:
        if len(self.axes) != self.tensor.ndim:
            raise SchemaMismatch(f"tensor '{self.about}': {self.tensor.ndim} dimensions, but axes {list(self.axes)}")
        if self.directions is None:
            return
        names, lengths = self.directions.names, self.directions.lengths
        rows = math.prod(self.tensor.shape[:-1])
        if list(self.axes[-1:]) != ["d_model"] or len(names) != len(lengths) or len(names) > rows:
            raise SchemaMismatch(
                f"tensor '{self.about}': {len(names)} names and {len(lengths)} lengths for {rows} directions along "
                f"axis {list(self.axes[-1:])}; expected one of each for all or the first rows, along d_model"
            )

    def added(self, row: int, strength: float) -> 'Float[Tensor, " d_model"]':
        """What steering with a row at `strength` adds to the residual stream; a row of zeros adds nothing."""
        if self.directions is None or not 0 <= row < len(self.directions.names):
            raise SchemaMismatch(f"tensor '{self.about}' has no direction {row}")
        vector = self.tensor.reshape(-1, self.tensor.shape[-1])[row].float()
        norm = vector.norm()
        return vector if norm == 0 else strength * self.directions.lengths[row] / norm * vector


@dataclass(frozen=True)
class Figure:
    """A Plotly figure in its JSON form."""

    plotly: Mapping[str, JSON]
    about: str


@dataclass(frozen=True)
class Finding:
    """A claim in words that points at the rows which carry it."""

    claim: str
    table: str | None = None
    rows: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))


@dataclass(frozen=True)
class Report:
    """What a method found out about a pair."""

    method: str
    pair: PairSpec
    settings: Mapping[str, JSON]
    corpora: Sequence[CorpusSpec]
    no_difference: bool
    """True when the two sides did not differ at all in what was looked at: the null result, to be shown as such."""
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    tensors: Mapping[str, NamedTensor] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.scalars, *self.tables, *self.tensors, *self.figures):
            if not _NAME.fullmatch(name):
                raise SchemaMismatch(f"'{name}': names in a report are lower_snake_case")
        if bad := [name for name, scalar in self.scalars.items() if not math.isfinite(scalar.value)]:
            raise SchemaMismatch(f"scalars must be finite, leave out what is undefined: {bad}")
        for finding in self.findings:
            if finding.table is None:
                continue
            if finding.table not in self.tables:
                raise SchemaMismatch(f"finding '{finding.claim}' points at table '{finding.table}', which is not there")
            if outside := [row for row in finding.rows if not 0 <= row < len(self.tables[finding.table].frame)]:
                raise SchemaMismatch(f"finding '{finding.claim}' points at rows {outside} of '{finding.table}'")
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "corpora", tuple(self.corpora))

    def with_provenance(self, provenance: Mapping[str, JSON]) -> "Report":
        return replace(self, provenance={**self.provenance, **provenance})

    def save(self, folder: Path) -> None:
        """Write into `folder`, which is made if needed; `report.json` comes last, so that a torn write is no report."""
        from safetensors.torch import save_file

        for part in ("tables", "figures"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "report.json").unlink(missing_ok=True)
        for name, table in self.tables.items():
            table.frame.reset_index(drop=True).to_parquet(folder / "tables" / f"{name}.parquet")
        for name, figure in self.figures.items():
            _write_json(folder / "figures" / f"{name}.json", figure.plotly)
        tensors = {name: item.tensor.detach().cpu().contiguous() for name, item in self.tensors.items()}
        save_file(tensors, folder / "tensors.safetensors")
        _write_json(folder / "report.json", _index(self))

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """Inverse of `save`. Raises MissingInput for no report, SchemaMismatch for one that is torn or too new."""
        index = _read_index(folder)
        try:
            return cls._from(index, folder)
        except (KeyError, TypeError, OSError, ValueError, SafetensorError) as error:
            raise SchemaMismatch(f"{folder}: {type(error).__name__}: {error}; the report is damaged") from error

    @classmethod
    def _from(cls, index: Mapping, folder: Path) -> "Report":
        pair = index["pair"]
        return cls(
            method=index["method"],
            pair=PairSpec(
                ModelSpec(**pair["base"]), VariantSpec(**pair["finetuned"]), pair["organism"], pair["variant"]
            ),
            settings=index["settings"],
            corpora=[CorpusSpec(**corpus) for corpus in index["corpora"]],
            no_difference=index["no_difference"],
            scalars={name: Scalar(**entry) for name, entry in index["scalars"].items()},
            tables={name: _load_table(folder, name, entry) for name, entry in index["tables"].items()},
            tensors=_load_tensors(folder, index["tensors"]),
            figures={
                name: Figure(_read_json(folder / "figures" / f"{name}.json"), about)
                for name, about in index["figures"].items()
            },
            findings=[Finding(**entry) for entry in index["findings"]],
            provenance=index["provenance"],
        )


def _index(report: Report) -> dict[str, JSON]:
    return {
        "schema_version": SCHEMA_VERSION,
        "method": report.method,
        "pair": report.pair.as_json(),
        "settings": dict(report.settings),
        "corpora": [corpus.as_json() for corpus in report.corpora],
        "no_difference": report.no_difference,
        "scalars": {name: asdict(scalar) for name, scalar in report.scalars.items()},
        "tables": {
            name: {
                "about": table.about,
                "columns": dict(table.columns),
                "view": asdict(table.view) if table.view else None,
                "ground_truth": table.ground_truth,
                "rows": len(table.frame),
            }
            for name, table in report.tables.items()
        },
        "tensors": {
            name: {"about": item.about, "axes": list(item.axes), "shape": list(item.tensor.shape)}
            | ({"directions": asdict(item.directions)} if item.directions else {})
            for name, item in report.tensors.items()
        },
        "figures": {name: figure.about for name, figure in report.figures.items()},
        "findings": [asdict(finding) for finding in report.findings],
        "provenance": dict(report.provenance),
    }


def _read_index(folder: Path) -> dict:
    path = folder / "report.json"
    if not path.is_file():
        raise MissingInput(f"no report in {folder}: expected a folder that holds report.json")
    try:
        index = _read_json(path)
    except ValueError as error:
        raise SchemaMismatch(f"{path} is not JSON: {error}") from error
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version != SCHEMA_VERSION:
        raise SchemaMismatch(f"{path} has schema version {version}; this version of diffing reads {SCHEMA_VERSION}")
    return index


def _load_tensors(folder: Path, index: Mapping[str, Mapping]) -> dict[str, NamedTensor]:
    from safetensors.torch import load_file

    stored = load_file(folder / "tensors.safetensors")
    for name, entry in index.items():
        found = list(stored[name].shape) if name in stored else None
        if found != entry["shape"]:
            raise SchemaMismatch(f"tensor '{name}' of {folder}: expected shape {entry['shape']}, found {found}")
    return {
        name: NamedTensor(
            stored[name],
            entry["about"],
            entry["axes"],
            Directions(**entry["directions"]) if "directions" in entry else None,
        )
        for name, entry in index.items()
    }


def _load_table(folder: Path, name: str, entry: Mapping) -> Table:
    frame = pd.read_parquet(folder / "tables" / f"{name}.parquet")
    if len(frame) != entry["rows"]:
        raise SchemaMismatch(f"table '{name}' of {folder}: expected {entry['rows']} rows, found {len(frame)}")
    view = View(**entry["view"]) if entry["view"] else None
    return Table(frame, entry["about"], entry["columns"], view, entry.get("ground_truth", False))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write_json(path: Path, value: JSON) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
