"""Publishing to W&B while clients are killed, while eight do it at once, and while the server has a bad day."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trackers.harness import WandbBackend, own_client, publish_for_ever, read_files, write_files
from tests.wandb_server.faults import Fault
from tests.wandb_server.server import WandbServer
from tests.wandb_server.state import md5_of
from trackers import ArtifactRef, CorruptArtifact, Kind

PUBLISH_FOR_EVER = publish_for_ever("WandbTracker", "killed")

PUBLISH_TWO = """
import sys, time
from pathlib import Path
from trackers import Kind, WandbTracker
root, go, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
made = go.parent / f"made-{number}"
made.mkdir()
with WandbTracker(root, "eight", "publish", {}) as tracker:
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.01)
    for text in (f"{number} one", f"{number} two"):
        (made / "file.txt").write_text(text)
        print(tracker.publish(made, "pca", Kind.LEARNER, {"from": number}, aliases=["best"]))
"""


@pytest.fixture
def backend(wandb_server: WandbServer, tmp_path: Path) -> WandbBackend:
    wandb_server.reset()
    return WandbBackend(tmp_path / "wandb", wandb_server, Path(os.environ["WANDB_CACHE_DIR"]))


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command, pipe, root = (
        [sys.executable, "-c", script, *map(str, arguments)],
        subprocess.PIPE,
        Path(__file__).parents[2],
    )
    return subprocess.Popen(command, env=own_client(), stdout=pipe, text=True, cwd=root, start_new_session=True)


def check_every_version(backend: WandbBackend, project: str) -> list[str]:
    """The names of all versions that a client can see, after looking at every byte of them."""
    state = backend.server.state
    for artifact in state.collections[project, "pca"].members:
        contents = artifact.contents()
        assert contents
        assert all(md5_of(state.bodies[entry["digest"]]) == entry["digest"] for entry in contents.values())
    return backend.versions(project)


def kill_while_publishing(backend: WandbBackend, folder: Path, times: int) -> None:
    chance = random.Random(0)
    acknowledged: list[str] = []
    for _ in range(times):
        process = start(PUBLISH_FOR_EVER, backend.root, folder.parent / "killed")
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
        time.sleep(chance.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
    names = check_every_version(backend, "killed")
    assert len(acknowledged) >= times
    assert set(acknowledged) <= set(names)
    assert "PENDING" in {artifact.state for artifact in backend.server.state.artifacts.values()}
    with backend.tracker("killed") as tracker:
        assert tracker.publish(folder, "pca", Kind.LEARNER, {}) == ArtifactRef("killed", "pca", len(names))
        assert read_files(tracker.fetch("pca", Kind.LEARNER)[1]) == read_files(folder)


def test_killed_clients_leave_only_complete_versions(backend: WandbBackend, folder: Path) -> None:
    kill_while_publishing(backend, folder, 3)


@pytest.mark.slow
def test_twenty_killed_clients_leave_only_complete_versions(backend: WandbBackend, folder: Path) -> None:
    kill_while_publishing(backend, folder, 20)


def test_eight_processes_publish_one_name_and_lose_nothing(backend: WandbBackend, tmp_path: Path) -> None:
    processes = [start(PUBLISH_TWO, backend.root, tmp_path / "go", number) for number in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    printed = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    refs = [ref for lines in printed for ref in lines]
    assert len(refs) == 16
    assert sorted(refs) == sorted(check_every_version(backend, "eight"))
    for number, lines in enumerate(printed):
        assert all(backend.metadata(ArtifactRef.parse(ref)) == {"from": str(number)} for ref in lines)
    aliases = backend.server.state.collections["eight", "pca"].aliases
    assert aliases == {"best": 15, "latest": 15}


def test_publish_and_fetch_complete_though_a_third_of_the_requests_fails(backend: WandbBackend, folder: Path) -> None:
    kinds = [Fault.TOO_MANY, Fault.FAILED, Fault.DROPPED, Fault.SLOW]
    backend.server.faults.inject(kinds, 1 / 3)
    with backend.tracker("bad-day", config={"a": 1}) as tracker:
        for step in range(3):
            tracker.log({"loss": float(step)})
        ref = tracker.publish(folder, "pca", Kind.LEARNER, {"k": 1}, aliases=["best"])
        backend.forget()
        found, path = tracker.fetch("pca:best", Kind.LEARNER)
    assert backend.server.faults.met.total() > 5
    assert (found, read_files(path)) == (ref, read_files(folder))
    assert backend.versions("bad-day") == ["bad-day/pca:v0"]
    assert backend.curve(tracker.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (backend.status(tracker.run_id), backend.inputs(tracker.run_id)) == ("finished", [str(ref)])


def test_a_file_that_comes_damaged_is_asked_for_again(backend: WandbBackend, tmp_path: Path) -> None:
    made = write_files(tmp_path / "made", {f"{number}.bin": bytes([number]) * 100 for number in range(6)})

    def first_downloads(n: int) -> Callable[[str, str], bool]:
        numbers = itertools.count()
        return lambda method, path: path.startswith("/body") and next(numbers) < n

    with backend.tracker("damaged") as tracker:
        tracker.publish(made, "pca", Kind.LEARNER, {})
        backend.forget()
        backend.server.faults.inject([Fault.DAMAGED], 1.0, first_downloads(6 + 2))
        assert read_files(tracker.fetch("pca", Kind.LEARNER)[1]) == read_files(made)
        assert backend.server.faults.met[Fault.DAMAGED] == 8
        backend.forget()
        backend.server.faults.inject([Fault.DAMAGED], 1.0, first_downloads(100))
        with pytest.raises(CorruptArtifact, match=r"\.bin"):
            tracker.fetch("pca", Kind.LEARNER)
        assert backend.server.faults.requests == 3 * 6
