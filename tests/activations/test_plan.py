"""Shards and batches against the properties that define them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing.activations.hdf5 import CHUNK_ROWS
from diffing.activations.plan import length_batches, plan, rows_per_shard, split
from diffing.errors import EmptyCorpus, InvalidSetting

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=60)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(COUNTS, st.integers(1, 50))
def test_shards_hold_every_document_once_and_as_many_as_fit(kept: list[int], limit: int) -> None:
    parts = split(torch.tensor(kept), limit)
    assert [document for part in parts for document in part] == list(range(len(kept)))
    for part in parts:
        assert sum(kept[part.start : part.stop]) <= limit or len(part) == 1
        if part.stop < len(kept):
            assert sum(kept[part.start : part.stop + 1]) > limit


@given(COUNTS.filter(any), st.integers(1, 50), st.data())
def test_a_plan_says_where_the_rows_and_tokens_of_each_shard_are(
    kept: list[int], limit: int, data: st.DataObject
) -> None:
    lengths = [rows + data.draw(st.integers(1, 3)) for rows in kept]
    row = 0
    parts = split(torch.tensor(kept), limit)
    for index, shard in enumerate(plan(torch.tensor(lengths), torch.tensor(kept), parts)):
        documents = slice(shard.documents.start, shard.documents.stop)
        assert (shard.index, shard.file) == (index, f"shard-{index:05d}.h5")
        assert (shard.first_row, shard.n_rows) == (row, sum(kept[documents]))
        assert shard.n_tokens == sum(lengths[documents])
        row += shard.n_rows
    assert row == sum(kept)


def test_documents_without_a_row_cannot_be_planned() -> None:
    with pytest.raises(EmptyCorpus, match="none of 3 documents"):
        plan(torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0]), [range(3)])


@given(LENGTHS, st.integers(1, 100))
def test_batches_hold_every_sequence_once_within_the_bound(lengths: list[int], batch_tokens: int) -> None:
    batches = length_batches(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[index] for index in batch) <= batch_tokens or len(batch) == 1
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order, reverse=True)


@given(LENGTHS)
def test_sequences_of_equal_length_need_no_more_batches_than_fit(lengths: list[int]) -> None:
    assert len(length_batches([7] * len(lengths), 21)) == -(-len(lengths) // 3)
    assert length_batches([7] * 4, 21) == [[0, 1, 2], [3]]


def test_a_long_tail_of_short_sequences_wastes_little_padding() -> None:
    lengths = [int(length) for length in torch.randint(5, 1000, (2000,), generator=torch.Generator().manual_seed(0))]
    padded = sum(len(batch) * lengths[batch[0]] for batch in length_batches(lengths, 8192))
    assert sum(lengths) / padded > 0.97


@given(st.floats(1e-6, 4096), st.integers(1, 1 << 16))
def test_a_shard_has_whole_chunks_within_its_bound(shard_mib: float, row_bytes: int) -> None:
    rows = rows_per_shard(shard_mib, row_bytes)
    assert rows % CHUNK_ROWS == 0
    assert rows * row_bytes <= shard_mib * 2**20 or rows == CHUNK_ROWS
    assert (rows + CHUNK_ROWS) * row_bytes > shard_mib * 2**20


def test_bounds_below_one_are_refused() -> None:
    for call in (lambda: split(torch.tensor([1]), 0), lambda: length_batches([1], 0), lambda: rows_per_shard(0, 2)):
        with pytest.raises(InvalidSetting, match="expected"):
            call()
