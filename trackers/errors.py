"""What can go wrong with a tracker. Each message says what was expected, what came, and what to do."""

import difflib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class TrackerError(Exception):
    """Any failure of a tracker; entry points catch this one."""


class InvalidName(TrackerError, ValueError):
    """A project, artifact, alias or file name that could not be stored under the same name everywhere."""


class InvalidValue(TrackerError, ValueError):
    """Something that cannot be stored as it is, for example metadata that is not JSON."""


class RunNotActive(TrackerError):
    """A tracker was used outside its `with` block."""


class TrackerUnavailable(TrackerError):
    """The store cannot be read or written, or the server cannot be reached."""


class WrongKind(TrackerError):
    """An artifact exists under this name, but of another kind."""

    def __init__(self, artifact: str, expected: str, found: str):
        super().__init__(f"{artifact} is of kind '{found}', expected '{expected}'; check the name, or choose another")


class ArtifactNotFound(TrackerError):
    """Nothing is published under this name, version or alias. `existing` is what is there instead."""

    def __init__(self, request: str, existing: Sequence[str], shown: int = 8):
        def likeness(candidate: str) -> float:
            return difflib.SequenceMatcher(None, request, candidate).ratio()

        self.existing = sorted(existing, key=likeness, reverse=True)
        listed = ", ".join(self.existing[:shown]) or "nothing yet"
        more = f" and {len(existing) - shown} more" if len(existing) > shown else ""
        super().__init__(f"no artifact {request!r}; there is: {listed}{more}")


class CorruptArtifact(TrackerError):
    """A stored file's bytes are not those that were published."""

    def __init__(self, artifact: str, file: str, expected: str, found: str):
        self.file, self.expected, self.found = file, expected, found
        super().__init__(
            f"{artifact} is damaged: {file!r} should have digest {expected}, found {found}; "
            "publish the same content again to repair it"
        )


@contextmanager
def using_store(root: Path) -> Iterator[None]:
    """Turns what the file system and SQLite say about the store at `root` into `TrackerUnavailable`."""
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        raise TrackerUnavailable(
            f"the store at {root} cannot be used: {error}; check its permissions and the free space, "
            "or choose another folder"
        ) from error
