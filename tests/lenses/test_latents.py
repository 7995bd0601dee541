"""Latent statistics against the definitions, on planted activations and hand-made dictionaries."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.errors import IncompatiblePair, InvalidSetting, MissingInput, NonFiniteActivations
from diffing.learners.base import Recipe
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.lenses.latents import Kind, LatentStatistics, classes_by_norm, classes_by_scaling, latent_statistics
from tests.activations.stores import write_cache

WIDTH, LATENTS, ROWS = 12, 10, 400


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cache_of(root: Path, base: Tensor, finetuned: Tensor, corpus: str = "planted") -> ActivationCache:
    return write_cache(root / corpus, {0: base.float()}, {0: finetuned.float()}, corpus=corpus)


def dictionary_of(caches: list[ActivationCache], stream: Stream | None, n_latents: int) -> Dictionary:
    """A ReLU dictionary in float64, with weights 0."""
    made, kind = (Crosscoder, "crosscoder") if stream is None else (SAE, "sae")
    settings = made.settings_of(Sparsity(n_latents, None, "relu"))
    return made(Recipe.of(kind, caches, 0, stream, settings)).double()


def random_caches(root: Path, seed: int = 0) -> list[ActivationCache]:
    """Two corpora of correlated sides with means that are not zero."""
    made = []
    for number, corpus in enumerate(("first", "second")):
        base = torch.randn(ROWS // 2, WIDTH, generator=random(seed + number)) + 0.3
        finetuned = 0.7 * base + torch.randn(ROWS // 2, WIDTH, generator=random(seed + 7 + number)) - 0.2
        made.append(cache_of(root, base, finetuned, corpus))
    return made


def random_dictionary(caches: list[ActivationCache], stream: Stream | None, seed: int = 3) -> Dictionary:
    """Directions that are neither orthogonal nor of norm 1, values that are correlated, biases and normalisers that
    are not trivial."""
    dictionary, draw = dictionary_of(caches, stream, LATENTS), random(seed)
    for weight in (dictionary.encoder, dictionary.decoder, dictionary.encoder_bias, dictionary.decoder_bias):
        weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64) * 0.4)
    dictionary.mean.copy_(torch.randn(dictionary.mean.shape, generator=draw) * 0.2)
    dictionary.scale.copy_(0.5 + torch.rand(dictionary.scale.shape, generator=draw))
    return dictionary


def all_rows(caches: list[ActivationCache]) -> tuple[Tensor, Tensor]:
    parts = [cache.read(0, 0, cache.n_rows) for cache in caches]
    return torch.cat([base for base, _ in parts]), torch.cat([finetuned for _, finetuned in parts])


def least_squares(f: Tensor, direction: Tensor, target: Tensor) -> float:
    """The factor of f d to the target, by a solver on the flat system."""
    design = torch.outer(f, direction).reshape(-1, 1)
    return float(torch.linalg.lstsq(design, target.reshape(-1, 1)).solution)


def planted(concepts: Tensor, gains: Tensor, n_rows: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides of rows that are sums of concepts (rows), each with a gain on either side, and the coefficients."""
    draw = random(seed)
    present = torch.rand(n_rows, len(concepts), generator=draw) < 0.2
    coefficients = present * (1 + torch.rand(n_rows, len(concepts), generator=draw))
    base, finetuned = (coefficients * gain @ concepts for gain in gains.T)
    return base, finetuned, coefficients


def crosscoder_of(cache: ActivationCache, concepts: Tensor, written: Tensor) -> Dictionary:
    """Reads orthonormal concepts off the side whose gain is 1, and writes them with `written` on each side."""
    dictionary = dictionary_of([cache], None, len(concepts))
    read = torch.stack([(written[:, 1] < written[:, 0]).double(), (written[:, 1] >= written[:, 0]).double()], 1)
    dictionary.encoder.copy_((read[:, :, None] * concepts[:, None]).flatten(1))
    dictionary.decoder.copy_((written[:, :, None] * concepts[:, None]).flatten(1))
    return dictionary


def orthonormal(n: int, width: int = WIDTH, seed: int = 5) -> Tensor:
    return torch.linalg.qr(torch.randn(width, n, generator=random(seed), dtype=torch.float64))[0].T.contiguous()


