"""Batches of paired rows from activation caches: shuffled for training, in stored order for evaluation.

A row at a time is the slowest way to read a file and a whole corpus does not fit in memory, so the shuffle has two
steps. Chunk-aligned blocks of all caches are put in a random order, in which each corpus is spread evenly; a thread
reads them into pools of some ten thousand rows; each pool is permuted in memory and cut into batches. At most two
pools are in memory: the one being drawn from and the one being read. Everything random is a function of the seed, the
epoch and the place in it, so a loader resumes anywhere at the cost of reading one pool.
"""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from diffing.activations.order import Part, RowOrder, generator, in_shares
from diffing.activations.store import ActivationCache
from diffing.activations.streams import select
from diffing.axes import Stream
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting, MissingInput

POOL_ROWS = 65_536


@dataclass
class ActivationBatch:
    """The same rows of both sides, in the stored dtype.

    Not frozen: Lightning's half and double precision plugins rebuild a batch field by field.
    """

    base: Float[Tensor, "batch d_model"]
    finetuned: Float[Tensor, "batch d_model"]
    corpus: Int64[Tensor, " batch"]
    """Which of the loader's caches each row is from, counted from 0."""
    row: Int64[Tensor, " batch"]
    """Row within that cache."""

    def stream(self, stream: Stream) -> Float[Tensor, "batch d_model"]:
        """One stream of the rows, in float32 or wider."""
        return select(stream, self.base, self.finetuned)

    def to(self, device: torch.device | str) -> "ActivationBatch":
        ahead = torch.device(device).type == "cuda"  # elsewhere the copy could be read before it is complete
        return ActivationBatch(*(field.to(device, non_blocking=ahead) for field in self._fields()))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: slice) -> "ActivationBatch":
        """Consecutive rows, as views."""
        return ActivationBatch(*(field[part] for field in self._fields()))

    def take(self, index: Int64[Tensor, " taken"], out: "ActivationBatch") -> None:
        """Copies the rows at `index` into `out`."""
        for source, target in zip(self._fields(), out._fields(), strict=True):
            torch.index_select(source, 0, index, out=target)

    def _fields(self) -> Sequence[Tensor]:
        return self.base, self.finetuned, self.corpus, self.row

    @classmethod
    def empty(cls, rows: int, cache: ActivationCache, pin_memory: bool = False) -> "ActivationBatch":
        """Uninitialised memory for rows like those of a cache."""
        dtype = getattr(torch, cache.base.spec.dtype)
        values = (torch.empty(rows, cache.d_model, dtype=dtype, pin_memory=pin_memory) for _ in range(2))
        places = (torch.empty(rows, dtype=torch.int64, pin_memory=pin_memory) for _ in range(2))
        return cls(*values, *places)


class _Rows(IterableDataset[ActivationBatch]):
    """What both orders share: the caches, the part of a rank, and reading."""

    def __init__(self, caches: Sequence[ActivationCache], layer: int, batch_size: int, rank: int, world: int):
        if batch_size < 1 or not 0 <= rank < world:
            raise InvalidSetting(
                f"batch_size={batch_size}, rank={rank}, world={world}; expected batch_size of 1 or more, and a rank "
                "from 0 to world - 1"
            )
        _check_together(caches, layer)
        self.caches, self.layer, self.batch_size, self.rank, self.world = caches, layer, batch_size, rank, world
        self.rows_per_corpus: Sequence[int] = [cache.n_rows for cache in caches]
        """Rows that each cache gives to an epoch, over all ranks."""
        self.whole_batches = False

    def __len__(self) -> int:
        """Batches of an epoch on this rank, when one process reads it."""
        return self._part(self.rank, self.world).n_batches

    def _part(self, part: int, parts: int) -> Part:
        return Part.of(sum(self.rows_per_corpus), self.batch_size, part, parts, self.whole_batches)

    def _part_here(self) -> Part:
        """This rank's part, split further where a torch DataLoader's worker process asks."""
        worker = get_worker_info()
        if worker is None:
            return self._part(self.rank, self.world)
        return self._part(self.rank * worker.num_workers + worker.id, self.world * worker.num_workers)

    def _read(self, slices: Iterable[tuple[int, int, int]], out: ActivationBatch) -> None:
        """Reads slices of the caches into `out`, one after another."""
        place = 0
        for corpus, start, stop in slices:
            target = out[place : place + stop - start]
            self.caches[corpus].base.read(self.layer, start, stop, out=target.base)
            self.caches[corpus].finetuned.read(self.layer, start, stop, out=target.finetuned)
            target.corpus.fill_(corpus)
            torch.arange(start, stop, out=target.row)
            place += stop - start


