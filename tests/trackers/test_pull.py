"""A version and what it was made from, copied from W&B into a local store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trackers.harness import LocalBackend, WandbBackend, read_files, write_files
from tests.wandb_server.server import WandbServer
from trackers import ArtifactNotFound, ArtifactRef, CorruptArtifact, InvalidName, InvalidValue, Kind, parse_request
from trackers.pull import pull
from trackers.push import Sent, push


@pytest.fixture(scope="module")
def filled(wandb_server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> WandbBackend:
    """Activations, two learners of them, a report of the first; other things that the report does not need."""
    tmp_path = tmp_path_factory.mktemp("there")
    backend = WandbBackend(tmp_path / "wandb", wandb_server, Path(os.environ["WANDB_CACHE_DIR"]))

    def made(text: str) -> Path:
        return write_files(tmp_path / "made", {"file.txt": text, "same.bin": bytes(1000)})

    with backend.tracker("demo", "cache", {"layers": [1]}) as cache:
        cache.publish(made("acts"), "acts", Kind.ACTIVATIONS, {"tokens": 1000})
    with backend.tracker("demo", "train") as train:
        train.fetch("acts", Kind.ACTIVATIONS)
        train.publish(made("one"), "pca", Kind.LEARNER, {"k": 1}, aliases=["best"])
        train.publish(made("two"), "pca", Kind.LEARNER, {"k": 2})
    with backend.tracker("demo", "analyze") as analyze:
        analyze.fetch("pca:best", Kind.LEARNER)
        report = analyze.publish(made("report"), "report", Kind.REPORT, {"finding": "ü"}, aliases=["paper"])
        analyze.fetch(str(report), Kind.REPORT)
        other = analyze.publish(made("unneeded"), "other", Kind.REPORT, {})
        analyze.fetch(str(other), Kind.REPORT)
    return backend


@pytest.fixture
def there(filled: WandbBackend) -> Iterator[WandbBackend]:
    """The same, whatever a test does to file bodies and aliases."""
    bodies, aliases = filled.server.state.bodies, filled.server.state.collections["demo", "pca"].aliases
    before = dict(bodies), dict(aliases)
    yield filled
    for now, then in zip((bodies, aliases), before, strict=True):
        now.clear()
        now.update(then)  # type: ignore[arg-type]


def bring(local: LocalBackend, request: str) -> list[str]:
    return [str(ref) for ref in pull(local.store, parse_request(request))]


def test_a_version_comes_with_its_lineage_under_the_same_names(
    there: WandbBackend, local: LocalBackend, tmp_path: Path
) -> None:
    assert bring(local, "demo/report") == ["demo/acts:v0", "demo/pca:v0", "demo/report:v0"]
    report, pca = ArtifactRef("demo", "report", 0), ArtifactRef("demo", "pca", 0)
    index = local.store.index
    assert index.sources(report) == [pca]
    assert index.sources(pca) == [ArtifactRef("demo", "acts", 0)]
    for version in index.versions():
        assert version.digest == there.digest(version.ref)
        assert version.metadata == there.metadata(version.ref)
        assert list(version.aliases) == there.aliases(version.ref)
        run = index.run(version.run)
        assert (run.job, run.status, run.config) == (there.job(run.id), "finished", there.config(run.id))
    with local.tracker("demo") as tracker:
        _, folder = tracker.fetch("report:paper", Kind.REPORT)
    made = write_files(tmp_path / "made", {"file.txt": "report", "same.bin": bytes(1000)})
    assert read_files(folder) == read_files(made)


def test_a_second_pull_downloads_nothing_and_brings_new_aliases(there: WandbBackend, local: LocalBackend) -> None:
    bring(local, "demo/pca:best")
    there.server.state.collections["demo", "pca"].aliases["newest"] = 0
    there.server.state.bodies.clear()
    assert bring(local, "demo/pca:v0") == ["demo/acts:v0", "demo/pca:v0"]
    assert local.store.index.version(ArtifactRef("demo", "pca", 0)).aliases == ("best", "newest")


def test_what_was_pulled_is_not_sent_back(there: WandbBackend, local: LocalBackend) -> None:
    bring(local, "demo/report")
    changes = there.server.changes
    assert push(local.store, say=lambda line: None) == Sent()
    assert there.server.changes == changes


def test_a_run_that_used_what_it_made_itself_makes_no_cycle(there: WandbBackend, local: LocalBackend) -> None:
    assert bring(local, "demo/other") == ["demo/acts:v0", "demo/pca:v0", "demo/report:v0", "demo/other:v0"]
    index = local.store.index
    assert index.sources(ArtifactRef("demo", "report", 0)) == [ArtifactRef("demo", "pca", 0)]
    assert len(index.sources(ArtifactRef("demo", "other", 0))) == 2


def test_wrong_bytes_are_not_copied(there: WandbBackend, local: LocalBackend) -> None:
    there.damage(ArtifactRef("demo", "pca", 0), "file.txt")
    with pytest.raises(CorruptArtifact, match=r"file\.txt"):
        bring(local, "demo/report")
    assert local.versions("demo") == ["demo/acts:v0"]


def test_a_number_that_is_taken_by_other_content_is_refused(
    there: WandbBackend, local: LocalBackend, folder: Path
) -> None:
    with local.tracker("demo") as tracker:
        tracker.publish(folder, "report", Kind.REPORT, {})
    with pytest.raises(InvalidValue, match="demo/report:v0 has other content here"):
        bring(local, "demo/report")
    assert len(local.store.index.versions()) == 3


def test_a_request_that_means_nothing_is_refused(there: WandbBackend, local: LocalBackend) -> None:
    with pytest.raises(InvalidName, match="project/report:latest"):
        bring(local, "report")
    with pytest.raises(ArtifactNotFound, match="demo/report"):
        bring(local, "demo/reports")
