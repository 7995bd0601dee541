"""Principal components against planted structure, closed forms and a plain eigendecomposition."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side, Stream
from diffing.errors import EmptyCorpus, NonFiniteActivations, ZeroVariance
from diffing.learners.base import Recipe
from diffing.learners.pca import PCA, PIECE_ROWS, PCAFit


def recipe(d_model: int, n_components: int | None = None) -> Recipe:
    settings = {"n_components": d_model if n_components is None else n_components}
    return Recipe("pca", "0" * 16, "a base and a finetune", 1, Stream.DIFFERENCE, d_model, ["cache"], settings)


def rows_with(variances: Float[Tensor, " d_model"], n_rows: int, mean: float = 0.0) -> Float[Tensor, "token d_model"]:
    """Gaussian rows with these variances along random directions."""
    random = torch.Generator().manual_seed(len(variances))
    rotation = torch.linalg.qr(torch.randn(len(variances), len(variances), generator=random))[0]
    return mean + torch.randn(n_rows, len(variances), generator=random) * variances.sqrt() @ rotation


def fitted(
    rows: Float[Tensor, "token d_model"],
    batch: int = 700,
    n_components: int | None = None,
    shift: Float[Tensor, " d_model"] | None = None,
) -> PCA:
    fit = PCAFit(recipe(rows.shape[1], n_components), rows.float().mean(0) if shift is None else shift)
    for part in rows.split(batch):
        fit.update(part)
    return fit.solve()


def exact(rows: Float[Tensor, "token d_model"]) -> tuple[Tensor, Tensor]:
    """Variances and components by a singular value decomposition in float64, of the centred rows at once."""
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    return torch.tensor(values**2 / len(rows)), torch.tensor(vectors)


def sines(first: Float[Tensor, "latent d_model"], second: Float[Tensor, "latent d_model"]) -> Float[Tensor, " latent"]:
    """Sine of the angle between each pair of directions, exact for small angles."""
    first, second = first.double(), second.double()
    return (first - (first * second).sum(1, keepdim=True) * second).norm(dim=1)


def test_components_are_those_of_a_singular_value_decomposition_and_the_last_partial_batch_counts() -> None:
    rows = rows_with(torch.logspace(2, 1, 40), 5_003, mean=50.0)
    pca = fitted(rows)
    variances, components = exact(rows)
    torch.testing.assert_close(pca.variances, variances, rtol=1e-6, atol=0)
    assert sines(pca.components, components).max() < 1e-4
    assert int(pca.n_rows) == len(rows)
    assert len(rows) % 700
    without_last = exact(rows[: len(rows) // 700 * 700])[0]
    assert not torch.allclose(pca.variances, without_last, rtol=1e-4, atol=0)


def test_small_variances_are_off_by_less_than_a_ten_millionth_of_the_largest() -> None:
    rows = rows_with(torch.logspace(3, -3, 40), 5_000)
    torch.testing.assert_close(fitted(rows).variances, exact(rows)[0], rtol=0, atol=1e-7 * 1e3)


def test_coordinates_of_huge_variance_do_not_spoil_the_others() -> None:
    """Residual streams have some coordinates a thousand times larger than the rest, around a large mean."""
    rows = rows_with(torch.logspace(1, 0, 30), 5_000)
    rows[:, [4, 17]] = 1e3 * rows[:, [4, 17]] + 3e3
    torch.testing.assert_close(fitted(rows).variances, exact(rows)[0], rtol=1e-6, atol=0)


def test_order_and_batch_size_change_nothing_but_rounding() -> None:
    rows = rows_with(torch.logspace(2, 0, 24), 2 * PIECE_ROWS + 77, mean=3.0)
    shift = rows.mean(0)
    first = fitted(rows, batch=640, shift=shift)
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    for other in (fitted(shuffled, batch=1_000, shift=shift), fitted(rows.flip(0), batch=len(rows), shift=shift)):
        torch.testing.assert_close(other.variances, first.variances, rtol=1e-6, atol=1e-7 * 100)
        torch.testing.assert_close(other.components, first.components, rtol=0, atol=1e-4)


def test_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    rows = rows_with(torch.logspace(1, -1, 16), 999)
    fits = [PCAFit(recipe(16), rows.mean(0)) for _ in range(3)]
    for fit, part in zip(fits, (rows[:400], rows[400:], rows), strict=True):
        fit.update(part)
    for name in ("sums", "products", "n_rows"):
        parts = getattr(fits[0], name) + getattr(fits[1], name)
        torch.testing.assert_close(parts, getattr(fits[2], name), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("off_by", [0.0, 1.0])
def test_the_shift_changes_nothing_but_rounding(off_by: float) -> None:
    rows = rows_with(torch.logspace(1, -1, 16), 3_000, mean=200.0)
    pca = fitted(rows, shift=rows.mean(0) + off_by)
    torch.testing.assert_close(pca.variances, exact(rows)[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(pca.mean.double(), rows.double().mean(0), rtol=1e-6, atol=0)


def test_half_precision_rows_are_read_as_they_are_stored() -> None:
    rows = rows_with(torch.logspace(2, -1, 32), 4_000, mean=1.0)
    stored = rows.bfloat16()
    pca, widened = fitted(stored), fitted(stored.float())
    assert torch.equal(pca.components, widened.components)
    assert torch.equal(pca.variances, widened.variances)
    # Rounding to 8 bits adds noise of variance about (x 2^-9)^2, here up to 1e-4 in each direction.
    torch.testing.assert_close(pca.variances, exact(rows)[0], rtol=5e-3, atol=0)


def test_planted_directions_are_found_as_well_as_random_matrix_theory_allows() -> None:
    """Spiked covariance (Paul 2007): with noise of variance 1, ratio g = d/n and spikes l, the eigenvalues of a sample
    tend to (1 + l)(1 + g/l), and cos^2 of the angle to the planted direction to (1 - g/l^2) / (1 + g/l)."""
    d_model, n_rows, spikes = 200, 2_000, torch.tensor([60.0, 20.0, 6.0])
    random = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(d_model, len(spikes), generator=random))[0].T
    strengths = torch.randn(n_rows, len(spikes), generator=random) * spikes.sqrt()
    pca = fitted(strengths @ planted + torch.randn(n_rows, d_model, generator=random))
    ratio = d_model / n_rows
    cosines = (pca.components[:3].double() * planted.double()).sum(1).square()
    theory = (1 - ratio / spikes**2) / (1 + ratio / spikes)
    torch.testing.assert_close(cosines, theory.double(), rtol=0, atol=0.01)
    # A variance estimated from n rows is off by sqrt(2/n) of itself, one standard deviation.
    values = (1 + spikes) * (1 + ratio / spikes)
    torch.testing.assert_close(pca.variances[:3], values.double(), rtol=3 * math.sqrt(2 / n_rows), atol=0)
    assert pca.variances[3] < (1 + math.sqrt(ratio)) ** 2 * 1.05, "the rest is noise, up to its upper edge"


def test_all_components_are_orthonormal_hold_all_variance_and_point_up() -> None:
    pca = fitted(rows_with(torch.logspace(2, -2, 32), 1_000))
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(32), rtol=0, atol=1e-5)
    assert math.isclose(pca.variances.sum(), pca.total_variance, rel_tol=1e-12)
    assert (pca.variances.diff() <= 0).all()
    largest = pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_mirrored_rows_have_the_same_components_and_mirrored_scores() -> None:
    rows = rows_with(torch.logspace(2, 0, 12), 1_000, mean=2.0)
    pca, mirrored = fitted(rows), fitted(-rows)
    torch.testing.assert_close(mirrored.components, pca.components, rtol=0, atol=1e-5)
    torch.testing.assert_close(mirrored.encode(-rows), -pca.encode(rows), rtol=0, atol=1e-3)


def test_scores_are_centred_and_uncorrelated_with_the_variances_that_are_stated() -> None:
    rows = rows_with(torch.logspace(1, -1, 12), 2_000, mean=5.0).bfloat16()
    pca = fitted(rows, n_components=5)
    scores = pca.encode(rows)
    assert scores.shape == (2_000, 5)
    assert scores.dtype == torch.float32
    covariance = torch.cov(scores.double().T, correction=0)
    torch.testing.assert_close(covariance, pca.variances.diag(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    assert all(torch.equal(pca.directions(side), pca.components) for side in Side)


def test_fewer_components_are_the_first_of_all() -> None:
    rows = rows_with(torch.logspace(1, -1, 12), 500)
    all_of_them, few = fitted(rows), fitted(rows, n_components=3)
    assert torch.equal(few.components, all_of_them.components[:3])
    assert torch.equal(few.variances, all_of_them.variances[:3])
    assert few.total_variance == all_of_them.total_variance


def test_a_constant_difference_is_in_the_mean_and_not_in_the_components() -> None:
    rows = rows_with(torch.ones(8), 4_000)
    offset = torch.zeros(8)
    offset[3] = 100.0
    plain, moved = fitted(rows), fitted(rows + offset)
    torch.testing.assert_close(moved.mean, plain.mean + offset, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved.variances, plain.variances, rtol=1e-4, atol=0)


def test_fewer_rows_than_coordinates_leave_components_without_variance() -> None:
    pca = fitted(rows_with(torch.ones(32), 10))
    assert (pca.variances[:9] > 0.01).all()
    assert (pca.variances[9:] < 1e-6).all()
    assert (pca.variances >= 0).all()


@pytest.mark.parametrize("off_by", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("value", [0.0, 0.1, -700.0])
def test_rows_that_do_not_vary_have_no_components(value: float, off_by: float) -> None:
    rows = torch.full((3_001, 16), value)
    with pytest.raises(ZeroVariance, match="all 3001 rows of the difference stream at layer 1 are the same"):
        fitted(rows, shift=rows[0] + off_by)


def test_variance_in_one_coordinate_is_enough() -> None:
    rows = torch.zeros(1_000, 16)
    rows[::2, 4] = 1e-4
    assert math.isclose(fitted(rows).variances[0], 0.25e-8, rel_tol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_refused(value: float) -> None:
    rows = rows_with(torch.ones(8), 100)
    rows[7, 3] = value
    with pytest.raises(NonFiniteActivations, match="layer 1"):
        fitted(rows, shift=torch.zeros(8))


def test_no_rows_are_refused() -> None:
    fit = PCAFit(recipe(8), torch.zeros(8))
    fit.update(torch.zeros(0, 8))
    with pytest.raises(EmptyCorpus):
        fit.solve()


@pytest.fixture
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_the_precision_that_others_set_is_neither_used_nor_changed(coarse_products: None) -> None:
    rows = rows_with(torch.logspace(2, 1, 40), 3_000)
    torch.testing.assert_close(fitted(rows).variances, exact(rows)[0], rtol=1e-6, atol=0)
    assert torch.get_float32_matmul_precision() == "medium"
