"""What a local store knows: its runs and what they logged, its versions and what they were made from."""

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from trackers.base import LATEST, STEP, VERSION, ArtifactRef, ArtifactRequest, Kind
from trackers.database import Database
from trackers.digests import StoredFile, content_digest, wandb_digest
from trackers.errors import ArtifactNotFound, InvalidName, InvalidValue, TrackerError, WrongKind


@dataclass(frozen=True)
class Run:
    """One run. `status` is running, finished or failed; a killed run stays "running". Times are UTC."""

    id: str
    project: str
    job: str
    config: Mapping[str, object]
    status: str
    started: str
    ended: str | None


@dataclass(frozen=True)
class Version:
    """One version. `digest` is W&B's, `size` is in bytes, `run` is the run that published it first."""

    ref: ArtifactRef
    kind: Kind
    digest: str
    sha256: str
    size: int
    metadata: Mapping[str, object]
    created: str
    run: str
    aliases: tuple[str, ...]


class Index:
    """Reads and writes the database of one store; safe to use from several threads, processes and forks."""

    def __init__(self, path: Path):
        self.database = Database(path)

    # Runs

    def start_run(self, run: str, project: str, job: str, config: str) -> int:
        """Records a run that begins now, or goes on, and returns its next step; `config` is JSON text."""
        with self.database.writing() as db:
            found = db.execute("SELECT project FROM runs WHERE id = ?", (run,)).fetchone()
            if found is not None and found["project"] != project:
                raise InvalidName(f"run {run} is of project {found['project']}, it cannot go on in {project}")
            db.execute(
                """INSERT INTO runs VALUES (?, ?, ?, ?, 'running', ?, NULL)
                   ON CONFLICT (id) DO UPDATE SET status = 'running', ended = NULL, config = excluded.config""",
                (run, project, job, config, _now()),
            )
            (step,) = db.execute("SELECT coalesce(max(step) + 1, 0) FROM scalars WHERE run = ?", (run,)).fetchone()
        return step

    def add_run(self, run: Run) -> None:
        """Records a run of somewhere else as it was there, unless it is known."""
        row = (run.id, run.project, run.job, json.dumps(run.config), run.status, run.started, run.ended)
        with self.database.writing() as db:
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def end_run(self, run: str, status: str) -> None:
        with self.database.writing() as db:
            db.execute("UPDATE runs SET status = ?, ended = ? WHERE id = ?", (status, _now(), run))

    def add_scalars(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        rows = [(run, name, step, float(value)) for name, value in scalars.items()]
        with self.database.writing() as db:
            db.executemany("INSERT INTO scalars (run, name, step, value) VALUES (?, ?, ?, ?)", rows)

    def add_media(self, run: str, name: str, form: str, sha256: str) -> None:
        """Records a "table" (Parquet) or a "figure" (Plotly JSON) of the run; its bytes are stored."""
        with self.database.writing() as db:
            db.execute("INSERT INTO media (run, name, form, sha256) VALUES (?, ?, ?, ?)", (run, name, form, sha256))

    def run(self, id: str) -> Run:
        with self.database.reading() as db:
            row = db.execute("SELECT * FROM runs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise TrackerError(f"no run {id!r} in {self.database.path}")
        return _run(row)

    def runs(self) -> list[Run]:
        """All runs, in the order they started."""
        with self.database.reading() as db:
            return [_run(row) for row in db.execute("SELECT * FROM runs ORDER BY started, rowid").fetchall()]

    def rows(self, run: str) -> list[dict[str, float]]:
        """What the run logged, row by row: the scalars of one call, and their step under `STEP`."""
        rows: list[dict[str, float]] = []
        with self.database.reading() as db:
            query = "SELECT name, step, value FROM scalars WHERE run = ? ORDER BY id"
            for name, step, value in db.execute(query, (run,)):
                if not rows or rows[-1][STEP] != step or name in rows[-1]:
                    rows.append({STEP: step})
                rows[-1][name] = _nan(value)
        return rows

    def history(self, run: str, name: str) -> list[tuple[int, float]]:
        """The curve of one scalar, as (step, value) in the order logged."""
        query = "SELECT step, value FROM scalars WHERE run = ? AND name = ? ORDER BY id"
        with self.database.reading() as db:
            return [(step, _nan(value)) for step, value in db.execute(query, (run, name))]

    def summary(self, run: str) -> dict[str, float]:
        """The last value of every scalar of the run."""
        last = "SELECT max(id) FROM scalars WHERE run = ? GROUP BY name"
        with self.database.reading() as db:
            rows = db.execute(f"SELECT name, value FROM scalars WHERE id IN ({last}) ORDER BY name", (run,))
            return {name: _nan(value) for name, value in rows}

    def media(self, run: str, form: str) -> dict[str, str]:
        """The run's tables or figures: name to SHA-256 of the last one logged under it."""
        query = "SELECT name, sha256 FROM media WHERE run = ? AND form = ? ORDER BY id"
        with self.database.reading() as db:
            return dict(tuple(row) for row in db.execute(query, (run, form)))

    # Versions

    def add_version(
        self,
        run: str,
        project: str,
        name: str,
        kind: Kind,
        files: Sequence[StoredFile],
        metadata: str,
        sources: Sequence[ArtifactRef],
        aliases: Sequence[str],
    ) -> ArtifactRef:
        """Records stored files as the next version of `name`, or finds the version with the same content."""
        sha256 = content_digest(files)
        with self.database.writing() as db:
            row = db.execute("SELECT kind FROM versions WHERE project = ? AND name = ?", (project, name)).fetchone()
            if row is not None and row["kind"] != kind:
                raise WrongKind(f"{project}/{name}", kind, row["kind"])
            query = "SELECT id FROM versions WHERE project = ? AND name = ? AND sha256 = ?"
            found = db.execute(query, (project, name, sha256)).fetchone()
            if found is not None:
                id = found["id"]
            else:
                query = "SELECT coalesce(max(version) + 1, 0) FROM versions WHERE project = ? AND name = ?"
                (number,) = db.execute(query, (project, name)).fetchone()
                size, digest = sum(file.size for file in files), wandb_digest(files)
                row = (project, name, number, kind, digest, sha256, size, metadata, _now(), run)
                id = self._insert(db, row, files, sources)
            for alias in {LATEST, *aliases}:
                db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", (project, name, alias, id))
            db.execute("INSERT OR IGNORE INTO outputs VALUES (?, ?)", (run, id))
            return _ref(db.execute("SELECT * FROM versions WHERE id = ?", (id,)).fetchone())

    def add_copy(self, version: Version, files: Sequence[StoredFile], sources: Sequence[ArtifactRef]) -> None:
        """Records a version of somewhere else under its own number, with its aliases; nothing if it is known.

        Raises InvalidValue where the number, or the content, is another version's here.
        """
        ref = version.ref
        with self.database.writing() as db:
            query = (
                "SELECT version, sha256 FROM versions WHERE project = ? AND name = ? AND (version = ? OR sha256 = ?)"
            )
            found = db.execute(query, (ref.project, ref.name, ref.version, version.sha256)).fetchall()
            if any(tuple(row) != (ref.version, version.sha256) for row in found):
                raise InvalidValue(f"{ref} has other content here, or its content another number; use another --root")
            if not found:
                metadata, created = json.dumps(version.metadata), version.created
                row = (*astuple(ref), version.kind, version.digest, version.sha256, version.size, metadata, created)
                id = self._insert(db, (*row, version.run), files, sources)
                db.execute("INSERT INTO outputs VALUES (?, ?)", (version.run, id))
            id = self._find(db, ref)["id"]
            for alias in version.aliases:
                db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", (ref.project, ref.name, alias, id))

    def add_input(self, run: str, ref: ArtifactRef) -> None:
        with self.database.writing() as db:
            db.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (run, self._find(db, ref)["id"]))

    def resolve(self, request: ArtifactRequest, project: str) -> Version:
        """The version asked for; `project` is where to look if the request does not say."""
        project = request.project or project
        with self.database.reading() as db:
            if version := VERSION.fullmatch(request.tag):
                return self._version(db, self._find(db, ArtifactRef(project, request.name, int(version[1]))))
            query = """SELECT versions.* FROM versions JOIN aliases ON aliases.version = versions.id
                       WHERE aliases.project = ? AND aliases.name = ? AND alias = ?"""
            row = db.execute(query, (project, request.name, request.tag)).fetchone()
            if row is None:
                wanted = f"{project}/{request.name}:{request.tag}"
                raise ArtifactNotFound(wanted, self._spellings(db, project, request.name))
            return self._version(db, row)

    def version(self, ref: ArtifactRef) -> Version:
        with self.database.reading() as db:
            return self._version(db, self._find(db, ref))

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        with self.database.reading() as db:
            rows = db.execute("SELECT * FROM versions ORDER BY created, id").fetchall()
            return [self._version(db, row) for row in rows]

    def files(self, ref: ArtifactRef) -> list[StoredFile]:
        query = "SELECT path, size, md5, sha256 FROM files WHERE version = ? ORDER BY path"
        with self.database.reading() as db:
            return [StoredFile(*row) for row in db.execute(query, (self._find(db, ref)["id"],))]

    # Lineage

    def sources(self, ref: ArtifactRef) -> list[ArtifactRef]:
        """What the version was made from."""
        return self._related(ref, "SELECT source FROM sources WHERE version = ?")

    def derived(self, ref: ArtifactRef) -> list[ArtifactRef]:
        """The versions that were made from this one."""
        return self._related(ref, "SELECT version FROM sources WHERE source = ?")

    def inputs(self, run: str) -> list[ArtifactRef]:
        """What the run fetched, or named as used."""
        return self._selected("SELECT version FROM inputs WHERE run = ?", run)

    def outputs(self, run: str) -> list[ArtifactRef]:
        """What the run published, content that was there already included."""
        return self._selected("SELECT version FROM outputs WHERE run = ?", run)

    def users(self, ref: ArtifactRef) -> list[str]:
        """The ids of the runs that fetched the version, or named it as used."""
        with self.database.reading() as db:
            rows = db.execute("SELECT run FROM inputs WHERE version = ?", (self._find(db, ref)["id"],))
            return sorted(run for (run,) in rows)

    def _related(self, ref: ArtifactRef, ids: str) -> list[ArtifactRef]:
        with self.database.reading() as db:
            key = self._find(db, ref)["id"]
        return self._selected(ids, key)

    def _selected(self, ids: str, key: str | int) -> list[ArtifactRef]:
        with self.database.reading() as db:
            return [_ref(row) for row in db.execute(f"SELECT * FROM versions WHERE id IN ({ids}) ORDER BY id", (key,))]

    # Inside a transaction

    def _insert(
        self,
        db: sqlite3.Connection,
        row: tuple[object, ...],
        files: Sequence[StoredFile],
        sources: Sequence[ArtifactRef],
    ) -> int:
        """Adds a version (its columns but the id) with its files and what it was made from; returns its id."""
        id = db.execute(f"INSERT INTO versions VALUES (NULL{', ?' * len(row)})", row).lastrowid
        assert id is not None, "an INSERT has a row id"
        rows = [(id, file.path, file.size, file.md5, file.sha256) for file in files]
        db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)
        ids = [self._find(db, source)["id"] for source in dict.fromkeys(sources)]
        db.executemany("INSERT INTO sources VALUES (?, ?)", [(id, source) for source in ids])
        return id

    def _find(self, db: sqlite3.Connection, ref: ArtifactRef) -> sqlite3.Row:
        query = "SELECT * FROM versions WHERE project = ? AND name = ? AND version = ?"
        row = db.execute(query, (ref.project, ref.name, ref.version)).fetchone()
        if row is None:
            raise ArtifactNotFound(str(ref), self._spellings(db, ref.project, ref.name))
        return row

    def _spellings(self, db: sqlite3.Connection, project: str, name: str) -> list[str]:
        """What could have been meant: the versions and aliases of that name, else all names of the store."""
        query = """SELECT 'v' || version FROM versions WHERE project = :project AND name = :name
                   UNION SELECT alias FROM aliases WHERE project = :project AND name = :name"""
        tags = db.execute(query, {"project": project, "name": name}).fetchall()
        if tags:
            return [f"{project}/{name}:{tag}" for (tag,) in tags]
        return [f"{project}/{name}" for project, name in db.execute("SELECT DISTINCT project, name FROM versions")]

    def _version(self, db: sqlite3.Connection, row: sqlite3.Row) -> Version:
        aliases = db.execute("SELECT alias FROM aliases WHERE version = ? ORDER BY alias", (row["id"],))
        return Version(
            ref=_ref(row),
            kind=Kind(row["kind"]),
            digest=row["digest"],
            sha256=row["sha256"],
            size=row["size"],
            metadata=json.loads(row["metadata"]),
            created=row["created"],
            run=row["run"],
            aliases=tuple(alias for (alias,) in aliases),
        )


def _run(row: sqlite3.Row) -> Run:
    return Run(**{**row, "config": json.loads(row["config"])})


def _ref(row: sqlite3.Row) -> ArtifactRef:
    return ArtifactRef(row["project"], row["name"], row["version"])


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
