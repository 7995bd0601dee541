"""Latents that another training finds too, on planted dictionaries with known answers."""

import pytest
import torch
from torch import Tensor

from diffing.errors import IncompatiblePair
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.lenses import stability
from diffing.lenses.stability import matches, matches_by_chance, nearest
from tests.learners.planted import recipe_of

N, WIDTH = 60, 32
ALIVE = torch.ones(N, dtype=torch.bool)


def directions(seed: int, n: int = N, width: int = WIDTH) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def sae(decoder: Tensor, **changes: int) -> SAE:
    recipe = recipe_of(SAE, Sparsity(len(decoder), 2), d_model=decoder.shape[1])
    made = SAE(type(recipe)(**{**recipe.__dict__, **changes}))
    made.decoder.copy_(decoder)
    return made


def crosscoder(base: Tensor, finetuned: Tensor) -> Crosscoder:
    made = Crosscoder(recipe_of(Crosscoder, Sparsity(len(base), 2), d_model=base.shape[1]))
    made.decoder.copy_(torch.cat([base, finetuned], dim=1))
    return made


@pytest.fixture(params=[stability.BLOCK, 7])
def _any_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "BLOCK", request.param)


@pytest.mark.usefixtures("_any_block")
def test_a_permuted_copy_of_other_lengths_is_matched_latent_by_latent() -> None:
    first, order = directions(0), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    second = first[order] * torch.linspace(0.1, 9, N)[:, None]
    found = nearest(first, second, ALIVE)
    assert found.matched.all()
    assert torch.equal(order[found.nearest], torch.arange(N))
    torch.testing.assert_close(found.cosine, torch.ones(N))


@pytest.mark.usefixtures("_any_block")
def test_half_of_the_latents_replaced_leaves_the_other_half() -> None:
    second = directions(0)
    second[::2] = directions(1, N // 2)
    found = nearest(directions(0), second, ALIVE)
    assert torch.equal(found.matched, torch.arange(N) % 2 == 1)


def test_nothing_is_matched_by_chance() -> None:
    first, second = sae(directions(0)), sae(directions(1))
    assert not matches(first, second, ALIVE).matched.any()
    assert not matches_by_chance(first, first, ALIVE, seed=0).matched.any()
    assert matches(first, first, ALIVE).matched.all()


def test_chance_is_large_where_there_is_little_room() -> None:
    one_dimension = sae(torch.ones(N, 1))
    found = matches_by_chance(one_dimension, one_dimension, ALIVE, seed=0)
    assert (found.cosine == 1).all()
    assert int(found.matched.sum()) == 1, "one to one: all are the same direction"


def test_near_means_a_cosine_of_nine_tenths() -> None:
    angle = torch.tensor([0.899, 0.901]).acos()
    turned = torch.zeros(2, 4)
    turned[0, :2] = torch.stack([angle[0].cos(), angle[0].sin()])
    turned[1, 2:] = torch.stack([angle[1].cos(), angle[1].sin()])
    first = torch.eye(4)[[0, 2]]
    found = nearest(first, turned, ALIVE[:2])
    assert found.matched.tolist() == [False, True]
    assert found.cosine.tolist() == pytest.approx([0.899, 0.901])


def test_two_latents_that_are_one_elsewhere_are_one_match() -> None:
    first = directions(0, 4)
    found = nearest(torch.cat([first, first[:2]]), first, ALIVE[:6])
    assert found.matched.tolist() == [True] * 4 + [False] * 2
    assert (found.cosine > 0.99).all()


def test_latents_that_are_not_asked_for_are_in_nobodys_way() -> None:
    first = directions(0, 4)
    doubled, alive = torch.cat([first[:2], first]), torch.tensor([False, False, True, True, True, True])
    found = nearest(doubled, first, alive)
    assert torch.equal(found.matched, alive)
    assert found.cosine[:2].isnan().all()
    assert found.nearest.tolist() == [-1, -1, 0, 1, 2, 3]


def test_opposite_directions_and_zeros_are_not_near() -> None:
    first = directions(0, 4)
    assert not nearest(first, -first, ALIVE[:4]).matched.any()
    assert not nearest(torch.zeros(4, WIDTH), torch.zeros(4, WIDTH), ALIVE[:4]).matched.any()


def test_a_crosscoder_is_compared_on_both_sides_at_once() -> None:
    base, finetuned = directions(0), directions(1)
    same, moved = crosscoder(base, finetuned), crosscoder(base, directions(2))
    assert matches(same, crosscoder(2 * base, 2 * finetuned), ALIVE).matched.all()
    found = matches(same, moved, ALIVE)
    assert not found.matched.any(), "one side alone is half of it"
    expected = torch.cosine_similarity(same.decoder, moved.decoder)
    assert (found.cosine >= expected - 1e-6).all()


def test_chance_keeps_the_lengths_of_each_side() -> None:
    """With nearly all of its length on one side, a random latent of width 1 is near with a chance of a half."""
    lopsided: Dictionary = crosscoder(torch.full((400, 1), 0.01), torch.ones(400, 1))
    found = matches_by_chance(lopsided, lopsided, torch.ones(400, dtype=torch.bool), seed=0)
    assert float(found.cosine.min()) > 0.999


@pytest.mark.parametrize("change", [{"layer": 1}, {"pair_digest": "1" * 16}])
def test_dictionaries_of_other_layers_or_pairs_are_refused(change: dict) -> None:
    with pytest.raises(IncompatiblePair, match="give two of the same"):
        matches(sae(directions(0)), sae(directions(0), **change), ALIVE)
