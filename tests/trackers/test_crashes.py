"""Publishing while processes die, the disk is full, or eight of them publish at once."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trackers.harness import LocalBackend, publish_for_ever, write_files
from trackers import ArtifactRef, Kind, TrackerUnavailable
from trackers import content as content_module

PUBLISH_FOR_EVER = publish_for_ever("LocalTracker", "demo")

DIE_AT = """
import os, signal, sys
from pathlib import Path
from trackers import Kind, LocalTracker
root, made, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def die(*happening):
    if moment == "os.replace" or happening[0].startswith(moment):
        os.kill(os.getpid(), signal.SIGKILL)
with LocalTracker(root, "demo", "publish", {}) as tracker:
    tracker.store.index.database._connection().set_trace_callback(die)
    if moment == "os.replace":
        os.replace = die
    tracker.publish(made, "pca", Kind.LEARNER, {})
"""

SMALL_DISK = """
import resource, sys
from pathlib import Path
from trackers import Kind, LocalTracker, TrackerUnavailable
root, big, small = map(Path, sys.argv[1:])
with LocalTracker(root, "demo", "publish", {}) as tracker:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    try:
        tracker.publish(big, "pca", Kind.LEARNER, {})
    except TrackerUnavailable as error:
        print(error)
    print(tracker.publish(small, "pca", Kind.LEARNER, {}))
"""

PUBLISH_THREE = """
import sys, time
from pathlib import Path
from trackers import Kind, LocalTracker
root, go, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
made = go.parent / f"made-{number}"
made.mkdir()
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
with LocalTracker(root, "demo", "publish", {}) as tracker:
    for text in (f"{number} one", f"{number} two", "the same in all"):
        (made / "file.txt").write_text(text)
        print(tracker.publish(made, "pca", Kind.LEARNER, {"from": number}, aliases=["best"]))
    tracker.fetch("pca:v0", Kind.LEARNER)
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def check_every_version(local: LocalBackend) -> list[ArtifactRef]:
    """All versions, after reading every byte of them."""
    versions = local.store.index.versions()
    for version in versions:
        files = local.store.index.files(version.ref)
        assert files
        for file in files:
            local.store.content.check(version.ref, file)
    return [version.ref for version in versions]


def test_a_killed_publish_leaves_only_complete_versions(local: LocalBackend, tmp_path: Path, folder: Path) -> None:
    chance = random.Random(0)
    acknowledged: list[str] = []
    for _ in range(10):
        process = start(PUBLISH_FOR_EVER, local.root, tmp_path / "made")
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        acknowledged += process.stdout.read().split()
        process.wait()
    refs = check_every_version(local)
    assert [ref.version for ref in refs] == list(range(len(refs)))
    assert set(acknowledged) <= {str(ref) for ref in refs}
    with local.tracker("demo") as tracker:
        assert tracker.publish(folder, "pca", Kind.LEARNER, {}) == ArtifactRef("demo", "pca", len(refs))
        assert tracker.fetch("pca", Kind.LEARNER)[0].version == len(refs)


@pytest.mark.parametrize(
    "moment",
    [
        "os.replace",
        "BEGIN IMMEDIATE",
        "INSERT INTO versions",
        "INSERT INTO files",
        "INSERT OR REPLACE",
        "COMMIT",
    ],
)
def test_a_publish_killed_at_any_step_leaves_no_version(local: LocalBackend, folder: Path, moment: str) -> None:
    assert start(DIE_AT, local.root, folder, moment).wait() == -signal.SIGKILL
    assert local.versions("demo") == []
    with local.tracker("demo") as tracker:
        assert str(tracker.publish(folder, "pca", Kind.LEARNER, {})) == "demo/pca:v0"
    assert check_every_version(local) == [ArtifactRef("demo", "pca", 0)]


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_a_full_disk_leaves_no_version_and_no_file(
    local: LocalBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    calls = 0

    def sync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with local.tracker("demo") as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(content_module.os, "fsync", sync)
            with pytest.raises(TrackerUnavailable, match="No space left on device"):
                tracker.publish(folder, "pca", Kind.LEARNER, {})
        assert local.versions("demo") == []
        assert list(local.store.content.tmp.iterdir()) == []
        assert str(tracker.publish(folder, "pca", Kind.LEARNER, {})) == "demo/pca:v0"
    assert check_every_version(local) == [ArtifactRef("demo", "pca", 0)]


def test_a_file_too_large_for_the_disk_leaves_no_version(local: LocalBackend, tmp_path: Path) -> None:
    big = write_files(tmp_path / "big", {"a.bin": b"a", "b.bin": b"b" * (3 << 20)})
    small = write_files(tmp_path / "small", {"a.bin": b"a"})
    process = start(SMALL_DISK, local.root, big, small)
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert "File too large" in printed
    assert printed.splitlines()[-1] == "demo/pca:v0"
    assert [file.path for file in local.store.index.files(ArtifactRef("demo", "pca", 0))] == ["a.bin"]
    assert local.versions("demo") == ["demo/pca:v0"]
    assert list(local.store.content.tmp.iterdir()) == []


def test_an_interrupted_publish_leaves_nothing(
    local: LocalBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with local.tracker("demo") as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(content_module.os, "replace", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tracker.publish(folder, "pca", Kind.LEARNER, {})
        assert local.versions("demo") == []
        assert list(local.store.content.tmp.iterdir()) == []
        tracker.publish(folder, "pca", Kind.LEARNER, {})


def test_eight_processes_publish_one_name_and_lose_nothing(local: LocalBackend, tmp_path: Path) -> None:
    processes = [start(PUBLISH_THREE, local.root, tmp_path / "go", number) for number in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    printed = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    refs = check_every_version(local)
    assert [ref.version for ref in refs] == list(range(17))  # two of each process, and one that all share
    own = [ref for lines in printed for ref in lines[:2]]
    shared = {lines[2] for lines in printed}
    assert len(set(own)) == 16
    assert len(shared) == 1
    assert set(own) | shared == {str(ref) for ref in refs}
    for ref in own:
        author = local.metadata(ArtifactRef.parse(ref))["from"]
        assert ref in printed[int(str(author))]
    latest = [version for version in local.store.index.versions() if "latest" in version.aliases]
    assert [version.aliases for version in latest] == [("best", "latest")]
