"""Where rows come from: the Hub through `datasets` (imported when needed), local files, embedded corpora, functions."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffing.errors import InvalidSetting, MissingInput, SchemaMismatch, UnknownName
from diffing.specs import CorpusSpec
from diffing.text.embedded import EMBEDDED
from diffing.text.records import FileRows, Row, line_rows, paragraph_rows

SUFFIXES = (".jsonl", ".parquet", ".txt")
NO_DOWNLOAD = "to go without a download, use your own text ('corpus=[file]' corpora.file.id=PATH) or " + " or ".join(
    f"'corpus=[{name}]'" for name in EMBEDDED
)


@runtime_checkable
class RandomAccess(Protocol):
    """Rows that can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


def open_rows(spec: CorpusSpec) -> RandomAccess | Iterable[Row]:
    """The rows of a spec, in stored order; an iterable that is not RandomAccess when streamed.

    Raises MissingInput, UnknownName, InvalidSetting or SchemaMismatch when the source is not what the spec says.
    """
    match spec.source:
        case "embedded" | "python":
            return _held(spec)
        case "file":
            path = _existing(spec)
            match path.suffix:
                case ".jsonl":
                    return line_rows(path)
                case ".txt":
                    return paragraph_rows(path)
            return _load(spec, "parquet", data_files=str(path), split="train")
    return _load(spec, spec.id, name=spec.subset, split=spec.split, revision=spec.revision)


def content_hash(spec: CorpusSpec) -> str | None:
    """`sha256:` and 64 hex digits over what a spec reads from this machine; None for what the Hub holds."""
    if spec.source in ("embedded", "python"):
        rows = _held(spec)
        digest = hashlib.sha256()
        for index in range(len(rows)):
            digest.update(json.dumps(rows[index], sort_keys=True).encode() + b"\n")
        return f"sha256:{digest.hexdigest()}"
    if spec.source == "file":
        return f"sha256:{_file_digest(_existing(spec))}"
    folder = Path(spec.id).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {_file_digest(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def unknown_column(spec: CorpusSpec, columns: Sequence[str]) -> UnknownName:
    hint = f"set corpora.{spec.name}.column=NAME"
    return UnknownName(f"column of corpus '{spec.name}'", spec.column, columns, hint)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held(spec: CorpusSpec) -> Sequence[Row] | FileRows:
    """The rows of a corpus that this process holds: an embedded one, or what a function gives."""
    if spec.source == "python":
        return [{spec.column: document} for document in _function(spec)()]
    if spec.id not in EMBEDDED:
        raise UnknownName("embedded corpus", spec.id, sorted(EMBEDDED))
    return EMBEDDED[spec.id]()


def _function(spec: CorpusSpec) -> Callable[[], Iterable[object]]:
    module, colon, name = spec.id.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise MissingInput(f"corpus '{spec.name}': '{spec.id}' cannot be imported: {error}") from error
    if not callable(found):
        raise InvalidSetting(f"corpus '{spec.name}': id '{spec.id}'; expected package.module:function")
    return found


def _existing(spec: CorpusSpec) -> Path:
    path = Path(spec.id).expanduser()
    if path.suffix not in SUFFIXES:
        raise InvalidSetting(
            f"corpus '{spec.name}': unknown suffix '{path.suffix}' of {path}; expected one of {', '.join(SUFFIXES)}"
        )
    if path.is_file():
        return path
    hint = f"set corpora.{spec.name}.id=PATH"
    if not path.parent.is_dir():
        raise MissingInput(f"corpus '{spec.name}': no folder {path.parent} to read {path.name} from; {hint}")
    near = get_close_matches(path.name, sorted(item.name for item in path.parent.iterdir()), n=5)
    nearby = f"near names in {path.parent}: {', '.join(near)}; " if near else ""
    raise MissingInput(f"corpus '{spec.name}': there is no file {path}; {nearby}{hint}")


def _load(spec: CorpusSpec, path: str, **arguments: str | None) -> RandomAccess | Iterable[Row]:
    """`datasets.load_dataset`, narrowed to the spec's column, with errors that say what to type."""
    import datasets
    import pyarrow
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = datasets.load_dataset(path, streaming=spec.streaming, **arguments)
    except (ConnectionError, FileNotFoundError, HfHubHTTPError) as error:
        raise MissingInput(
            f"corpus '{spec.name}': cannot get the dataset '{spec.id}' from the Hugging Face Hub: {error}\n"
            f"check the id, the network and (for gated datasets) `hf auth login`; {NO_DOWNLOAD}"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowInvalid) as error:
        raise SchemaMismatch(f"corpus '{spec.name}': '{spec.id}' cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:
        raise InvalidSetting(
            f"corpus '{spec.name}': '{spec.id}' with subset {spec.subset} and split '{spec.split}': {error}"
        ) from error
    if rows.column_names is None:
        return rows
    if spec.column not in rows.column_names:
        raise unknown_column(spec, rows.column_names)
    return rows.select_columns([spec.column])
