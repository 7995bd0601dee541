"""Random access to the records of a plain text file without holding the file.

Only byte positions are kept (16 bytes a record), so that a file larger than memory can be read in shuffled order, and
an opened file can be handed to another process: it is a path and positions, no handle.
"""

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from diffing.errors import SchemaMismatch

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class FileRows:
    """The records of a file: `len(rows)` of them, each parsed when asked for. Raises SchemaMismatch for a bad one."""

    path: Path
    spans: Sequence[int]
    """First and last-plus-one byte of each record, one after the other."""
    parse: Callable[[str], Row]

    def __len__(self) -> int:
        return len(self.spans) // 2

    def __getitem__(self, index: int) -> Row:
        start, stop = self.spans[2 * index], self.spans[2 * index + 1]
        with self.path.open("rb") as file:
            file.seek(start)
            record = file.read(stop - start)
        try:
            return self.parse(record.decode("utf-8-sig"))
        except ValueError as error:
            raise SchemaMismatch(f"{self.path}: record {index + 1} (byte {start}) cannot be read: {error}") from error


def line_rows(path: Path) -> FileRows:
    """JSON lines: each line that is not blank is one object."""
    spans = array("q")
    position = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                spans.extend((position, position + len(line)))
            position += len(line)
    return FileRows(path, spans, _json_object)


def paragraph_rows(path: Path) -> FileRows:
    """Plain text: each run of lines between blank lines is one row `{"text": ...}`."""
    spans = array("q")
    position = 0
    in_paragraph = False
    with path.open("rb") as file:
        for line in file:
            if in_paragraph and line.strip():
                spans[-1] = position + len(line)
            elif line.strip():
                spans.extend((position, position + len(line)))
            in_paragraph = bool(line.strip())
            position += len(line)
    return FileRows(path, spans, _paragraph)


def _paragraph(record: str) -> Row:
    return {"text": record.strip("\r\n")}


def _json_object(line: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got a JSON {type(row).__name__}")
    return row
