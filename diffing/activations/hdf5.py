"""One HDF5 file of stored activations: the only module that knows its layout. Tensors go in and come out.

    attributes                        layout_version, spec (JSON of what the digest covers), digest, shard,
                                      first_document, first_row
    /tokens/ids                       int32, all tokens of the shard's documents
    /tokens/offsets, /tokens/rows     int64 [documents + 1]: tokens, and kept rows, of document k are [k]:[k + 1]
    /layers/{layer}                   [rows, d_model] in chunks of whole rows; bfloat16 as the bits of a uint16
    /moments/{stream}/{layer}         mean, m2: float64 [d_model]; attribute count

The kept rows of a document are always a suffix of its tokens. HDF5 lets one thread of a process in at a time, so it
only lays a file out: rows go to and come from the file offsets of their chunks, outside its lock. A file is the same
bytes whenever and by whomever it is written: no time stamps, no machine names, no folder whose content has a hash.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from h5py import h5d, h5p, h5s
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from diffing.activations.files import OpenFile, read_all, refused, write_all
from diffing.activations.moments import Moments
from diffing.axes import Side, Stream
from diffing.errors import MissingInput, SchemaMismatch
from diffing.specs import JSON, CacheSpec

LAYOUT_VERSION = 1
CHUNK_ROWS = 512
STREAMS = {Side.BASE: (Stream.BASE,), Side.FINETUNED: (Stream.FINETUNED, Stream.DIFFERENCE)}
"""Whose moments a side's shards hold."""
_DTYPES = {
    "bfloat16": (torch.bfloat16, np.dtype("<u2")),
    "float16": (torch.float16, np.dtype("<f2")),
    "float32": (torch.float32, np.dtype("<f4")),
}
_PAGE = 4096
_LIBVER = ("v110", "v110")
"""Fixed, so that a newer HDF5 writes the same format."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Tokens of consecutive documents, and which rows were kept of each."""

    ids: Int32[Tensor, " token"]
    offsets: Int64[Tensor, " documents_plus_1"]
    """Tokens of document k are `ids[offsets[k]:offsets[k + 1]]`."""
    rows: Int64[Tensor, " documents_plus_1"]
    """Rows of document k are `rows[k]:rows[k + 1]` of the shard: its last tokens, in order."""


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself."""

    digest: str
    """Of the CacheSpec."""
    identity: JSON
    """What the digest covers."""
    shard: int
    first_document: int
    first_row: int
    n_documents: int
    n_rows: int
    d_model: int
    layers: tuple[int, ...]
    dtype: torch.dtype


def write_shard(
    path: Path,
    *,
    spec: CacheSpec,
    shard: int,
    first_document: int,
    first_row: int,
    documents: Documents,
    rows: Mapping[int, Float[Tensor, "token d_model"]],
    moments: Mapping[Stream, Mapping[int, Moments]],
    chunk_rows: int = CHUNK_ROWS,
) -> None:
    """Writes exactly `path`, replacing what is there, without syncing it; see `publish_file`.

    `rows` are CPU tensors in the stored dtype, bit by bit what a reader gets back. Raises SchemaMismatch if the parts
    do not fit together, and StorageFailed, with nothing left at `path`, if the disk refuses.
    """
    _check_parts(spec, documents, rows, moments)
    attributes: dict[str, JSON] = {
        "layout_version": LAYOUT_VERSION,
        "spec": json.dumps(spec.identity(), sort_keys=True),
        "digest": spec.digest,
        "shard": shard,
        "first_document": first_document,
        "first_row": first_row,
    }
    try:
        with _created(path) as file:
            file.attrs.update(attributes)
            _write_documents(file, documents)
            _write_moments(file, moments)
            layers = file.create_group("layers", track_times=False)
            runs = {layer: _allocate(layers, layer, rows[layer], spec.dtype, chunk_rows) for layer in spec.layers}
        with open(path, "r+b", buffering=0) as opened:
            for layer, pieces in runs.items():
                raw = _bytes(rows[layer])
                for start, stop, offset in pieces.inside(0, len(rows[layer])):
                    write_all(opened.fileno(), raw[start * pieces.row_bytes : stop * pieces.row_bytes], offset)
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed close as RuntimeError
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise refused(path, error) from error


class ShardReader:
    """Reads one shard. Keeps its layout, once read, and no open file: fit for threads, forks and pickles."""

    def __init__(self, path: Path, open_file: Callable[[Path], OpenFile] = OpenFile):
        self.path = path
        self._open_file = open_file

    @property
    def header(self) -> ShardHeader:
        return self._layout[0]

    @cached_property
    def _layout(self) -> "tuple[ShardHeader, dict[int, _Runs]]":
        with self._hdf5() as file:
            header = _read_header(file)
            return header, {layer: _runs(file[f"layers/{layer}"]) for layer in header.layers}

    def read(
        self, layer: int, start: int, stop: int, out: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "token d_model"]:
        """Rows `start:stop` of this shard in the stored dtype, in `out` (contiguous, on the CPU) if that is given."""
        header, runs = self._layout
        if layer not in runs:
            raise MissingInput(f"layer {layer} is not stored in {self.path}; stored: {', '.join(map(str, runs))}")
        if not 0 <= start <= stop <= header.n_rows:
            raise IndexError(f"rows {start}:{stop} of a shard of {header.n_rows}")
        if out is None:
            out = torch.empty(stop - start, header.d_model, dtype=header.dtype)
        if out.shape != (stop - start, header.d_model) or out.dtype != header.dtype or not out.is_contiguous():
            expected = f"contiguous {header.dtype} [{stop - start}, {header.d_model}]"
            raise ValueError(f"out is {out.dtype} {list(out.shape)} with strides {out.stride()}; expected {expected}")
        opened, raw, pieces = self._opened(), _bytes(out), runs[layer]
        for first, last, offset in pieces.inside(start, stop):
            piece = raw[(first - start) * pieces.row_bytes : (last - start) * pieces.row_bytes]
            if not read_all(opened.descriptor, piece, offset):
                raise self._broken("the file ends before its rows do")
        return out

    def documents(self) -> Documents:
        with self._hdf5() as file:
            return Documents(*(torch.from_numpy(file[f"tokens/{name}"][:]) for name in ("ids", "offsets", "rows")))

    def document_rows(self) -> Int64[Tensor, " documents_plus_1"]:
        """`Documents.rows` alone: token ids are many."""
        with self._hdf5() as file:
            return torch.from_numpy(file["tokens/rows"][:])

    def moments(self, stream: Stream, layer: int) -> Moments:
        """Raises MissingInput for a stream or a layer that this side does not keep."""
        with self._hdf5() as file:
            name = f"moments/{stream}/{layer}"
            if name not in file:
                raise MissingInput(
                    f"no {name} in {self.path}; there are {list(file['moments'])} of {self.header.layers}"
                )
            mean, m2 = (torch.from_numpy(file[name][part][:]) for part in ("mean", "m2"))
            return Moments(int(file[name].attrs["count"]), mean, m2)

    @contextmanager
    def _hdf5(self) -> Iterator[h5py.File]:
        """The file, opened; whatever HDF5 finds wrong in it becomes a SchemaMismatch."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                yield file
        except FileNotFoundError as error:
            raise MissingInput(f"{self.path} is missing: {_MEND}") from error
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise self._broken(str(error)) from error

    def _opened(self) -> OpenFile:
        try:
            return self._open_file(self.path)
        except OSError as error:
            raise MissingInput(f"{self.path} cannot be opened ({error.strerror}): {_MEND}") from error

    def _broken(self, found: str) -> SchemaMismatch:
        return SchemaMismatch(
            f"{self.path} is not a complete shard of layout {LAYOUT_VERSION}: {found}. "
            f"If it is one of this program's files, delete it, {_MEND}"
        )


