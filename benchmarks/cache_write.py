"""Rate of writing a shard of activations against a plain file of the same rows, in one run.

    python benchmarks/cache_write.py [--mib 512] [--rounds 7] [--folder FOLDER]

Both write the same bfloat16 rows to a new file of the same folder, taking turns, each first in every other round. The
ratio is the median over rounds of the two rates of one round; 1 means that HDF5 costs nothing. "Synced" counts the
fsync of the file and of its folder, and the rename, on both. Printed too: how fast the moments are computed that a
shard holds, which a collection does on the same thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffing.activations.files import publish_file, write_all
from diffing.activations.hdf5 import Documents, write_shard
from diffing.activations.moments import Moments
from diffing.axes import Stream
from diffing.specs import CacheSpec, CorpusSpec, ModelSpec, TokensSpec

D_MODEL, TOKENS = 576, 512
TARGET = 0.85
SPEC = CacheSpec(TokensSpec(CorpusSpec("rows", "file", "rows.jsonl"), "none"), ModelSpec("none", "none"), None, [0, 1])


def plain(path: Path, rows: dict[int, Tensor]) -> None:
    """The rows one after the other, in as few system calls as the system allows."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    offset = 0
    for values in rows.values():
        raw = values.view(torch.uint8).numpy().reshape(-1)
        write_all(descriptor, raw, offset)
        offset += len(raw)
    os.close(descriptor)


def shard(path: Path, rows: dict[int, Tensor], moments: dict[int, Moments]) -> None:
    """The same rows as documents of `TOKENS` tokens, all kept."""
    n_rows = len(rows[0])
    bounds = torch.arange(0, n_rows + 1, TOKENS)
    documents = Documents(torch.zeros(n_rows, dtype=torch.int32), bounds, bounds)
    write_shard(
        path, spec=SPEC, shard=0, first_document=0, first_row=0, documents=documents, rows=rows,
        moments={Stream.BASE: moments},
    )  # fmt: skip


def seconds(write: Callable[[Path], None], folder: Path, synced: bool) -> float:
    """Of one write to a new file."""
    temporary, final = folder / "temporary", folder / "final"
    start = time.perf_counter()
    write(temporary)
    if synced:
        publish_file(temporary, final)
    took = time.perf_counter() - start
    temporary.unlink(missing_ok=True)
    final.unlink(missing_ok=True)
    return took


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="of rows, over two layers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary one")
    options = parser.parse_args()
    n_rows = options.mib * 2**20 // (2 * 2 * D_MODEL) // TOKENS * TOKENS
    rows = {layer: torch.randn(n_rows, D_MODEL).bfloat16() for layer in SPEC.layers}
    start = time.perf_counter()
    moments = {layer: Moments.of(values) for layer, values in rows.items()}
    rate = 2 * n_rows / (time.perf_counter() - start)
    print(f"moments: {rate / 1e6:.2f}M rows/s of width {D_MODEL}, {torch.get_num_threads()} thread(s)\n")
    n_bytes = sum(values.nbytes for values in rows.values())
    writers = {"plain": lambda path: plain(path, rows), "shard": lambda path: shard(path, rows, moments)}
    print(f"| {n_bytes / 2**20:.0f} MiB | plain file, GB/s | shard, GB/s | ratio, median of {options.rounds} |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for synced in (False, True):
            took: dict[str, list[float]] = {name: [] for name in writers}
            for number in range(options.rounds + 1):
                for name in sorted(writers, reverse=bool(number % 2)):
                    took[name].append(seconds(writers[name], Path(folder), synced))
            kept = {name: times[1:] for name, times in took.items()}  # the first round warms the disk up
            ratio = statistics.median(a / b for a, b in zip(kept["plain"], kept["shard"], strict=True))
            rates = [f"{n_bytes / 1e9 / statistics.median(kept[name]):.2f}" for name in writers]
            print(f"| {'synced' if synced else 'buffered'} | {rates[0]} | {rates[1]} | {ratio:.2f} (bar {TARGET}) |")


if __name__ == "__main__":
    main()
