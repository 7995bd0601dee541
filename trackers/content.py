"""The files of a local store, each kept once under its SHA-256, and read-only folders made from them.

    objects/ab/cdef...          the bytes
    md5/ab/cdef...              the same by MD5, which is all that W&B says of a file: links to objects
    versions/PROJECT/NAME/v3/   a version as a folder, made when it is first fetched (hard links, else copies)
    tmp/                        what is being written; entries left by killed processes go after a day

A file is written and synced under tmp/ and then renamed, so whatever has its final name is complete.
"""

import contextlib
import os
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from trackers.base import ArtifactRef
from trackers.digests import StoredFile, digest_file, digest_stream
from trackers.errors import CorruptArtifact, InvalidName, InvalidValue, using_store

STALE_SECONDS = 24 * 3600


class ContentStore:
    """Writes and reads the files under `root`; safe to use from several processes at once."""

    def __init__(self, root: Path, versions: str = "versions"):
        self.root = root
        self.objects, self.by_md5, self.tmp = root / "objects", root / "md5", root / "tmp"
        self.versions = root / versions

    def add_folder(self, folder: Path) -> list[StoredFile]:
        """Stores every file below `folder`; on any failure none of them is kept."""
        members = folder_members(folder)
        with using_store(self.root), self.staging() as stage:
            files = []
            for number, (path, source) in enumerate(members):
                with source.open("rb") as reader:
                    files.append(_write(reader, path, stage / str(number)))
            self._keep([(stage / str(number), file) for number, file in enumerate(files)])
        return files

    def add_bytes(self, body: bytes) -> str:
        """Stores one body and returns its SHA-256."""
        with using_store(self.root), self.staging() as stage:
            file = _write(BytesIO(body), "", stage / "0")
            self._keep([(stage / "0", file)])
        return file.sha256

    def object_path(self, sha256: str) -> Path:
        return self.objects / sha256[:2] / sha256[2:]

    def check(self, ref: ArtifactRef, file: StoredFile) -> Path:
        """Where the file's bytes are; `CorruptArtifact` if they are not the ones published."""
        stored = self.object_path(file.sha256)
        with using_store(self.root):
            found = digest_file(stored).sha256 if stored.is_file() else "no file"
        if found != file.sha256:
            raise CorruptArtifact(str(ref), file.path, file.sha256, found)
        return stored

    def materialise(self, ref: ArtifactRef, files: Sequence[StoredFile]) -> Path:
        """The version as a read-only folder, every SHA-256 checked now; a damaged folder is made anew."""
        target = self.versions / ref.project / ref.name / f"v{ref.version}"
        with using_store(self.root):
            if _is_intact(target, files):
                return target
            with self.staging() as stage:
                fresh = stage / "fresh"
                for file in files:
                    _link(self.check(ref, file), fresh / file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists() and not _is_intact(target, files):
                    _set_folder_modes(target, 0o755)  # else it could be neither moved nor deleted
                    os.rename(target, stage / "damaged")
                try:
                    os.rename(fresh, target)
                except OSError:
                    if not _is_intact(target, files):  # else another process made the same folder first
                        raise
                _set_folder_modes(target, 0o555)
        return target

    def find(self, path: str, md5: str) -> StoredFile | None:
        """The file with that MD5 (base64), as one called `path`, if it is here and undamaged."""
        stored = self._md5_path(md5)
        with using_store(self.root):
            found = digest_file(stored) if stored.is_file() else None
        return replace(found, path=path) if found is not None and found.md5 == md5 else None

    def place(self, files: Iterable[StoredFile], folder: Path) -> None:
        """Puts stored files into `folder`, read-only, without using space where that can be."""
        with using_store(self.root):
            for file in files:
                _link(self.object_path(file.sha256), folder / file.path)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of its own on the store's disk, until the block ends."""
        self.tmp.mkdir(parents=True, exist_ok=True)
        self._clean()
        with tempfile.TemporaryDirectory(dir=self.tmp) as stage:
            yield Path(stage)

    def _clean(self) -> None:
        for entry in self.tmp.iterdir():
            with contextlib.suppress(OSError):  # its owner, or another cleaner, was faster; it is tried again
                if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    _set_folder_modes(entry, 0o755)
                    shutil.rmtree(entry)

    def _keep(self, staged: Sequence[tuple[Path, StoredFile]]) -> None:
        """Gives each staged file its final name; replacing one that is there repairs it if it was damaged."""
        for path, file in staged:
            final = self.object_path(file.sha256)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
            self._link_md5(file)
        for parent in {self.object_path(file.sha256).parent for _, file in staged}:
            _sync_folder(parent)

    def _md5_path(self, md5: str) -> Path:
        digits = b64decode(md5).hex()
        return self.by_md5 / digits[:2] / digits[2:]

    def _link_md5(self, file: StoredFile) -> None:
        link, stored = self._md5_path(file.md5), self.object_path(file.sha256)
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # `find` checks what it points to
            link.symlink_to(os.path.relpath(stored, link.parent))


def folder_members(folder: Path) -> list[tuple[str, Path]]:
    """(path inside the folder, file) of all that a version of `folder` would hold, in order."""
    if not folder.is_dir():
        raise InvalidValue(f"publish takes a folder, got {folder}")
    members = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise InvalidValue(f"publish takes files and folders; {inside!r} in {folder} is neither")
        if not inside.isprintable():
            raise InvalidName(f"a published file's path must be printable text, got {inside!r}")
        members.append((inside, path))
    if not members:
        raise InvalidValue(f"nothing to publish: {folder} has no files")
    return members


def _write(source: BinaryIO, path: str, target: Path) -> StoredFile:
    with target.open("wb") as writer:
        file = digest_stream(source, path, copy_to=writer)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(0o444)
    return file


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(stored: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(stored, path)
    except OSError:  # no hard links here, or too many to this file
        shutil.copyfile(stored, path)
        path.chmod(0o444)


def _is_intact(folder: Path, files: Sequence[StoredFile]) -> bool:
    """Whether the folder holds exactly these files with exactly these bytes."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return present == {file.path for file in files} and all(
        digest_file(folder / file.path).sha256 == file.sha256 for file in files
    )


def _set_folder_modes(folder: Path, mode: int) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        os.chmod(path, mode)
