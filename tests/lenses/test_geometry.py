"""Likeness of tokens by the output embedding: planted clusters, and what is taken out."""

import pytest
import torch

from diffing.lenses.geometry import TokenGeometry, folded
from tests import tiny

ALIKE, OTHER = list(range(270, 280)), list(range(290, 300))


@pytest.fixture
def model():
    """Rows in two clusters, all of them far from the origin along one direction."""
    made = tiny.model()
    weight = made.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    weight.copy_(torch.randn(weight.shape, generator=generator))
    for ids in (ALIKE, OTHER):
        weight[ids] += 3 * torch.randn(tiny.WIDTH, generator=generator)
    weight += 20 * torch.nn.functional.normalize(torch.randn(tiny.WIDTH, generator=generator), dim=0)
    return made


def cosines(geometry: TokenGeometry, first: list[int], second: list[int]) -> torch.Tensor:
    return geometry.vectors(first) @ geometry.vectors(second).T


def test_clusters_are_alike_and_a_shared_direction_makes_nothing_alike(model) -> None:
    geometry = TokenGeometry.of(model, tiny.tokenizer())
    assert cosines(geometry, ALIKE, ALIKE).mean() > 0.5
    assert cosines(geometry, ALIKE, OTHER).mean().abs() < 0.3
    assert cosines(geometry, ALIKE, list(range(100))).mean().abs() < 0.1
    torch.testing.assert_close(geometry.vectors(ALIKE).norm(dim=1), torch.ones(10))


def test_chunks_change_nothing_but_rounding(model) -> None:
    whole, chunked = (TokenGeometry.of(model, tiny.tokenizer(), chunk=size) for size in (10**6, 7))
    torch.testing.assert_close(whole.vectors(ALIKE), chunked.vectors(ALIKE), rtol=1e-4, atol=1e-5)


def test_the_scale_and_place_of_the_rows_do_not_matter(model) -> None:
    before = TokenGeometry.of(model, tiny.tokenizer()).vectors(ALIKE)
    model.get_output_embeddings().weight.mul_(0.25).add_(3.0)
    torch.testing.assert_close(TokenGeometry.of(model, tiny.tokenizer()).vectors(ALIKE), before, rtol=1e-3, atol=1e-4)


def test_words_left_out_and_their_like_lose_their_length(model) -> None:
    tokenizer = tiny.tokenizer()
    geometry = TokenGeometry.of(model, tokenizer, without=["boats"])
    left = geometry.vectors(tokenizer(" boats", add_special_tokens=False)["input_ids"])
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-5)
    assert geometry.vectors(list(range(5, 100))).norm(dim=1).median() > 0.7


def test_rarity_grows_with_the_logarithm_of_the_id(model) -> None:
    rarity = TokenGeometry.of(model, tiny.tokenizer()).rarity([0, 256, 286, 319])
    assert rarity[:2].tolist() == [0.0, 0.0]
    assert 0.4 < rarity[2] < 0.6
    assert rarity[3] == pytest.approx(1.0, abs=0.02)


def test_spellings_are_one_word() -> None:
    assert folded(" Straße\n") == folded("STRASSE") == "strasse"
