"""Latent decoupling: a concept that both sides have, as one latent, or as two of which each writes to one side.

An L1 penalty by the sum of norms charges both alike, so it does not tell a shared concept from two exclusive ones
(arXiv 2504.02922). Batch top-k counts latents: the second one takes the place of another.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.training import DictionaryFit, train
from tests.learners.planted import D_MODEL, Planted, cosines, planted, quick, recipe_of, write

GAIN = 0.6
"""How much of a concept's length in the base the finetuned side has, where losses are computed by hand."""
ON, N_CONCEPTS, N_ROWS = 4, 10, 200


def concepts() -> tuple[Tensor, Tensor]:
    """Orthonormal directions and coefficients, of which `ON` in each row are not 0."""
    random = torch.Generator().manual_seed(0)
    on = torch.rand(N_ROWS, N_CONCEPTS, generator=random).argsort(1) < ON
    return torch.eye(N_CONCEPTS, D_MODEL), on * (1 + torch.rand(N_ROWS, N_CONCEPTS, generator=random))


def rows_of(atoms: Tensor, coefficients: Tensor) -> Tensor:
    return torch.cat([coefficients @ atoms, GAIN * coefficients @ atoms], dim=1)


def fitting_of(atoms: Tensor, sparsity: Sparsity, code_weight: str = "l1") -> DictionaryFit:
    """With a latent for each concept, or two if there are twice as many latents. Both reconstruct without an error."""
    learner = Crosscoder(recipe_of(Crosscoder, sparsity, code_weight=code_weight))
    fitting = DictionaryFit(learner, quick(l1_coefficient=0.1 if sparsity.activation == "relu" else 0.0), 10)
    nothing = torch.zeros_like(atoms)
    base, finetuned = torch.cat([atoms, nothing], 1), torch.cat([nothing, atoms], 1)
    with torch.no_grad():
        if sparsity.n_latents == N_CONCEPTS:
            learner.encoder.copy_(base)
            learner.decoder.copy_(base + GAIN * finetuned)
        else:
            learner.encoder.copy_(torch.cat([base, finetuned / GAIN]))
            learner.decoder.copy_(torch.cat([base, GAIN * finetuned]))
    return fitting


@pytest.mark.parametrize(("code_weight", "charged"), [("l1", 1.0), ("l2", (1 + GAIN) / (1 + GAIN**2) ** 0.5)])
def test_an_l1_penalty_by_the_sum_of_norms_charges_a_pair_what_it_charges_one_latent(
    code_weight: str, charged: float
) -> None:
    """By the norm of both sides together, a pair costs more."""
    atoms, coefficients = concepts()
    rows = rows_of(atoms, coefficients)
    merged, pairs = (fitting_of(atoms, Sparsity(n * N_CONCEPTS, None, "relu"), code_weight) for n in (1, 2))
    with torch.no_grad():
        (one, one_codes, _), (two, two_codes, _) = merged.losses(rows), pairs.losses(rows)
    assert one.reconstruction < 1e-10
    assert two.reconstruction < 1e-10
    if code_weight == "l1":
        expected = 0.1 * (1 + GAIN) * coefficients.sum() / (N_ROWS * D_MODEL**0.5)
        torch.testing.assert_close(one.sparsity, expected)
    assert float(two.sparsity / one.sparsity) == pytest.approx(charged, rel=1e-5)
    assert (len(one_codes.values), len(two_codes.values)) == (ON * N_ROWS, 2 * ON * N_ROWS)


@pytest.mark.parametrize("k", [ON, 2 * ON])
def test_of_pairs_batch_top_k_drops_all_that_is_over_its_budget(k: int) -> None:
    """Directions are orthonormal, so what a dropped latent would have added is exactly what is missing."""
    atoms, coefficients = concepts()
    rows = rows_of(atoms, coefficients)
    one = fitting_of(atoms, Sparsity(N_CONCEPTS, ON)).losses(rows)[0]
    two = fitting_of(atoms, Sparsity(2 * N_CONCEPTS, k)).losses(rows)[0]
    assert one.reconstruction < 1e-10
    written = torch.cat([coefficients, GAIN * coefficients]).flatten().sort(descending=True).values
    expected = written[k * N_ROWS :].square().sum() / rows.numel()
    torch.testing.assert_close(two.reconstruction.detach(), expected, rtol=1e-5, atol=1e-10)
    assert (expected > 0.01) == (k == ON)