class StoredRows(_Rows):
    """Every row of the caches once, in stored order: cache after cache, row after row; the same in every epoch.

    Several ranks get consecutive parts and equally many batches, of which the last may be shorter.
    """

    def __init__(
        self, caches: Sequence[ActivationCache], layer: int, batch_size: int, *, rank: int = 0, world: int = 1
    ):
        """Raises IncompatiblePair for caches that do not belong together, and MissingInput for a layer not stored."""
        super().__init__(caches, layer, batch_size, rank, world)
        self._part(rank, world)

    def __iter__(self) -> Iterator[ActivationBatch]:
        order, part = RowOrder.stored(self.rows_per_corpus), self._part_here()
        for number in range(part.n_batches):
            start, stop = part.batch_start(number), part.batch_start(number + 1)
            batch = ActivationBatch.empty(stop - start, self.caches[0])
            self._read(order.slices(part.start + start, part.start + stop), batch)
            yield batch


class ShuffledRows(_Rows):
    """Rows of the caches in random order, another one in each epoch; the state resumes it within an epoch.

    Without `weights`, one epoch yields every row of every cache once, over all ranks, and every stretch of it holds the
    corpora in proportion to their sizes, exact to about a block. With `weights`, the shares of the corpora are these
    (normalised to sum 1), an epoch is the longest in which no row repeats, and a corpus that gives only part of its
    rows gives others in the next epoch. `whole_batches` leaves out the rows that do not fill a batch on every rank.
    Rows are mixed `pool_rows` at a time, with 4 * pool_rows * d_model stored values in memory, also between epochs.

    Iterating starts the epoch after the last one, lazily: nothing is read or counted before the first batch is asked
    for. In a torch DataLoader (`batch_size=None`) the rows are also split over its workers, each a copy of this object
    that counts its own epochs: call `set_epoch` before each. Picklable; files are opened by the process that reads.
    """

    def __init__(
        self,
        caches: Sequence[ActivationCache],
        layer: int,
        batch_size: int,
        seed: int = 0,
        *,
        pool_rows: int = POOL_ROWS,
        weights: Sequence[float | int] | None = None,
        rank: int = 0,
        world: int = 1,
        whole_batches: bool = False,
        pin_memory: bool = False,
    ):
        """Raises as StoredRows does."""
        super().__init__(caches, layer, batch_size, rank, world)
        if pool_rows < 1:
            raise InvalidSetting(f"pool_rows={pool_rows}; expected 1 or more")
        self.seed, self.pool_rows, self.weights = seed, pool_rows, weights
        self.whole_batches, self.pin_memory = whole_batches, pin_memory
        if weights is not None:
            self.rows_per_corpus = in_shares(self.rows_per_corpus, weights)
        self.stall_seconds = 0.0
        """Time that the consumer has waited for a pool, over all epochs."""
        self._epoch, self._batches, self._restored = 0, 0, False
        self._buffers: list[ActivationBatch] = []  # kept between epochs: new memory is slow to touch
        self._part(rank, world)

    def __iter__(self) -> Iterator[ActivationBatch]:
        if self._batches and not self._restored:
            self.set_epoch(self._epoch + 1)
        epoch, first, self._restored = self._epoch, self._batches, False
        part = self._part_here()
        with closing(self._drawn(epoch, first, part)) as batches:
            for number in range(first + 1, part.n_batches + 1):
                batch = next(batches)
                last = number == part.n_batches
                if last:
                    batches.close()  # whoever counts batches never asks again, and would keep the thread
                # Counted before it is handed over, because Lightning saves its checkpoints while it has the batch.
                self._epoch, self._batches = (epoch + 1, 0) if last else (epoch, number)
                yield batch

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_buffers": []}

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration start at the beginning of an epoch."""
        self._epoch, self._batches = epoch, 0

    def state_dict(self) -> dict[str, object]:
        """The epoch, the batches of it given so far, and what its order depends on. The same on every rank."""
        return {"epoch": self._epoch, "batches": self._batches, "order": self._order()}

    def load_state_dict(self, state: Mapping) -> None:
        """Makes the next iteration give the batches that were left.

        Raises InvalidSetting if their epoch has another order here. Between two epochs, any settings will do.
        """
        ours, theirs = self._order(), state["order"]
        changed = [f"{key}={ours[key]!r} (was {theirs.get(key)!r})" for key in ours if ours[key] != theirs.get(key)]
        if changed and state["batches"]:
            raise InvalidSetting(
                f"cannot resume within an epoch that was ordered by other settings: {', '.join(changed)}; "
                "set these back, or start a new run"
            )
        self._epoch, self._batches, self._restored = state["epoch"], state["batches"], True

    def _order(self) -> dict[str, object]:
        return {
            "caches": [cache.digest for cache in self.caches],
            "weights": None if self.weights is None else list(self.weights),
            "layer": self.layer,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "pool_rows": self.pool_rows,
            "world": self.world,
            "whole_batches": self.whole_batches,
        }

    def _drawn(self, epoch: int, first: int, part: Part) -> Generator[ActivationBatch, None, None]:
        """The batches of an epoch from `first` on; one may be drawn from two pools."""
        first_pool, drawn = divmod(part.batch_start(first), self.pool_rows)
        with closing(self._pools(epoch, first_pool, part)) as pools:
            pool, order = next(pools)
            for number in range(first, part.n_batches):
                wanted = part.batch_start(number + 1) - part.batch_start(number)
                batch = ActivationBatch.empty(wanted, self.caches[0], self.pin_memory)
                filled = 0
                while filled < wanted:
                    if drawn == len(order):
                        (pool, order), drawn = next(pools), 0
                    taken = order[drawn : drawn + wanted - filled]
                    pool.take(taken, out=batch[filled : filled + len(taken)])
                    filled, drawn = filled + len(taken), drawn + len(taken)
                yield batch

    def _pools(self, epoch: int, first: int, part: Part) -> Generator[tuple[ActivationBatch, Tensor], None, None]:
        """Pools and the orders in which to draw from them. A pool may be drawn from until the next is asked for."""
        blocks = [cache.base.blocks() for cache in self.caches]
        order = RowOrder.shuffled(blocks, self.rows_per_corpus, self.seed, epoch)
        starts = range(0, part.n_rows, self.pool_rows)[first:]
        buffers, self._buffers = self._buffers, []  # taken, so that another iterator makes its own
        dropped = threading.Event()

        def fill(number: int) -> tuple[ActivationBatch, Tensor]:
            start, stop = starts[number], min(starts[number] + self.pool_rows, part.n_rows)
            if number == len(buffers) < 2:  # made here: a thread cannot write to what is made in inference mode
                buffers.append(ActivationBatch.empty(min(self.pool_rows, part.n_rows), self.caches[0]))
            pool = buffers[number % 2][: stop - start]
            slices = order.slices(part.start + start, part.start + stop)
            self._read(takewhile(lambda _: not dropped.is_set(), slices), pool)
            place = generator("pool", self.seed, epoch, part.start + start)
            return pool, torch.randperm(stop - start, generator=place)

        thread = ThreadPoolExecutor(1, "activations")
        try:
            upcoming = thread.submit(fill, 0)
            for number in range(len(starts)):
                since = time.perf_counter()
                ready = upcoming.result()
                self.stall_seconds += time.perf_counter() - since
                if number + 1 < len(starts):
                    upcoming = thread.submit(fill, number + 1)
                yield ready
        finally:
            dropped.set()
            thread.shutdown()
            self._buffers = buffers


def _check_together(caches: Sequence[ActivationCache], layer: int) -> None:
    """Raises unless the caches are of one pair and dtype and all have the layer."""
    if not any(cache.n_rows for cache in caches):
        raise EmptyCorpus(f"none of {len(caches)} activation caches holds a row: their corpora gave no token to keep")
    first = caches[0]
    for cache in caches:
        if layer not in cache.layers:
            raise MissingInput(
                f"layer {layer} is not in the activation cache of {cache.corpus}, which has {list(cache.layers)}: "
                "collect it (pipeline.mode=preprocessing), or ask for one of these"
            )
        if cache.pair_digest != first.pair_digest or cache.d_model != first.d_model:
            raise IncompatiblePair(
                f"the caches of {first.corpus} and {cache.corpus} are of different model pairs; "
                "give caches of one base and one finetuned model"
            )
        if cache.base.spec.dtype != first.base.spec.dtype:
            raise InvalidSetting(
                f"the cache of {first.corpus} stores {first.base.spec.dtype}, that of {cache.corpus} "
                f"{cache.base.spec.dtype}; collect one of them again with the other's preprocessing.dtype"
            )
