"""Stored activations as one array of rows: of one side of a pair (SideStore), and of both (ActivationCache).

A store is a folder of shards and a manifest.json that is written last: a folder without it is unfinished. Rows are in
the order of the documents, the same on both sides. Both classes keep paths and small tables, never an open HDF5 file:
they may be used from threads, forked and pickled.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from diffing.activations.files import OpenFile, publish_file, refused
from diffing.activations.hdf5 import CHUNK_ROWS, LAYOUT_VERSION, ShardReader
from diffing.activations.moments import Moments
from diffing.axes import Side, Stream
from diffing.errors import IncompatiblePair, MissingInput, SchemaMismatch
from diffing.specs import CacheSpec

MANIFEST = "manifest.json"
OPEN_FILES = 64
"""Shards of one store that are kept open at once: file systems of clusters are slow to open a file."""


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.h5"


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    file: str
    rows: int
    documents: int
    bytes: int
    sha256: str


class SideStore:
    """One side's activations of one corpus. `n_rows`, `n_documents`, `d_model`, `layers`, `spec` are known at once."""

    def __init__(self, folder: Path):
        """Raises MissingInput if the store is not finished, SchemaMismatch if it is not what its manifest says."""
        self.folder = folder
        self.spec, self.d_model, self.shards = _read_manifest(folder)
        self.layers: Sequence[int] = self.spec.layers
        self.row_starts = [0, *accumulate(entry.rows for entry in self.shards)]
        """First row of each shard, and at the end the number of rows."""
        self.document_starts = [0, *accumulate(entry.documents for entry in self.shards)]
        self.n_rows, self.n_documents = self.row_starts[-1], self.document_starts[-1]
        opened = lru_cache(maxsize=OPEN_FILES)(OpenFile)
        self._readers = [ShardReader(folder / entry.file, opened) for entry in self.shards]
        self._documents = lru_cache(maxsize=8)(ShardReader.documents)

    def __reduce__(self) -> tuple[type["SideStore"], tuple[Path]]:
        return SideStore, (self.folder,)

    def read(
        self, layer: int, start: int, stop: int, out: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "token d_model"]:
        """Rows `start:stop` in the stored dtype, in `out` (contiguous, on the CPU) if that is given."""
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start}:{stop} of a store of {self.n_rows}")
        if out is None:
            out = torch.empty(stop - start, self.d_model, dtype=getattr(torch, self.spec.dtype))
        shard = bisect_right(self.row_starts, start) - 1
        row = start
        while row < stop:
            first, last = self.row_starts[shard], min(stop, self.row_starts[shard + 1])
            self._readers[shard].read(layer, row - first, last - first, out[row - start : last - start])
            row, shard = last, shard + 1
        return out

    def blocks(self, rows: int = CHUNK_ROWS) -> list[tuple[int, int]]:
        """(start, stop) of blocks that cover every row once. None crosses a shard; with whole chunks in `rows`, none
        splits a chunk."""
        bounds = zip(self.row_starts, self.row_starts[1:], strict=False)
        return [(start, min(start + rows, last)) for first, last in bounds for start in range(first, last, rows)]

    @cached_property
    def _document_rows(self) -> Int64[Tensor, " documents_plus_1"]:
        parts = [
            reader.document_rows()[1:] + first for reader, first in zip(self._readers, self.row_starts, strict=False)
        ]
        return torch.cat([torch.zeros(1, dtype=torch.int64), *parts])

    def document_rows(self) -> Int64[Tensor, " documents_plus_1"]:
        """Rows of document k are `[k]:[k + 1]`."""
        return self._document_rows

    def document_tokens(self, document: int) -> Int32[Tensor, " token"]:
        """All token ids of a document. Its rows belong to the last of them."""
        if not 0 <= document < self.n_documents:
            raise IndexError(f"document {document} of a store of {self.n_documents}")
        shard = bisect_right(self.document_starts, document) - 1
        documents, k = self._documents(self._readers[shard]), document - self.document_starts[shard]
        return documents.ids[documents.offsets[k] : documents.offsets[k + 1]]

    def moments(self, stream: Stream, layer: int) -> Moments:
        """Over all rows. Raises MissingInput for a stream or layer that this side does not keep."""
        return Moments.merged([reader.moments(stream, layer) for reader in self._readers])

    def verify(self) -> None:
        """Reads every byte. Raises SchemaMismatch for the first shard whose content is not what was written."""
        found = _checksums([self.folder / entry.file for entry in self.shards])
        for entry, sha256 in zip(self.shards, found, strict=True):
            if sha256 != entry.sha256:
                raise SchemaMismatch(
                    f"{self.folder / entry.file}: its SHA-256 is {sha256}, the manifest says {entry.sha256}. "
                    f"Delete it and {MANIFEST}, and run the same command again"
                )

    @staticmethod
    def finish(folder: Path, spec: CacheSpec, n_shards: int) -> bool:
        """Writes the manifest if all `n_shards` shards are there, and says whether they are.

        Raises SchemaMismatch for a shard of another spec, or one that does not follow on the one before it.
        """
        if (folder / MANIFEST).exists():
            return True
        paths = [folder / shard_name(shard) for shard in range(n_shards)]
        if not all(path.exists() for path in paths):
            return False
        entries, d_model = _entries(paths, spec)
        content = {
            "layout_version": LAYOUT_VERSION,
            "spec": spec.as_json(),
            "digest": spec.digest,
            "rows": sum(entry.rows for entry in entries),
            "documents": sum(entry.documents for entry in entries),
            "d_model": d_model,
            "shards": [vars(entry) for entry in entries],
        }
        temporary = folder / f".{MANIFEST}.{uuid4().hex}.tmp"
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise refused(temporary, error) from error
        publish_file(temporary, folder / MANIFEST)
        return True


