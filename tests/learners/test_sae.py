"""What is particular to the SAE: unit directions, a centred start, and a step worked out by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.axes import Side
from diffing.errors import MissingInput
from diffing.learners.dictionary import Sparsity
from diffing.learners.fitting import fit
from diffing.learners.sae import SAE
from diffing.learners.training import ADAM_EPSILON, DictionaryFit, train
from tests.learners.planted import D_MODEL, planted, quick, recipe_of, write


@pytest.mark.parametrize("activation", ["batch_top_k", "top_k", "relu"])
def test_directions_have_norm_one_after_every_step(tmp_path: Path, activation: str) -> None:
    cache, norms = write(tmp_path, planted(4_000)), list[Tensor]()
    fitting = DictionaryFit.of(SAE, [cache], 0, Sparsity(50, 3, activation), quick(l1_coefficient=0.1))
    before = fitting.learner.decoder.detach().clone()
    data = ActivationDataModule([cache], 0, 256, whole_batches=True)
    fit(fitting, data, max_steps=30, on_batch=lambda rows: norms.append(fitting.learner.decoder.detach().norm(dim=1)))
    assert len(norms) == 30
    torch.testing.assert_close(torch.stack(norms), torch.ones(30, 50), rtol=0, atol=1e-6)
    assert not torch.allclose(fitting.learner.decoder, before, atol=1e-2)


def test_gradients_keep_to_the_sphere() -> None:
    learner, random = SAE(recipe_of(SAE, Sparsity(50, 7))), torch.Generator().manual_seed(0)
    learner.initialise(random)
    learner.decoder.grad = torch.randn(50, D_MODEL, generator=random)
    gradient = learner.decoder.grad.clone()
    learner.confine_gradients()
    assert (learner.decoder.grad * learner.decoder).sum(1).abs().max() < 1e-6
    across = gradient - (gradient * learner.decoder).sum(1, keepdim=True) * learner.decoder
    torch.testing.assert_close(learner.decoder.grad, across)


def test_the_bias_starts_at_the_mean_of_normalised_rows_however_large_the_raw_mean_is(tmp_path: Path) -> None:
    """A bias initialised with raw rows would be as long as their mean, 50, in units in which rows are 6 long."""
    rows = planted(4_000, offsets=(0.0, 50.0))
    fitting = DictionaryFit.of(SAE, [write(tmp_path, rows)], 0, Sparsity(50, 3), quick())
    difference = rows.finetuned - rows.base
    assert difference.mean(0).norm() > 50
    torch.testing.assert_close(fitting.learner.decoder_bias.detach(), torch.zeros(D_MODEL))
    normalised = fitting.learner.normalise(difference)
    losses, _, _ = fitting.losses(normalised)
    assert losses.reconstruction < 1


def test_a_direction_is_the_same_on_both_sides_in_raw_units(tmp_path: Path) -> None:
    sae = DictionaryFit.of(SAE, [write(tmp_path, planted(4_000))], 0, Sparsity(50, 3), quick()).dictionary()
    assert torch.equal(sae.directions(Side.BASE), sae.directions(Side.FINETUNED))
    norms = sae.directions(Side.BASE).norm(dim=1)
    torch.testing.assert_close(norms, (1 / sae.scale).expand(50), rtol=1e-5, atol=0)


def test_one_step_is_the_one_worked_out_by_hand() -> None:
    """Two dimensions, three latents, two rows, one latent active per row on average.

    Row (2, 1) has values (2, 1, -3), row (0.5, 3) has (0.5, 3, -3.5): the two largest of all are 2 and 3. They leave
    (0, 1) and (0.5, 0), of mean square (1 + 0.25) / 4. The gradient of the mean square is -error / 2 in each entry of
    the reconstruction.
    """
    fitting = DictionaryFit(SAE(recipe_of(SAE, Sparsity(3, 1), 2)), quick(), 10)
    half = 0.5**0.5
    with torch.no_grad():
        fitting.learner.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        fitting.learner.decoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half]]))
    rows = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    losses, codes, error = fitting.losses(rows)
    assert codes.latents.tolist() == [0, 1]
    assert codes.values.tolist() == [2, 3]
    torch.testing.assert_close(error.detach(), torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert losses.total().item() == losses.reconstruction.item() == 1.25 / 4
    losses.total().backward()
    learner = fitting.learner
    torch.testing.assert_close(learner.decoder.grad, torch.tensor([[0.0, -1.0], [-0.75, 0.0], [0.0, 0.0]]))
    # What the reconstruction lacks is orthogonal to the latent that was active, so its value has no gradient.
    torch.testing.assert_close(learner.encoder.grad, torch.zeros(3, 2))
    torch.testing.assert_close(learner.decoder_bias.grad, torch.tensor([-0.25, -0.5]))
    learner.confine_gradients()
    optimizer = fitting.configure_optimizers()
    optimizer.step()
    learner.confine_weights()
    # Adam's first step is lr times the sign; then rows are made unit again.
    lr = fitting.settings.lr
    assert ADAM_EPSILON < 1e-6
    expected = torch.tensor([[1.0, lr], [lr, 1.0]]) / (1 + lr**2) ** 0.5
    torch.testing.assert_close(learner.decoder[:2].detach(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(learner.decoder_bias.detach(), torch.tensor([lr, lr]), rtol=0, atol=1e-6)


def test_the_threshold_is_a_mean_of_the_smallest_active_scores() -> None:
    fitting = DictionaryFit(SAE(recipe_of(SAE, Sparsity(3, 1), 2)), quick(), 10)
    for _ in range(50):
        fitting.add_threshold(torch.tensor(0.75))
    assert fitting.learner.threshold == 0.75
    for _ in range(5):
        fitting.add_threshold(torch.tensor(torch.inf))
    assert fitting.learner.threshold == 0.75
    for step in range(20_000):
        fitting.add_threshold(torch.tensor(1.0 if step % 2 else 3.0))
    assert fitting.learner.threshold.item() == pytest.approx(2, rel=1e-3)


def test_thresholds_of_the_start_of_training_do_not_count(tmp_path: Path) -> None:
    cache = write(tmp_path, planted(4_000))
    fitting = DictionaryFit.of(SAE, [cache], 0, Sparsity(50, 3), quick(threshold_after=25))
    train(fitting, [cache])
    assert fitting.settings.threshold_from(30) == 15
    assert int(fitting.n_thresholds) == 15
    assert fitting.dictionary().threshold > 0


def test_an_optimiser_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    fitting = DictionaryFit(SAE(recipe_of(SAE, Sparsity(3, 1), 2)), quick(optimizer="adam_8bit"), 10)
    with pytest.raises(MissingInput, match="install it, or use adam"):
        fitting.configure_optimizers()
