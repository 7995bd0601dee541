"""The two backends behind one face, so that one suite can ask of both what was really stored."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from tests.wandb_server.server import WandbServer
from tests.wandb_server.state import Artifact
from trackers import JSON, ArtifactRef, Kind, LocalStore, LocalTracker, Tracker, WandbTracker


class Backend(Protocol):
    """Makes trackers, and looks at what they stored without asking them."""

    def tracker(
        self, project: str, job: str = "job", config: Mapping[str, JSON] | None = None, run_id: str | None = None
    ) -> Tracker: ...

    def curve(self, run: str, name: str) -> list[tuple[int, float]]: ...

    def summary(self, run: str) -> dict[str, float]: ...

    def config(self, run: str) -> Mapping[str, object]: ...

    def status(self, run: str) -> str: ...

    def table(self, run: str, name: str) -> list[list[object]]: ...

    def figure(self, run: str, name: str) -> Mapping[str, object]: ...

    def inputs(self, run: str) -> list[str]: ...

    def metadata(self, ref: ArtifactRef) -> Mapping[str, object]: ...

    def digest(self, ref: ArtifactRef) -> str: ...

    def versions(self, project: str) -> Sequence[str]: ...

    def damage(self, ref: ArtifactRef, path: str) -> None: ...

    def everything_stored(self) -> bytes: ...


class LocalBackend:
    def __init__(self, root: Path):
        self.root, self.store = root, LocalStore(root)

    def tracker(
        self, project: str, job: str = "job", config: Mapping[str, JSON] | None = None, run_id: str | None = None
    ) -> LocalTracker:
        return LocalTracker(self.root, project, job, config or {}, run_id)

    def curve(self, run: str, name: str) -> list[tuple[int, float]]:
        return self.store.index.history(run, name)

    def summary(self, run: str) -> dict[str, float]:
        return self.store.index.summary(run)

    def config(self, run: str) -> Mapping[str, object]:
        return self.store.index.run(run).config

    def status(self, run: str) -> str:
        return self.store.index.run(run).status

    def table(self, run: str, name: str) -> list[list[object]]:
        stored = self.store.index.media(run, "table")[name]
        return pd.read_parquet(self.store.content.object_path(stored)).to_numpy().tolist()

    def figure(self, run: str, name: str) -> Mapping[str, object]:
        return json.loads(self.store.content.object_path(self.store.index.media(run, "figure")[name]).read_bytes())

    def inputs(self, run: str) -> list[str]:
        return [str(ref) for ref in self.store.index.inputs(run)]

    def metadata(self, ref: ArtifactRef) -> Mapping[str, object]:
        return self.store.index.version(ref).metadata

    def digest(self, ref: ArtifactRef) -> str:
        return self.store.index.version(ref).digest

    def versions(self, project: str) -> list[str]:
        if not self.store.index.database.path.exists():
            return []
        return [str(each.ref) for each in self.store.index.versions() if each.ref.project == project]

    def damage(self, ref: ArtifactRef, path: str) -> None:
        (file,) = [each for each in self.store.index.files(ref) if each.path == path]
        flip_first_byte(self.store.content.object_path(file.sha256))

    def everything_stored(self) -> bytes:
        self.store.index.database.close()
        return b"".join(path.read_bytes() for path in self.root.rglob("*") if path.is_file())


class WandbBackend:
    def __init__(self, root: Path, server: WandbServer, caches: Path):
        self.root, self.server, self.caches = root, server, caches

    def tracker(
        self, project: str, job: str = "job", config: Mapping[str, JSON] | None = None, run_id: str | None = None
    ) -> WandbTracker:
        return WandbTracker(self.root, project, job, config or {}, run_id=run_id)

    def curve(self, run: str, name: str) -> list[tuple[int, float]]:
        rows = self.server.state.runs[run].rows()
        return [(row["trainer/global_step"], row[name]) for row in rows if name in row]

    def summary(self, run: str) -> dict[str, float]:
        return self.server.state.runs[run].summary

    def config(self, run: str) -> Mapping[str, object]:
        config = self.server.state.runs[run].config
        return {key: entry["value"] for key, entry in config.items() if key != "_wandb"}

    def status(self, run: str) -> str:
        return self.server.state.runs[run].state

    def table(self, run: str, name: str) -> list[list[object]]:
        return json.loads(self._media(run, name))["data"]

    def figure(self, run: str, name: str) -> Mapping[str, object]:
        return json.loads(self._media(run, name))

    def inputs(self, run: str) -> list[str]:
        used = [self.server.state.artifacts[id] for id in self.server.state.runs[run].used]
        return [f"{each.project}/{each.collection}:v{each.version}" for each in used]

    def outputs(self, run: str) -> list[str]:
        """Without the artifacts that W&B makes of tables."""
        logged = [self.server.state.artifacts[id] for id in dict.fromkeys(self.server.state.runs[run].logged)]
        kept = [each for each in logged if each.version is not None and each.type in list(Kind)]
        return [f"{each.project}/{each.collection}:v{each.version}" for each in kept]

    def job(self, run: str) -> str | None:
        return self.server.state.runs[run].job

    def aliases(self, ref: ArtifactRef) -> list[str]:
        collection = self.server.state.collections[ref.project, ref.name]
        return sorted(alias for alias, version in collection.aliases.items() if version == ref.version)

    def metadata(self, ref: ArtifactRef) -> Mapping[str, object]:
        return json.loads(self._artifact(ref).metadata or "{}")

    def digest(self, ref: ArtifactRef) -> str:
        return self._artifact(ref).digest

    def versions(self, project: str) -> list[str]:
        collections = [
            each
            for each in self.server.state.collections.values()
            if each.project == project and each.type in list(Kind)
        ]
        return [f"{project}/{each.name}:v{number}" for each in collections for number in range(len(each.members))]

    def damage(self, ref: ArtifactRef, path: str) -> None:
        """What the server sends from now on is wrong, and nothing here still has the right bytes."""
        digest = self._artifact(ref).contents()[path]["digest"]
        body = self.server.state.bodies[digest]
        self.server.state.bodies[digest] = bytes([body[0] ^ 1]) + body[1:]
        self.forget()

    def forget(self) -> None:
        """Nothing that was published or fetched is on disk any more."""
        shutil.rmtree(self.caches / "artifacts" / "obj", ignore_errors=True)
        shutil.rmtree(self.root / "objects", ignore_errors=True)

    def everything_stored(self) -> bytes:
        state = self.server.state
        runs = [repr((run.config, run.summary, run.history, run.files)) for run in state.runs.values()]
        return repr((runs, state.bodies, state.artifacts)).encode()

    def _media(self, run: str, name: str) -> bytes:
        found = self.server.state.runs[run]
        return found.files[next(row[name]["path"] for row in reversed(found.rows()) if name in row)]

    def _artifact(self, ref: ArtifactRef) -> Artifact:
        return self.server.state.collections[ref.project, ref.name].members[ref.version]


def own_client() -> dict[str, str]:
    """The environment for a process that does not share this one's wandb client."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def flip_first_byte(path: Path) -> None:
    """Damages a stored file, which is read-only, without changing its size."""
    body = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([body[0] ^ 1]) + body[1:])


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Makes `folder` hold exactly these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, body in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body.encode() if isinstance(body, str) else body)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish_for_ever(tracker: str, project: str) -> str:
    """A script that publishes until it is killed, as a tracker of that class: arguments are its root and a folder."""
    return f"""
import itertools, sys
from pathlib import Path
from trackers import Kind, {tracker}
root, made = Path(sys.argv[1]), Path(sys.argv[2])
made.mkdir(exist_ok=True)
with {tracker}(root, "{project}", "publish", {{}}) as tracker:
    for attempt in itertools.count():
        for number in range(4):
            (made / f"{{number}}.bin").write_bytes(f"{{tracker.run_id}} {{attempt}} {{number}}".encode() * 20_000)
        print(tracker.publish(made, "pca", Kind.LEARNER, {{}}, aliases=["best"]), flush=True)
"""
