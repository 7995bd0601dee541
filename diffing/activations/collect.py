"""Collects the residual streams of both sides of a pair into their stores, shard by shard.

A store belongs to one side, so the base is collected once for all of its finetunes. Work may be stopped at any moment
and started again, split into parts, or run by several processes that know nothing of each other: a shard appears when
it is complete, its bytes depend only on what the specs say (and on batch_tokens and shard_mib), and a shard that is
there is not made again. While one shard is written the next is collected, so that two are in memory.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from diffing.activations.exclusive import reaching, remove_claims, sole_writer
from diffing.activations.harvest import Rows, harvest
from diffing.activations.hdf5 import CHUNK_ROWS, Documents
from diffing.activations.plan import Shard, ends, kept_rows, plan, rows_per_shard, split
from diffing.activations.shards import check_shard, write_sides
from diffing.activations.store import MANIFEST, SideStore
from diffing.activations.tokens import Tokens
from diffing.axes import Side
from diffing.errors import InvalidSetting, MissingInput, SchemaMismatch, StorageFailed
from diffing.models.pair import ModelPair
from diffing.specs import CacheSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SHARD_OVERHEAD = 1 << 20
"""Bytes allowed per shard for what is neither rows nor tokens."""


def store_folder(spec: CacheSpec, root: Path) -> Path:
    """Where the activations of one side are kept."""
    return root / spec.side / spec.digest


def collect(
    pair: ModelPair,
    tokens: Tokens,
    specs: Mapping[Side, CacheSpec],
    root: Path,
    *,
    batch_tokens: int,
    shard_mib: float | int,
    part: tuple[int, int] = (0, 1),
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> bool:
    """Collects the shards `part[0]`, `part[0] + part[1]`, ... that are missing; True once both stores are finished.

    Args:
        batch_tokens: tokens run together, padding included.
        shard_mib: bound on the rows of one side's shard, over all layers; four times as much is in memory at most.
        part: this process's share of the work, (number, of how many).
        on_tokens: told the tokens just read; over a call, those of the documents of the part, whoever read them.

    Raises NonFiniteActivations, EmptyCorpus, InvalidSetting; SchemaMismatch for a shard that is damaged or was made
    with another shard_mib; StorageFailed if the disk is full, too small for what is missing, or read-only.
    """
    _check(pair, tokens, specs, part)
    stores = {side: store_folder(spec, root) for side, spec in specs.items()}
    finished = {side: parts for side, folder in stores.items() if (parts := _finished_shards(folder)) is not None}
    if len(finished) == len(stores):
        for folder in stores.values():
            remove_claims(folder)
        on_tokens(sum(int(tokens.lengths[p.start : p.stop].sum()) for p in finished[Side.BASE][part[0] :: part[1]]))
        return True
    spec = specs[Side.BASE]
    kept = kept_rows(tokens, spec)
    row_bytes = len(spec.layers) * pair.d_model * getattr(torch, spec.dtype).itemsize
    # The base may have been finished for another finetune with another shard_mib: both sides then go by its shards.
    parts = next(iter(finished.values()), None) or split(kept, rows_per_shard(shard_mib, row_bytes))
    shards = plan(tokens.lengths, kept, parts)
    own = shards[part[0] :: part[1]]
    _check_existing(stores, specs, shards)
    _check_space(root, stores, own, row_bytes)
    work = _Work(pair, tokens, specs, stores, kept, batch_tokens, on_tokens)
    announced = 0
    with _Writer() as writer:
        while own:
            own = [shard for shard in own if not work.finish(shard, writer)]
            writer.wait()
            if own:
                if len(own) != announced:
                    log.info("waiting for %d shards that other processes are collecting", len(own))
                announced = len(own)
                time.sleep(POLL_SECONDS)
    complete = [_finish(stores[side], specs[side], len(shards)) for side in Side]
    return all(complete)


@dataclass(frozen=True)
class _Work:
    pair: ModelPair
    tokens: Tokens
    specs: Mapping[Side, CacheSpec]
    stores: Mapping[Side, Path]
    kept: Int64[Tensor, " document"]
    batch_tokens: int
    on_tokens: Callable[[int], object]

    def finish(self, shard: Shard, writer: "_Writer") -> bool:
        """Collects the sides of a shard that are missing. False if another process is at one of them."""
        with ExitStack() as claims:
            missing = []
            for side in (Side.FINETUNED, Side.BASE):
                path = self.stores[side] / shard.file
                if path.is_file():
                    continue
                if not claims.enter_context(sole_writer(path)):
                    return False
                if not path.is_file():
                    missing.append(side)
            if not missing:
                self.on_tokens(shard.n_tokens)
                return True
            documents = self._documents(shard)
            rows = self._rows(documents, missing, writer)
            writer.wait()
            claimed = claims.pop_all()
        writer.start(lambda: self._write(shard, documents, rows, claimed))
        return True

    def _documents(self, shard: Shard) -> Documents:
        within = slice(shard.documents.start, shard.documents.stop)
        return Documents(self.tokens.of(shard.documents), ends(self.tokens.lengths[within]), ends(self.kept[within]))

    def _rows(self, documents: Documents, sides: Sequence[Side], writer: "_Writer") -> Rows:
        def on_tokens(tokens: int) -> None:
            writer.check()
            self.on_tokens(tokens)

        rows = harvest(self.pair, sides, self.specs[Side.BASE], documents, self.batch_tokens, on_tokens)
        self.on_tokens(int(documents.offsets.diff()[documents.rows.diff() == 0].sum()))  # nothing to read there
        return rows

    def _write(self, shard: Shard, documents: Documents, rows: Rows, claimed: ExitStack) -> None:
        with claimed:
            write_sides(shard, documents, rows, self.specs, self.stores)


class _Writer:
    """One thread that writes a shard while the next is collected. Its errors are raised in the thread that uses it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "shard-writer")
        self._job: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def start(self, job: Callable[[], None]) -> None:
        """Waits for the job before it."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raises what the job raised, if it has failed by now."""
        if self._job is not None and self._job.done():
            self._job.result()

    def wait(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            job.result()


def _check(pair: ModelPair, tokens: Tokens, specs: Mapping[Side, CacheSpec], part: tuple[int, int]) -> None:
    if not 0 <= part[0] < part[1]:
        raise InvalidSetting(f"part {part[0]} of {part[1]}; of {part[1]} parts, the last is number {part[1] - 1}")
    base, finetuned = specs[Side.BASE], specs[Side.FINETUNED]
    variant = pair.spec.finetuned
    if pair.spec.base.revision is None or (variant.kind != "identical" and variant.revision is None):
        raise InvalidSetting(
            "the pair is not pinned, so what is stored cannot be named: use diffing.models.sources.pin"
        )
    if (finetuned.base, finetuned.finetuned) != (pair.spec.base, pair.spec.finetuned):
        raise InvalidSetting(f"the pair to run is {pair.spec}, but what is to be stored is {finetuned}")
    if base.digest != replace(finetuned, finetuned=None).digest:
        raise InvalidSetting(f"the two sides of a cache must differ in nothing but the side; got {base}, {finetuned}")
    if tokens.digest != base.tokens.digest:
        raise InvalidSetting(f"{tokens.path} has tokens {tokens.digest}; the cache is of tokens {base.tokens.digest}")


def _finished_shards(store: Path) -> list[range] | None:
    """The documents of each shard, if the store is finished and whole: no weights are needed to see that."""
    try:
        return [range(start, stop) for start, stop in pairwise(SideStore(store).document_starts)]
    except (MissingInput, SchemaMismatch):
        return None


def _finish(folder: Path, spec: CacheSpec, n_shards: int) -> bool:
    """Writes the manifest if all shards are there, or waits for the process that is writing it."""
    while not (folder / MANIFEST).is_file():
        with sole_writer(folder / MANIFEST) as mine:
            if mine and not SideStore.finish(folder, spec, n_shards):
                return False
        if not mine:
            time.sleep(POLL_SECONDS)
    remove_claims(folder)
    return True


def _check_existing(stores: Mapping[Side, Path], specs: Mapping[Side, CacheSpec], shards: Sequence[Shard]) -> None:
    by_file = {shard.file: shard for shard in shards}
    for side, folder in stores.items():
        for path in sorted(folder.glob("shard-*.h5")):
            if path.name not in by_file:
                raise SchemaMismatch(
                    f"{path}: the plan has only {len(shards)} shards, so this one was made with another shard_mib; "
                    "set shard_mib back, or delete the folder"
                )
            check_shard(path, specs[side], by_file[path.name])


def _check_space(root: Path, stores: Mapping[Side, Path], shards: Sequence[Shard], row_bytes: int) -> None:
    missing = [shard for shard in shards for folder in stores.values() if not (folder / shard.file).is_file()]
    needed = sum(_bytes(shard, row_bytes) for shard in missing)
    with reaching(root):
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    if missing and needed > free:
        raise StorageFailed(
            f"{root}: the {len(missing)} missing shards need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            "free; free space there, set infrastructure.activations_dir to a larger disk, or lower max_tokens or the "
            "number of layers"
        )


def _bytes(shard: Shard, row_bytes: int) -> int:
    """Size of one side's file, about."""
    whole_chunks = -(-shard.n_rows // CHUNK_ROWS) * CHUNK_ROWS
    return whole_chunks * row_bytes + 4 * shard.n_tokens + 16 * len(shard.documents) + SHARD_OVERHEAD
