"""Writes the shards of both sides together with the moments of what they hold, and checks one that is already there.

Moments are those of the stored values, after rounding, so that they describe exactly what a reader gets. The difference
belongs to the finetuned side; where the base has been collected before, its rows are read back.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diffing.activations.exclusive import reaching, temporary
from diffing.activations.files import publish_file
from diffing.activations.harvest import Rows
from diffing.activations.hdf5 import Documents, ShardReader, write_shard
from diffing.activations.moments import PIECE_ROWS, Moments
from diffing.activations.plan import Shard
from diffing.activations.streams import difference
from diffing.axes import Side, Stream
from diffing.errors import NonFiniteActivations, SchemaMismatch
from diffing.specs import CacheSpec

SPARE = 1 << 20
"""Bytes that HDF5 writes itself, token ids aside: moments, the index of chunks, headers."""


def write_sides(
    shard: Shard, documents: Documents, rows: Rows, specs: Mapping[Side, CacheSpec], stores: Mapping[Side, Path]
) -> None:
    """Publishes the shard of each side in `rows`, the base first. What fails leaves no file of its side.

    Raises NonFiniteActivations, StorageFailed, and SchemaMismatch for a damaged base shard.
    """
    base_shard = ShardReader(stores[Side.BASE] / shard.file)

    def base_rows(layer: int, start: int, stop: int) -> Float[Tensor, "token d_model"]:
        return rows[Side.BASE][layer][start:stop] if Side.BASE in rows else base_shard.read(layer, start, stop)

    for side in Side:
        if side not in rows:
            continue
        moments = {Stream(side): {layer: Moments.of(values) for layer, values in rows[side].items()}}
        _check_finite(moments[Stream(side)], side, specs[side])
        if side is Side.FINETUNED:
            moments[Stream.DIFFERENCE] = {
                layer: _difference_moments(values, layer, base_rows) for layer, values in rows[side].items()
            }
        final = stores[side] / shard.file
        unfinished = temporary(final)
        try:
            with reaching(final):  # HDF5 crashes where it finds no room for its own part: look for it first
                unfinished.write_bytes(bytes(documents.ids.nbytes + SPARE))
            write_shard(
                unfinished,
                spec=specs[side],
                shard=shard.index,
                first_document=shard.documents.start,
                first_row=shard.first_row,
                documents=documents,
                rows=rows[side],
                moments=moments,
            )
            publish_file(unfinished, final)
        finally:
            unfinished.unlink(missing_ok=True)


def check_shard(path: Path, spec: CacheSpec, shard: Shard) -> None:
    """Raises SchemaMismatch unless `path` is a whole shard, of this spec and at this place of the plan."""
    header = ShardReader(path).header
    if header.digest != spec.digest:
        raise SchemaMismatch(
            f"{path}: expected activations {spec.digest}, found {header.digest}; delete it and run the command again"
        )
    found = (header.shard, header.first_document, header.n_documents, header.first_row, header.n_rows)
    if found != (shard.index, shard.documents.start, len(shard.documents), shard.first_row, shard.n_rows):
        raise SchemaMismatch(
            f"{path}: expected shard {shard.index} with rows {shard.first_row} to {shard.first_row + shard.n_rows} of "
            f"documents {shard.documents.start} to {shard.documents.stop}, found shard {header.shard} with "
            f"{header.n_rows} rows from {header.first_row} on; this store was begun with another shard_mib: set "
            f"shard_mib back, or delete {path.parent}"
        )


def _difference_moments(
    finetuned: Float[Tensor, "token d_model"], layer: int, base_rows: Callable[[int, int, int], Tensor]
) -> Moments:
    """A piece at a time: the difference is wider than what is stored."""
    ends = range(0, max(len(finetuned), 1), PIECE_ROWS)
    pieces = [(start, min(start + PIECE_ROWS, len(finetuned))) for start in ends]
    return Moments.merged(
        [Moments.of(difference(base_rows(layer, start, stop), finetuned[start:stop])) for start, stop in pieces]
    )


def _check_finite(moments: Mapping[int, Moments], side: Side, spec: CacheSpec) -> None:
    for layer, found in moments.items():
        if not (found.mean.isfinite().all() and found.m2.isfinite().all()):
            raise NonFiniteActivations(
                f"NaN or infinite activations of the {side} model at layer {layer}, computed in {spec.base.dtype} and "
                f"stored in {spec.dtype}: try model.dtype=float32 or preprocessing.dtype=float32, or check the weights"
            )
