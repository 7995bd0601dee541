"""What every tracker does, and how artifacts are named.

A tracker is one run: a `with` block that logs numbers, tables and figures, fetches artifacts that earlier
runs published and publishes new ones. You ask for an artifact by alias ("latest") and get a reference to a
version; only references are ever stored, because an alias may mean something else tomorrow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from trackers.errors import InvalidName

if TYPE_CHECKING:
    import pandas
    from lightning.pytorch.loggers import Logger

# What `json.dumps` takes. Not spelled recursively: run-time type checkers cannot follow that.
JSON = str | int | float | bool | None | Sequence[object] | Mapping[str, object]

LATEST = "latest"
STEP = "trainer/global_step"  # the x axis of scalars, under the name that W&B users know from Lightning
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
VERSION = re.compile(r"v(0|[1-9][0-9]{0,8})")


class Kind(StrEnum):
    """What an artifact holds."""

    ACTIVATIONS = "activations"
    LEARNER = "learner"
    REPORT = "report"
    EVALUATION = "evaluation"


def check_name(name: str, what: str) -> str:
    """The name itself, if W&B and a file system both take it; else `InvalidName`."""
    if NAME.fullmatch(name) and name.strip("."):
        return name
    raise InvalidName(f"{what} must be 1 to 128 letters, digits, '-', '_' or '.', and not only dots; got {name!r}")


def check_alias(alias: str) -> str:
    """The alias itself, if it is a name and no version such as v3; else `InvalidName`."""
    if re.fullmatch(r"v[0-9]+", alias):
        raise InvalidName(f"{alias!r} cannot be an alias: v0, v1, ... are versions")
    return check_name(alias, "an alias")


@dataclass(frozen=True)
class ArtifactRef:
    """One version of one artifact, for ever: `str(ref)` is "project/name:v3"."""

    project: str
    name: str
    version: int

    def __post_init__(self) -> None:
        check_name(self.project, "a project")
        check_name(self.name, "an artifact's name")
        if not 0 <= self.version < 10**9:
            raise InvalidName(f"a version is from 0 to 999999999, got {self.version}")

    def __str__(self) -> str:
        return f"{self.project}/{self.name}:v{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that `text` spells; an alias is refused, since it is not a version."""
        request = parse_request(text)
        version = VERSION.fullmatch(request.tag)
        if request.project is None or version is None:
            raise InvalidName(f"a reference is written project/name:v3, got {text!r}")
        return cls(request.project, request.name, int(version[1]))


@dataclass(frozen=True)
class ArtifactRequest:
    """What a person asks for: a name, and a version ("v3") or an alias; no project means the asker's own."""

    project: str | None
    name: str
    tag: str = LATEST

    def __post_init__(self) -> None:
        if self.project is not None:
            check_name(self.project, "a project")
        check_name(self.name, "an artifact's name")
        if not VERSION.fullmatch(self.tag):
            check_alias(self.tag)

    def __str__(self) -> str:
        return f"{self.project}/{self.name}:{self.tag}" if self.project else f"{self.name}:{self.tag}"


def parse_request(text: str) -> ArtifactRequest:
    """Reads "[project/]name[:alias-or-version]"; without the last part, the alias `latest`."""
    name, colon, tag = text.partition(":")
    project, slash, rest = name.rpartition("/")
    return ArtifactRequest(project if slash else None, rest, tag if colon else LATEST)


class StepCounter:
    """The x axis of a run's scalars: a step that is not given is one more than the highest so far."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, step: int | None) -> int:
        taken = self.next if step is None else step
        self.next = max(self.next, taken + 1)
        return taken


@runtime_checkable
class Tracker(Protocol):
    """One run. Used as a context manager: the run ends with the block, and an exception marks it failed."""

    project: str
    run_id: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        """Adds one point to each named curve."""

    def log_table(self, name: str, frame: "pandas.DataFrame") -> None:
        """Keeps a table with the run; the last one of a name is the one shown."""

    def log_figure(self, name: str, plotly_json: Mapping[str, object]) -> None:
        """Keeps a Plotly figure (its `to_plotly_json()`) with the run."""

    def publish(
        self,
        folder: Path,
        name: str,
        kind: Kind,
        metadata: Mapping[str, JSON],
        uses: Sequence[ArtifactRef] = (),
        aliases: Sequence[str] = (),
    ) -> ArtifactRef:
        """Makes the folder's files a version of `name`, entirely or not at all.

        `latest` and `aliases` move to it. Content that the name already has keeps its version, with that
        version's metadata and lineage. `uses` says what the version was made from; without it, that is
        everything this run has fetched so far.
        """
        ...

    def fetch(self, request: str, kind: Kind) -> tuple[ArtifactRef, Path]:
        """The version that "[project/]name[:alias-or-version]" means now, as a verified folder to read from.

        The run is recorded as its user. Raises ArtifactNotFound, WrongKind or CorruptArtifact.
        """
        ...

    def lightning_logger(self) -> "Logger":
        """A Lightning logger that writes to this run."""
        ...

    def describe(self) -> str:
        """One line that tells a person where to find the run."""
        ...