def decoupled(learner: Dictionary, rows: Planted) -> None:
    """Makes a base-only and a finetuned-only latent of each shared concept the first latents."""
    atoms, width = rows.atoms[0], rows.atoms.shape[2]
    mean, n = rows.coefficients.mean(0), len(rows.atoms[0])
    learner.encoder[: 2 * n] = learner.decoder[: 2 * n] = 0
    for number, scale in enumerate(learner.scale.tolist()):
        own, side = slice(number * n, number * n + n), slice(number * width, number * width + width)
        learner.decoder[own, side] = atoms
        learner.encoder[own, side] = torch.linalg.pinv(atoms).T
        learner.encoder_bias[own] = scale * mean
        learner.decoder_bias[side] = -scale * mean @ atoms


def trained_from_pairs(folder: Path, rows: Planted, sparsity: Sparsity, **changes: object) -> tuple[Crosscoder, Tensor]:
    """The crosscoder, and the places of the latents that are active for 1 % of the rows."""
    cache, code_weight = write(folder, rows), str(changes.pop("code_weight", "l1"))
    settings = quick(max_steps=400, lr=3e-3, **changes)
    fitting = DictionaryFit.of(Crosscoder, [cache], 0, sparsity, settings, code_weight=code_weight)
    with torch.no_grad():
        decoupled(fitting.learner, rows)
    crosscoder = train(fitting, [cache])
    assert isinstance(crosscoder, Crosscoder)
    values = crosscoder.encode(torch.stack([rows.base, rows.finetuned], dim=1))
    return crosscoder, (values > 0).float().mean(0).gt(0.01).nonzero().squeeze(1)


def plain_concepts() -> Planted:
    """Six concepts, of which two are on at a time, alike on both sides."""
    return planted(8_000, 6, 0, 0, active=1 / 3, noise=0.02, gains=(1.0, 1.0), offsets=(0.0, 0.0))


@pytest.mark.parametrize("activation", ["batch_top_k", "top_k"])
def test_a_budget_of_latents_merges_pairs(tmp_path: Path, activation: str) -> None:
    """One of each pair comes to stand for the concept on both sides, and the other is never active again."""
    rows = plain_concepts()
    crosscoder, active = trained_from_pairs(tmp_path, rows, Sparsity(18, 2, activation))
    norms = crosscoder.norms()[active]
    torch.testing.assert_close(norms[:, 0] / norms.sum(1), torch.full((len(active),), 0.5), rtol=0, atol=0.02)
    found = cosines(rows.atoms.transpose(0, 1).flatten(1), crosscoder.decoder[active])
    assert found.max(1).values.min() > 0.98
    if activation == "batch_top_k":
        assert len(active) == 6
        assert set((active % 6).tolist()) == set(range(6)), "one of each pair"


@pytest.mark.parametrize(
    ("sparsity", "l1_coefficient", "at_least"),
    [(Sparsity(18, None, "relu"), 0.1, 6), (Sparsity(18, 4), 0.0, 3)],
    ids=["l1", "a budget for both"],
)
def test_without_a_price_for_the_second_latent_pairs_stay_apart(
    tmp_path: Path, sparsity: Sparsity, l1_coefficient: float, at_least: int
) -> None:
    """Exclusive latents of concepts that both sides have: all of the pairs, or many where only noise moves them."""
    crosscoder, active = trained_from_pairs(tmp_path, plain_concepts(), sparsity, l1_coefficient=l1_coefficient)
    assert set(range(12)) <= set(active.tolist())
    norms = crosscoder.norms()
    share = norms[:, 1] / norms.sum(1)
    assert (share[:6] < 0.1).sum() >= at_least
    assert (share[6:12] > 0.9).sum() >= at_least
