"""What the tracker, push and pull ask of the real wandb client. The only file here that imports it.

Three habits of the client are worked around. It downloads without checking digests and then serves wrong bytes
from its cache for good, so its cache is not used and every file is checked. Without a server it waits for
minutes, so the server is asked for any answer first. And it finds out a version's digest only from the server,
so what the server says is compared with what the files' digests make it.
"""

import contextlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trackers.base import STEP, ArtifactRef, ArtifactRequest, Kind
from trackers.content import ContentStore
from trackers.credentials import obstacle, server_url
from trackers.digests import StoredFile, digest_file, wandb_digest
from trackers.errors import ArtifactNotFound, CorruptArtifact, TrackerError, TrackerUnavailable

if TYPE_CHECKING:
    import pandas
    import wandb
    from wandb import Artifact
    from wandb import Run as ActiveRun
    from wandb.apis.public import Run as PublicRun

ANSWER_SECONDS = 5
INIT_SECONDS = 30
DOWNLOADS = 3  # of a file that comes damaged, before it is given up


@contextmanager
def asking_server() -> Iterator[None]:
    """Turns what the client says of its server, the network or the disk into `TrackerUnavailable`."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except TrackerError:
        raise
    except (wandb.Error, WandbApiFailedError, ValueError, OSError) as error:
        raise TrackerUnavailable(f"talking to W&B at {server_url()} failed: {error}") from error


def require_server(advice: str) -> None:
    """`TrackerUnavailable` with the advice, within seconds, where the client would wait for minutes."""
    reason = obstacle() or _silence()
    if reason is not None:
        raise TrackerUnavailable(f"W&B cannot be used: {reason}; {advice}")


def _silence() -> str | None:
    """Why the server gives no answer, or None if it gives any. A thread, since looking up a name has no time limit."""
    found: list[str | None] = [f"{server_url()} does not answer within {2 * ANSWER_SECONDS} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(server_url(), timeout=ANSWER_SECONDS).close()
        except (urllib.error.HTTPError, http.client.HTTPException, ConnectionResetError):
            pass  # somebody is there
        except OSError as error:
            found[0] = f"{server_url()} does not answer: {error}"
            return
        found[0] = None

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(2 * ANSWER_SECONDS)
    return found[0]


def open_run(
    folder: Path,
    entity: str | None,
    project: str,
    id: str,
    job: str,
    config: Mapping[str, object],
    notes: str | None = None,
    tries: int | None = None,
) -> "ActiveRun":
    """Starts the run of that id, or goes on with it. Its client keeps its files in `folder`.

    Without `tries`, what was logged waits for a server that went away for as long as it takes; with it, each request is
    given up after so many.
    """
    import wandb  # takes a second

    folder.mkdir(parents=True, exist_ok=True)
    # `create_new`: a tracker is its own run, whatever else is open. No meta: it would send the command
    # line, which may hold secrets, the user's e-mail address and paths.
    settings = wandb.Settings(
        init_timeout=INIT_SECONDS,
        reinit="create_new",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_graphql_retry_max=tries,
        x_file_stream_retry_max=tries,
        x_file_transfer_retry_max=tries,
    )
    try:
        run = wandb.init(
            entity=entity,
            project=project,
            job_type=job,
            id=id,
            resume="allow",
            config=dict(config),
            notes=notes,
            dir=folder,
            settings=settings,
        )
    except wandb.Error as error:
        raise TrackerUnavailable(
            f"W&B at {server_url()} did not start a run: {error}; check the API key, or use tracker=local"
        ) from error
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def as_table(frame: "pandas.DataFrame") -> "wandb.Table":
    """What is missing becomes None where a column is not of plain numbers: the client knows no pandas.NA."""
    import numpy
    import wandb

    known = {
        name: cells if isinstance(cells.dtype, numpy.dtype) and cells.dtype != object
        else cells.astype(object).where(cells.notna(), None)
        for name, cells in frame.items()
    }  # fmt: skip
    return wandb.Table(dataframe=frame.assign(**known), allow_mixed_types=True)


def as_figure(plotly_json: str) -> "wandb.Plotly":
    import plotly.io
    import wandb

    return wandb.Plotly(plotly.io.from_json(plotly_json))


def upload(
    run: "ActiveRun",
    content: ContentStore,
    name: str,
    kind: Kind,
    metadata: Mapping[str, object],
    files: Sequence[StoredFile],
    aliases: Sequence[str],
) -> "Artifact":
    """Makes stored files a version that the run logged, and waits until the server has all of it."""
    import wandb

    artifact = wandb.Artifact(name, type=str(kind), metadata=dict(metadata))
    for file in files:  # immutable: no copy, stored files stay as they are
        artifact.add_file(str(content.object_path(file.sha256)), file.path, policy="immutable")
    run.log_artifact(artifact, aliases=list(aliases)).wait()
    if artifact.digest != wandb_digest(files):
        raise TrackerUnavailable(
            f"W&B says that {artifact.name} has digest {artifact.digest}, its files have {wandb_digest(files)}; "
            "publish again"
        )
    return artifact


def download(artifact: "Artifact", content: ContentStore) -> list[StoredFile]:
    """Brings the version's files into the content store, those that it has not, and checks each of them."""
    wanted = {str(entry.path): str(entry.digest) for entry in artifact.manifest.entries.values()}
    known = {path: file for path, digest in wanted.items() if (file := content.find(path, digest))}
    missing = {path: wanted[path] for path in wanted.keys() - known.keys()}
    files = [*known.values(), *(_fetch(artifact, content, known, missing) if missing else ())]
    if (found := wandb_digest(files)) != artifact.digest:
        raise CorruptArtifact(str(reference(artifact)), "the list of files", artifact.digest, found)
    return files


