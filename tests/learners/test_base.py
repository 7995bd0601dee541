"""Recipes and stored learners: round trips, and refusals of what does not belong together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.errors import IncompatiblePair, MissingInput, SchemaMismatch, StorageFailed
from diffing.learners.base import Recipe, check_fits, load_learner
from diffing.learners.pca import PCA, PCAFit
from diffing.specs import VariantSpec
from tests.activations.stores import write_cache

RECIPE = Recipe("pca", "a" * 16, "org/base and org/adapter", 3, Stream.DIFFERENCE, 8, ["c"], {"n_components": 5})


def cache(folder: Path, layers: tuple[int, ...] = (1,), **other: object) -> ActivationCache:
    random = torch.Generator().manual_seed(0)
    base = {layer: torch.randn(60, 8, generator=random) for layer in layers}
    finetuned = {layer: torch.randn(60, 8, generator=random) for layer in layers}
    return write_cache(folder, base, finetuned, **other)


@pytest.fixture
def pca() -> PCA:
    fit = PCAFit(RECIPE, torch.zeros(8))
    fit.update(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))
    return fit.solve()


def test_a_learner_comes_back_as_it_was(tmp_path: Path, pca: PCA) -> None:
    pca.save(tmp_path / "new" / "folder")
    loaded = load_learner(tmp_path / "new" / "folder")
    assert loaded.recipe == pca.recipe
    assert loaded.recipe.digest == pca.recipe.digest
    assert loaded.state_dict().keys() == pca.state_dict().keys()
    for name, value in pca.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.encode(rows), pca.encode(rows))


def test_what_was_logged_of_a_training_is_kept_beside_the_learner_and_is_no_part_of_it(
    tmp_path: Path, pca: PCA
) -> None:
    pca.save(tmp_path / "without")
    assert not (tmp_path / "without" / "training.json").exists()
    assert load_learner(tmp_path / "without").history == {}
    pca.history = {"step": [50, 60], "loss": [0.1 + 0.2, 1e-30]}
    pca.save(tmp_path / "with")
    loaded = load_learner(tmp_path / "with")
    assert loaded.history == pca.history
    assert loaded.recipe.digest == load_learner(tmp_path / "without").recipe.digest
    (tmp_path / "with" / "training.json").write_text("{half")
    with pytest.raises(SchemaMismatch, match=r"training\.json"):
        load_learner(tmp_path / "with")


@given(
    stream=st.none() | st.sampled_from(Stream),
    caches=st.lists(st.text()),
    settings=st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.lists(st.text())),
)
def test_a_recipe_survives_json(stream: Stream | None, caches: list[str], settings: dict) -> None:
    recipe = replace(RECIPE, stream=stream, caches=caches, settings=settings)
    again = Recipe.from_json(json.loads(json.dumps(recipe.as_json())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_saving_twice_writes_the_same_bytes(tmp_path: Path, pca: PCA) -> None:
    for name in ("first", "second"):
        pca.save(tmp_path / name)
    for file in ("recipe.json", "weights.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sae"}, {"pair_digest": "b" * 16}, {"layer": 4}, {"stream": Stream.BASE}, {"stream": None},
        {"d_model": 9}, {"caches": ["c", "d"]}, {"settings": {"n_components": 6}},
    ],
)  # fmt: skip
def test_the_digest_changes_with_whatever_changes_the_result(change: dict) -> None:
    assert replace(RECIPE, **change).digest != RECIPE.digest


def test_the_digest_does_not_change_with_what_the_models_are_called() -> None:
    assert replace(RECIPE, pair="moved/base and moved/adapter").digest == RECIPE.digest


def test_a_recipe_reads_the_stream_it_names_in_float32() -> None:
    base, finetuned = torch.full((3, 8), 1.0).bfloat16(), torch.full((3, 8), 1.0078125).bfloat16()
    for stream, value in ((Stream.BASE, 1.0), (Stream.FINETUNED, 1.0078125), (Stream.DIFFERENCE, 0.0078125)):
        rows = replace(RECIPE, stream=stream).rows(base, finetuned)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, torch.full((3, 8), value))
    both = replace(RECIPE, stream=None).rows(base, finetuned)
    assert both.dtype == torch.float32
    assert both.shape == (3, 2, 8)
    assert torch.equal(both[:, 0], base.float())
    assert torch.equal(both[:, 1], finetuned.float())


def test_a_recipe_is_of_all_caches_of_one_pair(tmp_path: Path) -> None:
    caches = [cache(tmp_path, corpus="one"), cache(tmp_path, corpus="two")]
    recipe = Recipe.of("pca", caches, 1, Stream.DIFFERENCE, {"n_components": 2})
    assert recipe.caches == (caches[0].digest, caches[1].digest)
    assert recipe.d_model == 8
    assert recipe.pair_digest == caches[0].pair_digest
    assert recipe.pair == "org/base and org/adapter"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"model": "org/another"}, "org/another and org/adapter"),
        ({"variant": VariantSpec("lora", "org/other")}, "org/base and org/other"),
        ({"variant": VariantSpec("identical")}, "org/base and itself"),
    ],
)
def test_activations_of_another_pair_are_refused_and_both_are_named(tmp_path: Path, other: dict, named: str) -> None:
    own, foreign = cache(tmp_path), cache(tmp_path, **other)
    recipe = Recipe.of("pca", [own], 1, Stream.DIFFERENCE, {})
    check_fits(recipe, own)
    with pytest.raises(IncompatiblePair, match=f"of the pair org/base and org/adapter .* are of {named}"):
        check_fits(recipe, foreign)
    with pytest.raises(IncompatiblePair):
        Recipe.of("pca", [own, foreign], 1, Stream.DIFFERENCE, {})


def test_activations_of_another_layer_are_refused(tmp_path: Path) -> None:
    recipe = Recipe.of("pca", [cache(tmp_path / "one", layers=(1, 3))], 3, Stream.DIFFERENCE, {})
    with pytest.raises(IncompatiblePair, match=r"layer 3, but the activations of planted are of layers \[1, 2\]"):
        check_fits(recipe, cache(tmp_path / "other", layers=(1, 2)))


def test_no_cache_is_refused() -> None:
    with pytest.raises(MissingInput, match="name at least one corpus"):
        Recipe.of("pca", [], 1, Stream.DIFFERENCE, {})


def test_a_folder_without_a_recipe_holds_no_learner(tmp_path: Path, pca: PCA) -> None:
    pca.save(tmp_path)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(MissingInput, match=r"recipe\.json"):
        load_learner(tmp_path)


def rewrite(**changes: object) -> Callable[[Path], object]:
    """Changes entries of recipe.json."""

    def change(folder: Path) -> None:
        path = folder / "recipe.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    del weights["mean"]
    save_file(weights, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is not what"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"torn"), "weights.safetensors is not what"),
        (without_a_tensor, "mean"),
        (rewrite(settings={"n_components": 6}), "components"),
        (rewrite(settings={}), "n_components"),
        (rewrite(d_model=9), "mean"),
        (rewrite(schema_version=99), "schema version 99"),
        (rewrite(kind="tea leaves"), "kind 'tea leaves'; expected one of"),
        (rewrite(stream="sideways"), "sideways"),
        (rewrite(surprise=1), "surprise"),
        (lambda folder: (folder / "recipe.json").write_text("[]"), "not the recipe"),
        (lambda folder: (folder / "recipe.json").write_text("{"), "not the recipe"),
    ],
)
def test_a_damaged_learner_is_refused(tmp_path: Path, pca: PCA, damage: Callable[[Path], object], says: str) -> None:
    pca.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(SchemaMismatch, match=says):
        load_learner(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, pca: PCA) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="file"):
        pca.save(tmp_path / "file" / "learner")
