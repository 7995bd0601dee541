"""Training on planted concepts finds them, on the side that has them, in units of the residual stream."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.axes import Side
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.learners.training import DictionaryFit, train
from tests.learners.planted import Planted, cosines, planted, quick, write


def trained(
    folder: Path, kind: type[Dictionary], rows: Planted, sparsity: Sparsity, steps: int = 400, **changes: object
) -> Dictionary:
    cache = write(folder, rows)
    particular = {name: changes.pop(name) for name in ("code_weight", "partition") if name in changes}
    settings = quick(**({"max_steps": steps, "batch_size": 512, "warmup_steps": 50} | changes))
    return train(DictionaryFit.of(kind, [cache], 0, sparsity, settings, **particular), [cache])


def inputs(learner: Dictionary, rows: Planted) -> Tensor:
    return learner.recipe.rows(rows.base, rows.finetuned)


def unexplained(learner: Dictionary, rows: Planted) -> float:
    """Share of the variance, in normalised units."""
    read = inputs(learner, rows)
    error = learner.normalise(learner.reconstruct(read)) - learner.normalise(read)
    return float(error.square().mean())


VARIANTS = {
    "annealed": (Sparsity(40, 2), {"k_start": 16, "k_annealing_steps": 200}),
    "relu": (Sparsity(40, None, "relu"), {"l1_coefficient": 0.03}),
    "partition": (Sparsity(60, 2), {"partition": [10, 40, 10]}),
    "l2": (Sparsity(40, 2), {"code_weight": "l2"}),
    "bfloat16": (Sparsity(40, 2), {"precision": "bfloat16"}),
    "norm": (Sparsity(60, 2), {"loss": "norm", "max_steps": 600}),
}
SLOW = ("l2", "bfloat16", "norm")


@pytest.fixture(scope="module")
def crosscoder(tmp_path_factory: pytest.TempPathFactory) -> Dictionary:
    """Batch top-k; a second of one thread."""
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("planted"), Crosscoder, planted(), Sparsity(48, 2), 500)


def assert_found(crosscoder: Dictionary, rows: Planted, unexplained_at_most: float) -> None:
    """Directions, sides and coefficients of at least 95 % of the concepts."""
    found = cosines(rows.atoms.transpose(0, 1).flatten(1), crosscoder.decoder)
    assert found.max(1).values.mean() > 0.95
    assert (found.max(1).values > 0.95).float().mean() >= 0.95
    norms = crosscoder.norms()
    share = (norms[:, 1] / norms.sum(1))[found.argmax(1)]
    assert (share[:16] - 0.5).abs().max() < 0.1
    assert share[16:20].max() < 0.05
    assert share[20:].min() > 0.95
    values = crosscoder.encode(inputs(crosscoder, rows)[:10_000])[:, found.argmax(1)]
    both = torch.stack([values, rows.coefficients[:10_000]]).double()
    centred = both - both.mean(1, keepdim=True)
    correlation = centred.prod(0).sum(0) / centred.square().sum(1).prod(0).sqrt()
    assert (correlation > 0.95).float().mean() >= 0.95
    assert unexplained(crosscoder, rows) < unexplained_at_most


def test_a_crosscoder_finds_the_concepts_and_whose_they_are(crosscoder: Dictionary) -> None:
    assert_found(crosscoder, planted(), 0.01)


@pytest.mark.parametrize(
    "variant", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in VARIANTS]
)
def test_so_do_its_variants(tmp_path: Path, variant: str) -> None:
    sparsity, changes = VARIANTS[variant]
    learner = trained(tmp_path, Crosscoder, planted(), sparsity, **changes)
    assert_found(learner, planted(), 0.05 if variant == "relu" else 0.02)


def test_latents_of_one_side_alone_are_those_that_one_side_has(crosscoder: Dictionary) -> None:
    """Precision: of the latents that are active at all, those with a norm on one side only stand for such concepts."""
    rows = planted()
    active = crosscoder.encode(inputs(crosscoder, rows)[:10_000]).gt(0).float().mean(0) > 1e-3
    norms = crosscoder.norms()
    share = norms[:, 1] / norms.sum(1)
    found = cosines(rows.atoms.transpose(0, 1).flatten(1), crosscoder.decoder)
    for claimed, owned in ((active & (share < 0.1), slice(16, 20)), (active & (share > 0.9), slice(20, 24))):
        assert int(claimed.sum()) >= 4
        assert found[owned, claimed].max(0).values.min() > 0.95


def test_directions_have_the_length_that_concepts_have_in_the_residual_stream(crosscoder: Dictionary) -> None:
    rows = planted()
    values = crosscoder.encode(inputs(crosscoder, rows)[:10_000])
    found = cosines(rows.atoms.transpose(0, 1).flatten(1), crosscoder.decoder).argmax(1)
    for number, (side, gain) in enumerate(zip(Side, (1.0, 7.0), strict=True)):
        for concept in (0, 7, 16 if side is Side.BASE else 20):
            on = values[:, found[concept]] > 0
            added = values[on, found[concept], None] * crosscoder.directions(side)[found[concept]]
            planted_there = gain * rows.coefficients[:10_000][on, concept, None] * rows.atoms[number, concept]
            assert ((added - planted_there).norm() / planted_there.norm()) < 0.1


def test_what_is_active_in_rows_never_seen_is_as_much_as_was_asked_for(crosscoder: Dictionary) -> None:
    held_out = planted(n_rows=60_000)
    codes = crosscoder.codes(inputs(crosscoder, held_out)[40_000:])
    assert len(codes.values) / 20_000 == pytest.approx(2, rel=0.03)


def finetuned_concepts(crosscoder: Dictionary, rows: Planted) -> Tensor:
    """The latents that stand for them."""
    return cosines(rows.atoms.transpose(0, 1).flatten(1), crosscoder.decoder).argmax(1)[20:]


@pytest.mark.parametrize("shrunk", [0.1, 0.3])
def test_a_shrunken_concept_keeps_the_ratio_of_its_lengths(tmp_path: Path, shrunk: float) -> None:
    rows = planted(base_gain=shrunk, gains=(1.0, 1.0))
    crosscoder = trained(tmp_path, Crosscoder, rows, Sparsity(40, 2))
    own = finetuned_concepts(crosscoder, rows)
    lengths = [crosscoder.directions(side)[own].norm(dim=1) for side in Side]
    torch.testing.assert_close(lengths[0] / lengths[1], torch.full((4,), shrunk), rtol=0, atol=0.03)


def test_an_l1_penalty_shrinks_the_smaller_side_to_nothing(tmp_path: Path) -> None:
    """A tenth of a concept: what it would explain on that side is less than the penalty on its norm."""
    rows = planted(base_gain=0.1, gains=(1.0, 1.0))
    crosscoder = trained(tmp_path, Crosscoder, rows, Sparsity(40, None, "relu"), l1_coefficient=0.3)
    norms = crosscoder.norms()[finetuned_concepts(crosscoder, rows)]
    assert (norms[:, 0] / norms[:, 1]).max() < 0.03


@pytest.mark.parametrize("activation", ["batch_top_k", "top_k", "relu"])
def test_an_sae_of_the_difference_sees_only_what_changed_and_in_which_direction(
    tmp_path: Path, activation: str
) -> None:
    rows = planted(active=1 / 8, gains=(1.0, 1.0))
    sparsity = Sparsity(16, None if activation == "relu" else 1, activation)
    sae = trained(tmp_path, SAE, rows, sparsity, l1_coefficient=0.05 if activation == "relu" else 0.0)
    used = sae.encode(inputs(sae, rows)[:10_000]).gt(0).float().mean(0) > 0.01
    directions = sae.directions(Side.FINETUNED)[used]
    changed = (rows.atoms[1] - rows.atoms[0])[16:]
    assert cosines(changed, directions).max(1).values.min() > 0.95, "base-only concepts with their sign turned"
    assert unexplained(sae, rows) < (0.5 if activation == "top_k" else 0.1)
    # 16 unchanged directions among unit rows of 32 coordinates: chance reaches about 3 / sqrt(32).
    unchanged = cosines(directions, rows.atoms[1, :16]).abs().max()
    chance = cosines(changed, rows.atoms[1, :16]).abs().max()
    assert unchanged <= chance + 0.1