def _fetch(
    artifact: "Artifact", content: ContentStore, known: Mapping[str, StoredFile], missing: Mapping[str, str]
) -> list[StoredFile]:
    with content.staging() as stage:
        folder = stage / "downloaded"
        content.place(known.values(), folder)  # the client asks only for what is not there
        for attempt in range(1, DOWNLOADS + 1):
            artifact.download(root=str(folder), skip_cache=True)
            damaged = _damaged(folder, missing)
            if not damaged:
                break
            path, found = damaged.popitem()
            if attempt == DOWNLOADS:
                raise CorruptArtifact(str(reference(artifact)), path, missing[path], found)
        for placed in known:
            (folder / placed).unlink()
        return content.add_folder(folder)


def _damaged(folder: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """The files without the MD5 that they should have, each with what it has; they are deleted."""
    found = {path: digest_file(folder / path).md5 if (folder / path).is_file() else "no file" for path in wanted}
    damaged = {path: md5 for path, md5 in found.items() if md5 != wanted[path]}
    for path in damaged:
        (folder / path).unlink(missing_ok=True)
    return damaged


def reference(artifact: "Artifact") -> ArtifactRef:
    name = artifact.name.partition(":")[0]  # what follows is the alias that was asked for
    return ArtifactRef(artifact.project, name, int(artifact.version.removeprefix("v")))


class Remote:
    """What a W&B server has for one entity."""

    def __init__(self, entity: str | None = None):
        self._entity = entity

    @cached_property
    def api(self) -> "wandb.Api":
        import wandb

        return wandb.Api()

    @cached_property
    def entity(self) -> str:
        found = self._entity or self.api.default_entity
        if found is None:
            raise TrackerUnavailable(f"W&B at {server_url()} knows no default entity of this key; say which to use")
        return found

    def find(self, request: ArtifactRequest, project: str) -> "Artifact":
        """The version asked for, in `project` if the request names none; `ArtifactNotFound` where it is not."""
        found = self.lookup(request, project)
        if found is not None:
            return found
        existing = self._existing(request.project or project, request.name) or self._existing(project, request.name)
        raise ArtifactNotFound(f"{request.project or project}/{request.name}:{request.tag}", existing)

    def lookup(self, request: ArtifactRequest, project: str) -> "Artifact | None":
        import wandb

        try:
            return self.api.artifact(f"{self.entity}/{request.project or project}/{request.name}:{request.tag}")
        except wandb.Error as error:
            if "not found" in str(error):
                return None
            raise

    def versions(self, project: str, name: str, kind: Kind) -> list["Artifact"]:
        """All versions of a name, oldest first; none where the project or the name is not there."""
        with contextlib.suppress(ValueError):  # what the client makes of what is not there
            found = list(self.api.artifacts(str(kind), f"{self.entity}/{project}/{name}"))
            return sorted(found, key=lambda each: reference(each).version)
        return []

    def kind_of(self, project: str, name: str) -> str | None:
        found = self.lookup(ArtifactRequest(project, name), project)
        return None if found is None else found.type

    def run(self, project: str, id: str) -> "PublicRun | None":
        """The run as the server has it now."""
        import wandb

        self.api.flush()  # else it answers from memory
        try:
            return self.api.run(f"{self.entity}/{project}/{id}")
        except wandb.Error as error:
            if "Could not find run" in str(error):
                return None
            raise

    def _existing(self, project: str, name: str) -> list[str]:
        """What could have been meant: the aliases of that name, else all names of the project."""
        types = self.api.artifact_types(f"{self.entity}/{project}")
        try:
            collections = [each for type in types if type.name in list(Kind) for each in type.collections()]
        except ValueError:  # what the client makes of a project that is not there
            return []
        same = [each for each in collections if each.name == name]
        if same:
            return [f"{project}/{name}:{alias}" for each in same for alias in each.aliases]
        return [f"{project}/{each.name}" for each in collections]
