"""What is particular to the crosscoder: symmetry of its two sides, free norms, and latents of one side alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.learners.base import load_learner
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Sparsity
from diffing.learners.fitting import fit
from diffing.learners.training import DictionaryFit, train
from diffing.specs import VariantSpec
from tests.activations.stores import write_cache
from tests.learners.planted import D_MODEL, Planted, at_random, planted, quick, recipe_of, write


def fitting_of(folder: Path, rows: Planted, k: int = 3, **changes: object) -> tuple[DictionaryFit, ActivationCache]:
    cache = write(folder, rows)
    particular = {name: changes.pop(name) for name in ("code_weight", "partition") if name in changes}
    return DictionaryFit.of(Crosscoder, [cache], 0, Sparsity(50, k), quick(**changes), **particular), cache


def normalised(fitting: DictionaryFit, rows: Planted) -> Tensor:
    return fitting.learner.normalise(torch.stack([rows.base, rows.finetuned], dim=1))


def test_both_sides_start_alike_and_the_first_reconstruction_is_no_overshoot(tmp_path: Path) -> None:
    rows = planted(4_000)
    fitting, _ = fitting_of(tmp_path, rows)
    norms = fitting.learner.norms()
    torch.testing.assert_close(norms, torch.ones(50, 2))
    torch.testing.assert_close(fitting.learner.directions(Side.BASE) * fitting.learner.scale[0],
                               fitting.learner.directions(Side.FINETUNED) * fitting.learner.scale[1])  # fmt: skip
    losses = fitting.losses(normalised(fitting, rows))[0]
    assert losses.reconstruction < 0.9
    with torch.no_grad():
        fitting.learner.encoder.mul_(2)
    assert fitting.losses(normalised(fitting, rows))[0].reconstruction > losses.reconstruction


@pytest.mark.parametrize("code_weight", ["l1", "l2"])
def test_scaling_a_latent_up_in_the_encoder_and_down_in_the_decoder_changes_nothing(
    tmp_path: Path, code_weight: str
) -> None:
    rows = planted(4_000)
    fitting, _ = fitting_of(tmp_path, rows, code_weight=code_weight, l1_coefficient=0.1)
    inputs, random = normalised(fitting, rows), torch.Generator().manual_seed(0)
    learner = fitting.learner
    with torch.no_grad():
        learner.encoder_bias.normal_(generator=random)
    before, codes, _ = fitting.losses(inputs)
    gauge = torch.rand(50, generator=random) * 4 + 0.25
    share = learner.norms()[:, 1] / learner.norms().sum(1)
    with torch.no_grad():
        learner.encoder.mul_(gauge[:, None])
        learner.encoder_bias.mul_(gauge)
        learner.decoder.div_(gauge[:, None])
    after, scaled, _ = fitting.losses(inputs)
    assert torch.equal(codes.latents, scaled.latents)
    assert torch.equal(codes.offsets, scaled.offsets)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert before.sparsity > 0
    torch.testing.assert_close(learner.norms()[:, 1] / learner.norms().sum(1), share)


@pytest.mark.parametrize(
    ("code_weight", "weigh"),
    [
        ("l1", lambda norms: norms.sum(1)),
        ("l2", lambda norms: norms.square().sum(1).sqrt()),
        ("none", lambda norms: torch.ones(50)),
    ],
)
def test_latents_compete_by_what_they_write(code_weight: str, weigh: Callable[[Tensor], Tensor]) -> None:
    crosscoder = at_random(Crosscoder, recipe_of(Crosscoder, Sparsity(50, 7, "top_k"), code_weight=code_weight))
    random = torch.Generator().manual_seed(0)
    crosscoder.decoder.mul_(torch.rand(50, 1, generator=random) * 5).view(50, 2, -1)[:, 0].mul_(0.1)
    rows = torch.randn(30, 2, D_MODEL, generator=random)
    pre = crosscoder.pre_activations(crosscoder.normalise(rows))
    scores = pre * weigh(crosscoder.norms())
    expected = (scores >= scores.sort(dim=1, descending=True).values[:, 6:7]) & (pre > 0)
    assert torch.equal(crosscoder.encode(rows) > 0, expected)
    torch.testing.assert_close(crosscoder.encode(rows)[expected], pre[expected])


@pytest.mark.parametrize("activation", ["batch_top_k", "relu"])
def test_latents_of_one_side_write_exactly_nothing_to_the_other_after_any_step(tmp_path: Path, activation: str) -> None:
    cache, worst = write(tmp_path, planted(4_000)), list[Tensor]()
    settings = quick(max_steps=60, dead_after_rows=500, aux_alpha=1.0, l1_coefficient=0.01)
    fitting = DictionaryFit.of(Crosscoder, [cache], 0, Sparsity(50, 3, activation), settings, partition=[10, 25, 15])
    crosscoder = fitting.learner

    def watch(rows: int) -> None:
        directions = [crosscoder.directions(side).detach() for side in Side]
        worst.append(torch.stack([directions[1][:10].abs().max(), directions[0][35:].abs().max()]))

    fit(fitting, ActivationDataModule([cache], 0, 256, whole_batches=True), max_steps=60, on_batch=watch)
    assert len(worst) == 60
    assert not torch.stack(worst).any()
    moments = fitting.trainer.optimizers[0].state[crosscoder.decoder]
    for moment in (moments["exp_avg"], moments["exp_avg_sq"]):
        assert not moment[:10, D_MODEL:].any()
        assert not moment[35:, :D_MODEL].any()
        assert moment[10:35].any()
    norms = fitting.dictionary().norms()
    assert (norms[:10, 0] > 0).all()
    assert (norms[35:, 1] > 0).all()
    assert (norms[10:35] > 0).all()
    fitting.dictionary().save(tmp_path / "stored")
    assert not load_learner(tmp_path / "stored").norms()[:10, 1].any()


@pytest.mark.parametrize("partition", [[10, 30], [10, 30, 11], [-1, 41, 10]])
def test_partitions_that_do_not_add_up_are_refused(partition: list[int]) -> None:
    with pytest.raises(InvalidSetting, match="add up to n_latents=50"):
        Crosscoder.settings_of(Sparsity(50, 3), partition=partition)


def test_an_unknown_code_weight_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="code_weight 'l3'; expected one of none, l1, l2"):
        Crosscoder.settings_of(Sparsity(50, 3), code_weight="l3")


def test_swapped_models_give_the_swapped_crosscoder(tmp_path: Path) -> None:
    rows = planted(4_000)
    swapped = Planted(rows.finetuned, rows.base, rows.atoms.flip(0), rows.coefficients, 16, 4, 4)
    fits = [fitting_of(tmp_path / name, each) for name, each in (("as is", rows), ("swapped", swapped))]
    one, other = (train(fitting, [cache]) for fitting, cache in fits)
    assert not torch.allclose(one.norms()[:, 0], one.norms()[:, 1], rtol=0.05)
    torch.testing.assert_close(other.norms(), one.norms().flip(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.directions(Side.BASE), one.directions(Side.FINETUNED), rtol=1e-2, atol=1e-3)


def test_units_and_means_of_a_side_do_not_matter(tmp_path: Path) -> None:
    plain = planted(4_000, gains=(1.0, 1.0), offsets=(0.0, 0.0))
    moved = Planted(plain.base, 7 * plain.finetuned + 5, plain.atoms, plain.coefficients, 16, 4, 4)
    fits = [fitting_of(tmp_path / name, rows) for name, rows in (("plain", plain), ("moved", moved))]
    one, other = (train(fitting, [cache]) for fitting, cache in fits)
    torch.testing.assert_close(other.norms(), one.norms(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.directions(Side.BASE), one.directions(Side.BASE), rtol=1e-2, atol=1e-3)
    ratio = other.directions(Side.FINETUNED) / one.directions(Side.FINETUNED)
    assert ratio.median().item() == pytest.approx(7, rel=1e-4)


def test_rotated_sides_and_weights_have_the_same_losses(tmp_path: Path) -> None:
    rows, random = planted(4_000), torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=random))[0]
    turned = Planted(rows.base @ rotation, rows.finetuned @ rotation, rows.atoms, rows.coefficients, 16, 4, 4)
    one, _ = fitting_of(tmp_path / "one", rows, l1_coefficient=0.1)
    other, _ = fitting_of(tmp_path / "other", turned, l1_coefficient=0.1)
    with torch.no_grad():
        for name in ("encoder", "decoder"):
            weight = getattr(one.learner, name).unflatten(1, (2, D_MODEL)) @ rotation
            getattr(other.learner, name).copy_(weight.flatten(1))
    losses = [fitting.losses(normalised(fitting, each))[0] for fitting, each in ((one, rows), (other, turned))]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_the_norm_loss_is_the_mean_length_of_the_error_of_each_side(tmp_path: Path) -> None:
    rows = planted(4_000)
    squared, _ = fitting_of(tmp_path / "squared", rows)
    norm, _ = fitting_of(tmp_path / "norm", rows, loss="norm")
    losses, _, error = norm.losses(normalised(norm, rows))
    lengths = error.detach().unflatten(1, (2, D_MODEL)).norm(dim=2)
    torch.testing.assert_close(losses.reconstruction.detach(), lengths.mean() / D_MODEL**0.5)
    losses, _, _ = squared.losses(normalised(squared, rows))
    torch.testing.assert_close(losses.reconstruction.detach(), lengths.square().mean() / D_MODEL)


def test_identical_models_have_no_latent_of_one_side(tmp_path: Path) -> None:
    base = {0: planted(4_000).base}
    cache = write_cache(tmp_path, base, base, variant=VariantSpec("identical"))
    crosscoder = train(DictionaryFit.of(Crosscoder, [cache], 0, Sparsity(50, 3), quick(max_steps=200)), [cache])
    norms = crosscoder.norms()
    torch.testing.assert_close(norms[:, 1] / norms.sum(1), torch.full((50,), 0.5), rtol=0, atol=1e-3)
    cosine = torch.cosine_similarity(crosscoder.directions(Side.BASE), crosscoder.directions(Side.FINETUNED))
    assert cosine.min() > 0.999
