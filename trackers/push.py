"""Replays a local store to W&B: what is missing there is found, sent, and read back.

Nothing is remembered of earlier pushes. Each compares the store with what the server has, so a push that was
killed is simply begun again, and one of a store that is all there sends nothing. A version keeps its number where
no one else published under its name; its digest is the same in any case, and that is what is compared.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from trackers.base import LATEST, ArtifactRef
from trackers.credentials import server_url
from trackers.errors import InvalidValue, TrackerUnavailable, WrongKind
from trackers.index import Index, Run, Version
from trackers.local import LocalStore
from trackers.remote_run import RemoteRun, mark
from trackers.wandb_client import (
    Remote,
    as_figure,
    as_table,
    asking_server,
    open_run,
    reference,
    require_server,
    upload,
)

if TYPE_CHECKING:
    from trackers.wandb_client import ActiveRun, Artifact

READ_BACK = (0, 2, 5, 15)  # seconds before each look at what arrived: the service shows it a little later
TRIES = 12  # of a request; the client waits longer before each, up to a minute
Names = tuple[str, str]  # project and name of an artifact
Say = Callable[[str], None]


@dataclass
class Gap:
    """What W&B has not of one run."""

    versions: list[Version] = field(default_factory=list)  # that it published first, oldest first
    facts: list[str] = field(default_factory=list)  # what else, in words

    def __bool__(self) -> bool:
        return bool(self.versions or self.facts)

    def __str__(self) -> str:
        return ", ".join([*(str(version.ref) for version in self.versions), *self.facts])


@dataclass
class Sent:
    """What a push sent, to be told at its end."""

    runs: set[str] = field(default_factory=set)
    versions: int = 0
    bytes: int = 0
    rows: int = 0
    media: int = 0
    aliases: int = 0

    def __str__(self) -> str:
        return (
            f"{len(self.runs)} runs, {self.versions} versions ({self.bytes / 1e6:.1f} MB), "
            f"{self.rows} rows of scalars, {self.media} tables and figures, {self.aliases} aliases"
        )


@asking_server()
def push(
    store: LocalStore, project: str | None = None, entity: str | None = None, since: str | None = None, say: Say = print
) -> Sent:
    """Sends what W&B has not of the store's runs: those of `project`, started at or after `since` (ISO 8601).

    With them goes all that they were made from. Raises TrackerUnavailable if something is missing at the end; to
    push again goes on from there.
    """
    require_server("nothing was sent; push again when it answers")
    return _Push(store, Remote(entity), say).run(*chosen(store.index, project, since))


def chosen(index: Index, project: str | None, since: str | None) -> tuple[list[Run], list[Version]]:
    """The runs asked for and all that their versions were made from, in the order they were made.

    A version's number is its place among all of its name, so earlier ones of a name belong to a later one.
    """
    if since is not None:
        try:
            datetime.fromisoformat(since)
        except ValueError as error:
            raise InvalidValue(f"--since takes a date or time like 2026-11-23 or 2026-11-23T09:30: {error}") from error
    runs, versions = index.runs(), index.versions()
    todo = [run.id for run in runs if project in (None, run.project) and (since is None or run.started >= since)]
    wanted: set[str] = set()
    while todo:
        run = todo.pop()
        if run not in wanted:
            wanted.add(run)
            needed = [*index.inputs(run), *index.outputs(run)]
            todo += [each.run for each in versions if any(_precedes(each.ref, ref) for ref in needed)]
    return [run for run in runs if run.id in wanted], [each for each in versions if each.run in wanted]


def _precedes(earlier: ArtifactRef, ref: ArtifactRef) -> bool:
    return (earlier.project, earlier.name) == (ref.project, ref.name) and earlier.version <= ref.version


class _Push:
    def __init__(self, store: LocalStore, remote: Remote, say: Say):
        self.store, self.remote, self.say, self.sent = store, remote, say, Sent()

    def run(self, runs: Sequence[Run], versions: Sequence[Version]) -> Sent:
        gaps = self._gaps(runs, versions)
        plan = _sessions(self.store.index, runs, versions, gaps)
        there = len(runs) - sum(map(bool, gaps.values()))
        where = f"{server_url()}/{self.remote.entity}"
        self.say(f"{len(runs)} runs with {len(versions)} versions; {there} runs are at {where} already")
        for number, (run, made, rest) in enumerate(plan, start=1):
            what = Gap(made, gaps[run.id].facts if rest else [])
            self.say(f"[{number}/{len(plan)}] {run.job} {run.id}: {what}")
            self._session(run, made, rest)
        self._move_aliases(versions)
        self._read_back(runs, versions)
        return self.sent

    # Comparing

    def _gaps(self, runs: Sequence[Run], versions: Sequence[Version]) -> dict[str, Gap]:
        self.there = {names: self._digests(names, versions) for names in {_names(each) for each in versions}}
        gaps = {run.id: Gap() for run in runs}
        for version in versions:
            if version.digest not in self.there[_names(version)]:
                gaps[version.run].versions.append(version)
        for run in runs:
            gaps[run.id].facts = RemoteRun(self.remote, run).missing(self.store, self._there)
        return gaps

    def _digests(self, names: Names, versions: Iterable[Version]) -> dict[str, "Artifact"]:
        """What W&B has of a name, by digest. Raises WrongKind where it is of another kind there."""
        kind = next(each.kind for each in versions if _names(each) == names)
        if other := self.remote.kind_of(*names):
            if other != kind:
                raise WrongKind("/".join(names), kind, other)
            return {each.digest: each for each in self.remote.versions(*names, kind)}
        return {}

    def _there(self, ref: ArtifactRef) -> str | None:
        """What the version is called in W&B, which may have another number; None where it is not."""
        version = self.store.index.version(ref)
        found = self.there.get(_names(version), {}).get(version.digest)
        return None if found is None else str(reference(found))

    # Sending

    def _session(self, run: Run, made: Sequence[Version], rest: bool) -> None:
        notes = f"Replayed from a local store; started {run.started}, ended {run.ended or 'never'}."
        folder = self.store.root / "push"
        session = open_run(folder, self.remote.entity, run.project, run.id, run.job, run.config, notes, TRIES)
        try:
            for version in made:
                self._upload(session, version)
                self.sent.versions, self.sent.bytes = self.sent.versions + 1, self.sent.bytes + version.size
            if rest:
                self._send_rest(run, session)
        finally:
            session.finish(exit_code=0 if run.status == "finished" else 1)
        self.sent.runs.add(run.id)

    def _upload(self, session: "ActiveRun", version: Version) -> None:
        files = self.store.index.files(version.ref)
        for file in files:
            self.store.content.check(version.ref, file)
        found = upload(session, self.store.content, version.ref.name, version.kind, version.metadata, files, [LATEST])
        self.there[_names(version)][version.digest] = found

    def _send_rest(self, run: Run, session: "ActiveRun") -> None:
        """Rows and media that W&B has not, and what the run used and published a second time."""
        import pandas

        index, content, remote = self.store.index, self.store.content, RemoteRun(self.remote, run)
        rows = index.rows(run.id)[remote.n_rows(index) :]
        for row in rows:
            session.log(row)
        for form, name, sha256 in remote.missing_media(self.store):
            body = content.object_path(sha256).read_bytes()
            table = form == "table"
            session.log({name: as_table(pandas.read_parquet(io.BytesIO(body))) if table else as_figure(body.decode())})
            session.summary[mark(form, name)] = sha256
            self.sent.media += 1
        for ref in remote.missing_inputs(index, self._there):
            version = index.version(ref)
            session.use_artifact(self.there[_names(version)][version.digest])
        for ref in remote.missing_outputs(index, self._there):
            self._upload(session, index.version(ref))
        self.sent.rows += len(rows)

    def _move_aliases(self, versions: Sequence[Version]) -> None:
        for version, names in self._lost_aliases(versions):
            found = self.there[_names(version)][version.digest]
            found.aliases = [*found.aliases, *names]
            found.save()
            self.sent.aliases += len(names)

    def _lost_aliases(self, versions: Sequence[Version]) -> Iterator[tuple[Version, list[str]]]:
        """Aliases that point elsewhere in W&B, but to nothing that was made there."""
        for name in dict.fromkeys(map(_names, versions)):
            mine = {each.digest: each for each in versions if _names(each) == name}
            self.there[name] = theirs = self._digests(name, versions)
            taken = {alias for digest, found in theirs.items() if digest not in mine for alias in found.aliases}
            for digest, found in theirs.items():
                if digest in mine and (lost := set(mine[digest].aliases) - taken - set(found.aliases)):
                    yield mine[digest], sorted(lost)

    def _read_back(self, runs: Sequence[Run], versions: Sequence[Version]) -> None:
        for wait in READ_BACK:
            time.sleep(wait)
            missing = [f"{run}: {gap}" for run, gap in self._gaps(runs, versions).items() if gap]
            missing += [f"{version.ref}: aliases {', '.join(names)}" for version, names in self._lost_aliases(versions)]
            if not missing:
                return
        raise TrackerUnavailable(f"W&B at {server_url()} has not all that was sent; push again. {'; '.join(missing)}")


def _names(version: Version) -> Names:
    return version.ref.project, version.ref.name


def _sessions(
    index: Index, runs: Sequence[Run], versions: Sequence[Version], gaps: dict[str, Gap]
) -> list[tuple[Run, list[Version], bool]]:
    """Openings of runs, each with the versions to log and whether all the rest of the run goes with them.

    Versions go in the order they were made, and a run's rest when all that it used is there; so a run may be
    opened more than once, if others published in between.
    """
    age = {version.ref: number for number, version in enumerate(versions)}
    steps: list[tuple[float, Run, Version | None]] = []
    for run in runs:
        steps += [(age[version.ref], run, version) for version in gaps[run.id].versions]
        if gaps[run.id]:
            used = [age[ref] for ref in (*index.inputs(run.id), *index.outputs(run.id))]
            steps.append((max(used, default=-1) + 0.5, run, None))
    sessions: list[tuple[Run, list[Version], bool]] = []
    for _, run, version in sorted(steps, key=lambda step: step[0]):
        if not sessions or sessions[-1][0] != run or sessions[-1][2]:
            sessions.append((run, [], False))
        run, made, _ = sessions.pop()
        sessions.append((run, made if version is None else [*made, version], version is None))
    return sessions