_MEND = "run the same command again, and what is missing is collected"


@dataclass(frozen=True)
class _Runs:
    """Rows of one layer that lie next to each other in the file: mostly all of them, as one run."""

    row_bytes: int
    starts: list[int]
    """First row of each run, and at the end the number of rows."""
    offsets: list[int]

    def inside(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(first row, last row + 1, file offset of the first row) of each piece of `start:stop`."""
        run = bisect_right(self.starts, start) - 1
        while start < stop:
            last = min(stop, self.starts[run + 1])
            yield start, last, self.offsets[run] + (start - self.starts[run]) * self.row_bytes
            start, run = last, run + 1


def _created(path: Path) -> h5py.File:
    """A new file, in which what is larger than a page begins at one: no page of rows is written in two parts."""
    return h5py.File(
        path, "w", libver=_LIBVER, locking=False, track_times=False,
        alignment_threshold=_PAGE, alignment_interval=_PAGE,
    )  # fmt: skip


def _check_parts(
    spec: CacheSpec, documents: Documents, rows: Mapping[int, Tensor], moments: Mapping[Stream, Mapping[int, Moments]]
) -> None:
    n_rows, dtype = int(documents.rows[-1]), _DTYPES[spec.dtype][0]
    kept, tokens = documents.rows.diff(), documents.offsets.diff()
    if documents.rows[0] or documents.offsets[0] or int(documents.offsets[-1]) != len(documents.ids):
        raise SchemaMismatch("offsets and rows of documents start at 0, and offsets end at the number of tokens")
    if bool(((kept < 0) | (kept > tokens)).any()):
        raise SchemaMismatch("each document keeps between none and all of its tokens")
    if set(rows) != set(spec.layers):
        raise SchemaMismatch(f"rows of layers {sorted(rows)}; expected {list(spec.layers)}")
    for layer, values in rows.items():
        if values.dtype != dtype or len(values) != n_rows:
            found = f"{values.dtype} [{len(values)}, ...]"
            raise SchemaMismatch(f"rows of layer {layer} are {found}; expected {dtype} [{n_rows}, ...]")
    expected = {(stream, layer) for stream in STREAMS[spec.side] for layer in spec.layers}
    if {(stream, layer) for stream, layers in moments.items() for layer in layers} != expected:
        raise SchemaMismatch(f"moments are needed of exactly {sorted(expected)}")


def _write_documents(file: h5py.File, documents: Documents) -> None:
    tokens = file.create_group("tokens", track_times=False)
    for name, stored in (("ids", "<i4"), ("offsets", "<i8"), ("rows", "<i8")):
        values = getattr(documents, name).cpu().numpy()
        tokens.create_dataset(name, data=values, dtype=stored, track_times=False)


def _write_moments(file: h5py.File, moments: Mapping[Stream, Mapping[int, Moments]]) -> None:
    root = file.create_group("moments", track_times=False)
    for stream in sorted(moments):
        group = root.create_group(stream, track_times=False)
        for layer, values in sorted(moments[stream].items()):
            entry = group.create_group(str(layer), track_times=False)
            entry.attrs["count"] = values.count
            entry.create_dataset("mean", data=values.mean.cpu().numpy(), dtype="<f8", track_times=False)
            entry.create_dataset("m2", data=values.m2.cpu().numpy(), dtype="<f8", track_times=False)


def _allocate(group: h5py.Group, layer: int, rows: Tensor, dtype: str, chunk_rows: int) -> _Runs:
    """A dataset with room for all chunks, the last one whole, and where that room is."""
    stored = _DTYPES[dtype][1]
    n_rows, d_model = rows.shape
    whole = -(-max(n_rows, 1) // chunk_rows) * chunk_rows
    options = h5p.create(h5p.DATASET_CREATE)
    options.set_chunk((chunk_rows, d_model))
    options.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5d.FILL_TIME_NEVER)
    options.set_obj_track_times(False)
    space = h5s.create_simple((n_rows, d_model), (whole, d_model))
    made = h5py.Dataset(h5d.create(group.id, str(layer).encode(), h5py.h5t.py_create(stored), space, options))
    made.attrs["dtype"] = dtype
    return _runs(made)


def _runs(dataset: h5py.Dataset) -> _Runs:
    """Where the rows are. Raises ValueError unless each chunk has its place and holds plain whole rows."""
    n_rows, d_model = dataset.shape
    chunk_rows, chunk_width = dataset.chunks
    found: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.chunk_offset[0], chunk.byte_offset)))
    first_rows, offsets = np.array(sorted(found), dtype=np.int64).reshape(-1, 2).T
    expected = np.arange(0, n_rows, chunk_rows)
    if (
        chunk_width != d_model
        or dataset.id.get_create_plist().get_nfilters()
        or not np.array_equal(first_rows, expected)
    ):
        raise ValueError(f"{dataset.name} lacks chunks, or they are split or filtered")
    row_bytes = d_model * dataset.dtype.itemsize
    breaks = np.flatnonzero(np.diff(offsets) != chunk_rows * row_bytes) + 1
    begins = np.concatenate([[0], breaks]).astype(np.int64)[: len(offsets)]
    return _Runs(row_bytes, [*first_rows[begins].tolist(), n_rows], offsets[begins].tolist())


def _read_header(file: h5py.File) -> ShardHeader:
    """Raises KeyError or ValueError for what is no shard of this layout."""
    version = file.attrs.get("layout_version", "none")
    if version != LAYOUT_VERSION:
        raise ValueError(f"its layout version is {version}")
    identity = json.loads(file.attrs["spec"])
    layers = tuple(identity["layers"])
    dtype, stored = _DTYPES[identity["dtype"]]
    shapes = {file[f"layers/{layer}"].shape for layer in layers}
    rows = file["tokens/rows"]
    n_rows = int(rows[-1])
    if len(shapes) != 1 or {shape[0] for shape in shapes} != {n_rows}:
        raise ValueError(f"its layers have shapes {sorted(shapes)}, its documents {n_rows} rows")
    if any(file[f"layers/{layer}"].dtype != stored for layer in layers):
        raise ValueError(f"its rows are not stored as {stored}")
    return ShardHeader(
        digest=str(file.attrs["digest"]),
        identity=identity,
        shard=int(file.attrs["shard"]),
        first_document=int(file.attrs["first_document"]),
        first_row=int(file.attrs["first_row"]),
        n_documents=len(rows) - 1,
        n_rows=n_rows,
        d_model=shapes.pop()[1],
        layers=layers,
        dtype=dtype,
    )


def _bytes(rows: Tensor) -> np.ndarray:
    """The bytes of CPU rows, as one flat array: a view where the rows are contiguous."""
    return rows.contiguous().view(torch.uint8).numpy().reshape(-1)
