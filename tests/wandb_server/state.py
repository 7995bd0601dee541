"""What the server knows: runs, artifact collections, sweeps, reports and file bodies, all in memory."""

import hashlib
import json
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from tests.wandb_server.reports import SavedReport
from tests.wandb_server.sweeps import Sweep

ENTITY = "local"
CREATED = "2024-01-01T00:00:00Z"  # nothing here depends on when


def md5_of(body: bytes) -> str:
    """As the client writes it: base64."""
    return b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def manifest_digest(contents: dict[str, dict[str, Any]]) -> str:
    """The digest that an artifact with this manifest must have."""
    lines = [f"{path}:{entry['digest']}\n" for path, entry in sorted(contents.items())]
    text = "wandb-artifact-manifest-v1\n" + "".join(lines)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Run:
    project: str
    name: str  # the id that the client chose
    id: str
    job: str | None = None
    state: str = "running"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)  # one JSON text a row
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # artifact ids
    logged: list[str] = field(default_factory=list)
    notes: str | None = None
    sweep: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]


@dataclass
class Artifact:
    id: str
    project: str
    collection: str
    type: str
    digest: str
    metadata: str | None
    aliases: list[str]  # to be set when it is committed
    run: str | None = None  # that logged it first
    version: int | None = None  # given then, too
    state: str = "PENDING"
    manifest_id: str = ""
    manifest: bytes = b""

    def contents(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.manifest)["contents"] if self.manifest else {}


@dataclass
class Collection:
    id: str
    project: str
    name: str
    type: str
    members: list[Artifact] = field(default_factory=list)  # the position is the version
    aliases: dict[str, int] = field(default_factory=dict)

    def resolve(self, tag: str) -> Artifact | None:
        """The version that an alias or `vN` means."""
        position = self.aliases.get(tag)
        if position is None and tag[:1] == "v" and tag[1:].isdigit():
            position = int(tag[1:])
        return self.members[position] if position is not None and position < len(self.members) else None


class State:
    """`bodies` holds file contents by the base64 MD5 announced for them: change one to damage a file."""

    def __init__(self) -> None:
        self.projects: dict[str, int] = {}  # name to internal number
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.collections: dict[tuple[str, str], Collection] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.reports: dict[str, SavedReport] = {}
        self.bodies: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, str, str]] = {}  # token to what it means: form, owner, name
        self._counter = 0

    def next_id(self, form: str) -> str:
        self._counter += 1
        return f"{form}:{self._counter}"

    def add_project(self, name: str) -> None:
        self.projects.setdefault(name, len(self.projects) + 1)

    def expect_upload(self, form: str, owner: str, name: str = "") -> str:
        token = secrets.token_urlsafe(12)
        self.uploads[token] = (form, owner, name)
        return token

    def receive(self, token: str, body: bytes) -> None:
        """Takes an upload; ValueError if its bytes are not those announced."""
        form, owner, name = self.uploads[token]
        if form == "run":
            self.runs[owner].files[name] = body
        elif form == "manifest":
            self.artifacts[owner].manifest = body
        elif md5_of(body) == name:
            self.bodies[name] = body
        else:
            raise ValueError(f"announced as {name}, but its MD5 is {md5_of(body)}")

    def commit(self, artifact: Artifact) -> None:
        """Checks the manifest against the digest and the files that came, and numbers the version, once."""
        if artifact.version is not None:
            return
        contents = artifact.contents()
        if (computed := manifest_digest(contents)) != artifact.digest:
            raise ValueError(f"the manifest's digest is {computed}, the artifact was created with {artifact.digest}")
        missing = [path for path, entry in contents.items() if entry["digest"] not in self.bodies]
        if missing:
            raise ValueError(f"never uploaded: {missing}")
        collection = self.collections[artifact.project, artifact.collection]
        collection.members.append(artifact)
        artifact.version, artifact.state = len(collection.members) - 1, "COMMITTED"
        collection.aliases.update(dict.fromkeys(["latest", *artifact.aliases], artifact.version))
