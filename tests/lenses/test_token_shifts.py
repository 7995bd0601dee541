"""Sizes and angles of differences by hand, and means of groups of tokens against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffing.lenses.texts import Texts
from diffing.lenses.token_shifts import ALL, PIECE_ROWS, MeanShifts, places, token_shifts


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shifts_of(base: list[float], finetuned: list[float]) -> list[float]:
    """[norm of the difference, cosine distance, relative difference, norm of the base, of the finetuned side]."""
    return [float(each) for each in token_shifts(torch.tensor([base]), torch.tensor([finetuned]))]


@pytest.mark.parametrize(
    ("base", "finetuned", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], [math.sqrt(2), 1, math.sqrt(2) / 2, 1, 1]),
        ([3.0, 4.0], [-3.0, -4.0], [10, 2, 1, 5, 5]),
        ([3.0, 4.0], [9.0, 12.0], [10, 0, 0.5, 5, 15]),
        ([3.0, 4.0], [4.0, 3.0], [math.sqrt(2), 0.04, math.sqrt(2) / 10, 5, 5]),
        ([0.0, 0.0], [3.0, 4.0], [5, math.nan, 1, 0, 5]),
        ([0.0, 0.0], [0.0, 0.0], [0, math.nan, math.nan, 0, 0]),
    ],
)
def test_sizes_and_angles_are_those_worked_out_by_hand(
    base: list[float], finetuned: list[float], expected: list[float]
) -> None:
    assert shifts_of(base, finetuned) == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_rows_are_exactly_zero_apart(dtype: torch.dtype) -> None:
    rows = (noise(300, 64) * torch.logspace(-3, 4, 300)[:, None]).to(dtype)
    found = token_shifts(rows, rows.clone())
    assert not found.norm_difference.any()
    assert not found.cosine_distance.any()
    assert not found.relative_difference.any()


def test_rows_of_the_same_direction_have_no_angle_whatever_their_lengths() -> None:
    rows = noise(100, 64)
    assert token_shifts(rows, 3.7 * rows).cosine_distance.max() < 1e-13


def test_a_tiny_angle_is_right_where_one_minus_the_cosine_is_all_rounding() -> None:
    base = noise(200, 64)
    finetuned = base + 1e-5 * noise(200, 64, seed=1)
    exact = 1 - torch.cosine_similarity(base.double(), finetuned.double(), dim=1)
    assert exact.max() < 1e-9
    torch.testing.assert_close(token_shifts(base, finetuned).cosine_distance.double(), exact, rtol=2e-2, atol=0)


def test_angles_agree_with_the_cosine_similarity_of_torch() -> None:
    base, finetuned = noise(PIECE_ROWS + 9, 32), noise(PIECE_ROWS + 9, 32, seed=1)
    found = token_shifts(base, finetuned)
    exact = 1 - torch.cosine_similarity(base.double(), finetuned.double(), dim=1)
    torch.testing.assert_close(found.cosine_distance.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.norm_difference, (finetuned - base).norm(dim=1))


def test_relative_differences_lie_between_zero_and_one() -> None:
    base, factor = noise(5000, 8), -torch.rand(5000, 1) * 3  # opposite rows reach 1, and rounding would pass it
    found = token_shifts(base, torch.where(torch.arange(5000)[:, None] % 2 == 0, factor * base, noise(5000, 8, seed=1)))
    assert found.relative_difference.min() >= 0
    assert found.relative_difference.max() <= 1
    assert found.cosine_distance.max() <= 2


def test_a_rotation_of_both_sides_changes_nothing() -> None:
    base, finetuned = noise(50, 16), noise(50, 16, seed=1)
    rotation = torch.linalg.qr(noise(16, 16, seed=2).double()).Q
    turned = token_shifts((base.double() @ rotation).float(), (finetuned.double() @ rotation).float())
    for one, other in zip(token_shifts(base, finetuned), turned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_bf16_rows_are_widened_before_they_are_subtracted() -> None:
    base, finetuned = noise(20, 64).bfloat16(), noise(20, 64, seed=1).bfloat16()
    for one, other in zip(token_shifts(base, finetuned), token_shifts(base.float(), finetuned.float()), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def means_of(
    change: Tensor, texts: Texts, positions: list[int], tokens: dict[int, str], base: Tensor | None = None
) -> MeanShifts:
    means = MeanShifts(change.shape[1], positions, tokens)
    base = torch.zeros_like(change) if base is None else base
    means.add(base, base + change, token_shifts(base, base + change), places(texts))
    return means


def by_group(means: MeanShifts) -> dict[str, Tensor]:
    return {each.group: each.mean for each in means.result()}


def test_a_shift_of_all_tokens_is_the_mean_of_every_group() -> None:
    shift, texts = noise(1, 6), Texts.of([[3, 4, 3], [4, 4, 5, 6]], first=0)
    found = means_of(shift.expand(7, 6), texts, [0, 1], {4: "four", 9: "nine"}).result()
    assert [each.group for each in found] == [ALL, "position 0", "position 1", "token 4 'four'"]
    for each in found:
        assert torch.equal(each.mean, shift[0].double())
        assert each.mean_norm == pytest.approx(float(shift.norm()), rel=1e-6)


def test_shifts_of_the_first_positions_are_told_apart() -> None:
    change = torch.zeros(10, 5)
    change[:5] = torch.eye(5)
    found = by_group(means_of(change, Texts.of([list(range(10))], first=0), [0, 1, 2, 3, 4], {}))
    for position in range(5):
        assert torch.equal(found[f"position {position}"], torch.eye(5, dtype=torch.float64)[position])
    torch.testing.assert_close(found[ALL], torch.full((5,), 0.1, dtype=torch.float64), rtol=1e-15, atol=0)


def test_positions_count_from_the_start_of_the_text_and_those_left_out_are_absent() -> None:
    texts = Texts.of([[7, 8, 9], [7], [7, 8]], first=0, n_skipped=1)
    where = places(texts)
    assert where.position.tolist() == [1, 2, 1]
    assert where.document.tolist() == [0, 0, 2]
    assert where.ids.tolist() == [8, 9, 8]
    found = means_of(torch.tensor([[1.0], [5.0], [3.0]]), texts, [0, 1, 2], {7: "seven", 8: "eight"})
    assert {each.group: (each.count, each.n_texts, float(each.mean)) for each in found.result()} == {
        ALL: (3, 2, 3.0), "position 1": (2, 2, 2.0), "position 2": (1, 1, 5.0), "token 8 'eight'": (2, 2, 2.0),
    }  # fmt: skip


def test_a_token_weighs_as_often_as_it_occurs() -> None:
    texts = Texts.of([[7, 1, 7], [7]], first=0)
    found = means_of(torch.tensor([[1.0], [50.0], [2.0], [6.0]]), texts, [], {7: "seven", 8: "absent"}).result()
    assert [(each.group, each.count, each.n_texts, float(each.mean)) for each in found[1:]] == [
        ("token 7 'seven'", 3, 2, 3.0)
    ]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.data())
def test_no_split_of_the_texts_and_no_merge_changes_a_mean(lengths: list[int], data: st.DataObject) -> None:
    ids = [[data.draw(st.integers(0, 3)) for _ in range(length)] for length in lengths]
    change, base, cut = noise(sum(lengths), 3), noise(sum(lengths), 3, seed=1), data.draw(st.integers(0, len(lengths)))
    groups: tuple = ([0, 2], {1: "one"})
    whole = means_of(change, Texts.of(ids, 0), *groups, base)
    row = sum(lengths[:cut])
    halves = [
        means_of(change[:row], Texts.of(ids[:cut], 0), *groups, base[:row]),
        means_of(change[row:], Texts.of(ids[cut:], cut), *groups, base[row:]),
    ]
    halves[1].merge(halves[0])
    for one, other in zip(whole.result(), halves[1].result(), strict=True):
        assert (one.group, one.count, one.n_texts) == (other.group, other.count, other.n_texts)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(one.base_mean, other.base_mean, rtol=1e-12, atol=1e-14)
        assert (one.mean_norm, one.base_mean_norm) == pytest.approx((other.mean_norm, other.base_mean_norm), rel=1e-12)
    overall = whole.result()[0]
    torch.testing.assert_close(overall.base_mean, base.double().mean(0), rtol=1e-12, atol=1e-12)
    assert overall.base_mean_norm == pytest.approx(float(base.double().norm(dim=1).mean()), rel=1e-6)


def test_a_million_small_differences_add_up() -> None:
    means = MeanShifts(1, [], {})
    rows, where = torch.full((50_000, 1), 1e-3), places(Texts.of([[0] * 50_000], 0))
    base = torch.zeros_like(rows, dtype=torch.bfloat16)
    shifts = token_shifts(base, rows)
    for _ in range(20):
        means.add(base, rows, shifts, where)
    assert float(means.result()[0].mean) == pytest.approx(1e-3, abs=1e-9)
    assert means.result()[0].count == 1_000_000
