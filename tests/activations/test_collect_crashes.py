"""Collecting while processes die, work side by side, or the disk refuses. What is left is always what one quiet
process would have made, byte for byte."""

import errno
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from diffing.activations import collect as collect_module
from diffing.activations.store import ActivationCache, SideStore
from diffing.axes import Side
from diffing.errors import SchemaMismatch, StorageFailed
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from tests import tiny
from tests.activations.collecting import Collection, collection, contents, ended, forked, texts


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits may depend on how a sum is split over threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(base_folder: Path, adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Four shards a side; the weights are loaded, so that a forked process need not."""
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter_folder)), device="cpu")
    return collection(pair, texts(8), tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(made: Collection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files that one undisturbed process leaves."""
    root = tmp_path_factory.mktemp("expected")
    assert made(root)
    files = contents(root)
    assert sum(name.endswith(".h5") for name in files) == 8
    return files


def check(made: Collection, root: Path, expected: dict[str, bytes]) -> None:
    """Finishes the collection, then compares everything that is there."""
    assert made(root)
    assert contents(root) == expected


def check_partial(root: Path, expected: dict[str, bytes]) -> None:
    """What has appeared so far is whole."""
    visible = {name: data for name, data in contents(root).items() if not Path(name).name.startswith(".")}
    assert visible.items() <= expected.items()


def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    start = time.perf_counter()
    made(tmp_path / "timed")
    duration, chance, killed = time.perf_counter() - start, random.Random(0), 0
    for attempt in range(100):
        root = tmp_path / str(attempt)
        process = forked(lambda root=root: made(root))
        time.sleep(chance.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        killed += ended(process) == -signal.SIGKILL
        check_partial(root, expected)
        check(made, root, expected)
        if killed == 20:
            return
    raise AssertionError(f"only {killed} of 100 processes were still at work when they were killed")


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_any_system_call_that_publishes_it_resumes_to_the_same_bytes(
    made: Collection, expected: dict[str, bytes], tmp_path: Path, call: str, moment: str
) -> None:
    for number in (1, 2, 3, 5, 8):
        root = tmp_path / str(number)

        def work(root: Path = root, number: int = number) -> None:
            real, calls = getattr(os, call), iter(range(1, 1000))

            def deadly(*arguments: object, **options: object) -> None:
                last = next(calls) == number
                try:
                    if not (last and moment == "before"):
                        real(*arguments, **options)
                finally:
                    if last:
                        os.kill(os.getpid(), signal.SIGKILL)

            setattr(os, call, deadly)
            made(root)

        assert ended(forked(work)) == -signal.SIGKILL
        check_partial(root, expected)
        check(made, root, expected)


def test_parts_collected_by_several_processes_are_the_same_bytes(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    processes = [forked(lambda part=part: made(tmp_path, part=(part, 3))) for part in range(3)]
    assert [ended(process) for process in processes] == [0] * 3
    assert contents(tmp_path) == expected


def test_parts_collected_one_after_the_other_finish_with_the_last(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert [made(tmp_path, part=(part, 3)) for part in (2, 0, 1)] == [False, False, True]
    assert contents(tmp_path) == expected


def test_processes_at_once_share_the_work_of_one_cache(
    made: Collection, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "POLL_SECONDS", 0.01)
    root, harvested = tmp_path / "root", tmp_path / "harvested"
    real = collect_module.harvest

    def counted(*arguments: object) -> object:
        with harvested.open("a") as file:
            file.write(".")
        return real(*arguments)

    monkeypatch.setattr(collect_module, "harvest", counted)

    def work() -> None:
        assert made(root)

    assert [ended(process) for process in [forked(work) for _ in range(3)]] == [0] * 3
    assert len(harvested.read_text()) == 4  # each shard once
    assert contents(root) == expected


def test_a_shard_that_appears_just_before_it_is_claimed_is_not_made_again(
    made: Collection, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = collect_module.sole_writer

    def late(path: Path) -> AbstractContextManager[bool]:
        if path.suffix == ".h5":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(expected[str(path.relative_to(tmp_path))])
        return real(path)

    monkeypatch.setattr(collect_module, "sole_writer", late)
    monkeypatch.setattr(collect_module, "harvest", None)  # nothing is left to run
    check(made, tmp_path, expected)


def test_two_organisms_at_once_share_the_base(
    made: Collection, base_folder: Path, merged_folder: Path, tmp_path: Path
) -> None:
    other = made.of(ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu"))
    for alone in (made, other):
        assert alone(tmp_path / "apart")
    processes = [forked(lambda each=each: each(tmp_path / "together")) for each in (made, other)]
    assert [ended(process) for process in processes] == [0, 0]
    assert contents(tmp_path / "together") == contents(tmp_path / "apart")


def test_without_locks_on_the_file_system_it_goes_on(
    made: Collection, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    processes = [forked(lambda: made(tmp_path)) for _ in range(2)]
    assert [ended(process) for process in processes] == [0, 0]
    assert contents(tmp_path) == expected


def failing_after(calls: int, real: Callable[..., object]) -> Callable[..., object]:
    """`real`, until the disk is full."""
    left = iter(range(calls))

    def call(*arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("name", ["fsync", "pwrite", "replace"])
@pytest.mark.parametrize("succeed", [0, 1, 5])
def test_a_disk_that_fills_up_leaves_whole_shards_and_nothing_else(
    made: Collection,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    succeed: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing_after(succeed, getattr(os, name)))
        with pytest.raises(StorageFailed, match=r"No space left on device.*infrastructure\.activations_dir"):
            made(tmp_path)
    assert contents(tmp_path).items() <= expected.items()
    check(made, tmp_path, expected)


@pytest.mark.parametrize("room", [100, 4096, 50_000])
def test_a_shard_too_large_for_the_disk_leaves_those_that_fitted(
    made: Collection, expected: dict[str, bytes], tmp_path: Path, room: int
) -> None:
    assert not made(tmp_path, part=(1, 2))
    before = contents(tmp_path)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(StorageFailed, match="File too large"):
            made(tmp_path)

    assert ended(forked(work)) == 0
    assert contents(tmp_path) == before
    check(made, tmp_path, expected)


def test_too_little_space_is_said_before_anything_runs(
    made: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(StorageFailed, match=r"8 missing shards need .* GiB.*infrastructure\.activations_dir"):
        made(tmp_path / "root")
    assert contents(tmp_path / "root") == {}


def test_a_folder_that_may_not_be_written_is_refused_by_name(made: Collection, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match=r"infrastructure\.activations_dir"):
        made(tmp_path / "file")


def test_a_finished_cache_in_a_read_only_folder_is_used_and_an_unfinished_one_refused(
    base_folder: Path, adapter_folder: Path
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter_folder)), device="cpu")
        made = collection(pair, texts(6), folder / "corpus")
        assert made(folder / "finished")
        assert not made(folder / "unfinished", part=(0, 2))
        places = [folder, *folder.rglob("*")]
        for place in places:
            place.chmod(0o555 if place.is_dir() else 0o444)

        def work() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            assert made(folder / "finished")
            with pytest.raises(StorageFailed, match="Permission denied"):
                made(folder / "unfinished")

        before = contents(folder)
        assert ended(forked(work)) == 0
        assert contents(folder) == before
        for place in places:
            place.chmod(0o755)


def test_a_truncated_shard_is_named_and_collected_again_once_deleted(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert made(tmp_path)
    shard = made.folder(Side.FINETUNED, tmp_path) / "shard-00002.h5"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(SchemaMismatch, match=r"shard-00002\.h5.*delete it"):
        made(tmp_path)
    shard.unlink()
    check(made, tmp_path, expected)


def test_a_lost_base_store_is_made_again_from_the_base_alone(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert made(tmp_path)
    store = made.folder(Side.BASE, tmp_path)
    for path in store.iterdir():
        path.unlink()
    check(made, tmp_path, expected)


def test_an_error_of_the_writer_stops_the_collection_at_once(
    made: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def fail(*_: object) -> None:
        raise StorageFailed("gone")

    def on_tokens(tokens: int) -> None:
        told.append(tokens)
        time.sleep(0.02)  # the writer has failed by the next batch

    monkeypatch.setattr(collect_module, "write_sides", fail)
    with pytest.raises(StorageFailed, match="gone"):
        made(tmp_path, batch_tokens=64, on_tokens=on_tokens)
    assert sum(told) < made.tokens.n_tokens / 2  # a quarter is a shard
    assert contents(tmp_path) == {}


def test_an_interrupted_collection_leaves_nothing_unfinished(
    made: Collection, expected: dict[str, bytes], tmp_path: Path
) -> None:
    told: list[int] = []

    def interrupt(tokens: int) -> None:
        told.append(tokens)
        if sum(told) > made.tokens.n_tokens / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, on_tokens=interrupt)
    assert 0 < len(contents(tmp_path)) < len(expected)
    assert contents(tmp_path).items() <= expected.items()
    check(made, tmp_path, expected)
    cache = ActivationCache(*(made.folder(side, tmp_path) for side in Side))
    assert cache.n_rows == SideStore(made.folder(Side.BASE, tmp_path)).n_rows
