"""A corpus spec, opened: documents in a reproducible order, from the Hub, a local file or the package itself.

Every source gives rows, mappings from column to value, so that one place orders them, picks the column and checks the
format. The order of a source of n rows is `numpy.random.default_rng(shuffle_seed).permutation(n)`, which is also what
`datasets.Dataset.shuffle` gives. Nothing is opened, and the `datasets` library not imported, before the first document
is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TypeAlias

import numpy as np

from diffing.errors import EmptyCorpus, InvalidSetting, SchemaMismatch
from diffing.specs import CorpusSpec
from diffing.text.records import Row
from diffing.text.sources import RandomAccess, content_hash, open_rows, unknown_column

Message: TypeAlias = dict[str, str]
"""`{"role": ..., "content": ...}`."""
Document: TypeAlias = str | list[Message]


class Corpus:
    """The documents that a spec describes: strings for format `text`, lists of messages for format `chat`.

    Cheap to build. Each iteration starts anew and gives the same documents in the same order. Rows that are null or
    blank are passed over and do not count towards `max_documents`. In a .txt file each paragraph (blank lines divide
    them) is a document, under the column `text`; in a .jsonl file each line is an object with a value per column.

    Iteration raises MissingInput, UnknownName, InvalidSetting or SchemaMismatch for a source that is not what the spec
    says, or whose content is not the one that a pinned revision names (see `pin`); EmptyCorpus for no document at all.
    """

    def __init__(self, spec: CorpusSpec):
        if spec.max_documents is not None and spec.max_documents < 1:
            raise InvalidSetting(
                f"corpus '{spec.name}': max_documents is {spec.max_documents}; expected 1 or more, or null for all"
            )
        if spec.source != "hub" and (spec.subset is not None or spec.split != "train"):
            raise InvalidSetting(
                f"corpus '{spec.name}': source '{spec.source}' has neither subsets nor splits (got subset "
                f"{spec.subset}, split '{spec.split}'); leave subset null and split 'train'"
            )
        self.spec = spec

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def documents(self) -> Iterator[Document]:
        """The documents, lazily."""
        spec = self.spec
        found = False
        documents = (document for row in self._ordered() if (document := _document(row, spec)))
        for document in islice(documents, spec.max_documents):
            found = True
            yield document
        if not found:
            raise EmptyCorpus(
                f"corpus '{spec.name}' gives no documents: {spec.source} '{spec.id}', split '{spec.split}', column "
                f"'{spec.column}' holds nothing but null and blank values; check these in corpora.{spec.name}"
            )

    def _ordered(self) -> Iterator[Row]:
        rows = self._rows
        if not isinstance(rows, RandomAccess):
            yield from rows
            return
        keep = self.spec.shuffle_seed is None or self.spec.streaming
        for index in range(len(rows)) if keep else np.random.default_rng(self.spec.shuffle_seed).permutation(len(rows)):
            yield rows[int(index)]

    @cached_property
    def _rows(self) -> RandomAccess | Iterable[Row]:
        if self.spec.revision and self.spec.revision.startswith("sha256:"):
            pin(self.spec)
        return open_rows(self.spec)


def pin(spec: CorpusSpec) -> CorpusSpec:
    """The spec with `revision` set to a hash of what it reads from this machine, so that its digest covers the content.

    A Hub dataset keeps the revision it has; no network call is made. Raises SchemaMismatch for a spec that is already
    pinned to other content, and what `Corpus` raises for a missing source.
    """
    found = content_hash(spec)
    if found is None:
        return spec
    if spec.revision not in (None, found):
        raise SchemaMismatch(
            f"corpus '{spec.name}': expected {spec.source} '{spec.id}' with content {spec.revision}, found {found}; "
            f"bring the recorded content back, or set corpora.{spec.name}.revision=null to use what is there now"
        )
    return replace(spec, revision=found)


def _document(row: Row, spec: CorpusSpec) -> Document | None:
    """The document of a row; None if it is null or blank."""
    if spec.column not in row:
        raise unknown_column(spec, list(row))
    value = row[spec.column]
    if value is None:
        return None
    if spec.format == "chat":
        return _messages(value, spec)
    if isinstance(value, str):
        return value if value.strip() else None
    hint = f"; it looks like chat: set corpora.{spec.name}.format=chat" if isinstance(value, list) else ""
    raise SchemaMismatch(
        f"corpus '{spec.name}' has format text, but column '{spec.column}' holds {_kind(value)}, not strings{hint}"
    )


def _messages(value: object, spec: CorpusSpec) -> list[Message]:
    expected = f"corpus '{spec.name}' has format chat, so column '{spec.column}' must hold lists of {{role, content}}"
    if not isinstance(value, list):
        hint = f"; set corpora.{spec.name}.format=text" if isinstance(value, str) else ""
        raise SchemaMismatch(f"{expected}; got {_kind(value)}{hint}")
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise SchemaMismatch(f"{expected}; got a list of {_kind(message)}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            kinds = ", ".join(f"{key}: {_kind(item)}" for key, item in message.items())
            raise SchemaMismatch(f"{expected}, both strings; got a message with {{{kinds}}}")
        messages.append({"role": role, "content": content})
    return messages


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
