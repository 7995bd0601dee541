"""The tracker that needs no account: one folder holds runs, artifacts and their lineage.

A publish stores the files first and adds its row last, so a process that dies on the way, or a full disk,
leaves no version behind. `index.sqlite` says what there is, `objects/` holds the bytes.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trackers.base import JSON, ArtifactRef, Kind, StepCounter, check_alias, check_name, parse_request
from trackers.content import ContentStore
from trackers.errors import RunNotActive, TrackerUnavailable, WrongKind
from trackers.index import Index, Version
from trackers.values import to_json, without_secrets

if TYPE_CHECKING:
    import pandas
    from lightning.pytorch.loggers import Logger


class LocalStore:
    """What lies under one root: an index, and the bytes it speaks of."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.index = Index(self.root / "index.sqlite")
        self.content = ContentStore(self.root)

    @classmethod
    def existing(cls, root: Path) -> Self:
        """The store at `root`; `TrackerUnavailable` where there is none."""
        store = cls(root)
        if not store.index.database.path.is_file():
            raise TrackerUnavailable(f"no store at {root} (it would hold an index.sqlite); nothing was published there")
        return store

    def folder(self, version: Version) -> Path:
        """The version as a verified read-only folder."""
        return self.content.materialise(version.ref, self.index.files(version.ref))


class LocalTracker:
    """The `Tracker` contract in a folder on this machine.

    `run_id` goes on with an earlier run; without it, that is what TRACKER_RUN_ID says, else the run is new.
    """

    def __init__(self, root: Path, project: str, job: str, config: Mapping[str, JSON], run_id: str | None = None):
        self.store = LocalStore(Path(root).absolute())
        self.project = check_name(project, "a project")
        self.job = job
        self.run_id = check_name(run_id or os.environ.get("TRACKER_RUN_ID") or secrets.token_hex(4), "a run's id")
        self._config = to_json(without_secrets(config), "a run's config")
        self._steps = StepCounter()
        self._fetched: list[ArtifactRef] = []
        self._active = False

    def __enter__(self) -> Self:
        self.store.index.database.create()
        self._steps.next = self.store.index.start_run(self.run_id, self.project, self.job, self._config)
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        self.store.index.end_run(self.run_id, "finished" if kind is None else "failed")
        self.store.index.database.close()

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        self._index().add_scalars(self.run_id, self._steps.take(step), scalars)

    def log_table(self, name: str, frame: "pandas.DataFrame") -> None:
        self._add_media(name, "table", frame.to_parquet())

    def log_figure(self, name: str, plotly_json: Mapping[str, object]) -> None:
        self._add_media(name, "figure", to_json(plotly_json, f"figure {name!r}").encode())

    def publish(
        self,
        folder: Path,
        name: str,
        kind: Kind,
        metadata: Mapping[str, JSON],
        uses: Sequence[ArtifactRef] = (),
        aliases: Sequence[str] = (),
    ) -> ArtifactRef:
        index = self._index()
        check_name(name, "an artifact's name")
        aliases = [check_alias(alias) for alias in aliases]
        text = to_json(metadata, "an artifact's metadata")
        for ref in uses:
            index.add_input(self.run_id, ref)
        files = self.store.content.add_folder(Path(folder))
        sources = uses or self._fetched
        return index.add_version(self.run_id, self.project, name, Kind(kind), files, text, sources, aliases)

    def fetch(self, request: str, kind: Kind) -> tuple[ArtifactRef, Path]:
        version = self._index().resolve(parse_request(request), self.project)
        if version.kind != kind:
            raise WrongKind(str(version.ref), kind, version.kind)
        folder = self.store.folder(version)
        self.store.index.add_input(self.run_id, version.ref)
        self._fetched.append(version.ref)
        return version.ref, folder

    def lightning_logger(self) -> "Logger":
        from trackers.lightning_logger import TrackerLogger  # lightning takes seconds to import

        return TrackerLogger(self)

    def describe(self) -> str:
        return f"{self.job} run {self.run_id} of project {self.project}, in {self.store.root}"

    def _index(self) -> Index:
        if not self._active:
            raise RunNotActive("a tracker works inside its own block: `with tracker: ...`")
        return self.store.index

    def _add_media(self, name: str, form: str, body: bytes) -> None:
        index = self._index()
        index.add_media(self.run_id, name, form, self.store.content.add_bytes(body))
