"""Caches and learners as the commands prepare them: made once, found by what they hold, tracked with their lineage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate

from diffing.activations.store import MANIFEST
from diffing.entry import caches, learners, setup
from diffing.entry.caches import Infrastructure
from diffing.errors import InvalidSetting, MissingInput, SchemaMismatch
from tests import tiny
from tests.entry.preparing import composed, overrides_of, prepared
from trackers import Kind, LocalTracker

NAME = "learner-pca-smollm2_135m-demo_nautical-default"


@pytest.fixture
def overrides(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> list[str]:
    return overrides_of(base_folder, adapter_folder, tmp_path)


def store(tmp_path: Path) -> LocalTracker:
    return LocalTracker(tmp_path / "store", "model-diffing", "look", {})


def test_from_nothing_caches_and_learners_are_made_and_tracked_with_their_lineage(
    overrides: list[str], tmp_path: Path
) -> None:
    study, used, learner = prepared(composed(overrides))
    assert [str(ref) for ref in used] == ["model-diffing/activations-file-smollm2_135m-demo_nautical-default:v0"]
    assert str(learner) == f"model-diffing/{NAME}:v0"
    assert sorted(study.learners) == ["layer_1", "layer_2"]
    assert study.learner("layer_1").recipe.caches == (study.caches[0].digest,)
    with store(tmp_path) as tracker:
        assert tracker.store.index.sources(learner) == used


def test_what_is_there_is_used_again(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(composed(overrides))
    for name in ("tokenise", "collect"):
        monkeypatch.setattr(caches, name, lambda *args, **kwargs: pytest.fail("made again"))
    method = instantiate(composed(overrides).diffing.method, _convert_="object")
    monkeypatch.setattr(type(method), "fit", lambda *args: pytest.fail("fitted again"))
    again = prepared(composed(overrides, "pipeline.mode=diffing", "diffing.method.top=7"))
    assert again[1:] == first[1:]


@pytest.mark.parametrize("change", ["seed=1", "diffing.method.target=base", "preprocessing.layers=[2]"])
def test_a_setting_that_changes_the_learner_makes_another(overrides: list[str], change: str) -> None:
    first = prepared(composed(overrides))
    assert prepared(composed(overrides, change))[2] == replace(first[2], version=1)


def test_without_leave_to_make_anything_what_is_missing_is_named(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no activations of corpus 'file'.*pipeline.mode=full"):
        prepared(composed(overrides, "pipeline.mode=diffing"))
    with setup.tracker(composed(overrides), job="test") as tracker:
        learners.with_caches(composed(overrides), setup.study(composed(overrides)), tracker)
    with pytest.raises(MissingInput, match=r"no learner learner-pca.*\n.*python train.py diffing/method=pca organism"):
        prepared(composed(overrides, "pipeline.mode=diffing"))
    assert not list((tmp_path / "store" / "versions" / "model-diffing").glob("learner*"))


def test_two_processes_share_the_collecting(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(tiny.TEXTS * 4), "utf-8")
    parts = ["infrastructure.shards=2", "infrastructure.shard_mib=0.001"]
    with pytest.raises(MissingInput, match="part 0 of 2 is done for file"):
        prepared(composed(overrides, *parts, "infrastructure.shard=0"))
    study, _, _ = prepared(composed(overrides, *parts, "infrastructure.shard=1"))
    assert len(study.caches[0].base.shards) > 1


def test_a_slurm_array_task_knows_its_part_and_a_task_of_a_sweep_has_none(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Infrastructure.of(composed(overrides, "infrastructure.shards=8")).shard == 3
    assert Infrastructure.of(composed(overrides)).shard == 0
    assert Infrastructure.of(composed(overrides, "infrastructure.shards=8", "infrastructure.shard=5")).shard == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("infrastructure.shard=3", "expected 0 to 0"),
        ("pipeline.mode=fast", "expected one of full, preprocessing, diffing"),
        ("preprocessing.layers=[9]", "layers 0 to 3"),
        ("diffing.method.layers=[0]", r"not in the caches, which hold \[1, 2\]"),
    ],
)
def test_a_wrong_setting_is_named(overrides: list[str], change: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        prepared(composed(overrides, change))


def test_training_data_are_cached_if_they_are_asked_for(overrides: list[str], tmp_path: Path) -> None:
    text = tmp_path / "training.txt"
    text.write_text("\n\n".join(reversed(tiny.TEXTS)), "utf-8")
    training = [
        "preprocessing.training_corpus=true", "organism.training_corpus.source=file",
        f"organism.training_corpus.id={text}", "organism.training_corpus.format=text",
        "organism.training_corpus.column=text",
    ]  # fmt: skip
    study, _, _ = prepared(composed(overrides, *training))
    assert [cache.corpus for cache in study.caches] == ["file", "training"]


def test_a_tracked_cache_is_opened_from_its_reference_wherever_it_was_moved(
    overrides: list[str], tmp_path: Path
) -> None:
    study, used, _ = prepared(composed(overrides))
    with store(tmp_path) as tracker:
        _, folder = tracker.fetch(str(used[0]), Kind.ACTIVATIONS)
    here, moved = tmp_path / "activations", tmp_path / "moved"
    assert caches.open_reference(folder, tmp_path / "nowhere").digest == study.caches[0].digest
    shutil.move(here, moved)
    assert caches.open_reference(folder, moved).digest == study.caches[0].digest
    with pytest.raises(MissingInput, match="not on this machine"):
        caches.open_reference(folder, tmp_path / "nowhere")
    manifest = next((moved / "base").iterdir()) / MANIFEST
    stored = json.loads(manifest.read_text("utf-8"))
    stored["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(stored), "utf-8")
    with pytest.raises(SchemaMismatch, match="other activations"):
        caches.open_reference(folder, moved)


def test_checksums_are_compared_if_they_are_asked_for(overrides: list[str], tmp_path: Path) -> None:
    prepared(composed(overrides))
    shard = next((tmp_path / "activations" / "base").glob("*/shard-00000.h5"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(SchemaMismatch, match="SHA-256"):
        prepared(composed(overrides, "infrastructure.verify=true"))
