"""Counting and reviving latents that are never active."""

from pathlib import Path

import pytest
import torch

from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dead import DeadLatents, relative_error, revival_loss
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.learners.training import DictionaryFit, train
from tests.learners.planted import D_MODEL, at_random, planted, quick, recipe_of, write

BURIED = -100.0
"""A bias that no row can make up for."""


def test_rows_are_counted_until_a_latent_is_active() -> None:
    sae = at_random(SAE, recipe_of(SAE, Sparsity(50, 7)))
    sae.encoder_bias[5] = BURIED
    dead, active = DeadLatents(50, after_rows=30), []
    for seed in range(4):
        codes = sae.codes(torch.randn(10, D_MODEL, generator=torch.Generator().manual_seed(seed)))
        dead.count(codes)
        active.append(codes.dense().any(0))
    assert int(dead.rows_since[5]) == 40
    for latent in range(50):
        since = next((age for age, batch in enumerate(reversed(active)) if batch[latent]), 4)
        assert int(dead.rows_since[latent]) == 10 * since
    assert dead.dead.tolist() == [int(since) >= 30 for since in dead.rows_since]


def test_the_dead_are_looked_for_now_and_then_and_after_a_restart_are_the_same() -> None:
    dead = DeadLatents(5, after_rows=30)
    assert dead.candidates(0).tolist() == []
    dead.rows_since[2] = 30
    assert dead.candidates(49).tolist() == []
    assert dead.candidates(50).tolist() == [2]
    dead.rows_since[3] = 30
    again = DeadLatents(5, after_rows=30)
    assert again.candidates(0).tolist() == []
    again.load_state_dict(dead.state_dict())
    assert again.candidates(51).tolist() == dead.candidates(51).tolist() == [2]
    assert again.candidates(100).tolist() == [2, 3]


def test_what_explains_nothing_costs_the_variance_and_the_mean() -> None:
    error = 3 + torch.randn(500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = error.mean(0)
    variance = (error - mean).square().sum(1).mean()
    expected = 1 + mean.square().sum() / variance
    torch.testing.assert_close(relative_error(error, torch.zeros_like(error)), expected)
    torch.testing.assert_close(relative_error(error, mean.expand_as(error)), torch.ones((), dtype=torch.float64))
    assert relative_error(error, error) == 0
    assert relative_error(torch.ones(9, 8), torch.zeros(9, 8)) == 0, "no variance, nothing to explain"


@pytest.mark.parametrize("kind", [SAE, Crosscoder])
def test_dead_latents_alone_get_a_gradient_also_where_they_are_negative(kind: type[Dictionary]) -> None:
    learner, dead = at_random(kind, recipe_of(kind, Sparsity(50, 7))), DeadLatents(50, after_rows=30)
    learner.encoder_bias[5] = BURIED
    for parameter in learner.parameters():
        parameter.requires_grad_(True)
    dead.rows_since[[5, 17]] = 30
    candidates = dead.candidates(0)
    dead.rows_since[17] = 0  # active again since the search
    random = torch.Generator().manual_seed(3)
    rows, error = (torch.randn(20, len(learner.decoder_bias), generator=random) for _ in range(2))
    loss = revival_loss(learner, dead, candidates, rows, error, k=4)
    torch.testing.assert_close(loss, relative_error(error, torch.zeros_like(error)))
    loss.backward()
    reached = [latent for latent in range(50) if learner.encoder.grad[latent].any()]
    assert reached == [5]
    assert learner.encoder_bias.grad[5] != 0
    assert learner.decoder_bias.grad is None
    # Descent raises the latent on rows whose error points along its direction.
    step = rows @ -learner.encoder.grad[5] - learner.encoder_bias.grad[5]
    assert torch.corrcoef(torch.stack([step, error @ learner.decoder[5].detach()]))[0, 1] > 0.5


def test_without_dead_latents_there_is_no_auxiliary_loss(tmp_path: Path) -> None:
    rows = planted(4_000)
    fitting = DictionaryFit.of(SAE, [write(tmp_path, rows)], 0, Sparsity(50, 3), quick())
    losses, _, _ = fitting.losses(fitting.learner.normalise(rows.finetuned - rows.base))
    assert losses.auxiliary == 0
    assert losses.sparsity == 0


@pytest.mark.parametrize(
    ("alpha", "precision", "revived"), [(1 / 32, "float32", True), (1 / 32, "bfloat16", True), (0.0, "float32", False)]
)
@pytest.mark.parametrize("kind", [SAE, Crosscoder])
def test_buried_latents_are_revived_by_the_auxiliary_loss_alone(
    tmp_path: Path, kind: type[Dictionary], alpha: float, precision: str, revived: bool
) -> None:
    """Fewer latents are left than there are concepts, so that there is something to revive for."""
    cache = write(tmp_path, planted(20_000, gains=(1.0, 1.0)))
    settings = quick(max_steps=300, aux_alpha=alpha, precision=precision, dead_after_rows=4_000)
    fitting = DictionaryFit.of(kind, [cache], 0, Sparsity(12, 1), settings)
    with torch.no_grad():
        fitting.learner.encoder_bias[:8] = -10
    train(fitting, [cache])
    alive = ~fitting.dead.dead[:8]
    assert bool(alive.sum() >= 4) == revived
    assert revived or not alive.any()
