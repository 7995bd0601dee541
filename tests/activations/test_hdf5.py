import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffing.activations.files import OpenFile, publish_file
from diffing.activations.hdf5 import CHUNK_ROWS, ShardReader, write_shard
from diffing.activations.moments import Moments
from diffing.axes import Stream
from diffing.errors import MissingInput, SchemaMismatch, StorageFailed
from diffing.specs import CacheSpec
from tests.activations.stores import cache_spec, documents_of

DTYPES = ("bfloat16", "float16", "float32")
BITS = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32}


def write(
    path: Path,
    rows: dict[int, Tensor],
    lengths: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    spec: CacheSpec | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Path:
    first = next(iter(rows.values()))
    kept = [len(first)] if kept is None else kept
    spec = spec or cache_spec(tuple(rows), str(first.dtype).removeprefix("torch."), finetuned=None)
    moments = {Stream.BASE: {layer: Moments.of(values) for layer, values in rows.items()}}
    documents = documents_of(kept if lengths is None else lengths, kept)
    write_shard(
        path, spec=spec, shard=3, first_document=20, first_row=700, documents=documents, rows=rows,
        moments=moments, chunk_rows=chunk_rows,
    )  # fmt: skip
    return path


def noise(n_rows: int, d_model: int = 6, dtype: str = "float32", seed: int = 0) -> Tensor:
    """Random bits: NaN with payloads, infinities, subnormals and both zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.iinfo(BITS[dtype])
    bits = torch.randint(info.min, info.max + 1, (n_rows, d_model), generator=generator, dtype=torch.int64)
    return bits.to(BITS[dtype]).view(getattr(torch, dtype))


def assert_bits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    bits = BITS[str(expected.dtype).removeprefix("torch.")]
    assert torch.equal(found.view(bits), expected.view(bits))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=12),
    dtype=st.sampled_from(DTYPES),
    d_model=st.integers(1, 9),
    chunk_rows=st.sampled_from([1, 3, 16, CHUNK_ROWS]),
    data=st.data(),
)
def test_what_was_written_is_read_back_bit_by_bit(
    tmp_path: Path, documents: list[tuple[int, int]], dtype: str, d_model: int, chunk_rows: int, data: st.DataObject
) -> None:
    kept = [rows for _, rows in documents]
    lengths = [skipped + rows for skipped, rows in documents]
    rows = {layer: noise(sum(kept), d_model, dtype, seed=layer) for layer in (2, 11)}
    reader = ShardReader(write(tmp_path / "a.h5", rows, lengths, kept, chunk_rows=chunk_rows))
    start = data.draw(st.integers(0, sum(kept)))
    stop = data.draw(st.integers(start, sum(kept)))
    for layer, values in rows.items():
        assert_bits(reader.read(layer, 0, sum(kept)), values)
        assert_bits(reader.read(layer, start, stop), values[start:stop])
    expected, found = documents_of(lengths, kept), reader.documents()
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("ids", "offsets", "rows"))
    assert torch.equal(reader.document_rows(), expected.rows)


def test_header_and_moments_are_read_back(tmp_path: Path) -> None:
    rows = {2: torch.randn(700, 6).bfloat16(), 11: torch.randn(700, 6).bfloat16()}
    reader = ShardReader(write(tmp_path / "a.h5", rows, [400, 301], [400, 300]))
    header, spec = reader.header, cache_spec((2, 11), "bfloat16", finetuned=None)
    assert (header.shard, header.first_document, header.first_row) == (3, 20, 700)
    assert (header.n_documents, header.n_rows, header.d_model) == (2, 700, 6)
    assert (header.layers, header.dtype, header.digest) == ((2, 11), torch.bfloat16, spec.digest)
    found, expected = reader.moments(Stream.BASE, 11), Moments.of(rows[11])
    assert found.count == 700
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.m2, expected.m2)
    with pytest.raises(MissingInput, match="difference"):
        reader.moments(Stream.DIFFERENCE, 2)
    with pytest.raises(MissingInput, match="stored: 2, 11"):
        reader.read(5, 0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_ordinary_hdf5_reader_sees_the_same_rows(tmp_path: Path, dtype: str) -> None:
    rows = torch.randn(1300, 6).to(getattr(torch, dtype))
    with h5py.File(write(tmp_path / "a.h5", {4: rows})) as file:
        dataset = file["layers/4"]
        assert dataset.chunks == (CHUNK_ROWS, 6)
        assert dataset.attrs["dtype"] == dtype
        assert_bits(torch.from_numpy(dataset[:]).view(rows.dtype), rows)


def test_rows_go_straight_into_a_slice_of_a_given_tensor(tmp_path: Path) -> None:
    rows = noise(1300, dtype="bfloat16")
    reader = ShardReader(write(tmp_path / "a.h5", {0: rows}))
    pool = torch.zeros(1000, 6, dtype=torch.bfloat16)
    returned = reader.read(0, 400, 1200, out=pool[100:900])
    assert returned.data_ptr() == pool[100:].data_ptr()
    assert_bits(pool[100:900], rows[400:1200])
    assert not pool[:100].any()
    assert not pool[900:].any()


def test_an_out_tensor_that_does_not_fit_and_rows_out_of_range_are_refused(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path / "a.h5", {0: torch.randn(10, 6)}))
    for out in (torch.zeros(9, 6), torch.zeros(10, 6).half(), torch.zeros(6, 10).T, torch.zeros(10, 5)):
        with pytest.raises(ValueError, match="expected contiguous"):
            reader.read(0, 0, 10, out=out)
    for start, stop in ((0, 11), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            reader.read(0, start, stop)


def test_chunks_that_do_not_lie_next_to_each_other_are_read_too(tmp_path: Path) -> None:
    rows, path = torch.randn(64, 3), tmp_path / "a.h5"
    write(path, {0: rows, 1: rows}, chunk_rows=16)
    with h5py.File(path, "r+") as file:
        for layer in (0, 1):
            del file[f"layers/{layer}"]
            file.create_dataset(f"layers/{layer}", shape=(64, 3), chunks=(16, 3), dtype="<f4")
        for chunk in (2, 0, 3, 1):
            for layer in (0, 1):
                file[f"layers/{layer}"][16 * chunk : 16 * chunk + 16] = rows[16 * chunk : 16 * chunk + 16].numpy()
                file.flush()
    assert_bits(ShardReader(path).read(1, 5, 60), rows[5:60])


def test_two_writes_a_second_apart_give_the_same_bytes(tmp_path: Path) -> None:
    rows = {layer: torch.randn(1300, 6, generator=torch.Generator().manual_seed(layer)) for layer in (0, 3)}
    first = write(tmp_path / "a.h5", rows).read_bytes()
    time.sleep(1.1)
    assert write(tmp_path / "b.h5", rows).read_bytes() == first


def test_short_names_and_moved_folders_change_no_byte(tmp_path: Path) -> None:
    rows = {0: torch.randn(20, 6)}
    spec = cache_spec(finetuned=None)
    here = replace(spec, base=replace(spec.base, id="/here", revision="sha256:12"))
    there = replace(spec, base=replace(spec.base, id="/there", name="other", revision="sha256:12"))
    first = write(tmp_path / "a.h5", rows, spec=here).read_bytes()
    assert write(tmp_path / "b.h5", rows, spec=there).read_bytes() == first
    assert b"/here" not in first


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_truncated_shard_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.h5", {0: torch.randn(1300, 6)})
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(SchemaMismatch, match=r"a\.h5 is not a complete shard .* delete it") as caught:
        ShardReader(path).read(0, 0, 1300)
    assert "run the same command again" in str(caught.value)


def test_a_shard_that_is_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {0: torch.randn(1300, 6)})
    reader = ShardReader(path)
    assert reader.header.n_rows == 1300
    os.truncate(path, path.stat().st_size - 20_000)
    with pytest.raises(SchemaMismatch, match="the file ends before its rows do"):
        reader.read(0, 0, 1300)


def test_foreign_files_and_other_layouts_are_refused_and_missing_ones_are_missing(tmp_path: Path) -> None:
    text, other = tmp_path / "text.h5", tmp_path / "other.h5"
    text.write_text("not HDF5")
    with h5py.File(other, "w") as file:
        file["x"] = 1
    newer = write(tmp_path / "newer.h5", {0: torch.randn(5, 3)})
    with h5py.File(newer, "r+") as file:
        file.attrs["layout_version"] = 2
    filtered = write(tmp_path / "filtered.h5", {0: torch.randn(5, 3)})
    with h5py.File(filtered, "r+") as file:
        del file["layers/0"]
        file.create_dataset("layers/0", shape=(5, 3), chunks=(5, 3), dtype="<f4", compression="gzip")
    for path, found in ((text, "signature"), (other, "version is none"), (newer, "version is 2"), (filtered, "filter")):
        with pytest.raises(SchemaMismatch, match=found):
            _ = ShardReader(path).header
    with pytest.raises(MissingInput, match="is missing"):
        _ = ShardReader(tmp_path / "none.h5").header


def test_parts_that_do_not_fit_together_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows, path = torch.randn(10, 3), tmp_path / "a.h5"
    spec = cache_spec((0,), finetuned=None)
    for wrong in (
        lambda: write(path, {0: rows}, kept=[9]),
        lambda: write(path, {0: rows}, lengths=[4], kept=[10]),
        lambda: write(path, {1: rows}, spec=spec),
        lambda: write(path, {0: rows.double()}, spec=spec),
        lambda: write(path, {0: rows}, spec=cache_spec((0,))),
    ):
        with pytest.raises(SchemaMismatch):
            wrong()
        assert not path.exists()


def test_a_reader_works_after_pickling_in_threads_and_in_a_forked_process(tmp_path: Path) -> None:
    rows = noise(4000, dtype="bfloat16")
    reader = ShardReader(write(tmp_path / "a.h5", {0: rows}))
    wrong: list[int] = []

    def check(start: int) -> None:
        for _ in range(20):
            found = reader.read(0, start, start + 500)
            if not torch.equal(found.view(torch.int16), rows[start : start + 500].view(torch.int16)):
                wrong.append(start)

    threads = [threading.Thread(target=check, args=(start,)) for start in range(0, 3500, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_bits(pickle.loads(pickle.dumps(reader)).read(0, 7, 90), rows[7:90])
    child = os.fork()
    if child == 0:
        same = torch.equal(reader.read(0, 7, 90).view(torch.int16), rows[7:90].view(torch.int16))
        os._exit(0 if same and reader.documents().rows[-1] == 4000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_open_file_closes_with_its_last_user(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    opened = OpenFile(path)
    descriptor = opened.descriptor
    assert os.fstat(descriptor).st_size == 1
    del opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_publishing_replaces_in_one_step_and_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    temporary, final = tmp_path / "new", tmp_path / "final"
    temporary.write_text("new")
    final.write_text("old")
    publish_file(temporary, final)
    assert final.read_text() == "new"
    assert not temporary.exists()
    temporary.write_text("newer")
    with pytest.raises(StorageFailed, match=r"infrastructure\.activations_dir"):
        publish_file(temporary, tmp_path / "gone" / "final")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from tests.activations.test_hdf5 import write
from diffing.errors import StorageFailed
path, rows = Path(sys.argv[1]), {0: torch.zeros(20_000, 8), 1: torch.zeros(20_000, 8)}
for limit in (1000, 30_000, 100_000, 1_000_000, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(path, rows, [20_000], [20_000])
    except StorageFailed as error:
        print("refused" if not path.exists() else "left behind", error)
    else:
        print("written")
"""


def test_a_disk_that_refuses_midway_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["refused"] * 4 + ["written"]
    assert all(str(path) in line and "infrastructure.activations_dir" in line for line in said[:4])
    assert not ShardReader(path).read(1, 0, 20_000).any()
