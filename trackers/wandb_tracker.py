"""The tracker contract on Weights & Biases, with the real client.

Every file passes through the content store under the tracker's root: published files are uploaded from there,
and fetched ones are brought there, checked, unless it has them already.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trackers.base import (
    JSON,
    LATEST,
    STEP,
    ArtifactRef,
    ArtifactRequest,
    Kind,
    StepCounter,
    check_alias,
    check_name,
    parse_request,
)
from trackers.content import ContentStore
from trackers.credentials import server_url
from trackers.errors import RunNotActive, WrongKind
from trackers.values import to_json, without_secrets
from trackers.wandb_client import (
    Remote,
    as_figure,
    as_table,
    asking_server,
    download,
    open_run,
    reference,
    require_server,
    upload,
)

if TYPE_CHECKING:
    import pandas
    from lightning.pytorch.loggers import Logger

    from trackers.wandb_client import ActiveRun


class WandbTracker:
    """The `Tracker` contract as one W&B run.

    `root` takes the client's run files and the content store. `run_id` goes on with an earlier run; without it, that
    is what WANDB_RUN_ID says (as `wandb agent` sets it), else the run is new.
    """

    def __init__(
        self,
        root: Path,
        project: str,
        job: str,
        config: Mapping[str, JSON],
        entity: str | None = None,
        run_id: str | None = None,
    ):
        self.root = Path(root).absolute()
        self.content = ContentStore(self.root, versions="downloads")
        self.project = check_name(project, "a project")
        self.job = job
        self.run_id = check_name(run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), "a run's id")
        self._entity = entity
        self._config = json.loads(to_json(without_secrets(config), "a run's config"))
        self._steps = StepCounter()
        self._open_run: ActiveRun | None = None

    def __enter__(self) -> Self:
        require_server("use tracker=local, and send its store later: python -m trackers push")
        run = open_run(self.root, self._entity, self.project, self.run_id, self.job, self._config)
        if run.resumed:
            self._steps.take(int(run.summary.get(STEP, -1)))
        self._open_run = run
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run, self._open_run = self._run, None
        run.finish(exit_code=0 if kind is None else 1)

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        self._run.log({**scalars, STEP: self._steps.take(step)})

    def log_table(self, name: str, frame: "pandas.DataFrame") -> None:
        self._run.log({name: as_table(frame)})

    def log_figure(self, name: str, plotly_json: Mapping[str, object]) -> None:
        self._run.log({name: as_figure(to_json(plotly_json, f"figure {name!r}"))})

    @asking_server()
    def publish(
        self,
        folder: Path,
        name: str,
        kind: Kind,
        metadata: Mapping[str, JSON],
        uses: Sequence[ArtifactRef] = (),
        aliases: Sequence[str] = (),
    ) -> ArtifactRef:
        """As the contract says; W&B keeps lineage by run, so everything the run used counts as used."""
        run = self._run
        check_name(name, "an artifact's name")
        aliases = [LATEST, *(check_alias(alias) for alias in aliases)]
        plain = json.loads(to_json(metadata, "an artifact's metadata"))
        known = self._remote.lookup(ArtifactRequest(self.project, name), self.project)
        if known is not None and known.type != kind:
            raise WrongKind(f"{self.project}/{name}", kind, known.type)
        for ref in uses:
            run.use_artifact(self._remote.find(parse_request(str(ref)), self.project))
        files = self.content.add_folder(Path(folder))
        return reference(upload(run, self.content, name, kind, plain, files, aliases))

    @asking_server()
    def fetch(self, request: str, kind: Kind) -> tuple[ArtifactRef, Path]:
        run = self._run
        artifact = self._remote.find(parse_request(request), self.project)
        ref = reference(artifact)
        if artifact.type != kind:
            raise WrongKind(str(ref), kind, artifact.type)
        folder = self.content.materialise(ref, download(artifact, self.content))
        run.use_artifact(artifact)
        return ref, folder

    def lightning_logger(self) -> "Logger":
        from trackers.lightning_logger import TrackerLogger  # lightning takes seconds to import

        return TrackerLogger(self)

    def describe(self) -> str:
        where = self._open_run.url if self._open_run else f"project {self.project} at {server_url()}"
        return f"{self.job} run {self.run_id}, in W&B: {where}"

    @property
    def _run(self) -> "ActiveRun":
        if self._open_run is None:
            raise RunNotActive("a tracker works inside its own block: `with tracker: ...`")
        return self._open_run

    @cached_property
    def _remote(self) -> Remote:
        return Remote(self._run.entity)
