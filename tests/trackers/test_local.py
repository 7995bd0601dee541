"""What only the local store promises: its folders, its lineage, what a fork or a bad disk does to it."""

import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.trackers.harness import LocalBackend, flip_first_byte, read_files, write_files
from trackers import ArtifactRef, Kind, LocalStore, LocalTracker, TrackerUnavailable
from trackers.content import STALE_SECONDS


def publish(local: LocalBackend, folder: Path, name: str = "pca", **options: object) -> ArtifactRef:
    with local.tracker("demo") as tracker:
        return tracker.publish(folder, name, Kind.LEARNER, {}, **options)  # type: ignore[arg-type]


def test_a_fetched_folder_is_read_only_and_takes_no_space(local: LocalBackend, folder: Path) -> None:
    publish(local, folder)
    with local.tracker("demo") as tracker:
        _, path = tracker.fetch("pca", Kind.LEARNER)
    for each in [path, *path.rglob("*")]:
        assert stat.S_IMODE(each.stat().st_mode) == (0o555 if each.is_dir() else 0o444)
    stored = [each for each in local.store.content.objects.rglob("*") if each.is_file()]
    assert {each.stat().st_ino for each in path.rglob("*") if each.is_file()} == {each.stat().st_ino for each in stored}


def test_a_fetch_works_where_hard_links_do_not(
    local: LocalBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(local, folder)

    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with local.tracker("demo") as tracker:
        _, path = tracker.fetch("pca", Kind.LEARNER)
    assert read_files(path) == read_files(folder)


def test_a_folder_that_was_tampered_with_is_made_anew(local: LocalBackend, folder: Path) -> None:
    ref = publish(local, folder)
    version = local.store.index.version(ref)
    path = local.store.folder(version)
    path.chmod(0o755)
    (path / "extra.txt").write_text("not published")
    (path / "config.json").unlink()
    assert read_files(local.store.folder(version)) == read_files(folder)
    assert list(local.store.content.tmp.iterdir()) == []


def test_publishing_the_same_content_repairs_a_damaged_store(local: LocalBackend, folder: Path) -> None:
    ref = publish(local, folder)
    local.damage(ref, "weights/a.bin")
    assert publish(local, folder) == ref
    assert read_files(local.store.folder(local.store.index.version(ref))) == read_files(folder)


def test_a_missing_body_is_damage_too(local: LocalBackend, folder: Path) -> None:
    ref = publish(local, folder)
    (file,) = [each for each in local.store.index.files(ref) if each.path == "config.json"]
    local.store.content.object_path(file.sha256).unlink()
    with pytest.raises(Exception, match=r"config\.json.*no file"):
        local.store.folder(local.store.index.version(ref))


def test_equal_files_are_stored_once(local: LocalBackend, tmp_path: Path) -> None:
    publish(local, write_files(tmp_path / "a", {"one": "same", "two": "same", "three": "a"}))
    publish(local, write_files(tmp_path / "b", {"one": "same", "three": "b"}))
    assert len([each for each in local.store.content.objects.rglob("*") if each.is_file()]) == 3


def test_lineage_follows_uses_or_else_what_was_fetched(local: LocalBackend, tmp_path: Path) -> None:
    def made(name: str) -> Path:
        return write_files(tmp_path / name, {"name": name})

    with local.tracker("demo", "cache") as cache:
        one, two = (cache.publish(made(name), name, Kind.ACTIVATIONS, {}) for name in ("one", "two"))
    with local.tracker("demo", "train") as train:
        train.fetch("one", Kind.ACTIVATIONS)
        from_one = train.publish(made("from-one"), "from-one", Kind.LEARNER, {})
        train.fetch("two", Kind.ACTIVATIONS)
        from_two = train.publish(made("from-two"), "from-two", Kind.LEARNER, {}, uses=[two])
        from_both = train.publish(made("from-both"), "from-both", Kind.LEARNER, {})
    index = local.store.index
    assert index.sources(one) == []
    assert index.sources(from_one) == [one]
    assert index.sources(from_two) == [two]
    assert index.sources(from_both) == [one, two]
    assert index.derived(one) == [from_one, from_both]
    assert index.users(one) == [train.run_id]
    assert index.outputs(train.run_id) == [from_one, from_two, from_both]
    assert index.version(from_one).run == train.run_id


def test_publishing_again_never_makes_a_cycle(local: LocalBackend, tmp_path: Path) -> None:
    a, b = (write_files(tmp_path / name, {"name": name}) for name in "ab")
    first = publish(local, a, "a")
    second = publish(local, b, "b", uses=[first])
    with local.tracker("demo") as tracker:
        assert tracker.publish(a, "a", Kind.LEARNER, {}, uses=[second]) == first
    assert local.store.index.sources(first) == []
    assert local.store.index.outputs(tracker.run_id) == [first]


def test_a_forked_child_has_its_own_connection(local: LocalBackend, tmp_path: Path) -> None:
    def child(number: int) -> None:
        assert tracker.store.index.database._connection() is not inherited
        for step in range(20):
            tracker.log({f"child{number}": float(step)})
        tracker.publish(write_files(tmp_path / f"{number}", {"n": f"{number}"}), "pca", Kind.LEARNER, {})

    with local.tracker("demo") as tracker:
        tracker.log({"parent": 0.0})
        inherited = tracker.store.index.database._connection()
        children = [multiprocessing.get_context("fork").Process(target=child, args=(number,)) for number in range(3)]
        for each in children:
            each.start()
        for step in range(20):
            tracker.log({"parent": float(step)})
        for each in children:
            each.join()
        assert [each.exitcode for each in children] == [0, 0, 0]
    assert len(local.curve(tracker.run_id, "parent")) == 21
    assert all(len(local.curve(tracker.run_id, f"child{number}")) == 20 for number in range(3))
    assert sorted(local.versions("demo")) == ["demo/pca:v0", "demo/pca:v1", "demo/pca:v2"]
    with sqlite3.connect(local.store.index.database.path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(TrackerUnavailable, match="file/store"),
        LocalTracker(tmp_path / "file" / "store", "demo", "job", {}),
    ):
        pass


def test_a_read_only_root_is_a_clear_error() -> None:
    script = """
import os, sys
from pathlib import Path
from trackers import LocalTracker, TrackerUnavailable
root = Path(sys.argv[1]) / "store"
root.mkdir(mode=0o555)
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not bind root
try:
    with LocalTracker(root, "demo", "job", {}):
        print("started")
except TrackerUnavailable as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as readable:
        os.chmod(readable, 0o755)
        done = subprocess.run([sys.executable, "-c", script, readable], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be used" in done.stdout
    assert "Permission denied" in done.stdout


def test_a_foreign_or_broken_index_is_refused(local: LocalBackend, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    sqlite3.connect(tmp_path / "foreign" / "index.sqlite").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(TrackerUnavailable, match="format 0"):
        LocalStore.existing(tmp_path / "foreign").index.versions()
    (tmp_path / "foreign" / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(TrackerUnavailable, match="not a database"):
        LocalStore.existing(tmp_path / "foreign").index.versions()
    with pytest.raises(TrackerUnavailable, match="no store at"):
        LocalStore.existing(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_what_a_killed_process_left_is_removed_after_a_day(local: LocalBackend, folder: Path) -> None:
    publish(local, folder)
    old, fresh = (local.store.content.tmp / name for name in ("old", "fresh"))
    for each in (old, fresh):
        write_files(each, {"half/file": "x"})
        (each / "half").chmod(0o555)
    yesterday = time.time() - STALE_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    publish(local, folder)
    assert sorted(local.store.content.tmp.iterdir()) == [fresh]


def test_damage_seen_through_a_fetched_folder_does_not_go_unnoticed(local: LocalBackend, folder: Path) -> None:
    ref = publish(local, folder)
    version = local.store.index.version(ref)
    flip_first_byte(local.store.folder(version) / "weights/a.bin")  # the stored body itself, through its hard link
    with pytest.raises(Exception, match=r"weights/a\.bin"):
        local.store.folder(version)
