"""Claims on files: one holder at a time, none outlives its holder, nothing of others is touched."""

import errno
import fcntl
import os
from pathlib import Path
from signal import SIGKILL

import pytest

from diffing.activations.exclusive import remove_claims, sole_writer, temporary
from diffing.errors import StorageFailed
from tests.activations.collecting import contents, ended, forked


def test_one_writer_at_a_time_and_nothing_left_afterwards(tmp_path: Path) -> None:
    final = tmp_path / "new" / "file"
    for _ in range(2):
        with sole_writer(final) as first, sole_writer(final) as second, sole_writer(tmp_path / "other") as other:
            assert (first, second, other) == (True, False, True)
        assert contents(tmp_path) == {}


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    def work() -> None:
        with sole_writer(tmp_path / "file") as mine:
            assert mine
            temporary(tmp_path / "file").write_text("half")
            os.kill(os.getpid(), SIGKILL)

    assert ended(forked(work)) == -SIGKILL
    assert len(contents(tmp_path)) == 2
    with sole_writer(tmp_path / "file") as mine:
        assert mine
    assert contents(tmp_path) == {}


def test_only_leftovers_of_the_same_file_are_removed(tmp_path: Path) -> None:
    for name in ("file", "file2"):
        temporary(tmp_path / name).write_text(name)
    (tmp_path / "file").write_text("published")
    with sole_writer(tmp_path / "file"), sole_writer(tmp_path / "file") as mine:
        assert not mine
    assert sorted(contents(tmp_path).values()) == [b"file2", b"published"]


def test_one_who_has_no_claim_removes_nothing(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "file"):
        unfinished = temporary(tmp_path / "file")
        unfinished.write_text("half")
        with sole_writer(tmp_path / "file"):
            assert unfinished.exists()


def test_a_lock_file_that_its_last_holder_has_removed_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    for replaced in (False, True):

        def flock(handle: int, operation: int, replaced: bool = replaced) -> None:
            remove_claims(tmp_path)  # between opening and locking
            if replaced:
                (tmp_path / ".file.lock").touch()
            real(handle, operation)

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", flock)
            with sole_writer(tmp_path / "file") as mine:
                assert not mine
    with sole_writer(tmp_path / "file") as mine:
        assert mine


def test_everyone_may_write_where_there_are_no_locks_and_no_leftover_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    temporary(tmp_path / "file").write_text("perhaps being written")
    with sole_writer(tmp_path / "file") as first, sole_writer(tmp_path / "file") as second:
        assert first
        assert second
    assert list(contents(tmp_path).values()) == [b"perhaps being written"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match=r"file.*infrastructure\.activations_dir"), sole_writer(tmp_path / "file/a"):
        pass
