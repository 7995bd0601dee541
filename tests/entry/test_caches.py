"""Caches for methods that read them where they exist: found by what they hold, tracked, and never made."""

from pathlib import Path

import pytest

from diffing.activations.store import MANIFEST
from diffing.entry import caches, learners, setup
from diffing.errors import SchemaMismatch
from diffing.methods.activation_analysis import ActivationAnalysis
from tests.entry.preparing import composed, overrides_of
from trackers import Kind

METHOD = ActivationAnalysis(layers=[2], context=64)


@pytest.fixture
def overrides(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> list[str]:
    return overrides_of(base_folder, adapter_folder, tmp_path)


def test_caches_that_exist_are_handed_over_and_tracked_and_none_is_made(overrides: list[str], tmp_path: Path) -> None:
    config = composed(overrides)
    study = setup.study(config)
    with setup.tracker(config, job="test") as tracker:
        without, used = caches.with_existing(config, METHOD, study, tracker)
        assert (without.caches, used) == ([], [])
        assert not list((tmp_path / "activations").rglob(MANIFEST))
        made, published = learners.with_caches(config, study, tracker)
        found, used = caches.with_existing(config, METHOD, study, tracker)
        assert [cache.digest for cache in found.caches] == [cache.digest for cache in made.caches]
        assert used == published
        assert tracker.fetch(str(used[0]), Kind.ACTIVATIONS)[0] == used[0]


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (ActivationAnalysis(layers=[3]), ()),  # a layer that is not cached
        (METHOD, ("preprocessing.max_samples=7",)),  # another cache, which nobody made
    ],
)
def test_caches_that_do_not_serve_are_not_handed_over(
    overrides: list[str], method: ActivationAnalysis, change: tuple[str, ...]
) -> None:
    config = composed(overrides)
    with setup.tracker(config, job="test") as tracker:
        learners.with_caches(config, setup.study(config), tracker)
        asked = composed(overrides, *change)
        found, used = caches.with_existing(asked, method, setup.study(asked), tracker)
    assert (found.caches, used) == ([], [])


def test_existing_caches_are_verified_if_that_is_asked_for(overrides: list[str], tmp_path: Path) -> None:
    config = composed(overrides, "infrastructure.verify=true")
    with setup.tracker(config, job="test") as tracker:
        study, _ = learners.with_caches(config, setup.study(config), tracker)
    shard = next((tmp_path / "activations" / "finetuned").glob("*/shard-00000.h5"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(SchemaMismatch, match="SHA-256"):
        caches.existing(config, study.pair, study.corpora)
