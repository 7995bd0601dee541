"""Copies a version from W&B into a local store, with the versions and runs that it was made from.

It keeps its number, its aliases and its run's id, so a reference means the same in both. W&B knows what a run used,
not what each of its versions was made from: a version counts as made from all that its run used and that is older.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trackers.base import ArtifactRef, ArtifactRequest, Kind
from trackers.digests import content_digest
from trackers.errors import InvalidName, TrackerUnavailable
from trackers.index import Run, Version
from trackers.local import LocalStore
from trackers.wandb_client import Remote, asking_server, download, reference, require_server

if TYPE_CHECKING:
    from trackers.wandb_client import Artifact, PublicRun

STATUS = {"finished": "finished", "running": "running"}  # all else is some failure


def pull(store: LocalStore, request: ArtifactRequest, entity: str | None = None) -> Iterator[ArtifactRef]:
    """Gives each reference once its version is in the store: first what the version asked for was made from."""
    if request.project is None:
        raise InvalidName(f"say which project to pull from: project/{request}")
    with asking_server():
        require_server("nothing was copied; pull again when it answers")
        store.index.database.create()
        remote = Remote(entity)
        yield from _Pull(store).copy(remote.find(request, request.project))


class _Pull:
    def __init__(self, store: LocalStore):
        self.store = store
        self._begun: set[ArtifactRef] = set()
        self._done: set[ArtifactRef] = set()

    def copy(self, artifact: "Artifact") -> Iterator[ArtifactRef]:
        ref = reference(artifact)
        self._begun.add(ref)
        run = artifact.logged_by()
        if run is None:
            raise TrackerUnavailable(f"W&B does not say which run made {ref}; it cannot be copied with its lineage")
        older = [each for each in run.used_artifacts() if _is_source(each, artifact, run)]
        for each in older:
            if reference(each) not in self._begun:
                yield from self.copy(each)
        sources = [reference(each) for each in older if reference(each) in self._done]
        self._add(artifact, run, sources)
        self._done.add(ref)
        yield ref

    def _add(self, artifact: "Artifact", run: "PublicRun", sources: list[ArtifactRef]) -> None:
        index, files = self.store.index, download(artifact, self.store.content)
        status = STATUS.get(run.state, "failed")
        ended = None if status == "running" else run.heartbeat_at
        index.add_run(Run(run.id, run.project, run.job_type or "", dict(run.config), status, run.created_at, ended))
        size, aliases = sum(file.size for file in files), tuple(artifact.aliases)
        ref, kind, metadata = reference(artifact), Kind(artifact.type), dict(artifact.metadata)
        sha256, created = content_digest(files), artifact.created_at
        version = Version(ref, kind, artifact.digest, sha256, size, metadata, created, run.id, aliases)
        index.add_copy(version, files, sources)
        for source in sources:
            index.add_input(run.id, source)


def _is_source(used: "Artifact", made: "Artifact", run: "PublicRun") -> bool:
    """Whether the run had `used` when it made `made`: what it made itself, it made in the order it logged."""
    if used.type not in list(Kind) or used.created_at > made.created_at:
        return False
    logged = [reference(each) for each in run.logged_artifacts() if each.type in list(Kind)]
    if reference(used) in logged and reference(made) in logged:
        return logged.index(reference(used)) < logged.index(reference(made))
    return True
