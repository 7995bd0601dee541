import json
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffing.activations.moments import Moments
from diffing.activations.store import MANIFEST, ActivationCache, SideStore, shard_name
from diffing.activations.streams import difference
from diffing.axes import Stream
from diffing.errors import IncompatiblePair, MissingInput, SchemaMismatch
from tests.activations.stores import LORA, write_cache

LENGTHS, KEPT = [5, 1, 0, 9, 3, 12], [4, 0, 0, 7, 3, 11]


def pair_of(n_rows: int, d_model: int = 4, layers: tuple[int, ...] = (0, 3)) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    base = {layer: torch.randn(n_rows, d_model, generator=generator) for layer in layers}
    return base, {layer: rows + torch.randn(n_rows, d_model, generator=generator) for layer, rows in base.items()}


def small(root: Path, **options: object) -> tuple[ActivationCache, dict[int, Tensor], dict[int, Tensor]]:
    """Six documents in three shards, 25 rows."""
    base, finetuned = pair_of(sum(KEPT))
    options = {"documents_per_shard": 2, "chunk_rows": 4} | options
    return write_cache(root, base, finetuned, LENGTHS, KEPT, **options), base, finetuned


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=9),
    per_shard=st.integers(1, 9),
    data=st.data(),
)
def test_a_store_reads_as_one_array_whatever_its_shards(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[int, int]], per_shard: int, data: st.DataObject
) -> None:
    kept = [rows for _, rows in documents]
    lengths = [skipped + rows for skipped, rows in documents]
    base, finetuned = pair_of(sum(kept), layers=(1,))
    root = tmp_path_factory.mktemp("cache")
    cache = write_cache(root, base, finetuned, lengths, kept, documents_per_shard=per_shard, chunk_rows=4)
    start = data.draw(st.integers(0, sum(kept)))
    stop = data.draw(st.integers(start, sum(kept)))
    found = cache.read(1, start, stop)
    assert torch.equal(found[0], base[1][start:stop])
    assert torch.equal(found[1], finetuned[1][start:stop])
    bounds = cache.finetuned.document_rows()
    assert bounds.diff().tolist() == kept
    ids = torch.arange(sum(lengths), dtype=torch.int32).split(lengths)
    assert all(torch.equal(cache.base.document_tokens(k), ids[k]) for k in range(len(kept)))
    for stream, rows in ((Stream.BASE, base[1]), (Stream.DIFFERENCE, difference(base[1], finetuned[1]))):
        moments, expected = cache.moments(stream, 1), Moments.of(rows)
        assert moments.count == expected.count
        torch.testing.assert_close(moments.mean, expected.mean)
        torch.testing.assert_close(moments.m2, expected.m2)


@pytest.mark.parametrize("rows", [1, 4, 8, 512])
def test_blocks_cover_every_row_once_and_cross_neither_shards_nor_chunks(tmp_path: Path, rows: int) -> None:
    store = small(tmp_path)[0].base
    blocks = store.blocks(rows)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(25))
    for start, stop in blocks:
        shard_start = max(first for first in store.row_starts[:-1] if first <= start)
        assert stop <= min(first for first in store.row_starts if first > start)
        assert rows < 4 or (start - shard_start) % 4 == 0


def test_facts_of_the_cache(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path, corpus="chats")
    assert (cache.n_rows, cache.n_documents, cache.d_model, tuple(cache.layers)) == (25, 6, 4, (0, 3))
    assert (cache.corpus, len(cache.base.shards)) == ("chats", 3)
    cache.base.verify()
    cache.finetuned.verify()


def test_rows_of_several_shards_go_into_a_slice_of_a_given_tensor(tmp_path: Path) -> None:
    cache, base, _ = small(tmp_path)
    pool = torch.zeros(30, 4)
    cache.base.read(3, 2, 25, out=pool[4:27])
    assert torch.equal(pool[4:27], base[3][2:25])
    assert not pool[:4].any()
    assert not pool[27:].any()
    with pytest.raises(IndexError, match="of a store of 25"):
        cache.base.read(3, 0, 26)


def test_a_window_holds_the_tokens_around_a_row_and_their_rows(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path)
    # Document 3 has tokens 6 to 14; its last seven, 8 to 14, are rows 4 to 10.
    window = cache.window(5, before=4, after=2)
    assert (window.document, window.start, window.position) == (3, 0, 3)
    assert window.ids.tolist() == [6, 7, 8, 9, 10, 11]
    assert window.rows.tolist() == [-1, -1, 4, 5, 6, 7]
    assert window.kept.tolist() == [False, False, True, True, True, True]
    last = cache.window(10, before=1, after=100)
    assert (last.start, last.position, last.ids.tolist(), last.rows.tolist()) == (7, 1, [13, 14], [9, 10])


def test_every_row_is_at_its_own_token_in_its_window(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path)
    ends = torch.tensor(LENGTHS).cumsum(0)
    expected = [int(end) - kept + k for end, kept in zip(ends, KEPT, strict=True) for k in range(kept)]
    windows = [cache.window(row, 3, 3) for row in range(25)]
    assert [int(window.ids[window.position]) for window in windows] == expected
    assert [int(window.rows[window.position]) for window in windows] == list(range(25))


def test_digests_of_pairs_and_caches(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path)
    other_corpus, *_ = small(tmp_path, corpus="other")
    other_pair, *_ = small(tmp_path, variant=replace(LORA, id="org/other"))
    other_base, *_ = small(tmp_path, model="org/larger")
    assert cache.pair_digest == other_corpus.pair_digest
    assert len({found.pair_digest for found in (cache, other_pair, other_base)}) == 3
    assert len({found.digest for found in (cache, other_corpus, other_pair, other_base)}) == 4
    assert other_pair.base.folder == cache.base.folder