@dataclass(frozen=True, eq=False)
class Window:
    """Tokens around a row, within its document."""

    document: int
    start: int
    """Position in the document of the first token of the window."""
    position: int
    """Index of the row's own token in `ids`."""
    ids: Int32[Tensor, " pos"]
    rows: Int64[Tensor, " pos"]
    """Row of each token, -1 where none was kept."""

    @property
    def kept(self) -> Bool[Tensor, " pos"]:
        return self.rows >= 0


class ActivationCache:
    """Both sides' activations of one corpus: row i of one side and row i of the other are of the same token."""

    def __init__(self, base: Path, finetuned: Path):
        """Raises what SideStore does, and IncompatiblePair if the two are not of one pair, corpus and setting."""
        self.base, self.finetuned = SideStore(base), SideStore(finetuned)
        _check_sides(self.base, self.finetuned)
        self.spec = self.finetuned.spec
        self.n_rows, self.n_documents = self.base.n_rows, self.base.n_documents
        self.d_model, self.layers = self.base.d_model, self.base.layers

    def __reduce__(self) -> tuple[type["ActivationCache"], tuple[Path, Path]]:
        return ActivationCache, (self.base.folder, self.finetuned.folder)

    @property
    def corpus(self) -> str:
        """Short name."""
        return self.spec.tokens.corpus.name

    @property
    def digest(self) -> str:
        """Changes with whatever changes a value on either side."""
        return _digest([self.base.spec.digest, self.finetuned.spec.digest])

    @property
    def pair_digest(self) -> str:
        """Of the two models alone: the same for all corpora and layers of a pair."""
        identity = self.spec.identity()
        return _digest([identity["base"], identity["finetuned"]])

    def read(
        self, layer: int, start: int, stop: int
    ) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        """(base, finetuned) rows in the stored dtype."""
        return self.base.read(layer, start, stop), self.finetuned.read(layer, start, stop)

    def moments(self, stream: Stream, layer: int) -> Moments:
        """Over all rows, of the stored values."""
        side = self.base if stream is Stream.BASE else self.finetuned
        return side.moments(stream, layer)

    def window(self, row: int, before: int, after: int) -> Window:
        """The tokens from `before` before the row's token to `after` after it, as far as its document reaches."""
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row} of a cache of {self.n_rows}")
        bounds = self.base.document_rows()
        document = int(torch.searchsorted(bounds, row, right=True)) - 1
        ids = self.base.document_tokens(document)
        first_row, end_row = int(bounds[document]), int(bounds[document + 1])
        skipped = len(ids) - (end_row - first_row)
        position = skipped + row - first_row
        start, stop = max(0, position - before), min(len(ids), position + after + 1)
        positions = torch.arange(start, stop)
        rows = torch.where(positions >= skipped, positions - skipped + first_row, -1)
        return Window(document, start, position - start, ids[start:stop], rows)