def measured(
    root: Path, gains: list[list[float]], written: list[list[float]] | None = None, noise: float = 0.0
) -> LatentStatistics:
    """Of concepts with (base, finetuned) gains, under a crosscoder that writes `written`, by default these gains."""
    concepts, gain = orthonormal(len(gains)), torch.tensor(gains, dtype=torch.float64)
    base, finetuned, _ = planted(concepts, gain)
    base, finetuned = (
        rows + noise * torch.randn(rows.shape, generator=random(9 + side), dtype=torch.float64)
        for side, rows in enumerate((base, finetuned))
    )
    cache = cache_of(root, base, finetuned)
    weights = gain if written is None else torch.tensor(written, dtype=torch.float64)
    return latent_statistics(crosscoder_of(cache, concepts, weights), [cache])


def test_one_pass_gives_the_least_squares_factors_of_a_crosscoder(tmp_path: Path):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, None)
    statistics = latent_statistics(dictionary, caches, block_rows=64, min_active=1)
    rows = dictionary.recipe.rows(*all_rows(caches)).double()
    f = dictionary.encode(rows)
    shape = (ROWS, 2, WIDTH)
    x = dictionary.normalise(rows).view(shape)
    reconstruction = (f @ dictionary.decoder + dictionary.decoder_bias).view(shape)
    decoders = dictionary.decoder.view(LATENTS, 2, WIDTH)
    for latent in range(LATENTS):
        own = f[:, latent, None, None] * decoders[latent]
        targets = {
            "beta_error": x - (reconstruction - own),
            "beta_reconstruction": reconstruction,
            "beta_activation": x,
        }
        for name, target in targets.items():
            for direction in range(2):
                for side in range(2):
                    expected = least_squares(f[:, latent], decoders[latent, direction], target[:, side])
                    found = float(getattr(statistics, name)[direction, side, latent])
                    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10), (name, direction, side, latent)


def test_one_pass_gives_the_least_squares_factors_of_an_sae(tmp_path: Path):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, Stream.DIFFERENCE)
    statistics = latent_statistics(dictionary, caches, block_rows=64, min_active=1)
    base, finetuned = all_rows(caches)
    rows = dictionary.recipe.rows(base, finetuned).double()
    f, x = dictionary.encode(rows), dictionary.normalise(rows)
    reconstruction = f @ dictionary.decoder + dictionary.decoder_bias
    sides = [(side.double() - side.double().mean(0)) * dictionary.scale for side in (base, finetuned)]
    for latent, direction in enumerate(dictionary.decoder):
        error = x - (reconstruction - torch.outer(f[:, latent], direction))
        expected = [least_squares(f[:, latent], direction, y) for y in (error, reconstruction, *sides)]
        found = [
            *statistics.beta_error[0, :, latent],
            *statistics.beta_reconstruction[0, :, latent],
            *statistics.beta_activation[0, :, latent],
        ]
        assert [float(value) for value in found] == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
