"""Two identities for the same bytes: SHA-256 for our own store, MD5 because W&B names versions by it.

W&B's digest is a plain function of the content: a version has the same one before and after it reaches W&B.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file of a version. `md5` is base64 as W&B writes it, `sha256` is hex, `size` is in bytes."""

    path: str
    size: int
    md5: str
    sha256: str


def digest_stream(source: BinaryIO, path: str, copy_to: BinaryIO | None = None) -> StoredFile:
    """Reads `source` once to its end, and writes it to `copy_to` on the way."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        md5.update(chunk)
        sha256.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return StoredFile(path, size, b64encode(md5.digest()).decode(), sha256.hexdigest())


def digest_file(file: Path) -> StoredFile:
    with file.open("rb") as source:
        return digest_stream(source, file.name)


def wandb_digest(files: Iterable[StoredFile]) -> str:
    """W&B's digest of an artifact: hex MD5 over a header line and, sorted, a line `path:digest` per file."""
    text = _manifest((file.path, file.md5) for file in files)
    return hashlib.md5(text, usedforsecurity=False).hexdigest()


def content_digest(files: Iterable[StoredFile]) -> str:
    """Hex SHA-256 over the same lines with each file's SHA-256: what makes two folders the same version."""
    return hashlib.sha256(_manifest((file.path, file.sha256) for file in files)).hexdigest()


def _manifest(entries: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{path}:{digest}\n" for path, digest in sorted(entries)]
    return "".join(["wandb-artifact-manifest-v1\n", *lines]).encode()