def test_sides_of_other_corpora_models_layers_or_dtypes_are_no_pair(tmp_path: Path) -> None:
    cache, base, finetuned = small(tmp_path)
    halves = [{layer: rows.half() for layer, rows in side.items()} for side in (base, finetuned)]
    others: dict[str, Callable[[], ActivationCache]] = {
        "tokens": lambda: small(tmp_path, corpus="other")[0],
        "base": lambda: small(tmp_path, model="org/larger")[0],
        "layers": lambda: write_cache(tmp_path, {0: base[0]}, {0: finetuned[0]}, LENGTHS, KEPT),
        "dtype": lambda: write_cache(tmp_path, *halves, LENGTHS, KEPT),
    }
    for name, make in others.items():
        with pytest.raises(IncompatiblePair, match=f"another {name}"):
            ActivationCache(cache.base.folder, make().finetuned.folder)
    with pytest.raises(IncompatiblePair, match="expected the base side"):
        ActivationCache(cache.finetuned.folder, cache.finetuned.folder)


def test_sides_of_one_spec_with_other_documents_are_no_pair(tmp_path: Path) -> None:
    cache, base, finetuned = small(tmp_path / "a")
    shorter = write_cache(tmp_path / "b", base, finetuned, [*LENGTHS, 2], [*KEPT, 0])
    with pytest.raises(IncompatiblePair, match="rows, documents, width"):
        ActivationCache(cache.base.folder, shorter.finetuned.folder)


def test_an_unfinished_or_absent_store_says_what_makes_it(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path)
    (cache.base.folder / MANIFEST).unlink()
    for folder in (cache.base.folder, tmp_path / "none"):
        with pytest.raises(MissingInput, match=r"pipeline\.mode=preprocessing"):
            SideStore(folder)


def test_finishing_waits_for_every_shard_and_writes_the_same_manifest_again(tmp_path: Path) -> None:
    store = small(tmp_path)[0].base
    manifest = store.folder / MANIFEST
    written = manifest.read_bytes()
    manifest.unlink()
    assert not SideStore.finish(store.folder, store.spec, 4)
    assert not manifest.exists()
    assert SideStore.finish(store.folder, store.spec, 3)
    assert manifest.read_bytes() == written
    assert sorted(path.name for path in store.folder.iterdir()) == [MANIFEST, *map(shard_name, range(3))]


def test_finishing_refuses_shards_of_another_spec_or_in_another_order(tmp_path: Path) -> None:
    cache, *_ = small(tmp_path)
    store, other = cache.base, small(tmp_path, corpus="other")[0].base
    (store.folder / MANIFEST).unlink()
    with pytest.raises(SchemaMismatch, match="another plan's"):
        SideStore.finish(store.folder, other.spec, 3)
    shutil.copy(store.folder / shard_name(2), store.folder / shard_name(1))
    with pytest.raises(SchemaMismatch, match=shard_name(1)):
        SideStore.finish(store.folder, store.spec, 3)
    assert not (store.folder / MANIFEST).exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_truncated_shard_is_named_when_the_store_is_opened(tmp_path: Path, damage: str) -> None:
    store = small(tmp_path)[0].finetuned
    shard = store.folder / shard_name(1)
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(SchemaMismatch, match=f"{shard_name(1)} .*delete it"):
        SideStore(store.folder)


def test_one_changed_byte_is_found_by_verify(tmp_path: Path) -> None:
    store = small(tmp_path)[0].finetuned
    shard = store.folder / shard_name(1)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SchemaMismatch, match=shard_name(1)):
        SideStore(store.folder).verify()


@pytest.mark.parametrize(
    "change",
    [{"layout_version": 2}, {"digest": "0" * 16}, {"spec": {}}, {"shards": [{"file": "x"}]}, None],
)
def test_a_manifest_of_another_layout_or_content_is_refused(tmp_path: Path, change: dict | None) -> None:
    store = small(tmp_path)[0].base
    path = store.folder / MANIFEST
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SchemaMismatch, match=r"manifest\.json"):
        SideStore(store.folder)


def _rows_in_child(cache: ActivationCache, answers: multiprocessing.Queue) -> None:
    base, finetuned = cache.read(3, 2, 20)
    answers.put((base.tolist(), finetuned.tolist(), cache.window(5, 1, 1).ids.tolist()))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_cache_that_was_read_works_in_another_process(tmp_path: Path, start: str) -> None:
    cache, base, finetuned = small(tmp_path)
    cache.read(3, 0, 25)
    context = multiprocessing.get_context(start)
    answers = context.Queue()
    child = context.Process(target=_rows_in_child, args=(cache, answers))
    child.start()
    found = answers.get(timeout=60)
    child.join()
    assert found == (base[3][2:20].tolist(), finetuned[3][2:20].tolist(), [8, 9, 10])


def test_more_shards_than_open_files_are_read_from_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffing.activations.store.OPEN_FILES", 2)
    base, finetuned = pair_of(200, layers=(0,))
    cache = pickle.loads(pickle.dumps(write_cache(tmp_path, base, finetuned, documents_per_shard=2)))
    assert len(cache.base.shards) == 13
    wrong: list[int] = []

    def check(offset: int) -> None:
        for start in range(offset, 190, 7):
            if not torch.equal(cache.base.read(0, start, start + 10), base[0][start : start + 10]):
                wrong.append(start)

    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=check, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) <= before + 2