def _read_manifest(folder: Path) -> tuple[CacheSpec, int, list[ShardEntry]]:
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["layout_version"] != LAYOUT_VERSION:
            raise ValueError(f"layout version {stored['layout_version']}; expected {LAYOUT_VERSION}")
        spec = CacheSpec.from_json(stored["spec"])
        if spec.digest != stored["digest"]:
            raise ValueError(f"the digest of its spec is {spec.digest}, it says {stored['digest']}")
        shards, d_model = [ShardEntry(**entry) for entry in stored["shards"]], int(stored["d_model"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(
            f"no finished activations in {folder}: make them with train.py pipeline.mode=preprocessing, "
            "which goes on where an interrupted run stopped"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaMismatch(
            f"{path} is not a manifest this program wrote ({error}): delete it and run again"
        ) from error
    for entry in shards:
        shard = folder / entry.file
        found = shard.stat().st_size if shard.exists() else None
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found} bytes, expected {entry.bytes}"
            raise SchemaMismatch(
                f"{shard} {state}: delete it and {path}, and run the same command again to collect it anew"
            )
    return spec, d_model, shards


def _entries(paths: Sequence[Path], spec: CacheSpec) -> tuple[list[ShardEntry], int]:
    """Of shards that follow on each other, and their width."""
    entries: list[ShardEntry] = []
    document, row, width = 0, 0, None
    for number, (path, sha256) in enumerate(zip(paths, _checksums(paths), strict=True)):
        header = ShardReader(path).header
        width = width or header.d_model
        found = (header.digest, header.shard, header.first_document, header.first_row, header.d_model)
        expected = (spec.digest, number, document, row, width)
        if found != expected:
            raise SchemaMismatch(
                f"{path} is another plan's: digest, shard, first document, first row and width are {found}; "
                f"expected {expected}. Delete it and run the same command again"
            )
        entries.append(ShardEntry(path.name, header.n_rows, header.n_documents, path.stat().st_size, sha256))
        document, row = document + header.n_documents, row + header.n_rows
    if width is None:
        raise SchemaMismatch("a store has at least one shard")
    return entries, width


def _checksums(paths: Sequence[Path]) -> list[str]:
    def sha256(path: Path) -> str:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256, paths))


def _check_sides(base: SideStore, finetuned: SideStore) -> None:
    for store, side in ((base, Side.BASE), (finetuned, Side.FINETUNED)):
        if store.spec.side != side:
            raise IncompatiblePair(f"{store.folder} holds the {store.spec.side} side; expected the {side} side")
    left, right = base.spec.identity(), finetuned.spec.identity()
    for name in left:
        if name != "finetuned" and left[name] != right[name]:
            raise IncompatiblePair(
                f"the two sides were stored with another {name}: {left[name]} in {base.folder}, "
                f"{right[name]} in {finetuned.folder}"
            )
    sizes = [(store.n_rows, store.n_documents, store.d_model) for store in (base, finetuned)]
    if sizes[0] != sizes[1]:
        raise IncompatiblePair(
            f"(rows, documents, width) are {sizes[0]} in {base.folder}, {sizes[1]} in {finetuned.folder}"
        )


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
