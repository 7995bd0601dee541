"""The SQLite file of a local store: its tables, its creation, its transactions.

Odd: it is created complete under another name and then linked into place, because two processes that switch
a fresh file to write-ahead logging at once can fail; and a connection belongs to one thread of one process,
because SQLite forbids carrying it over a fork. Write-ahead logging needs shared memory, so all users of a
store must be on one machine.
"""

import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trackers.errors import TrackerUnavailable, using_store

SCHEMA_VERSION = 1
BUSY_SECONDS = 60

# A NULL scalar is NaN, which SQLite cannot hold. A version's `id` grows with time; `sources` links a version
# to those it was made from, `inputs` and `outputs` link runs to versions.
SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE runs (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, job TEXT NOT NULL, config TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'failed')),
    started TEXT NOT NULL, ended TEXT);
CREATE TABLE scalars (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs,
    name TEXT NOT NULL, step INTEGER NOT NULL, value REAL);
CREATE INDEX scalars_of_run ON scalars (run, name);
CREATE TABLE media (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, name TEXT NOT NULL,
    form TEXT NOT NULL CHECK (form IN ('table', 'figure')), sha256 TEXT NOT NULL);
CREATE TABLE versions (
    id INTEGER PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    kind TEXT NOT NULL, digest TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    metadata TEXT NOT NULL, created TEXT NOT NULL, run TEXT NOT NULL REFERENCES runs,
    UNIQUE (project, name, version), UNIQUE (project, name, sha256));
CREATE TABLE files (
    version INTEGER NOT NULL REFERENCES versions, path TEXT NOT NULL, size INTEGER NOT NULL,
    md5 TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (version, path)) WITHOUT ROWID;
CREATE TABLE aliases (
    project TEXT NOT NULL, name TEXT NOT NULL, alias TEXT NOT NULL,
    version INTEGER NOT NULL REFERENCES versions, PRIMARY KEY (project, name, alias)) WITHOUT ROWID;
CREATE TABLE sources (
    version INTEGER NOT NULL REFERENCES versions, source INTEGER NOT NULL REFERENCES versions,
    PRIMARY KEY (version, source)) WITHOUT ROWID;
CREATE TABLE inputs (
    run TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL REFERENCES versions,
    PRIMARY KEY (run, version)) WITHOUT ROWID;
CREATE TABLE outputs (
    run TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL REFERENCES versions,
    PRIMARY KEY (run, version)) WITHOUT ROWID;
"""

_INHERITED: list[sqlite3.Connection] = []  # a forked child may neither use nor close its parent's connection


class Database:
    """Connections to one file, made on first use in each thread of each process."""

    def __init__(self, path: Path):
        self.path = path
        self._local = threading.local()

    def create(self) -> None:
        """Makes the file with its tables, unless it is there."""
        if self.path.exists():
            return
        with using_store(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".new-") as folder:
                fresh = Path(folder) / self.path.name
                with closing(sqlite3.connect(fresh)) as connection:
                    connection.executescript(SCHEMA)
                try:
                    os.link(fresh, self.path)
                except FileExistsError:
                    return  # another process was first

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the file until the block ends."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection with the write lock; the block's changes appear together at its end, or not at all."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Closes this thread's connection; the next use opens another."""
        if getattr(self._local, "process", None) == os.getpid():
            self._local.connection.close()
            self._local.process = None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with using_store(self.path.parent):
            connection = self._connection()
            connection.execute(begin)
            with connection:  # commits, or rolls back on an exception
                yield connection

    def _connection(self) -> sqlite3.Connection:
        process = getattr(self._local, "process", None)
        if process == os.getpid():
            return self._local.connection
        if process is not None:
            _INHERITED.append(self._local.connection)
        address = f"{self.path.resolve().as_uri()}?mode=rw"  # never creates an empty file
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last commits, never part of one
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != SCHEMA_VERSION:
            connection.close()
            raise TrackerUnavailable(
                f"{self.path} has format {found}, this code reads {SCHEMA_VERSION}; choose another folder"
            )
        self._local.connection, self._local.process = connection, os.getpid()
        return connection
