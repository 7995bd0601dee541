"""Strength 1 adds what the learner itself adds where a latent or a component is largest, in raw units."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.learners.base import Recipe
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import CODE_WEIGHTS, Dictionary, Sparsity
from diffing.learners.pca import PCA, PCAFit
from diffing.learners.sae import SAE
from diffing.lenses.latents import latent_statistics
from diffing.lenses.steering import Answers, beside_controls
from diffing.methods.base import Study
from diffing.methods.base_dictionary.reading import Latents
from diffing.methods.pca import PrincipalComponents
from diffing.methods.pca.method import _tensors
from diffing.models.pair import ModelPair
from tests.activations.stores import write_cache

LAYER, WIDTH, ROWS, LATENTS = 1, 8, 160, 6


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cache(tmp_path: Path) -> ActivationCache:
    base = 3 * torch.randn(ROWS, WIDTH, generator=random(0)) + 2
    finetuned = 0.5 * base + torch.randn(ROWS, WIDTH, generator=random(1)) - 1
    return write_cache(tmp_path / "caches", {LAYER: base}, {LAYER: finetuned})


def dictionary_of(cache: ActivationCache, kind: type[Dictionary], **settings: str) -> Dictionary:
    """Random weights, scales and means that are far from 1 and 0; half of a crosscoder's latents are of each side."""
    name, stream = ("sae", Stream.DIFFERENCE) if kind is SAE else ("crosscoder", None)
    recipe = Recipe.of(name, [cache], LAYER, stream, kind.settings_of(Sparsity(LATENTS, 2), **settings))
    made = kind(recipe)
    for number, weight in enumerate((made.encoder, made.decoder, made.encoder_bias, made.decoder_bias)):
        weight.copy_(torch.randn(weight.shape, generator=random(2 + number)))
    made.encoder.mul_(3)
    made.decoder[::2, : WIDTH * (made.n_streams - 1)] *= 0.01
    made.threshold.fill_(1.5)
    made.mean.copy_(torch.randn(made.mean.shape, generator=random(6)) - 2)
    made.scale.copy_(torch.tensor([0.2, 5.0])[: len(made.scale)])
    return made


def steered_by(vector: Tensor) -> Tensor:
    """What strength 1 adds."""
    return next(each.vector for each in beside_controls({"it": vector}, [1.0], 0) if each.kind == "steered")


@pytest.mark.parametrize(
    ("kind", "settings"), [(SAE, {}), *((Crosscoder, {"code_weight": weight}) for weight in CODE_WEIGHTS)]
)
def test_a_dictionarys_latent_steers_by_decode_with_it_less_decode_without(
    cache: ActivationCache, kind: type[Dictionary], settings: dict[str, str]
) -> None:
    dictionary = dictionary_of(cache, kind, **settings)
    latents = Latents.of(dictionary, [cache], latent_statistics(dictionary, [cache]), None)
    codes = dictionary.encode(dictionary.recipe.rows(*cache.read(LAYER, 0, ROWS)))
    directions = dictionary.decoder.view(LATENTS, -1, WIDTH)
    longer = [side.index(max(side)) for side in (directions.norm(dim=2) / dictionary.scale).tolist()]
    alive = [latent for latent in range(LATENTS) if codes[:, latent].any()]
    assert len(alive) > LATENTS // 2
    assert kind is SAE or {longer[latent] for latent in alive} == {0, 1}
    for latent in alive:
        with_it = codes[codes[:, latent].argmax()][None]
        without = with_it.clone()
        without[0, latent] = 0
        side = longer[latent]
        added = (dictionary.decode(with_it) - dictionary.decode(without)).view(-1, WIDTH)[side]
        steered = steered_by(latents.at_largest(latent))
        torch.testing.assert_close(steered, added, rtol=1e-4, atol=1e-3)
        value, norm = float(with_it[0, latent]), float(directions[latent, side].norm())
        assert float(steered.norm()) == pytest.approx(value * norm / float(dictionary.scale[side]), rel=1e-5)


def test_a_component_steers_by_decode_with_it_less_decode_without(
    cache: ActivationCache, identical_pair: ModelPair, tmp_path: Path
) -> None:
    fit = PCAFit.of([cache], LAYER)
    difference = fit.recipe.rows(*cache.read(LAYER, 0, ROWS))
    fit.update(difference)
    pca: PCA = fit.solve()
    pca.save(tmp_path / "layer_1")
    method = PrincipalComponents(Answers(["Bread?"]), layers=[LAYER], n_components=None, read=2, steered=2)
    study = Study(identical_pair, [], caches=[cache])
    reading = method._reading(replace(study, learners={"layer_1": tmp_path / "layer_1"}), LAYER)
    scores = pca.encode(difference)
    for number in range(2):
        for sign, name in ((1, f"component {number} +"), (-1, f"component {number} -")):
            with_it = scores[(sign * scores[:, number]).argmax()]
            without = with_it.clone()
            without[number] = 0
            added = (with_it - without) @ pca.components
            steered = steered_by(method._directions(reading)[name])
            torch.testing.assert_close(steered, added, rtol=1e-4, atol=1e-5)
            assert float(steered.norm()) == pytest.approx(abs(float(with_it[number])), rel=1e-5)
    stored = _tensors([reading])["layer_1_components"]
    for number in range(2):
        longer = float(scores[:, number].abs().max())
        torch.testing.assert_close(stored.added(number, -1.0), -longer * pca.components[number])
    mean = _tensors([reading])["layer_1_mean"].added(0, 1.0)
    torch.testing.assert_close(mean, steered_by(method._directions(reading)["mean"]))
