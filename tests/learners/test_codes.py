"""Which latents are active, against sorting all of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from diffing.learners.codes import BatchTopK, Codes, above, top_k

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def scores(pre: Tensor, weight: Tensor | None) -> Tensor:
    values = pre.to(torch.promote_types(pre.dtype, torch.float32))
    return values if weight is None else values * weight


def largest(flat: Float[Tensor, " candidate"], count: int) -> Tensor:
    """Where the positive ones of the largest are, smaller places first among equal ones, by sorting all."""
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[:count]] = True
    return kept & (flat > 0)


def assert_selects(codes: Codes, pre: Tensor, kept: Tensor) -> None:
    expected = pre.to(torch.promote_types(pre.dtype, torch.float32)) * kept
    assert torch.equal(codes.dense(), expected)
    assert torch.equal(torch.stack([codes.rows, codes.latents], 1), kept.nonzero())  # and in order


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, int, Tensor | None]:
    """Values, k and weights, of few distinct numbers (so that many scores are equal) or of many."""
    batch, n_latents = draw(st.integers(1, 9)), draw(st.integers(1, 90))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    pre = torch.randn(batch, n_latents, generator=random, dtype=torch.float64)
    weight = torch.rand(n_latents, generator=random, dtype=torch.float64) if draw(st.booleans()) else None
    if draw(st.booleans()):
        pre = pre.round()
        weight = None if weight is None else (2 * weight).round()
    dtype = draw(st.sampled_from(DTYPES))
    weight = None if weight is None else weight.to(torch.promote_types(dtype, torch.float32))
    pre = pre.T.contiguous().T if draw(st.booleans()) else pre  # in another order in memory
    return pre.to(dtype), draw(st.integers(1, n_latents)), weight


@given(batches())
def test_top_k_is_the_start_of_each_sorted_row(drawn: tuple[Tensor, int, Tensor | None]) -> None:
    pre, k, weight = drawn
    kept = torch.stack([largest(row, k) for row in scores(pre, weight)])
    assert_selects(top_k(pre, k, weight), pre, kept)


@given(st.lists(batches(), min_size=1, max_size=4), st.sampled_from([1e-3, 0.9, 1.1, 1e3]))
def test_batch_top_k_is_the_start_of_the_sorted_batch_whatever_came_before(
    drawn: list[tuple[Tensor, int, Tensor | None]], growth: float
) -> None:
    select = BatchTopK()
    for step, (pre, k, weight) in enumerate(drawn):
        pre = pre * growth**step
        kept = largest(scores(pre, weight).flatten(), k * len(pre)).view(pre.shape)
        assert_selects(select(pre, k, weight), pre, kept)


@given(batches(), st.floats(-1, 3))
def test_above_takes_the_positive_values_whose_score_exceeds_the_threshold(
    drawn: tuple[Tensor, int, Tensor | None], threshold: float
) -> None:
    pre, _, weight = drawn
    limit = torch.tensor(threshold, dtype=scores(pre, weight).dtype)
    kept = (scores(pre, weight) > limit) & (scores(pre, weight) > 0)
    assert_selects(above(pre, threshold, weight), pre, kept)
    assert_selects(above(pre, limit, weight), pre, kept)


def test_a_score_equal_to_the_threshold_is_not_above_it() -> None:
    pre = torch.tensor([[0.5, 1.0, 1.5], [3.0, 2.0, 0.25]])
    weight = torch.tensor([3.0, 1.5, 1.0])
    assert above(pre, 1.5).dense().tolist() == [[0, 0, 0], [3, 2, 0]]
    assert above(pre, 1.5, weight).dense().tolist() == [[0, 0, 0], [3, 2, 0]]


def test_all_thresholds_between_neighbouring_bfloat16_are_told_apart_by_weight() -> None:
    pre = (1 + torch.arange(256) / 256).to(torch.bfloat16).unique()[None]
    weight = torch.linspace(0.5, 2, pre.shape[1])
    for threshold in scores(pre, weight)[0].tolist():
        limit = torch.tensor(threshold)
        assert_selects(above(pre, limit, weight), pre, scores(pre, weight) > limit)


def test_as_many_are_kept_as_asked_for_or_as_are_positive() -> None:
    pre = torch.randn(64, 320, generator=torch.Generator().manual_seed(0))
    assert len(BatchTopK()(pre, 7).values) == 7 * 64
    assert top_k(pre, 7).offsets.diff().tolist() == [7] * 64
    few = pre - 2
    assert int((few > 0).sum()) < 20 * 64
    assert len(BatchTopK()(few, 20).values) == len(above(few, 0).values) == int((few > 0).sum())
    assert torch.equal(top_k(few, 320).dense(), few.relu())


def test_latents_compete_by_score_and_pass_on_their_value() -> None:
    pre = torch.tensor([[4.0, 1.0, 3.0], [2.0, 1.5, 0.5]])
    weight = torch.tensor([0.5, 3.0, 1.0])  # scores: 2, 3, 3 and 1, 4.5, 0.5
    assert top_k(pre, 1, weight).dense().tolist() == [[0, 1, 0], [0, 1.5, 0]]
    codes = BatchTopK()(pre, 1, weight)
    assert codes.dense().tolist() == [[0, 1, 0], [0, 1.5, 0]]
    assert codes.offsets.tolist() == [0, 1, 2]
    assert codes.values.tolist() == [1, 1.5]


def test_among_equal_scores_smaller_rows_and_then_smaller_latents_go_first() -> None:
    pre = torch.ones(3, 64)
    kept = torch.zeros(3, 64)
    kept[0, :] = 1
    kept[1, :32] = 1
    assert torch.equal(BatchTopK()(pre, 32).dense(), kept)
    by_row = torch.zeros(3, 64)
    by_row[:, :2] = 1
    assert torch.equal(top_k(pre, 2).dense(), by_row)


def test_nan_is_never_active_and_infinity_is() -> None:
    pre = torch.tensor([[torch.nan, 1.0, -torch.nan, 2.0], [torch.inf, -torch.inf, 0.0, -0.0]])
    for codes in (top_k(pre, 4), BatchTopK()(pre, 4), above(pre, 0)):
        assert codes.dense().tolist() == [[0, 1, 0, 2], [torch.inf, 0, 0, 0]]


def test_a_batch_without_rows_or_without_active_latents_has_empty_codes() -> None:
    for pre in (torch.zeros(0, 16), -torch.ones(3, 16)):
        for codes in (top_k(pre, 2), BatchTopK()(pre, 2), above(pre, 0.5)):
            assert len(codes) == len(pre)
            assert codes.offsets.tolist() == [0] * (len(pre) + 1)
            assert torch.equal(codes.dense(), torch.zeros_like(pre))


def test_gradients_of_dense_codes_reach_the_values() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    codes = Codes(torch.tensor([0, 1, 1, 3]), torch.tensor([2, 0, 1]), values, 4)
    assert codes.dense().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [2, 3, 0, 0]]
    assert codes.rows.tolist() == [0, 2, 2]
    (codes.dense() * torch.arange(12).view(3, 4)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2, 8, 9]
