"""Batches from caches whose rows say where they are from: each once, paired, repeatable, resumable, no thread left."""

import pickle
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from diffing.activations.loader import ActivationBatch, ShuffledRows, StoredRows
from diffing.activations.store import ActivationCache, SideStore
from diffing.axes import Stream
from diffing.errors import DiffingError, EmptyCorpus, IncompatiblePair, InvalidSetting, MissingInput, SchemaMismatch
from diffing.specs import VariantSpec
from tests.activations.stores import write_cache

LAYER, WIDTH = 3, 3
SIZES = (3000, 0, 1700)


def rows_of(corpus: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Both sides of `n` rows: the base holds [corpus, row, 1], the finetuned side 0.5 more."""
    base = torch.stack([torch.full((n,), corpus), torch.arange(n), torch.ones(n, dtype=torch.int64)], 1).to(dtype)
    return base, base + 0.5


def planted(root: Path, corpus: int, n: int, dtype: torch.dtype = torch.float32, **options: object) -> ActivationCache:
    base, finetuned = rows_of(corpus, n, dtype)
    other = {layer: torch.zeros(n, WIDTH, dtype=dtype) for layer in (1,)}
    sides = ({LAYER: base} | other, {LAYER: finetuned} | other)
    return write_cache(root, *sides, **({"documents_per_shard": 150, "corpus": f"corpus{corpus}"} | options))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[ActivationCache]:
    """Three corpora, several shards each, one without a row."""
    root = tmp_path_factory.mktemp("caches")
    return [planted(root, corpus, size) for corpus, size in enumerate(SIZES)]


def places(batches: Iterable[ActivationBatch]) -> list[tuple[int, int]]:
    """(corpus, row) of every row that came, after checking that its values are those of that place on both sides."""
    found = []
    for batch in list(batches):  # all of them first: a batch must not change when a later one is made
        expected = torch.stack([batch.corpus, batch.row, torch.ones_like(batch.row)], 1)
        assert torch.equal(batch.base, expected.float())
        assert torch.equal(batch.finetuned, expected + 0.5)
        found += list(zip(batch.corpus.tolist(), batch.row.tolist(), strict=True))
    return found


ALL = [(corpus, row) for corpus, size in enumerate(SIZES) for row in range(size)]


@given(batch_size=st.integers(2, 700), pool_rows=st.integers(1, 6000), world=st.integers(1, 3), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_one_epoch_over_all_ranks_yields_every_row_of_every_cache_once(
    caches: list[ActivationCache], batch_size: int, pool_rows: int, world: int, seed: int
) -> None:
    found = []
    for rank in range(world):
        rows = ShuffledRows(caches, LAYER, batch_size, seed, pool_rows=max(pool_rows, 50), rank=rank, world=world)
        batches = list(rows)
        assert len(batches) == len(rows) == -(-len(ALL) // (batch_size * world))
        found += places(batches)
    assert sorted(found) == ALL
    assert found != ALL


def test_whole_batches_are_full_and_as_many_on_every_rank(caches: list[ActivationCache]) -> None:
    found = []
    for rank in range(2):
        batches = list(ShuffledRows(caches, LAYER, 512, pool_rows=700, rank=rank, world=2, whole_batches=True))
        assert [len(batch) for batch in batches] == [512] * (len(ALL) // 1024)
        found += places(batches)
    assert len(found) == len(set(found))


def test_stored_bits_arrive_unchanged(tmp_path: Path) -> None:
    bits = torch.randint(-(2**15), 2**15, (2, 900, WIDTH), dtype=torch.int16)
    bits[bits.view(torch.bfloat16).isnan()] = 0
    base, finetuned = bits.view(torch.bfloat16)
    base[0, 0], base[0, 1] = -0.0, 2.0**-130  # a subnormal
    cache = write_cache(tmp_path, {LAYER: base}, {LAYER: finetuned})
    for batch in ShuffledRows([cache], LAYER, 128):
        assert torch.equal(batch.base.view(torch.int16), bits[0][batch.row])
        assert torch.equal(batch.finetuned.view(torch.int16), bits[1][batch.row])


def test_one_seed_repeats_and_another_seed_or_epoch_is_another_order(caches: list[ActivationCache]) -> None:
    first, second = (ShuffledRows(caches, LAYER, 100, seed=5) for _ in range(2))
    epochs = [places(first) for _ in range(2)]
    assert epochs == [places(second) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert places(ShuffledRows(caches, LAYER, 100, seed=6)) != epochs[0]


@pytest.mark.parametrize("kind", [ShuffledRows, StoredRows])
def test_rows_can_be_read_in_inference_mode(caches: list[ActivationCache], kind: type) -> None:
    with torch.inference_mode():
        assert sorted(places(kind(caches, LAYER, 100))) == ALL


def test_neighbours_in_the_cache_do_not_stay_neighbours(caches: list[ActivationCache]) -> None:
    found = places(ShuffledRows(caches, LAYER, 100))
    together = sum(a[0] == b[0] and abs(a[1] - b[1]) == 1 for a, b in pairwise(found))
    assert together < 20  # expected: 2, by chance


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[ActivationCache]:
    """Corpora of 100 000 and 300 000 rows."""
    root, caches = tmp_path_factory.mktemp("large"), []
    for corpus, thousands in enumerate((100, 300)):
        rows = torch.zeros(1000 * thousands, 1)
        lengths = {"lengths": [1001] * thousands, "documents_per_shard": 70, "corpus": f"corpus{corpus}"}
        caches.append(write_cache(root, {LAYER: rows}, {LAYER: rows}, **lengths))
    return caches


@pytest.mark.parametrize(("weights", "share"), [(None, 0.25), ([1, 1], 0.5)])
def test_the_mixture_of_100_batches_is_within_3_sigma(
    large: list[ActivationCache], weights: list[int] | None, share: float
) -> None:
    rows = ShuffledRows(large, LAYER, 1024, pool_rows=16_384, weights=weights)
    counts = torch.tensor([int((batch.corpus == 0).sum()) for batch in rows])
    assert int(counts.sum()) == 100_000
    n = 100 * 1024
    stretches = counts[: len(counts) // 10 * 10].unfold(0, 100, 10).sum(1)
    assert len(stretches) > 5
    assert ((stretches - share * n).abs() <= 3 * (share * (1 - share) * n) ** 0.5).all()


def test_weights_give_each_corpus_its_share_and_other_rows_in_the_next_epoch(caches: list[ActivationCache]) -> None:
    rows = ShuffledRows(caches, LAYER, 100, weights=[1, 0, 4])
    epochs = [places(rows) for _ in range(4)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 425 + 1700
        assert sum(corpus == 0 for corpus, _ in epoch) == 425
    assert len({frozenset(row for corpus, row in epoch if corpus == 0) for epoch in epochs}) > 1


@pytest.mark.parametrize("given_before", [0, 1, 7, 46, 47])
def test_a_resumed_epoch_gives_the_batches_that_were_left(caches: list[ActivationCache], given_before: int) -> None:
    options = {"seed": 2, "pool_rows": 330}
    whole = ShuffledRows(caches, LAYER, 100, **options)
    uninterrupted = [batch.row for _ in range(3) for batch in whole]
    assert len(whole) == 47

    killed = ShuffledRows(caches, LAYER, 100, **options)
    list(killed)  # one epoch, and some batches of the next
    for _, _batch in zip(range(given_before), killed, strict=False):
        pass
    resumed = ShuffledRows(caches, LAYER, 100, **options)
    resumed.load_state_dict(pickle.loads(pickle.dumps(killed.state_dict())))
    iter(resumed)  # an iterator that is never asked counts for nothing
    assert resumed.state_dict() == killed.state_dict()
    left = [batch.row for batch in resumed]
    left += [batch.row for batch in resumed] if given_before < 47 else []
    assert all(torch.equal(a, b) for a, b in zip(left, uninterrupted[47 + given_before :], strict=True))


def test_an_epoch_that_was_left_is_followed_by_the_next(caches: list[ActivationCache]) -> None:
    rows, straight = (ShuffledRows(caches, LAYER, 100) for _ in range(2))
    next(iter(rows))
    list(straight)
    assert places(rows) == places(straight)


def test_a_state_of_another_order_is_refused_with_what_differs(caches: list[ActivationCache]) -> None:
    rows = ShuffledRows(caches, LAYER, 100, seed=1)
    between_epochs = rows.state_dict()
    next(iter(rows))
    state = rows.state_dict()
    with pytest.raises(InvalidSetting, match=r"seed=2 \(was 1\), batch_size=50 \(was 100\)"):
        ShuffledRows(caches, LAYER, 50, seed=2).load_state_dict(state)
    with pytest.raises(InvalidSetting, match="caches="):
        ShuffledRows(caches[:1], LAYER, 100, seed=1).load_state_dict(state)
    ShuffledRows(caches, LAYER, 50, seed=2).load_state_dict(between_epochs)


def test_a_pickled_loader_goes_on_where_it_was(caches: list[ActivationCache]) -> None:
    rows = ShuffledRows(caches, LAYER, 100)
    list(rows)
    copy = pickle.loads(pickle.dumps(rows))
    assert places(copy) == places(rows)


def test_workers_share_the_rows_and_epochs_differ_by_set_epoch(caches: list[ActivationCache]) -> None:
    rows, epochs = ShuffledRows(caches, LAYER, 100), []
    for epoch in range(2):
        rows.set_epoch(epoch)
        epochs.append(places(DataLoader(rows, batch_size=None, num_workers=2)))
    assert [sorted(epoch) for epoch in epochs] == [ALL, ALL]
    assert epochs[0] != epochs[1]


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("activations")]


def test_the_thread_ends_when_the_iterator_is_dropped_or_exhausted(caches: list[ActivationCache]) -> None:
    iterator = iter(ShuffledRows(caches, LAYER, 100, pool_rows=200))
    next(iterator)
    assert reading_threads()
    del iterator
    assert not reading_threads()
    rows = ShuffledRows(caches, LAYER, 100, pool_rows=200)
    counted = iter(rows)
    kept = [next(counted) for _ in range(len(rows))]  # never asked beyond the last, as Lightning does
    assert len(kept) == 47
    assert not reading_threads()


def test_dropping_the_iterator_does_not_wait_for_a_whole_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = planted(tmp_path, 0, 2048, documents_per_shard=1000)  # 4 blocks, 2 to a pool, 2 reads to a block
    read, reads, waiting, go = SideStore.read, [], threading.Event(), threading.Event()

    def held_after_the_first_pool(self: SideStore, *arguments: object, **named: object) -> Tensor:
        reads.append(arguments)
        if len(reads) > 4:
            waiting.set()
            assert go.wait(30)
        return read(self, *arguments, **named)

    monkeypatch.setattr(SideStore, "read", held_after_the_first_pool)
    iterator = iter(ShuffledRows([cache], LAYER, 64, pool_rows=1024))
    next(iterator)
    assert waiting.wait(30)
    threading.Timer(0.2, go.set).start()
    iterator.close()
    assert not reading_threads()
    assert len(reads) == 6


def test_a_broken_shard_is_reported_to_the_consumer_and_ends_the_thread(tmp_path: Path) -> None:
    cache = planted(tmp_path, 0, 3000)
    iterator = iter(ShuffledRows([cache], LAYER, 64, pool_rows=256))
    next(iterator)
    for shard in cache.finetuned.folder.glob("*.h5"):
        with shard.open("r+b") as opened:
            opened.truncate(5000)
    with pytest.raises((SchemaMismatch, MissingInput), match="shard-0000"):
        list(iterator)
    assert not reading_threads()


def test_at_most_two_pools_are_in_memory(caches: list[ActivationCache], monkeypatch: pytest.MonkeyPatch) -> None:
    made, empty = [], ActivationBatch.empty

    def counted(rows: int, *others: object) -> ActivationBatch:
        made.append(rows)
        return empty(rows, *others)

    monkeypatch.setattr(ActivationBatch, "empty", staticmethod(counted))
    rows = ShuffledRows(caches, LAYER, 100, pool_rows=500)
    for _epoch in range(2):
        assert sorted(places(rows)) == ALL
    assert made.count(500) == 2
    assert max(made) == 500
    assert len(pickle.dumps(rows)) < 10_000


def test_two_iterators_at_once_do_not_share_memory(caches: list[ActivationCache]) -> None:
    rows = ShuffledRows(caches, LAYER, 100, pool_rows=500)
    list(rows)  # its pools are kept
    first, second = iter(rows), iter(rows)
    pairs = [(next(first), next(second)) for _ in range(len(rows))]
    for epoch in zip(*pairs, strict=True):
        assert sorted(places(epoch)) == ALL


def test_waiting_for_the_disk_is_counted(caches: list[ActivationCache], monkeypatch: pytest.MonkeyPatch) -> None:
    read = SideStore.read

    def slow(self: SideStore, *arguments: object, **named: object) -> Tensor:
        time.sleep(0.02)
        return read(self, *arguments, **named)

    monkeypatch.setattr(SideStore, "read", slow)
    rows = ShuffledRows(caches, LAYER, 100)
    assert rows.stall_seconds == 0
    next(iter(rows))
    assert rows.stall_seconds >= 0.02 * 2 * sum(len(cache.base.blocks()) for cache in caches)


@pytest.mark.parametrize("world", [1, 2])
def test_stored_rows_come_in_order_over_caches_and_ranks(caches: list[ActivationCache], world: int) -> None:
    loaders = [StoredRows(caches, LAYER, 700, rank=rank, world=world) for rank in range(world)]
    assert len({len(rows) for rows in loaders}) == 1
    for _epoch in range(2):
        assert [place for rows in loaders for place in places(rows)] == ALL


def test_a_batch_gives_its_streams_in_float32(tmp_path: Path) -> None:
    cache = planted(tmp_path, 1, 40, torch.bfloat16)
    batch = next(iter(StoredRows([cache], LAYER, 40))).to("cpu")
    base, finetuned = rows_of(1, 40)
    assert torch.equal(batch.stream(Stream.BASE), base)
    assert torch.equal(batch.stream(Stream.DIFFERENCE), finetuned.bfloat16().float() - base)
    assert batch.base.dtype == torch.bfloat16


def test_caches_that_do_not_belong_together_are_refused(tmp_path: Path, caches: list[ActivationCache]) -> None:
    strangers: Sequence[tuple[ActivationCache, type[DiffingError], str]] = [
        (planted(tmp_path, 5, 30, variant=VariantSpec("full", "org/other")), IncompatiblePair, "different model pairs"),
        (planted(tmp_path, 6, 30, model="org/other"), IncompatiblePair, "corpus0 and corpus6"),
        (planted(tmp_path, 7, 30, torch.bfloat16), InvalidSetting, "corpus7 bfloat16"),
        (write_cache(tmp_path, {4: torch.zeros(9, 3)}, {4: torch.zeros(9, 3)}), MissingInput, r"which has \[4\]"),
    ]
    for stranger, error, message in strangers:
        for kind in (ShuffledRows, StoredRows):
            with pytest.raises(error, match=message):
                kind([*caches, stranger], LAYER, 100)


def test_settings_out_of_range_are_refused(caches: list[ActivationCache]) -> None:
    for options in ({"batch_size": 0}, {"rank": 2, "world": 2}, {"pool_rows": 0}, {"weights": [1]}):
        with pytest.raises(InvalidSetting, match=next(iter(options))):
            ShuffledRows(caches, LAYER, **({"batch_size": 100} | options))
    with pytest.raises(InvalidSetting, match="4700 rows cannot be dealt to 2 readers in whole batches of 2400"):
        ShuffledRows(caches, LAYER, 2400, world=2, whole_batches=True)
    for empty in ([], [caches[1]]):
        with pytest.raises(EmptyCorpus):
            ShuffledRows(empty, LAYER, 100)
