"""Training a dictionary from an activation cache on disk, against the same loop on rows in memory.

    python benchmarks/training_loop.py [--rounds 3] [--steps 64] [--rows 200000] [--folder FOLDER]

Writes a cache of random bfloat16 pairs (d_model 576), which stays in the page cache, and trains dictionaries of 4608
latents, k=32, on batches of 2048 rows. "Cache" is `diffing.learners.training.train`: shuffled batches read by a thread
of their own. "Memory" is the same module under the same Trainer for the same steps, given views of consecutive rows of
tensors, so it pays nothing for its input. Both take turns, each first in every other round; the ratio is the median
over rounds of the two rates of one round, 1 means that the cache costs nothing. Times are those of the whole call, the
first read included. "Stall" is the share of it in which a step waited for a read. To be held: 0.95. OMP_NUM_THREADS
sets the threads of the products; reading takes one more.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import LightningDataModule

from benchmarks.latent_statistics import D_MODEL, LAYER, write
from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.loader import ActivationBatch
from diffing.activations.store import ActivationCache
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.fitting import fit
from diffing.learners.sae import SAE
from diffing.learners.schedules import Training
from diffing.learners.training import DictionaryFit, train

LATENTS, K, BATCH = 8 * D_MODEL, 32, 2048
WARM_UP_STEPS = 3
TARGET = 0.95
CASES: list[tuple[str, type[Dictionary], str]] = [
    ("TopK SAE of the difference", SAE, "top_k"),
    ("BatchTopK SAE of the difference", SAE, "batch_top_k"),
    ("BatchTopK crosscoder", Crosscoder, "batch_top_k"),
]


class RowsInMemory(LightningDataModule):
    """Batches of consecutive rows of a cache that was read before, over and over."""

    def __init__(self, cache: ActivationCache):
        super().__init__()
        numbers = torch.arange(cache.n_rows)
        self.rows = ActivationBatch(*cache.read(LAYER, 0, cache.n_rows), torch.zeros_like(numbers), numbers)

    def train_dataloader(self) -> "RowsInMemory":
        return self

    def __iter__(self) -> Iterator[ActivationBatch]:
        for number in count():
            start = number % (len(self.rows) // BATCH) * BATCH
            yield self.rows[start : start + BATCH]


def fitting_of(cache: ActivationCache, kind: type[Dictionary], activation: str, steps: int) -> DictionaryFit:
    settings = Training(batch_size=BATCH, epochs=10**6, max_steps=steps)
    return DictionaryFit.of(kind, [cache], LAYER, Sparsity(LATENTS, K, activation), settings)


def from_cache(fitting: DictionaryFit, cache: ActivationCache) -> tuple[float, float]:
    """Seconds of a training, and how many of them it waited for rows."""
    since = time.perf_counter()
    train(fitting, [cache])
    seconds = time.perf_counter() - since
    data = fitting.trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ActivationDataModule)
    assert data.rows is not None
    return seconds, data.rows.stall_seconds


def from_memory(fitting: DictionaryFit, rows: RowsInMemory) -> float:
    """Seconds of what `train` does, on other rows."""
    since = time.perf_counter()
    fit(fitting, rows, max_steps=fitting.steps)
    fitting.dictionary()
    return time.perf_counter() - since


def row(
    cache: ActivationCache, memory: RowsInMemory, kind: type[Dictionary], activation: str, steps: int, rounds: int
) -> str:
    """The columns of a case."""
    from_cache(fitting_of(cache, kind, activation, WARM_UP_STEPS), cache)
    from_memory(fitting_of(cache, kind, activation, WARM_UP_STEPS), memory)
    plain, ours, stalls = [], [], []
    for number in range(rounds):
        for turn in range(2):
            fitting = fitting_of(cache, kind, activation, steps)
            if (turn + number) % 2:
                seconds, stalled = from_cache(fitting, cache)
                ours.append(seconds)
                stalls.append(stalled / seconds)
            else:
                plain.append(from_memory(fitting, memory))
    n_rows = steps * BATCH
    ratio = median(a / b for a, b in zip(plain, ours, strict=True))
    return f"{n_rows / median(plain):,.0f} | {n_rows / median(ours):,.0f} | {ratio:.3f} | {median(stalls):.1%}"


def main() -> None:
    """Command line: see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rows", type=int, default=200_000, help="of the cache; several pools of the loader")
    parser.add_argument("--folder", type=Path, help="where to write; by default the folder for temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        cache = write(Path(folder), args.rows)
        memory = RowsInMemory(cache)
        load = "/".join(f"{one:.1f}" for one in os.getloadavg())
        print(
            f"{D_MODEL} -> {LATENTS:,}, k={K}, batches of {BATCH:,} of {cache.n_rows:,} rows, {args.steps} steps, "
            f"{args.rounds} rounds, {torch.get_num_threads()} threads, load {load}\n"
        )
        print(f"| dictionary | memory, rows/s | cache, rows/s | ratio (bar {TARGET}) | stall |\n|---|---|---|---|---|")
        for name, kind, activation in CASES:
            print(f"| {name} | {row(cache, memory, kind, activation, args.steps, args.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
