"""Shuffled batches from an activation cache, against a sequential read of the same bytes and against a row at a time.

    python benchmarks/cache_read.py [--rows 800000] [--rounds 5] [--folder FOLDER]

Writes a cache of bfloat16 pairs (d_model 576) and the same bytes as a plain file, and reads both from the page cache in
interleaved rounds, batches of 2048 rows. Prints the medians, their ratio to two sequential reads through a memmap,
and the peak memory of one epoch over a corpus of a quarter of the rows and over all of them, each in a process of its
own (Linux). One sequential read gives an array per batch, which its user may keep, as the loader does; the other copies
every batch into one buffer, which never leaves the processor's cache. A gather of random rows from a pool in memory,
without any file, shows what shuffling itself costs: no loader that shuffles rows is faster. To be held: half of the
sequential rate, ten times a row at a time, 400 000 pairs a second, flat memory.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.peak import own_peak_mib
from diffing.activations.loader import POOL_ROWS, ShuffledRows
from diffing.activations.store import ActivationCache
from tests.activations.stores import write_cache

LAYER, D_MODEL, BATCH, DOCUMENT_ROWS, SHARD_DOCUMENTS = 0, 576, 2048, 500, 200
ROW_BYTES = 2 * 2 * D_MODEL
SINGLE_ROWS = 20_000
SHUFFLED, SINGLE = "shuffled batches", "shuffled, one row at a time"
SEQUENTIAL, BUFFER = "sequential, memmap, an array per batch", "sequential, memmap, into one buffer"
GATHER = "random rows of a pool in memory"


def write(root: Path, n_rows: int) -> ActivationCache:
    """A cache of random rows under `root`, and the bytes of both sides in `plain.bin`."""
    base = torch.randn(n_rows, D_MODEL).bfloat16()
    finetuned = base + 1
    with (root / "plain.bin").open("wb") as plain:
        for rows in (base, finetuned):
            plain.write(rows.view(torch.uint16).numpy().data)
    lengths = [DOCUMENT_ROWS + 1] * (n_rows // DOCUMENT_ROWS)
    return write_cache(root, {LAYER: base}, {LAYER: finetuned}, lengths, documents_per_shard=SHARD_DOCUMENTS)


def shuffled(loader: ShuffledRows) -> int:
    return sum(len(batch) for batch in loader)


def sequential(path: Path) -> int:
    """Copies the file through a mapping, the rows of a batch at a time, each into an array of its own."""
    mapped = np.memmap(path, np.uint16, "r").reshape(-1, 2 * D_MODEL)
    return sum(len(np.array(mapped[start : start + BATCH])) for start in range(0, len(mapped), BATCH))


def buffered(path: Path) -> int:
    """The same into one array."""
    mapped = np.memmap(path, np.uint16, "r").reshape(-1, 2 * D_MODEL)
    kept = np.empty((BATCH, 2 * D_MODEL), np.uint16)
    for start in range(0, len(mapped), BATCH):
        part = mapped[start : start + BATCH]
        np.copyto(kept[: len(part)], part)
    return len(mapped)


def gather(base: Tensor, finetuned: Tensor) -> int:
    """Batches of random rows of both sides."""
    order = torch.randperm(len(base))
    for rows in order.split(BATCH):
        assert len(base.index_select(0, rows)) == len(finetuned.index_select(0, rows))
    return len(order)


def single(cache: ActivationCache) -> int:
    """Batches stacked from rows that are read one by one."""
    order = torch.randperm(cache.n_rows)[:SINGLE_ROWS].tolist()
    for start in range(0, len(order), BATCH):
        rows = [cache.read(LAYER, row, row + 1) for row in order[start : start + BATCH]]
        base, finetuned = (torch.cat(side) for side in zip(*rows, strict=True))
        assert len(base) == len(finetuned) == len(rows)
    return len(order)


def rate(read: Callable[[], int]) -> float:
    """Rows a second."""
    since = time.perf_counter()
    rows = read()
    return rows / (time.perf_counter() - since)


def speed(cache: ActivationCache, plain: Path, rounds: int) -> None:
    """Prints the table of rates."""
    loader = ShuffledRows([cache], LAYER, BATCH)
    pool = [torch.randn(POOL_ROWS, D_MODEL).bfloat16() for _ in range(2)]
    reads: dict[str, Callable[[], int]] = {
        SHUFFLED: lambda: shuffled(loader),
        SINGLE: lambda: single(cache),
        SEQUENTIAL: lambda: sequential(plain),
        BUFFER: lambda: buffered(plain),
        GATHER: lambda: gather(*pool),
    }
    found: dict[str, list[float]] = {name: [] for name in reads}
    seconds, stalls = 0.0, 0.0
    for number in range(rounds + 1):  # the first only fills the page cache
        for name, read in reads.items():
            since, stalled = time.perf_counter(), loader.stall_seconds
            found[name].append(rate(read))
            if name == SHUFFLED and number:
                seconds += time.perf_counter() - since
                stalls += loader.stall_seconds - stalled
    print(
        "| read | pairs/s | GB/s | of an array per batch | of one buffer | of the gather |\n|---|---|---|---|---|---|"
    )
    for name in reads:
        middle = median(found[name][1:])
        shares = (
            median([a / b for a, b in zip(found[name], found[other], strict=True)][1:])
            for other in (SEQUENTIAL, BUFFER, GATHER)
        )
        told = " | ".join(f"{share:.3f}" for share in shares)
        print(f"| {name} | {middle:,.0f} | {middle * ROW_BYTES / 1e9:.2f} | {told} |")
    times = median(a / b for a, b in list(zip(found[SHUFFLED], found[SINGLE], strict=True))[1:])
    print(f"\nshuffled batches / one row at a time: {times:.0f}; waiting for the reader: {stalls / seconds:.0%} of it")


def peak_mib(cache: ActivationCache) -> float:
    """Peak resident memory of a fresh process that reads one epoch of a cache."""
    command = [sys.executable, __file__, "--epoch", str(cache.base.folder), str(cache.finetuned.folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default the folder for temporary files")
    parser.add_argument("--epoch", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.epoch is not None:
        shuffled(ShuffledRows([ActivationCache(*chosen.epoch)], LAYER, BATCH))
        print(own_peak_mib())
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as root:
        caches = []
        for size in (chosen.rows // 4, chosen.rows):
            folder = Path(root) / str(size)
            folder.mkdir()
            caches.append(write(folder, size // DOCUMENT_ROWS * DOCUMENT_ROWS))
        speed(caches[1], folder / "plain.bin", chosen.rounds)
        peaks = [peak_mib(cache) for cache in caches]
        print(
            f"peak memory, MiB: {peaks[0]:.0f} for {caches[0].n_rows:,} pairs, {peaks[1]:.0f} for {caches[1].n_rows:,}"
        )


if __name__ == "__main__":
    main()
