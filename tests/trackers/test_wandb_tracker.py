"""What the W&B tracker does about habits of the client and of the service."""

import hashlib
import os
import re
import sys
from pathlib import Path

import pytest

from tests.trackers.harness import WandbBackend, flip_first_byte, read_files, write_files
from tests.wandb_server.server import WandbServer
from tests.wandb_server.state import md5_of
from trackers import CorruptArtifact, Kind


@pytest.fixture
def wandb_backend(wandb_server: WandbServer, tmp_path: Path) -> WandbBackend:
    return WandbBackend(tmp_path / "wandb", wandb_server, Path(os.environ["WANDB_CACHE_DIR"]))


def test_wrong_bytes_do_not_stay_in_the_clients_cache(wandb_backend: WandbBackend, folder: Path) -> None:
    bodies = wandb_backend.server.state.bodies
    with wandb_backend.tracker("demo") as tracker:
        ref = tracker.publish(folder, "cached", Kind.LEARNER, {})
        right = dict(bodies)
        wandb_backend.damage(ref, "weights/a.bin")
        with pytest.raises(CorruptArtifact):
            tracker.fetch("cached", Kind.LEARNER)
        bodies.update(right)
        assert read_files(tracker.fetch("cached", Kind.LEARNER)[1]) == read_files(folder)


def test_a_file_changed_after_its_download_is_fetched_again(wandb_backend: WandbBackend, folder: Path) -> None:
    with wandb_backend.tracker("demo") as tracker:
        tracker.publish(folder, "changed", Kind.LEARNER, {})
        _, path = tracker.fetch("changed", Kind.LEARNER)
        flip_first_byte(path / "config.json")
        assert read_files(tracker.fetch("changed", Kind.LEARNER)[1]) == read_files(folder)


def test_what_is_on_disk_is_not_downloaded(wandb_backend: WandbBackend, tmp_path: Path) -> None:
    bodies = wandb_backend.server.state.bodies
    shared = bytes(range(256)) * 10
    one = write_files(tmp_path / "one", {"shared.bin": shared, "own.txt": "one"})
    two = write_files(tmp_path / "two", {"deep/shared.bin": shared, "own.txt": "two"})
    with wandb_backend.tracker("reuse") as tracker:
        for made in (one, two):
            tracker.publish(made, "pca", Kind.LEARNER, {})
        kept = dict(bodies)
        bodies.clear()
        assert read_files(tracker.fetch("pca:v0", Kind.LEARNER)[1]) == read_files(one)
        bodies.update(kept)
        wandb_backend.forget()
        tracker.fetch("pca:v0", Kind.LEARNER)
        wandb_backend.server.state.bodies.pop(md5_of(shared))
        assert read_files(tracker.fetch("pca:v1", Kind.LEARNER)[1]) == read_files(two)
    objects = [path for path in (wandb_backend.root / "objects").rglob("*") if path.is_file()]
    assert sorted(path.parent.name + path.name for path in objects) == sorted(
        hashlib.sha256(body).hexdigest() for body in (shared, b"one", b"two")
    )


def test_the_run_of_a_sweep_keeps_the_id_that_its_agent_gave(
    wandb_backend: WandbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given123")
    with wandb_backend.tracker("sweep") as tracker:
        tracker.log({"x": 1.0})
    assert tracker.run_id == "given123"
    assert wandb_backend.curve("given123", "x") == [(0, 1.0)]


def test_a_refused_commit_is_an_error_and_no_version(
    wandb_backend: WandbBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trackers import TrackerUnavailable

    def refuse(artifact: object) -> None:
        raise ValueError("storage quota exceeded")

    monkeypatch.setattr(wandb_backend.server.state, "commit", refuse)
    with wandb_backend.tracker("refused") as tracker:
        with pytest.raises(TrackerUnavailable, match="quota exceeded"):
            tracker.publish(folder, "pca", Kind.LEARNER, {})
        monkeypatch.undo()
        assert tracker.publish(folder, "pca", Kind.LEARNER, {}).version == 0


def test_the_command_line_and_the_machine_are_not_sent(
    wandb_backend: WandbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "hf_token=hunter2"])
    with wandb_backend.tracker("private", "train", {"lr": 0.1}) as tracker:
        tracker.log({"x": 1.0})
    run = wandb_backend.server.state.runs[tracker.run_id]
    sent = "\n".join([repr(run.config), *run.files, *(body.decode(errors="replace") for body in run.files.values())])
    assert "wandb-metadata.json" not in run.files
    for private in ("hunter2", str(Path.cwd()), os.uname().nodename):
        assert not re.search(
            rf"(?<![^\W_]){re.escape(private)}(?![^\W_])", sent
        )  # a machine may be called as a part of a word


def test_two_trackers_open_at_once_are_two_runs(wandb_backend: WandbBackend) -> None:
    with wandb_backend.tracker("two") as outer:
        with wandb_backend.tracker("two") as inner:
            inner.log({"x": 1.0})
        outer.log({"x": 2.0})
    assert wandb_backend.curve(outer.run_id, "x") == [(0, 2.0)]
    assert wandb_backend.curve(inner.run_id, "x") == [(0, 1.0)]


def test_the_server_answered_all_that_the_client_asked(wandb_backend: WandbBackend, tmp_path: Path) -> None:
    server = wandb_backend.server
    with wandb_backend.tracker("asked") as tracker:
        for number in range(2):
            tracker.publish(write_files(tmp_path / "m", {"n": str(number)}), "pca", Kind.LEARNER, {"n": number})
        tracker.fetch("pca:v0", Kind.LEARNER)
    assert server.unknown == set()
    assert [refusal for refusal in server.refused if "quota" not in refusal] == []
