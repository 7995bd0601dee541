"""Which documents make up which shard, and which of them run together in a batch.

Nothing here depends on the machine, the number of processes or what is already on disk: every process that shares the
work finds the same shards and the same batches, and so writes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from diffing.activations.hdf5 import CHUNK_ROWS
from diffing.activations.store import shard_name
from diffing.activations.tokens import Tokens
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.specs import CacheSpec


@dataclass(frozen=True)
class Shard:
    """Whole documents, and the place of their rows in the store."""

    index: int
    documents: range
    first_row: int
    n_rows: int
    n_tokens: int

    @property
    def file(self) -> str:
        return shard_name(self.index)


def kept_rows(tokens: Tokens, spec: CacheSpec) -> Int64[Tensor, " document"]:
    """Rows that each document contributes: its tokens less the leading ones that `spec` leaves out."""
    left_out = torch.full_like(tokens.lengths, spec.skip_first)
    if spec.drop_bos:
        left_out = torch.maximum(left_out, tokens.leading_bos)
    return (tokens.lengths - left_out).clamp(min=0)


def plan(lengths: Int64[Tensor, " document"], kept: Int64[Tensor, " document"], parts: Sequence[range]) -> list[Shard]:
    """A shard of each of `parts`, which are all documents in order. Raises EmptyCorpus if no document keeps a row."""
    if not kept.any():
        raise EmptyCorpus(f"none of {len(kept)} documents is longer than what is skipped of each; lower skip_first")
    rows, tokens = ends(kept).tolist(), ends(lengths).tolist()
    return [
        Shard(index, part, rows[part.start], rows[part.stop] - rows[part.start], tokens[part.stop] - tokens[part.start])
        for index, part in enumerate(parts)
    ]


def ends(counts: Int64[Tensor, " document"]) -> Int64[Tensor, " documents_plus_1"]:
    """0, and then the running total: what belongs to document k is `[k]:[k + 1]`."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def split(kept: Int64[Tensor, " document"], rows_per_shard: int) -> list[range]:
    """Consecutive documents with at most `rows_per_shard` rows together; a longer document is alone with its rows."""
    if rows_per_shard < 1:
        raise InvalidSetting(f"rows_per_shard={rows_per_shard}; expected 1 or more")
    rows = ends(kept)
    found, start = [], 0
    while start < len(kept):
        stop = max(int(torch.searchsorted(rows, rows[start] + rows_per_shard, right=True)) - 1, start + 1)
        found.append(range(start, stop))
        start = stop
    return found


def rows_per_shard(shard_mib: float | int, row_bytes: int) -> int:
    """Rows of one side, of `row_bytes` over all layers, that fit into `shard_mib`: whole chunks, at least one."""
    if not shard_mib > 0:
        raise InvalidSetting(f"shard_mib={shard_mib}; expected more than 0")
    return max(int(shard_mib * 2**20) // (row_bytes * CHUNK_ROWS), 1) * CHUNK_ROWS


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices into `lengths`, longest first, in batches of at most `batch_tokens` tokens, padding included.

    A sequence longer than that is a batch of its own. Equal lengths keep their order.
    """
    if batch_tokens < 1:
        raise InvalidSetting(f"batch_tokens={batch_tokens}; expected 1 or more")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found, start = [], 0
    while start < len(order):
        stop = start + max(batch_tokens // lengths[order[start]], 1)
        found.append(order[start:stop])
        start = stop
    return found
