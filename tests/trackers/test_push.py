"""A local store replayed to W&B and read back: through the real client, on good days and bad ones."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.trackers.harness import LocalBackend, WandbBackend, own_client, write_files
from tests.wandb_server.faults import Fault
from tests.wandb_server.server import WandbServer
from trackers import (
    ArtifactRef,
    CorruptArtifact,
    InvalidValue,
    Kind,
    LocalStore,
    TrackerUnavailable,
    WandbTracker,
    WrongKind,
)
from trackers import push as push_module
from trackers.push import Sent, push

ROOT = Path(__file__).parents[2]
FIGURE = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {"title": {"text": "KL"}}}


@pytest.fixture
def there(wandb_server: WandbServer, tmp_path: Path) -> WandbBackend:
    """A server with nothing in it."""
    wandb_server.reset()
    return WandbBackend(tmp_path / "wandb", wandb_server, Path(os.environ["WANDB_CACHE_DIR"]))


@pytest.fixture
def here(local: LocalBackend, tmp_path: Path) -> LocalBackend:
    """Six runs: two open at once, one failed, one that publishes old content again."""

    def made(text: str) -> Path:
        return write_files(tmp_path / "made", {"file.txt": text, "same.bin": bytes(300_000), "deep/er.txt": text * 2})

    with local.tracker("demo", "cache", {"layers": [1, 2], "none": None}) as cache:
        cache.publish(made("acts"), "acts", Kind.ACTIVATIONS, {"tokens": 1000}, aliases=["spec-1"])
        with local.tracker("demo", "train", {"lr": 0.1}) as train:
            train.fetch("acts", Kind.ACTIVATIONS)
            for step in range(5):
                train.log({"loss": 1 / (step + 3), "norm": math.nan if step == 2 else 0.5}, step=10 * step)
            train.publish(made("one"), "pca", Kind.LEARNER, {"k": 1}, aliases=["best"])
        cache.publish(made("more"), "acts", Kind.ACTIVATIONS, {"tokens": 2000})
        cache.fetch("pca:best", Kind.LEARNER)
    with local.tracker("demo", "train", {"lr": 0.2}) as train:
        train.fetch("acts:v1", Kind.ACTIVATIONS)
        train.publish(made("two"), "pca", Kind.LEARNER, {"k": 2})
    with local.tracker("demo", "analyze") as analyze:
        analyze.fetch("pca:v1", Kind.LEARNER)
        analyze.log_table("worst", pd.DataFrame({"token": ["cake", "tea"], "kl": [0.5, 0.25]}))
        analyze.log_figure("bars", FIGURE)
        analyze.log({"kl": 0.25})
        analyze.publish(made("report"), "report", Kind.REPORT, {"finding": "ü"})
    with local.tracker("demo", "train again") as again:
        again.publish(made("one"), "pca", Kind.LEARNER, {"k": 3})
    with contextlib.suppress(KeyError), local.tracker("other", "train") as failing:
        failing.publish(made("three"), "pca", Kind.LEARNER, {})
        raise KeyError
    return local


@pytest.fixture
def small(local: LocalBackend, tmp_path: Path) -> LocalBackend:
    """Two runs."""
    made = write_files(tmp_path / "made", {"file.txt": "one", "more.bin": bytes(1000)})
    with local.tracker("demo", "train") as train:
        train.log({"loss": 0.5})
        train.log({"loss": 0.25})
        train.publish(made, "pca", Kind.LEARNER, {}, aliases=["best"])
    with local.tracker("demo", "analyze") as analyze:
        analyze.fetch("pca", Kind.LEARNER)
        analyze.log_table("worst", pd.DataFrame({"kl": [0.5, 0.25]}))
        analyze.publish(write_files(tmp_path / "made", {"report.json": "{}"}), "report", Kind.REPORT, {})
    return local


def send(here: LocalBackend, **options: str) -> tuple[Sent, list[str]]:
    said: list[str] = []
    return push(LocalStore(here.root), say=said.append, **options), said


def comparable(curve: list[tuple[int, float]]) -> list[tuple[int, str]]:
    """NaN is not equal to itself; its text is."""
    return [(step, str(float(value))) for step, value in curve]


def check_same(here: LocalBackend, there: WandbBackend, project: str | None = None) -> None:
    """All runs and versions of the store are in W&B, and mean the same there."""
    index = here.store.index
    for run in index.runs():
        if project not in (None, run.project):
            assert run.id not in there.server.state.runs
            continue
        assert there.job(run.id) == run.job
        assert there.config(run.id) == run.config
        assert there.status(run.id) == run.status
        assert sorted(there.inputs(run.id)) == sorted(here.inputs(run.id))
        assert sorted(there.outputs(run.id)) == sorted(str(ref) for ref in index.outputs(run.id))
        for name, value in index.summary(run.id).items():
            assert comparable(there.curve(run.id, name)) == comparable(here.curve(run.id, name))
            assert there.summary(run.id)[name] == pytest.approx(value, nan_ok=True)
        for name in index.media(run.id, "table"):
            assert there.table(run.id, name) == here.table(run.id, name)
        for name in index.media(run.id, "figure"):
            assert there.figure(run.id, name)["data"] == here.figure(run.id, name)["data"]
    versions = [version for version in index.versions() if project in (None, version.ref.project)]
    for version in versions:
        assert there.digest(version.ref) == version.digest
        assert there.metadata(version.ref) == version.metadata
        assert there.aliases(version.ref) == sorted(version.aliases)
    for name in {version.ref.project for version in versions}:
        assert sorted(there.versions(name)) == sorted(here.versions(name))


def test_a_store_is_reproduced_and_a_second_push_sends_nothing(here: LocalBackend, there: WandbBackend) -> None:
    sent, said = send(here)
    check_same(here, there)
    assert (len(sent.runs), sent.versions, sent.rows, sent.media) == (6, 6, 6, 2)
    assert any("demo/report:v0" in line and "table worst" in line for line in said)
    assert there.server.unknown == set()
    assert there.server.refused == []
    changes = there.server.changes
    again, said = send(here)
    assert there.server.changes == changes
    assert str(again) == str(Sent())
    assert said == [f"6 runs with 6 versions; 6 runs are at {there.server.url}/local already"]


FAILING = [Fault.TOO_MANY, Fault.FAILED, Fault.DROPPED]


def test_a_push_completes_though_a_third_of_the_requests_fails(
    local: LocalBackend, there: WandbBackend, folder: Path
) -> None:
    with local.tracker("demo", "train") as tracker:
        tracker.log({"loss": 0.5})
        tracker.publish(folder, "pca", Kind.LEARNER, {}, aliases=["best"])
    there.server.faults.inject(FAILING, 1 / 3)
    send(local)
    assert there.server.faults.met.total() > there.server.faults.requests / 5
    check_same(local, there)


@pytest.mark.slow
def test_a_large_push_completes_though_a_third_of_the_requests_fails(here: LocalBackend, there: WandbBackend) -> None:
    there.server.faults.inject(FAILING, 1 / 3)
    send(here)
    check_same(here, there)


def test_a_push_that_is_killed_goes_on_where_it_was(small: LocalBackend, there: WandbBackend) -> None:
    killed = 0
    for n_uploads in (3, 6, 9):
        process = start_push(small)
        while process.poll() is None and there.server.uploads < n_uploads:
            time.sleep(0.002)
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= 2
    process = start_push(small)
    said, told = process.communicate()
    assert process.returncode == 0, told
    assert "all of it is there" in said
    check_same(small, there)


@pytest.mark.slow
def test_a_push_ends_when_the_server_stays_away(small: LocalBackend, there: WandbBackend) -> None:
    process = start_push(small)
    while there.server.uploads < 2:
        time.sleep(0.002)
    there.server.faults.inject([Fault.FAILED], 1.0)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "trackers: " in told
    assert "Traceback" not in told
    there.server.faults.inject([], 0.0)
    send(small)
    check_same(small, there)


def start_push(here: LocalBackend) -> "subprocess.Popen[str]":
    """The command, as a group of processes with a client of its own, to be killed together."""
    command = [sys.executable, "-m", "trackers", "push", "--root", str(here.root)]
    return subprocess.Popen(
        command, cwd=ROOT, env=own_client(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_what_was_lost_on_the_way_is_noticed_and_sent_again(here: LocalBackend, there: WandbBackend) -> None:
    send(here)
    state = there.server.state
    runs = {run.job: state.runs[run.id] for run in here.store.index.runs() if run.project == "demo"}
    for path in [path for path in runs["analyze"].files if path.startswith("media")]:
        del runs["analyze"].files[path]
    first = min((run for run in state.runs.values() if run.job == "train"), key=lambda run: -len(run.history))
    del first.history[3:]
    first.state = "crashed"
    del state.collections["demo", "acts"].aliases["spec-1"]
    state.collections["demo", "pca"].aliases["latest"] = 1
    state.collections["demo", "report"].members.pop().version = None
    sent, _ = send(here)
    assert (sent.versions, sent.rows, sent.media) == (1, 2, 2)
    check_same(here, there)
    first.history[1] = first.history[1].replace("0.25", "0.125")
    with pytest.raises(InvalidValue, match=f"run {first.name} has other rows"):
        send(here)


def test_a_push_does_not_say_done_while_rows_are_missing(
    small: LocalBackend, there: WandbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(run: str, body: dict[str, object]) -> bytes:
        there.server.state.runs[run].state = "finished"
        return b"{}"

    monkeypatch.setattr(there.server, "file_stream", swallow)
    monkeypatch.setattr(push_module, "READ_BACK", (0, 0))
    with pytest.raises(TrackerUnavailable, match=r"has not all that was sent; push again.*2 rows"):
        send(small)
    monkeypatch.undo()
    send(small)
    check_same(small, there)


def test_one_project_or_a_later_run_goes_with_all_it_was_made_from(here: LocalBackend, there: WandbBackend) -> None:
    other = [run.id for run in here.store.index.runs() if run.project == "other"]
    send(here, project="other")
    assert list(there.server.state.runs) == other
    with here.store.index.database.writing() as db:
        db.execute("UPDATE runs SET started = '2020-01-01T00:00:00Z' WHERE job != 'analyze'")
    there.server.reset()
    send(here, since="2020-01-02")
    jobs = sorted(run.job or "" for run in there.server.state.runs.values())
    assert jobs == ["analyze", "cache", "train", "train"]
    assert sorted(there.versions("demo")) == sorted(here.versions("demo"))
    with pytest.raises(InvalidValue, match="2026-11-23"):
        send(here, since="yesterday")


def test_earlier_versions_of_a_name_go_with_a_later_one(small: LocalBackend, folder: Path) -> None:
    with small.tracker("demo", "train later") as later:
        later.publish(folder, "pca", Kind.LEARNER, {})
    index = small.store.index
    with index.database.writing() as db:
        db.execute("UPDATE runs SET started = '2020-01-01T00:00:00Z' WHERE id != ?", (later.run_id,))
    runs, versions = push_module.chosen(index, None, "2020-01-02")
    assert [run.job for run in runs] == ["train", "train later"]
    assert [str(version.ref) for version in versions] == ["demo/pca:v0", "demo/pca:v1"]


def test_versions_of_others_are_left_alone(small: LocalBackend, there: WandbBackend, folder: Path) -> None:
    with WandbTracker(there.root, "demo", "colleague", {}) as tracker:
        tracker.publish(folder, "pca", Kind.LEARNER, {}, aliases=["best"])
    send(small)
    pca = there.server.state.collections["demo", "pca"]
    train, analyze = small.store.index.runs()
    assert [member.run for member in pca.members] == [tracker.run_id, train.id]
    assert pca.aliases == {"best": 0, "latest": 1}
    assert there.inputs(analyze.id) == ["demo/pca:v1"]
    changes = there.server.changes
    send(small)
    assert there.server.changes == changes


def test_another_kind_under_the_name_stops_the_push(small: LocalBackend, there: WandbBackend, folder: Path) -> None:
    with WandbTracker(there.root, "demo", "colleague", {}) as tracker:
        tracker.publish(folder, "report", Kind.EVALUATION, {})
    changes = there.server.changes
    with pytest.raises(WrongKind, match="demo/report"):
        send(small)
    assert there.server.changes == changes


def test_a_damaged_version_is_not_sent(small: LocalBackend, there: WandbBackend, tmp_path: Path) -> None:
    small.damage(ArtifactRef("demo", "report", 0), "report.json")
    with pytest.raises(CorruptArtifact, match=r"demo/report:v0 is damaged"):
        send(small)
    assert there.versions("demo") == ["demo/pca:v0"]
    small.store.content.add_folder(write_files(tmp_path / "again", {"report.json": "{}"}))  # repairs it
    send(small)
    check_same(small, there)
