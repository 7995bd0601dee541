"""The tracker contract on Weights & Biases, with the real client. The only file here that imports wandb.

Two habits of the client are worked around. It downloads without checking digests and then serves wrong bytes
from its cache for good, so every file is checked here and a bad one is thrown out of that cache. And without
a server it waits for minutes, so the server is asked for any answer first.
"""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trackers.base import (
    JSON,
    LATEST,
    ArtifactRef,
    ArtifactRequest,
    Kind,
    StepCounter,
    check_alias,
    check_name,
    parse_request,
)
from trackers.content import folder_members
from trackers.credentials import obstacle, server_url
from trackers.digests import digest_file
from trackers.errors import (
    ArtifactNotFound,
    CorruptArtifact,
    RunNotActive,
    TrackerError,
    TrackerUnavailable,
    WrongKind,
)
from trackers.values import to_json, without_secrets

if TYPE_CHECKING:
    import pandas
    import wandb
    from lightning.pytorch.loggers import Logger

ANSWER_SECONDS = 5
INIT_SECONDS = 30
STEP = "trainer/global_step"  # the x axis, under the name that W&B users know from Lightning


@contextmanager
def _asking_server() -> Iterator[None]:
    """Turns what the client says of its server, the network or the disk into `TrackerUnavailable`."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except TrackerError:
        raise
    except (wandb.Error, WandbApiFailedError, ValueError, OSError) as error:
        raise TrackerUnavailable(f"talking to W&B at {server_url()} failed: {error}") from error


class WandbTracker:
    """The `Tracker` contract as one W&B run. `root` takes the client's run files and the downloads."""

    def __init__(self, root: Path, project: str, job: str, config: Mapping[str, JSON], entity: str | None = None):
        self.root = Path(root).absolute()
        self.project = check_name(project, "a project")
        self.job = job
        self.run_id = secrets.token_hex(4)
        self._entity = entity
        self._config = json.loads(to_json(without_secrets(config), "a run's config"))
        self._steps = StepCounter()
        self._open_run: wandb.Run | None = None

    def __enter__(self) -> Self:
        _require_server()
        import wandb  # takes a second

        self.root.mkdir(parents=True, exist_ok=True)
        # `create_new`: a tracker is its own run, whatever else is open. No meta: it would send the command
        # line, which may hold secrets, the user's e-mail address and paths.
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS, reinit="create_new", x_disable_meta=True, x_disable_machine_info=True
        )
        try:
            self._open_run = wandb.init(
                entity=self._entity,
                project=self.project,
                job_type=self.job,
                id=self.run_id,
                config=self._config,
                dir=self.root,
                settings=settings,
            )
        except wandb.Error as error:
            raise TrackerUnavailable(
                f"W&B at {server_url()} did not start a run: {error}; check the API key, or use tracker=local"
            ) from error
        self._open_run.define_metric(STEP)
        self._open_run.define_metric("*", step_metric=STEP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run, self._open_run = self._run, None
        run.finish(exit_code=0 if kind is None else 1)

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        self._run.log({**scalars, STEP: self._steps.take(step)})

    def log_table(self, name: str, frame: "pandas.DataFrame") -> None:
        import wandb

        self._run.log({name: wandb.Table(dataframe=frame, allow_mixed_types=True)})

    def log_figure(self, name: str, plotly_json: Mapping[str, object]) -> None:
        import plotly.io
        import wandb

        self._run.log({name: wandb.Plotly(plotly.io.from_json(to_json(plotly_json, f"figure {name!r}")))})

    @_asking_server()
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
        members = folder_members(Path(folder))
        known = self._lookup(ArtifactRequest(self.project, name))
        if known is not None and known.type != kind:
            raise WrongKind(f"{self.project}/{name}", kind, known.type)
        for ref in uses:
            run.use_artifact(self._find(parse_request(str(ref))))
        import wandb

        artifact = wandb.Artifact(name, type=str(kind), metadata=plain)
        for path, file in members:
            artifact.add_file(str(file), path, policy="immutable")  # no copy: this call outlasts the upload
        run.log_artifact(artifact, aliases=aliases).wait()
        return _reference(artifact)

    @_asking_server()
    def fetch(self, request: str, kind: Kind) -> tuple[ArtifactRef, Path]:
        run = self._run
        artifact = self._find(parse_request(request))
        ref = _reference(artifact)
        if artifact.type != kind:
            raise WrongKind(str(ref), kind, artifact.type)
        folder = self.root / "downloads" / ref.project / ref.name / f"v{ref.version}"
        artifact.download(root=str(folder))
        _verify(artifact, ref, folder)
        run.use_artifact(artifact)
        return ref, folder

    def lightning_logger(self) -> "Logger":
        from trackers.lightning_logger import TrackerLogger  # lightning takes seconds to import

        return TrackerLogger(self)

    def describe(self) -> str:
        where = self._open_run.url if self._open_run else f"project {self.project} at {server_url()}"
        return f"{self.job} run {self.run_id}, in W&B: {where}"

    @property
    def _run(self) -> "wandb.Run":
        if self._open_run is None:
            raise RunNotActive("a tracker works inside its own block: `with tracker: ...`")
        return self._open_run

    @cached_property
    def _api(self) -> "wandb.Api":
        import wandb

        return wandb.Api()

    def _find(self, request: ArtifactRequest) -> "wandb.Artifact":
        found = self._lookup(request)
        if found is not None:
            return found
        project = request.project or self.project
        existing = self._existing(project, request.name) or self._existing(self.project, request.name)
        raise ArtifactNotFound(f"{project}/{request.name}:{request.tag}", existing)

    def _existing(self, project: str, name: str) -> list[str]:
        """What could have been meant: the aliases of that name, else all names of the project."""
        types = self._api.artifact_types(f"{self._run.entity}/{project}")
        try:
            collections = [each for type in types if type.name in list(Kind) for each in type.collections()]
        except ValueError:  # what the client makes of a project that is not there
            return []
        same = [each for each in collections if each.name == name]
        if same:
            return [f"{project}/{name}:{alias}" for each in same for alias in each.aliases]
        return [f"{project}/{each.name}" for each in collections]

    def _lookup(self, request: ArtifactRequest) -> "wandb.Artifact | None":
        import wandb

        project = request.project or self.project
        try:
            return self._api.artifact(f"{self._run.entity}/{project}/{request.name}:{request.tag}")
        except wandb.Error as error:
            if "not found" in str(error):
                return None
            raise


def _reference(artifact: "wandb.Artifact") -> ArtifactRef:
    name = artifact.name.partition(":")[0]  # what follows is the alias that was asked for
    return ArtifactRef(artifact.project, name, int(artifact.version.removeprefix("v")))


def _verify(artifact: "wandb.Artifact", ref: ArtifactRef, folder: Path) -> None:
    """`CorruptArtifact` for the first file with a wrong MD5; its bytes are dropped here and in the cache."""
    from wandb.sdk.artifacts.artifact_file_cache import get_artifact_file_cache

    for entry in artifact.manifest.entries.values():
        file = folder / entry.path
        found = digest_file(file).md5 if file.is_file() else "no file"
        if found != entry.digest:
            cached, _, _ = get_artifact_file_cache().check_digest_obj_path(entry.digest, entry.size or 0)
            Path(cached).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise CorruptArtifact(str(ref), entry.path, entry.digest, found)


def _require_server() -> None:
    """`TrackerUnavailable`, within seconds, where the client would wait for minutes."""
    reason = obstacle()
    if reason is None:
        try:
            urllib.request.urlopen(server_url(), timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            return  # any answer will do
        except OSError as error:
            reason = f"{server_url()} does not answer: {error}"
    if reason is not None:
        raise TrackerUnavailable(f"W&B cannot be used: {reason}; use tracker=local")
