"""Both backends, each made once a module: a wandb client takes a second to start."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trackers.harness import Backend, LocalBackend, WandbBackend, write_files
from tests.wandb_server.environment import PRIVATE
from tests.wandb_server.server import WandbServer, running_server

# The client's waits before it asks again; it takes whole seconds only.
WAITS = [
    f"WANDB__{what}_RETRY_WAIT_{end}_SECONDS"
    for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for end in ("MIN", "MAX")
]


@pytest.fixture(scope="module")
def wandb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    """A server, and an environment in which the wandb client of this process talks to nothing else."""
    import wandb

    with running_server() as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in PRIVATE:
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        for name in WAITS:
            patch.setenv(name, "1")
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_CONSOLE", "off")
        wandb.teardown()
        yield server
        wandb.teardown()


@pytest.fixture(scope="module", params=["local", "wandb"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    root = tmp_path_factory.mktemp("store")
    if request.param == "local":
        return LocalBackend(root)
    server = request.getfixturevalue("wandb_server")
    return WandbBackend(root, server, Path(os.environ["WANDB_CACHE_DIR"]))


@pytest.fixture
def project(request: pytest.FixtureRequest) -> str:
    """A project of the test's own."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:100].strip("-")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to publish."""
    return write_files(tmp_path / "made", {"config.json": "{}", "weights/a.bin": bytes(range(256)) * 20})


@pytest.fixture
def local(tmp_path: Path) -> LocalBackend:
    """A store of the test's own."""
    return LocalBackend(tmp_path / "store")


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which nothing about W&B is configured; its home folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home
