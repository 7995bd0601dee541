"""Shipped dictionaries against plain dense arithmetic, in the units of the residual stream."""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.axes import Side, Stream
from diffing.errors import InvalidSetting, NonFiniteActivations, ZeroVariance
from diffing.learners.base import load_learner
from diffing.learners.codes import Codes
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.learners.training import DictionaryFit
from diffing.specs import VariantSpec
from tests.activations.stores import write_cache
from tests.learners.planted import D_MODEL, at_random, planted, quick, recipe_of, write

KINDS = (SAE, Crosscoder)
ACTIVATIONS = ("batch_top_k", "top_k", "relu")


def rows_of(learner: Dictionary, n_rows: int = 50, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    streams = () if learner.n_streams == 1 else (2,)
    return 2 * torch.randn(n_rows, *streams, D_MODEL, generator=random)


def dense(learner: Dictionary, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Latent values, worked out one after another in float64."""
    weights = {name: value.double() for name, value in learner.state_dict().items()}
    streams = rows.double().view(len(rows), learner.n_streams, D_MODEL)
    normalised = ((streams - weights["mean"]) * weights["scale"][:, None]).flatten(1)
    if isinstance(learner, SAE):
        normalised = normalised - weights["decoder_bias"]
    pre = normalised @ weights["encoder"].T + weights["encoder_bias"]
    scores = pre if weight is None else pre * weight
    if learner.sparsity.activation == "top_k":
        least = scores.sort(dim=1, descending=True).values[:, learner.sparsity.k - 1 : learner.sparsity.k]
        return pre * ((scores >= least) & (pre > 0))
    return pre * (scores > (weights["threshold"] if learner.sparsity.activation == "batch_top_k" else 0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_dense_arithmetic(kind: type[Dictionary], activation: str) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7, activation)))
    rows = rows_of(learner)
    weight = None
    if isinstance(learner, Crosscoder):
        learner.decoder.mul_(torch.linspace(0.1, 2, 50)[:, None])
        sides = learner.decoder.double().view(50, 2, D_MODEL)
        weight = sides.norm(dim=2).sum(1)
    expected = dense(learner, rows, weight)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(learner.encode(rows).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learner.codes(rows).dense(), learner.encode(rows))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_codes_in_any_batch(kind: type[Dictionary], activation: str) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7, activation)))
    rows = rows_of(learner)
    alone = torch.cat([learner.encode(rows[start:stop]) for start, stop in pairwise([0, 1, 2, 30, 50])])
    torch.testing.assert_close(alone, learner.encode(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_more_of_a_latent_adds_its_direction_to_each_side(kind: type[Dictionary]) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7)))
    values = learner.encode(rows_of(learner))
    more = values.clone()
    more[:, 3] += 1.5
    added = learner.decode(more) - learner.decode(values)
    for number, side in enumerate(Side):
        on_side = added if kind is SAE else added[:, number]
        direction = learner.directions(side)[3].expand_as(on_side)
        torch.testing.assert_close(on_side, 1.5 * direction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_with_and_without_zeros_decode_to_the_same(kind: type[Dictionary]) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7)))
    rows = rows_of(learner)
    codes = learner.codes(rows)
    assert isinstance(codes, Codes)
    torch.testing.assert_close(learner.decode(codes), learner.decode(codes.dense()), rtol=1e-5, atol=1e-5)
    assert torch.equal(learner.reconstruct(rows), learner.decode(codes))
    assert learner.reconstruct(rows).shape == rows.shape


@pytest.mark.parametrize("kind", KINDS)
def test_rows_survive_normalisation(kind: type[Dictionary]) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7)))
    rows = rows_of(learner)
    torch.testing.assert_close(learner.denormalise(learner.normalise(rows)), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_dictionary_encodes_the_same(tmp_path: Path, kind: type[Dictionary], activation: str) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7, activation)))
    learner.save(tmp_path)
    loaded = load_learner(tmp_path)
    assert type(loaded) is kind
    assert loaded.recipe == learner.recipe
    rows = rows_of(learner)
    assert torch.equal(loaded.encode(rows), learner.encode(rows))
    assert torch.equal(loaded.reconstruct(rows), learner.reconstruct(rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(kind: type[Dictionary], value: float) -> None:
    learner = at_random(kind, recipe_of(kind, Sparsity(50, 7)))
    rows = rows_of(learner)
    rows.view(-1)[77] = value
    with pytest.raises(NonFiniteActivations, match="among 50 rows of layer 0"):
        learner.codes(rows)


@pytest.mark.parametrize(
    ("sparsity", "says"),
    [
        ({"n_latents": 10, "k": 11}, "k=11; expected 1 to n_latents=10"),
        ({"n_latents": 10, "k": 0}, "k=0"),
        ({"n_latents": 10, "k": None, "activation": "top_k"}, "k=None"),
        ({"n_latents": 0}, "n_latents=0"),
    ],
)
def test_impossible_sparsity_is_refused(sparsity: dict, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        Sparsity(**sparsity)


def test_a_relu_needs_no_k() -> None:
    assert Sparsity(10, None, "relu").k is None


@pytest.mark.parametrize("gains", [(1.0, 1.0), (1.0, 7.0)])
def test_each_stream_is_normalised_to_the_same_size(tmp_path: Path, gains: tuple[float, float]) -> None:
    rows = planted(4_000, gains=gains)
    cache = write(tmp_path, rows)
    for kind in KINDS:
        learner = DictionaryFit.of(kind, [cache], 0, Sparsity(50, 7), quick()).dictionary()
        normalised = learner.normalise(learner.recipe.rows(rows.base, rows.finetuned)).unflatten(1, (-1, D_MODEL))
        sizes = normalised.double().square().sum(2).mean(0)
        torch.testing.assert_close(sizes, torch.full_like(sizes, D_MODEL), rtol=1e-5, atol=0)
        torch.testing.assert_close(normalised.mean(0), torch.zeros_like(normalised[0]), rtol=0, atol=1e-4)


def test_identical_models_have_no_sae_of_the_difference(tmp_path: Path) -> None:
    base = {0: planted(4_000).base}
    same = write_cache(tmp_path, base, base, variant=VariantSpec("identical"))
    with pytest.raises(ZeroVariance, match="the two models may be the same"):
        DictionaryFit.of(SAE, [same], 0, Sparsity(50, 7), quick())
    DictionaryFit.of(SAE, [same], 0, Sparsity(50, 7), quick(), stream=Stream.FINETUNED)


def test_stored_rows_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base, finetuned = planted(4_000).base, planted(4_000).finetuned.clone()
    finetuned[123, 4] = float("nan")
    damaged = write_cache(tmp_path, {0: base}, {0: finetuned})
    for kind in KINDS:
        with pytest.raises(NonFiniteActivations):
            DictionaryFit.of(kind, [damaged], 0, Sparsity(50, 7), quick())


def test_whatever_changes_the_result_changes_the_recipe(tmp_path: Path) -> None:
    caches = [write(tmp_path, planted(4_000)), write(tmp_path, planted(4_000, seed=1), corpus="other")]
    sparsity = Sparsity(50, 7)

    def digest(*changes: object, kind: type[Dictionary] = Crosscoder, of: list = caches, **named: object) -> str:
        settings = {"sparsity": sparsity, "settings": quick()} | dict(
            zip(("sparsity", "settings"), changes, strict=False)
        )
        return DictionaryFit.of(kind, of, 0, **settings, **named).learner.recipe.digest

    digests = [
        digest(), digest(of=caches[:1]), digest(kind=SAE), digest(kind=SAE, stream=Stream.BASE),
        digest(Sparsity(50, 8)), digest(Sparsity(51, 7)), digest(Sparsity(50, 7, "top_k")), digest(code_weight="l2"),
        digest(partition=[10, 30, 10]), digest(weights=[1, 2]),
        *(digest(sparsity, quick(**{name: _other(value)})) for name, value in asdict(quick()).items()),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


def _other(value: object) -> object:
    """Another value that the setting may have."""
    choices = {"adam": "adam_8bit", "float32": "bfloat16", "squared": "norm", None: 10, True: False}
    if isinstance(value, str | bool | None):
        return choices[value]
    return value * 2 + 1 if isinstance(value, int) else value / 2 + 0.01
