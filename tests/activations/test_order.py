"""Which rows are read when: every one once, corpora spread evenly, parts that fit together."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.activations.order import Part, RowOrder, in_shares
from diffing.errors import EmptyCorpus, InvalidSetting

SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(any)


def blocks_of(rows: int, block: int = 16) -> list[tuple[int, int]]:
    return [(start, min(start + block, rows)) for start in range(0, rows, block)]


def read(order: RowOrder, start: int, stop: int) -> list[tuple[int, int]]:
    return [(cache, row) for cache, begin, end in order.slices(start, stop) for row in range(begin, end)]


@given(sizes=SIZES, seed=st.integers(), epoch=st.integers(0, 3), cuts=st.lists(st.integers(0, 1200), max_size=5))
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_shuffled_epoch_hold_every_row_once(
    sizes: list[int], seed: int, epoch: int, cuts: list[int]
) -> None:
    order = RowOrder.shuffled([blocks_of(size) for size in sizes], sizes, seed, epoch)
    total = sum(sizes)
    borders = sorted({0, total, *(cut for cut in cuts if cut < total)})
    pieces = [row for start, stop in pairwise(borders) for row in read(order, start, stop)]
    assert pieces == read(order, 0, total)
    assert sorted(pieces) == [(cache, row) for cache, size in enumerate(sizes) for row in range(size)]


def test_stored_order_is_cache_after_cache() -> None:
    assert read(RowOrder.stored([2, 0, 3]), 1, 4) == [(0, 1), (2, 0), (2, 1)]


@given(sizes=st.lists(st.integers(100, 4000), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_every_stretch_holds_its_share_of_each_corpus_to_about_a_block(sizes: list[int], seed: int) -> None:
    order = RowOrder.shuffled([blocks_of(size) for size in sizes], sizes, seed, 0)
    corpora = torch.tensor([cache for cache, _ in read(order, 0, sum(sizes))])
    for corpus, size in enumerate(sizes):
        given_so_far = (corpora == corpus).cumsum(0)
        due = torch.arange(1, len(corpora) + 1) * size / len(corpora)
        assert (given_so_far - due).abs().max() <= 16 * len(sizes)


def test_another_seed_and_another_epoch_are_other_orders_and_the_same_ones_repeat() -> None:
    blocks = [blocks_of(2000)]
    pieces = {key: RowOrder.shuffled(blocks, [2000], *key).pieces for key in ((0, 0), (0, 1), (1, 0))}
    assert torch.equal(RowOrder.shuffled(blocks, [2000], 0, 1).pieces, pieces[0, 1])
    assert not torch.equal(pieces[0, 0], pieces[0, 1])
    assert not torch.equal(pieces[0, 0], pieces[1, 0])


def test_corpora_of_one_size_are_not_shuffled_alike() -> None:
    pieces = RowOrder.shuffled([blocks_of(2000)] * 2, [2000, 2000], 0, 0).pieces
    assert not torch.equal(pieces[pieces[:, 0] == 0, 1:], pieces[pieces[:, 0] == 1, 1:])


def test_a_part_of_a_corpus_is_another_one_in_the_next_epoch_and_never_repeats_a_row() -> None:
    rows = [set(read(RowOrder.shuffled([blocks_of(1000)], [333], 0, epoch), 0, 333)) for epoch in range(2)]
    assert [len(taken) for taken in rows] == [333, 333]
    assert rows[0] != rows[1]


@given(n_rows=st.integers(1, 500), batch_size=st.integers(1, 40), parts=st.integers(1, 7), whole=st.booleans())
@settings(max_examples=200, deadline=None)
def test_parts_cover_all_rows_in_equally_many_batches(n_rows: int, batch_size: int, parts: int, whole: bool) -> None:
    try:
        dealt = [Part.of(n_rows, batch_size, part, parts, whole) for part in range(parts)]
    except InvalidSetting:
        assert n_rows < parts * batch_size or (batch_size == 1 and n_rows % parts)
        return
    assert len({part.n_batches for part in dealt}) == 1
    places = []
    for part in dealt:
        borders = [part.batch_start(batch) for batch in range(part.n_batches + 1)]
        lengths = [stop - start for start, stop in pairwise(borders)]
        assert all(1 <= length <= batch_size for length in lengths)
        assert set(lengths[:-2]) <= {batch_size}
        if whole:
            assert lengths == [batch_size] * part.n_batches
        places += range(part.start + borders[0], part.start + borders[-1])
    assert len(places) == len(set(places))
    lost = n_rows - len(places)
    assert lost < parts * batch_size if whole else lost == 0


def test_shares_give_the_longest_epoch_without_a_repeat() -> None:
    assert in_shares([100, 1000], [1, 1]) == [100, 100]
    assert in_shares([100, 1000], [0.2, 0.8]) == [100, 400]
    assert in_shares([100, 1000], [0.05, 0.95]) == [53, 1000]
    assert in_shares([100, 1000], [0, 3]) == [0, 1000]


@pytest.mark.parametrize("weights", [[1.0], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(InvalidSetting, match="weights"):
        in_shares([100, 1000], weights)


def test_a_weight_on_an_empty_corpus_is_refused() -> None:
    with pytest.raises(EmptyCorpus, match="cache 1"):
        in_shares([100, 0], [1, 1])
