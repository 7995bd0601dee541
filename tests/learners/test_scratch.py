"""What a fit keeps until its learners are published: whole learners, by what they are, in a folder that goes away."""

import os
from pathlib import Path

import pytest
import torch

from diffing.errors import StorageFailed
from diffing.learners.base import Recipe
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.learners.scratch import Scratch
from tests.learners.planted import at_random, recipe_of

RECIPE = recipe_of(SAE, Sparsity(6, 2))
OTHER = recipe_of(SAE, Sparsity(6, 3))


def fitted(recipe: Recipe) -> Dictionary:
    return at_random(SAE, recipe)


def never() -> Dictionary:
    pytest.fail("fitted again")


def test_a_finished_learner_is_not_fitted_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "alias")
    first = scratch.fitted(RECIPE, lambda: fitted(RECIPE))
    again = scratch.fitted(RECIPE, never)
    assert again.recipe.digest == RECIPE.digest
    assert all(torch.equal(again.state_dict()[name], value) for name, value in first.state_dict().items())


def test_what_another_setting_left_is_not_picked_up(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "alias")
    scratch.fitted(RECIPE, lambda: fitted(RECIPE))
    assert scratch.fitted(OTHER, lambda: fitted(OTHER)).sparsity.k == 3
    assert scratch.checkpoint(OTHER) != scratch.checkpoint(RECIPE)


def test_the_checkpoint_of_a_finished_learner_is_removed(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "alias")
    checkpoints = [scratch.checkpoint(recipe) for recipe in (RECIPE, OTHER)]
    tmp_path.joinpath("alias").mkdir()
    for path in checkpoints:
        path.write_bytes(b"half")
    scratch.fitted(RECIPE, lambda: fitted(RECIPE))
    assert [path.exists() for path in checkpoints] == [False, True]


def test_a_learner_that_was_being_kept_when_its_process_died_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path / "alias")
    monkeypatch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scratch.fitted(RECIPE, lambda: fitted(RECIPE))
    monkeypatch.undo()
    assert list((tmp_path / "alias").iterdir()), "something was written"
    calls = []
    scratch.fitted(RECIPE, lambda: calls.append(1) or fitted(RECIPE))
    assert calls == [1]


def test_a_learner_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="file"):
        Scratch(tmp_path / "file" / "alias").fitted(RECIPE, lambda: fitted(RECIPE))


def test_a_learner_that_another_process_kept_meanwhile_is_in_nobodys_way(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "alias")

    def overtaken() -> Dictionary:
        scratch.fitted(RECIPE, lambda: fitted(RECIPE))
        return fitted(RECIPE)

    scratch.fitted(RECIPE, overtaken)
    assert [path.name for path in (tmp_path / "alias").iterdir()] == [RECIPE.digest]


def test_without_a_folder_nothing_is_kept() -> None:
    scratch = Scratch()
    assert scratch.checkpoint(RECIPE) is None
    calls = []
    for _ in range(2):
        scratch.fitted(RECIPE, lambda: calls.append(1) or fitted(RECIPE))
    assert len(calls) == 2
    scratch.remove()


def test_the_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "alias")
    scratch.fitted(RECIPE, lambda: fitted(RECIPE))
    scratch.remove()
    assert list(tmp_path.iterdir()) == []