def test_float32_agrees_with_float64(tmp_path: Path, stream: Stream | None):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, stream)
    exact = latent_statistics(dictionary, caches, min_active=1)
    single = latent_statistics(dictionary.float(), caches, min_active=1)
    for name in ("beta_error", "beta_reconstruction", "beta_activation", "fve", "mean", "largest", "norms"):
        torch.testing.assert_close(getattr(single, name), getattr(exact, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
def test_counts_and_values_are_those_of_the_dense_codes(tmp_path: Path, stream: Stream | None):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, stream)
    dictionary.encoder[4], dictionary.encoder_bias[4] = 0.0, -1.0
    statistics = latent_statistics(dictionary, caches, block_rows=33)
    f = dictionary.encode(dictionary.recipe.rows(*all_rows(caches)).double())
    assert statistics.n_rows == ROWS
    assert statistics.n_active.tolist() == (f > 0).sum(0).tolist()
    torch.testing.assert_close(statistics.frequency, (f > 0).double().mean(0))
    torch.testing.assert_close(statistics.largest, f.amax(0))
    expected = f.sum(0) / (f > 0).sum(0)
    torch.testing.assert_close(statistics.mean, expected, equal_nan=True)
    assert statistics.dead.nonzero().tolist() == [[4]]


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
def test_the_partition_into_blocks_and_caches_changes_nothing(tmp_path: Path, stream: Stream | None):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, stream)
    done: list[int] = []
    whole = latent_statistics(dictionary, caches, block_rows=10_000)
    small = latent_statistics(dictionary, caches[::-1], block_rows=37, on_rows=done.append)
    assert done == [37] * (ROWS // 37) + [ROWS % 37]
    for name in ("n_active", "mean", "beta_error", "beta_reconstruction", "beta_activation", "fve"):
        torch.testing.assert_close(getattr(small, name), getattr(whole, name), rtol=1e-10, atol=1e-10)


def test_explained_variance_is_1_for_the_rows_and_0_for_their_mean(tmp_path: Path):
    base = torch.randn(ROWS, WIDTH, generator=random(0)) + 1
    cache = cache_of(tmp_path, base, 3 * base + torch.randn(ROWS, WIDTH, generator=random(1)))
    dictionary = dictionary_of([cache], None, 4 * WIDTH)
    rows = dictionary.recipe.rows(*all_rows([cache])).double()
    dictionary.mean.copy_(rows.mean(0))
    assert latent_statistics(dictionary, [cache]).fve.tolist() == pytest.approx([0, 0], abs=1e-12)
    dictionary.decoder_bias += 3.0  # an error that is the same in all rows has no variance
    assert latent_statistics(dictionary, [cache]).fve.tolist() == pytest.approx([0, 0], abs=1e-12)
    dictionary.decoder_bias.zero_()
    identity = torch.eye(2 * WIDTH)
    dictionary.encoder.copy_(torch.cat([identity, -identity]))
    dictionary.decoder.copy_(dictionary.encoder)
    dictionary.scale.copy_(torch.tensor([0.5, 4.0]))
    assert latent_statistics(dictionary, [cache]).fve.tolist() == pytest.approx([1, 1], abs=1e-12)
    dictionary.decoder[:WIDTH] *= 0.5
    dictionary.decoder[2 * WIDTH : 3 * WIDTH] *= 0.5
    # Half of each value is left on the base side, and with it a quarter of the variance.
    assert latent_statistics(dictionary, [cache]).fve.tolist() == pytest.approx([0.75, 1], abs=1e-12)


def test_what_is_measured_against_nothing_is_nan(tmp_path: Path):
    cache = cache_of(tmp_path, torch.randn(ROWS, WIDTH, generator=random(0)), torch.zeros(ROWS, WIDTH))
    dictionary = dictionary_of([cache], None, 1)
    dictionary.encoder[0, 0] = 1.0
    dictionary.decoder += 1.0
    statistics = latent_statistics(dictionary, [cache])
    assert statistics.fve.isnan().tolist() == [False, True]
    assert statistics.beta_activation[1, 1, 0] == 0 != statistics.beta_activation[1, 0, 0]
    assert statistics.nu_activation.isnan().all()


def test_both_rules_find_the_planted_classes(tmp_path: Path):
    gains = [[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 1]] * 3
    statistics = measured(tmp_path, gains, noise=0.05)
    expected = [Kind.BASE_ONLY] * 3 + [Kind.FINETUNED_ONLY] * 3 + [Kind.SHARED] * 3
    assert classes_by_norm(statistics) == expected
    assert classes_by_scaling(statistics) == expected
    for nu in (statistics.nu_error, statistics.nu_reconstruction):
        assert float(nu[0, :3].abs().max()) <= 0.02
        assert float(nu[1, 3:6].abs().max()) <= 0.02


@pytest.mark.parametrize("gain", [0.05, 0.1, 0.3, 1.0])
def test_scaling_sees_a_concept_whose_base_direction_has_shrunk_to_nothing(tmp_path: Path, gain: float):
    honest = measured(tmp_path / "honest", [[gain, 1], [1, 1]])
    shrunk = measured(tmp_path / "shrunk", [[gain, 1], [1, 1]], written=[[0, 1], [1, 1]])
    for statistics in (honest, shrunk):
        assert float(statistics.nu_error[1, 0]) == pytest.approx(gain, abs=0.02)
    assert float(honest.delta[0]) == pytest.approx(1 - gain / 2)
    torch.testing.assert_close(honest.nu_error[0], 1 / honest.nu_error[1], rtol=1e-6, atol=1e-6)
    assert classes_by_norm(shrunk)[0] == Kind.FINETUNED_ONLY
    assert (classes_by_scaling(shrunk)[0] == Kind.FINETUNED_ONLY) == (gain < 0.2)


def test_scaling_sees_a_shared_concept_that_is_split_into_two_exclusive_latents(tmp_path: Path):
    concepts = orthonormal(2)
    base, finetuned, _ = planted(concepts, torch.ones(2, 2, dtype=torch.float64))
    cache = cache_of(tmp_path, base, finetuned)
    pair = concepts[[0, 0, 1]]
    dictionary = crosscoder_of(cache, pair, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double())
    statistics = latent_statistics(dictionary, [cache])
    assert statistics.fve.tolist() == pytest.approx([1, 1], abs=1e-6)
    assert float(statistics.nu_reconstruction[0, 0]) == pytest.approx(1, abs=1e-6)
    assert float(statistics.nu_reconstruction[1, 1]) == pytest.approx(1, abs=1e-6)
    assert float(statistics.nu_error[1, 1]) == pytest.approx(0, abs=1e-6)
    assert classes_by_norm(statistics) == [Kind.BASE_ONLY, Kind.FINETUNED_ONLY, Kind.SHARED]
    assert classes_by_scaling(statistics) == [Kind.OTHER, Kind.OTHER, Kind.SHARED]


def test_identical_sides_give_shared_latents_alone(tmp_path: Path):
    statistics = measured(tmp_path, [[1, 1]] * 6, noise=0.0)
    assert classes_by_norm(statistics) == classes_by_scaling(statistics) == [Kind.SHARED] * 6
    torch.testing.assert_close(statistics.cosine, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(statistics.nu_error, torch.ones(2, 6, dtype=torch.float64))
    torch.testing.assert_close(statistics.nu_reconstruction, torch.ones(2, 6, dtype=torch.float64))
    torch.testing.assert_close(statistics.nu_activation, torch.ones(6, dtype=torch.float64))


def test_swapped_models_swap_the_tables(tmp_path: Path):
    caches = random_caches(tmp_path / "one")
    dictionary = random_dictionary(caches, None)
    swapped = [
        cache_of(tmp_path / "other", cache.read(0, 0, cache.n_rows)[1], cache.read(0, 0, cache.n_rows)[0], cache.corpus)
        for cache in caches
    ]
    mirror = random_dictionary(swapped, None)
    for weight in (mirror.encoder, mirror.decoder):
        weight.copy_(weight.roll(WIDTH, 1))
    for ours, theirs in ((mirror.mean, dictionary.mean), (mirror.scale, dictionary.scale)):
        ours.copy_(theirs.flip(0))
    mirror.decoder_bias.copy_(mirror.decoder_bias.roll(WIDTH))
    first, second = latent_statistics(dictionary, caches), latent_statistics(mirror, swapped)
    torch.testing.assert_close(second.delta, 1 - first.delta)
    torch.testing.assert_close(second.cosine, first.cosine)
    torch.testing.assert_close(second.nu_error, first.nu_error.flip(0))
    torch.testing.assert_close(second.nu_reconstruction, first.nu_reconstruction.flip(0))
    other = {Kind.BASE_ONLY: Kind.FINETUNED_ONLY, Kind.FINETUNED_ONLY: Kind.BASE_ONLY}
    for rule in (classes_by_norm, classes_by_scaling):
        assert rule(second) == [other.get(kind, kind) for kind in rule(first)]


def test_gain_and_offset_of_one_side_change_nothing(tmp_path: Path):
    caches = random_caches(tmp_path / "one")
    dictionary = random_dictionary(caches, None)
    changed = []
    for cache in caches:
        base, finetuned = cache.read(0, 0, cache.n_rows)
        changed.append(cache_of(tmp_path / "other", base, 7 * finetuned + 3, cache.corpus))
    other = random_dictionary(changed, None)
    other.scale[1] /= 7
    other.mean[1] = 7 * other.mean[1] + 3
    before, after = latent_statistics(dictionary, caches), latent_statistics(other, changed)
    for name in ("mean", "delta", "nu_error", "nu_reconstruction", "beta_activation", "fve"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-4, atol=1e-4)


def test_random_directions_explain_nothing_on_average(tmp_path: Path):
    concepts = orthonormal(8, width=64)
    base, finetuned, _ = planted(concepts, torch.ones(8, 2, dtype=torch.float64))
    noise = torch.randn(len(base), 64, generator=random(2))
    cache = cache_of(tmp_path, base + noise, finetuned + noise)
    dictionary = dictionary_of([cache], None, 200)
    dictionary.encoder.copy_(concepts[torch.arange(200) % 8].repeat(1, 2) / 2)
    dictionary.decoder[:, 64:] = torch.randn(200, 64, generator=random(3))
    beta = latent_statistics(dictionary, [cache]).beta_activation[1]
    standard_error = beta.std(1) / 200**0.5
    assert bool((beta.mean(1).abs() < 3 * standard_error).all())


def test_too_few_active_rows_and_zero_directions_give_nan_and_never_infinity(tmp_path: Path):
    base, finetuned = torch.randn(2, ROWS, WIDTH, generator=random(0))
    base[:, 0], finetuned[:, 0] = 0, 0
    finetuned[:9, 0] = 1
    cache = cache_of(tmp_path, base, finetuned)
    dictionary = dictionary_of([cache], None, 3)
    dictionary.encoder[0, WIDTH] = 1.0
    dictionary.encoder[1:, 1] = 1.0
    dictionary.decoder[:2] = 1.0
    statistics = latent_statistics(dictionary, [cache], min_active=10)
    assert statistics.n_active[0] == 9
    betas = torch.stack([statistics.beta_error, statistics.beta_reconstruction, statistics.beta_activation])
    assert bool(betas[..., [0, 2]].isnan().all())
    assert bool(betas[..., 1].isfinite().all())
    assert bool(latent_statistics(dictionary, [cache], min_active=9).beta_error[..., 0].isfinite().all())
    for nu in (statistics.nu_error, statistics.nu_reconstruction, statistics.nu_activation):
        assert not bool(nu.isinf().any())


def test_dead_latents_are_counted_and_are_in_no_other_class(tmp_path: Path):
    base, finetuned = torch.randn(2, ROWS, WIDTH, generator=random(0))
    cache = cache_of(tmp_path, base, finetuned)
    dictionary = random_dictionary([cache], None)
    silent = [1, 4, 7]
    dictionary.encoder[silent], dictionary.encoder_bias[silent] = 0.0, -1.0
    dictionary.decoder[:, :WIDTH] = dictionary.decoder[:, WIDTH:]
    statistics = latent_statistics(dictionary, [cache])
    for kinds in (classes_by_norm(statistics), classes_by_scaling(statistics)):
        assert [latent for latent, kind in enumerate(kinds) if kind is Kind.DEAD] == silent
    assert classes_by_norm(statistics).count(Kind.SHARED) == LATENTS - 3


def test_activation_ratio_of_an_sae_says_which_side_has_the_direction(tmp_path: Path):
    gains = torch.tensor([[0, 1], [1, 0], [0.4, 1]], dtype=torch.float64)
    concepts = orthonormal(3)
    base, finetuned, coefficients = planted(concepts, gains, n_rows=4000)
    cache = cache_of(tmp_path, base, finetuned)
    dictionary = dictionary_of([cache], Stream.DIFFERENCE, 3)
    # What only the base has is in the difference with its sign turned.
    dictionary.decoder.copy_(concepts * (gains[:, 1] - gains[:, 0]).sign()[:, None])
    dictionary.encoder.copy_(dictionary.decoder)
    statistics = latent_statistics(dictionary, [cache])
    of_base, of_finetuned = statistics.beta_activation[0]
    # The sides are centred, values are not: f (f - mean f) is what a concept's own rows leave of f^2.
    own = 1 - coefficients.mean(0) ** 2 * len(coefficients) / coefficients.square().sum(0)
    change = gains[:, 1] - gains[:, 0]
    torch.testing.assert_close(of_base, gains[:, 0] / change * own, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_finetuned, gains[:, 1] / change * own, rtol=1e-6, atol=1e-6)
    assert float(statistics.nu_activation[2]) == pytest.approx(0.4, abs=1e-6)
    torch.testing.assert_close(of_finetuned - of_base, statistics.beta_error[0, 0] * own, rtol=1e-6, atol=1e-6)


def test_an_sae_of_the_difference_has_no_classes(tmp_path: Path):
    caches = random_caches(tmp_path)
    statistics = latent_statistics(random_dictionary(caches, Stream.DIFFERENCE), caches)
    with pytest.raises(InvalidSetting, match="crosscoder"):
        classes_by_norm(statistics)
    with pytest.raises(InvalidSetting, match="crosscoder"):
        _ = statistics.nu_error


def test_caches_that_do_not_fit_are_refused(tmp_path: Path):
    caches = random_caches(tmp_path)
    dictionary = random_dictionary(caches, None)
    with pytest.raises(MissingInput, match="no cache"):
        latent_statistics(dictionary, [])
    rows = torch.zeros(9, WIDTH)
    with pytest.raises(IncompatiblePair, match="org/other"):
        latent_statistics(dictionary, [write_cache(tmp_path / "pair", {0: rows}, {0: rows}, model="org/other")])
    with pytest.raises(IncompatiblePair, match="layer 0"):
        latent_statistics(dictionary, [write_cache(tmp_path / "layer", {1: rows}, {1: rows})])


def test_nan_rows_are_refused(tmp_path: Path):
    base, finetuned = torch.randn(2, ROWS, WIDTH, generator=random(0))
    finetuned[ROWS - 1, 3] = torch.nan
    cache = cache_of(tmp_path, base, finetuned)
    with pytest.raises(NonFiniteActivations, match="layer 0"):
        latent_statistics(random_dictionary([cache], None), [cache])
