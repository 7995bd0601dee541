"""Which rows a loader reads when: arithmetic on row numbers, with no file in it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from diffing.errors import EmptyCorpus, InvalidSetting


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key and nothing else."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))


@dataclass(frozen=True)
class RowOrder:
    """The order in which rows are read: pieces of caches, one after another."""

    pieces: Int64[Tensor, "piece 3"]
    """Cache, first row, row after the last."""
    ends: Int64[Tensor, " piece"]
    """Rows up to the end of each piece."""

    @classmethod
    def of(cls, pieces: Int64[Tensor, "piece 3"]) -> "RowOrder":
        return cls(pieces, (pieces[:, 2] - pieces[:, 1]).cumsum(0))

    @classmethod
    def stored(cls, rows: Sequence[int]) -> "RowOrder":
        """Cache after cache, given their numbers of rows."""
        return cls.of(torch.tensor([[cache, 0, n] for cache, n in enumerate(rows) if n]))

    @classmethod
    def shuffled(
        cls, blocks: Sequence[Sequence[tuple[int, int]]], rows: Sequence[int], seed: int, epoch: int
    ) -> "RowOrder":
        """Blocks of each cache, in random order until they have given `rows` of it, spread evenly over the epoch.

        `blocks` are (first row, row after the last). In every stretch, each cache has its share to about a block.
        """
        pieces, places = [], []
        for cache, wanted in enumerate(rows):
            if not wanted:
                continue
            own = torch.tensor(blocks[cache])
            own = own[torch.randperm(len(own), generator=generator("blocks", seed, epoch, cache))]
            before = (own[:, 1] - own[:, 0]).cumsum(0) - (own[:, 1] - own[:, 0])
            own, before = own[before < wanted], before[before < wanted]
            own[-1, 1] = torch.minimum(own[-1, 1], own[-1, 0] + wanted - before[-1])
            sizes = own[:, 1] - own[:, 0]
            pieces.append(torch.column_stack([torch.full_like(sizes, cache), own]))
            places.append((before + sizes / 2).double() / wanted)
        return cls.of(torch.cat(pieces)[torch.cat(places).argsort(stable=True)])

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(cache, first row, row after the last) of places `start` to `stop` of the sequence."""
        first, last = torch.searchsorted(self.ends, torch.tensor([start, stop - 1]), right=True).tolist()
        chosen = zip(self.pieces[first : last + 1].tolist(), self.ends[first : last + 1].tolist(), strict=True)
        for (cache, begin, end), place in chosen:
            yield cache, max(begin, end - (place - start)), end - max(0, place - stop)


@dataclass(frozen=True)
class Part:
    """What one of several equal readers gets of `n_rows` places: consecutive, and the same number of batches each.

    Equal numbers matter: data-parallel training runs a collective per batch, and hangs when one rank has more.
    """

    start: int
    n_rows: int
    batch_size: int
    n_batches: int

    @classmethod
    def of(cls, n_rows: int, batch_size: int, part: int, parts: int, whole_batches: bool) -> "Part":
        round_up = 0 if whole_batches else parts * batch_size - 1
        n_batches = (n_rows + round_up) // (parts * batch_size)
        if not 1 <= n_batches <= n_rows // parts:
            raise InvalidSetting(
                f"{n_rows} rows cannot be dealt to {parts} readers in {'whole ' if whole_batches else ''}batches of "
                f"{batch_size}, as many to each: change batch_size, or use fewer devices or workers"
            )
        start = n_rows * part // parts
        rows = n_rows * (part + 1) // parts - start
        return cls(start, n_batches * batch_size if whole_batches else rows, batch_size, n_batches)

    def batch_start(self, batch: int) -> int:
        """Place within the part at which a batch starts; every batch has a row, and the last ones may be shorter."""
        return min(batch * self.batch_size, self.n_rows - (self.n_batches - batch))


def in_shares(sizes: Sequence[int], weights: Sequence[float | int]) -> Sequence[int]:
    """As many rows of each cache as the shares allow without repeating one: share * min(size / share)."""
    if len(weights) != len(sizes) or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise InvalidSetting(
            f"weights {list(weights)} for {len(sizes)} caches; expected as many, none negative, and one above 0"
        )
    for cache, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        if weight and not size:
            raise EmptyCorpus(f"cache {cache} holds no row, so it cannot have weight {weight}: set its weight to 0")
    per_weight = min(size / weight for size, weight in zip(sizes, weights, strict=True) if weight)
    return [min(size, round(weight * per_weight)) for size, weight in zip(sizes, weights, strict=True)]
