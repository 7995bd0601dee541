"""Running statistics against numpy on everything at once, however the numbers arrive."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.errors import NonFiniteActivations
from diffing.lenses.distributions import Distribution

RESOLUTION = 2.0**-12
WANTED = [0, 1, 12.5, 50, 95, 99.9, 100]

values = st.lists(st.floats(0, 2.0**60, width=32, allow_subnormal=False), min_size=1, max_size=60)


def of(*parts: list[float]) -> Distribution:
    found = Distribution()
    for part in parts:
        found.add(torch.tensor(part))
    return found


def state(found: Distribution) -> tuple:
    return (found.count, found.n_undefined, found.n_zero, found.minimum, found.maximum, found.percentiles(WANTED))


@settings(max_examples=25)
@given(values)
def test_statistics_are_those_of_numpy(numbers: list[float]) -> None:
    found, all_at_once = of(numbers), np.array(numbers, dtype=np.float64)
    assert (found.count, found.minimum, found.maximum) == (len(numbers), all_at_once.min(), all_at_once.max())
    assert found.n_zero == (all_at_once == 0).sum()
    assert found.mean == pytest.approx(all_at_once.mean(), rel=1e-12)
    assert found.std == pytest.approx(all_at_once.std(), rel=1e-9, abs=1e-9 * all_at_once.max())
    exact = np.percentile(all_at_once, WANTED, method="inverted_cdf")
    assert found.percentiles(WANTED) == pytest.approx(exact.tolist(), rel=RESOLUTION, abs=0)


@settings(max_examples=25)
@given(values, st.data())
def test_no_split_and_no_merge_changes_anything(numbers: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(numbers)))
    whole, split, merged = of(numbers), of(numbers[:cut], numbers[cut:]), of(numbers[cut:])
    merged.merge(of(numbers[:cut]))
    assert state(whole) == state(split) == state(merged)
    assert whole.histogram(7) == merged.histogram(7)
    for other in (split, merged):
        assert other.mean == pytest.approx(whole.mean, rel=1e-12)
        assert other.std == pytest.approx(whole.std, rel=1e-9, abs=1e-9 * whole.maximum)


@settings(max_examples=25)
@given(values, st.integers(1, 60))
def test_a_histogram_has_every_value_once_and_no_more_bins_than_asked_for(numbers: list[float], most: int) -> None:
    positive = [each for each in numbers if each > 0]
    found = of(numbers).histogram(most)
    assert len(found.counts) <= most
    assert sum(found.counts) == len(positive)
    if positive:
        assert found.edges[0] <= min(positive)
        assert max(positive) <= found.edges[-1]
        inside = np.histogram(positive, bins=found.edges)[0]
        assert inside.tolist() == list(found.counts)
        assert all(low < high for low, high in zip(found.edges, found.edges[1:], strict=False))


def test_the_density_of_a_histogram_adds_up_to_the_share_that_is_not_zero() -> None:
    found = of([0.0, 1.0, 2.0, 300.0]).histogram(5)
    widths = [math.log10(high / low) for low, high in zip(found.edges, found.edges[1:], strict=False)]
    assert sum(d * w for d, w in zip(found.density(4), widths, strict=True)) == pytest.approx(0.75)
    assert [low < centre < high for low, centre, high in zip(found.edges, found.centres, found.edges[1:], strict=False)]


def test_equal_values_are_every_percentile_exactly() -> None:
    assert of([math.sqrt(2)] * 5).percentiles([0, 50, 100]) == [float(torch.tensor(math.sqrt(2)))] * 3
    zeros = of([0.0, 0.0, -0.0, 3.0])
    assert zeros.percentiles([50, 75, 100]) == [0.0, 0.0, 3.0]
    assert zeros.n_zero == 3


def test_the_standard_deviation_is_of_the_population() -> None:
    assert of([1.0, 3.0]).std == 1.0
    assert of([5.0]).std == 0.0


def test_undefined_values_are_counted_and_left_out() -> None:
    found = of([math.nan, 2.0], [math.nan], [4.0, math.nan])
    assert (found.count, found.n_undefined, found.mean) == (2, 3, 3.0)
    assert found.percentiles([50]) == pytest.approx([2.0], rel=RESOLUTION)
    nothing = of([math.nan], [])
    assert (nothing.count, nothing.n_undefined, nothing.histogram(5).counts) == (0, 1, [])


@pytest.mark.parametrize("wrong", [math.inf, -1.0])
def test_infinite_and_negative_values_are_refused(wrong: float) -> None:
    with pytest.raises(NonFiniteActivations, match=str(wrong)):
        of([1.0, wrong])
