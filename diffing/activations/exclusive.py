"""One process at a time writes a file, on this machine or another that shares the folder.

The claim is an flock, which the kernel gives back when its holder dies, however it dies. Whoever holds the claim of a
file may therefore remove what earlier writers left beside it. On file systems without locks everyone may write: names
of temporary files are never shared, and files here depend on their inputs alone, so the last rename changes nothing.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffing.activations.files import refused


@contextmanager
def sole_writer(final: Path) -> Iterator[bool]:
    """True if this process may write `final` within the block, False if another process is at it.

    Makes the folder. Removes temporary files of `final` that dead writers left. Raises StorageFailed.
    """
    lock = final.with_name(f".{final.name}.lock")
    with reaching(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        claimed = _claim(handle, lock)
        if claimed:
            for leftover in final.parent.glob(f".{final.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        try:
            yield claimed is not False
        finally:
            if claimed is not False:
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def temporary(final: Path) -> Path:
    """A new name beside `final`, to write under before renaming."""
    return final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")


def remove_claims(folder: Path) -> None:
    """Removes the locks that killed processes left, from a folder where nothing remains to be written."""
    for lock in folder.glob(".*.lock"):
        with suppress(OSError):  # a folder that may only be read can keep them
            lock.unlink(missing_ok=True)


@contextmanager
def reaching(place: Path) -> Iterator[None]:
    """Turns what the operating system, or HDF5 for it, says against writing into StorageFailed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise refused(place, error) from error


def _claim(handle: int, lock: Path) -> bool | None:
    """Whether the lock file is now this process's own; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it between our opening and locking it.
        return os.path.samestat(os.fstat(handle), lock.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return None
