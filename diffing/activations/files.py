"""Bytes to and from the disk: whole or not at all, and a disk that refuses says what to do about it."""

import os
import re
from pathlib import Path

import numpy as np

from diffing.errors import StorageFailed


def publish_file(temporary: Path, final: Path) -> None:
    """Makes `temporary`, once it is safely on disk, appear as `final` in one step. Raises StorageFailed."""
    try:
        _sync(temporary)
        os.replace(temporary, final)
        _sync(final.parent)
    except OSError as error:
        raise refused(final, error) from error


class OpenFile:
    """A file opened for reading, closed when nobody holds it any more. Its users never move a shared position."""

    def __init__(self, path: Path):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def write_all(descriptor: int, raw: np.ndarray, offset: int) -> None:
    """Writes all bytes of a flat array at a file offset."""
    while len(raw):
        written = os.pwrite(descriptor, raw.data, offset)
        raw, offset = raw[written:], offset + written


def read_all(descriptor: int, raw: np.ndarray, offset: int) -> bool:
    """Fills a flat array of bytes from a file offset; False if the file ends first."""
    while len(raw):
        got = os.preadv(descriptor, [raw.data], offset)
        if not got:
            return False
        raw, offset = raw[got:], offset + got
    return True


def refused(path: Path, error: OSError | RuntimeError) -> StorageFailed:
    """What to raise for a write that failed. HDF5 gives the system's words in the middle of its own."""
    said = re.search(r"error message = '([^']+)'", str(error))
    reason = said[1] if said else getattr(error, "strerror", None) or " ".join(str(error).split())
    return StorageFailed(
        f"{path} could not be written ({reason}): free space there, or set infrastructure.activations_dir "
        "to a folder with room"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
