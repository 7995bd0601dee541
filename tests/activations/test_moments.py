import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.activations.moments import PIECE_ROWS, Moments, Normaliser
from diffing.errors import InvalidSetting, NonFiniteActivations, ZeroVariance


def planted(n_rows: int, d_model: int = 5, mean: float = 3.0, gain: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 4.0, d_model)
    return gain * (mean + spread * torch.randn(n_rows, d_model, generator=generator))


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.m2, expected.m2, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, PIECE_ROWS - 1, PIECE_ROWS, PIECE_ROWS + 1, 3 * PIECE_ROWS + 5])
def test_moments_are_those_of_a_plain_float64_reduction(n_rows: int) -> None:
    rows = planted(n_rows, mean=1000.0).double()
    found = Moments.of(rows)
    assert found.count == n_rows
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-10, atol=1e-18)


def test_a_large_common_offset_costs_no_accuracy() -> None:
    rows = planted(5000, mean=0.0).double()
    shifted = Moments.of(rows + 2.0**26)
    torch.testing.assert_close(shifted.variance, rows.var(0, correction=0), rtol=1e-6, atol=0)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_parts_merge_into_the_whole_however_they_are_cut_and_ordered(lengths: list[int], data: st.DataObject) -> None:
    rows = planted(sum(lengths), mean=50.0)
    parts = [Moments.of(part) for part in rows.split(lengths)]
    shuffled = data.draw(st.permutations(parts))
    assert_same(Moments.merged(shuffled), Moments.of(rows))
    half = len(parts) // 2
    halves = [Moments.merged(side) for side in (parts[:half], parts[half:]) if side]
    assert_same(Moments.merged(halves), Moments.of(rows))


def test_no_rows_give_a_count_of_zero_and_change_nothing_they_are_merged_with() -> None:
    nothing, some = Moments.of(torch.empty(0, 5)), Moments.of(planted(10))
    assert nothing.count == 0
    assert not nothing.variance.any()
    assert_same(Moments.merged([nothing, some, nothing]), some)


def test_the_same_rows_give_the_same_bits_with_any_number_of_threads() -> None:
    rows, threads = planted(3000, d_model=37), torch.get_num_threads()
    try:
        found = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found.append(Moments.of(rows))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].m2, found[1].m2)
    assert torch.equal(found[0].mean, found[1].mean)


def test_statistics_of_bfloat16_rows_are_those_of_the_rows_before_rounding_to_a_thousandth() -> None:
    """200,000 rows. A bfloat16 accumulator stops growing after a few hundred."""
    rows = planted(200_000, mean=5.0)
    found = Moments.merged([Moments.of(part.bfloat16()) for part in rows.split(8192)])
    torch.testing.assert_close(found.mean, rows.double().mean(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.variance.sqrt(), rows.double().std(0), rtol=1e-3, atol=0)


def test_moments_of_rows_that_are_not_finite_are_not_finite() -> None:
    rows = planted(2000)
    rows[1500, 2] = torch.inf
    found = Moments.of(rows)
    assert not found.m2[2].isfinite()
    assert found.m2[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("gain", [1.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalised_rows_have_the_target_norm_whatever_the_gain(gain: float, dtype: torch.dtype) -> None:
    rows = planted(20_000, gain=gain).to(dtype)
    normaliser = Normaliser.from_moments(Moments.of(rows), target_norm=100.0)
    scaled = normaliser.apply(rows)
    assert scaled.dtype == torch.float32
    assert float(scaled.double().square().sum(1).mean()) == pytest.approx(100.0**2, rel=1e-3)
    assert scaled.double().mean(0).abs().max() < 1e-2
    torch.testing.assert_close(normaliser.invert(scaled), rows.float(), rtol=1e-5, atol=1e-5 * gain)


def test_one_scale_keeps_the_relative_variances_of_coordinates() -> None:
    rows = planted(5000).double()
    scaled = Normaliser.from_moments(Moments.of(rows), target_norm=1.0).apply(rows)
    ratio = scaled.var(0) / rows.var(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(5))


@pytest.mark.parametrize("rows", [torch.full((999, 4), 0.1), torch.zeros(3, 4), torch.empty(0, 4), torch.ones(1, 4)])
def test_rows_that_do_not_vary_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ZeroVariance):
        Normaliser.from_moments(Moments.of(rows), target_norm=1.0)


def test_one_coordinate_that_varies_by_one_rounding_step_is_enough() -> None:
    rows = torch.full((1000, 4), 0.1)
    rows[0, 0] = torch.nextafter(rows[0, 0], torch.tensor(1.0))
    scaled = Normaliser.from_moments(Moments.of(rows), target_norm=1.0).apply(rows.double())
    assert float(scaled.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-6)


def test_a_variance_that_is_no_number_and_a_target_of_zero_are_refused() -> None:
    rows = planted(10)
    with pytest.raises(InvalidSetting, match="more than 0"):
        Normaliser.from_moments(Moments.of(rows), target_norm=0.0)
    rows[0, 0] = torch.nan
    with pytest.raises(NonFiniteActivations):
        Normaliser.from_moments(Moments.of(rows), target_norm=1.0)
