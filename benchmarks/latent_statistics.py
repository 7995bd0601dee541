"""All latent statistics in one pass, against the time of encoding the same rows.

    python benchmarks/latent_statistics.py [--rows 1000000] [--rounds 1] [--latents 4608] [--k 32]

Writes a cache of bfloat16 pairs (d_model 576) and makes a random SAE of the difference and a random crosscoder, with a
threshold that lets k latents be active in a row on average. Both passes read the cache from the page cache in blocks of
2048 rows, in interleaved rounds. Prints medians over them, and that of their ratios, and the peak memory, which is
reached while the cache is written: both sides are made at once. To be held: 1.5 times the encode pass. OMP_NUM_THREADS
sets the threads.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.peak import own_peak_mib
from diffing.activations.loader import StoredRows
from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.learners.base import Recipe
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.lenses.latents import latent_statistics
from tests.activations.stores import write_cache

LAYER, D_MODEL, BLOCK, DOCUMENT_ROWS = 0, 576, 2048, 500


def write(root: Path, n_rows: int) -> ActivationCache:
    """A cache of random rows, of which both sides are in memory while it is written."""
    n_rows = n_rows // DOCUMENT_ROWS * DOCUMENT_ROWS
    base = torch.randn(n_rows, D_MODEL, dtype=torch.bfloat16)
    finetuned = torch.randn(n_rows, D_MODEL, dtype=torch.bfloat16).mul_(0.5).add_(base)
    lengths = [DOCUMENT_ROWS + 1] * (n_rows // DOCUMENT_ROWS)
    return write_cache(root, {LAYER: base}, {LAYER: finetuned}, lengths, documents_per_shard=200)


def random_dictionary(cache: ActivationCache, stream: Stream | None, n_latents: int, k: int) -> Dictionary:
    made, kind = (Crosscoder, "crosscoder") if stream is None else (SAE, "sae")
    settings = made.settings_of(Sparsity(n_latents, k))
    dictionary = made(Recipe.of(kind, [cache], LAYER, stream, settings))
    for matrix in (dictionary.encoder, dictionary.decoder):
        matrix.copy_(torch.randn_like(matrix) / matrix.shape[1] ** 0.5)
    rows = dictionary.recipe.rows(*cache.read(LAYER, 0, BLOCK))
    weight = dictionary.score_weight()
    scores = dictionary.pre_activations(dictionary.normalise(rows)) * (1.0 if weight is None else weight)
    dictionary.threshold.copy_(scores.flatten().topk(BLOCK * k).values[-1])
    return dictionary


def encode(dictionary: Dictionary, cache: ActivationCache) -> int:
    """How many latent values all rows have; each block's are dropped when the next comes."""
    n_active = 0
    with torch.no_grad():
        for batch in StoredRows([cache], LAYER, BLOCK):
            n_active += len(dictionary.codes(dictionary.recipe.rows(batch.base, batch.finetuned)).values)
    return n_active


def row(cache: ActivationCache, dictionary: Dictionary, n_rounds: int) -> str:
    """The columns of a dictionary."""
    rounds = []
    for _ in range(n_rounds):
        start = time.perf_counter()
        n_active = encode(dictionary, cache)
        middle = time.perf_counter()
        statistics = latent_statistics(dictionary, [cache])
        rounds.append((middle - start, time.perf_counter() - middle))
        assert int(statistics.n_active.sum()) == n_active
    ratio = median(ours / plain for plain, ours in rounds)
    times = " | ".join(f"{median(column):.1f}" for column in zip(*rounds, strict=True))
    return f"{n_active / cache.n_rows:.1f} | {times} | {ratio:.2f}"


def main() -> None:
    """Command line: see above."""
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 1_000_000), ("rounds", 1), ("latents", 4608), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = write(Path(folder), args.rows)
        print(f"{cache.n_rows:,} rows of width {D_MODEL}, {args.latents} latents, {torch.get_num_threads()} threads\n")
        print("| dictionary | active per row | encode, s | statistics, s | ratio |\n|---|---|---|---|---|")
        for name, stream in (("SAE", Stream.DIFFERENCE), ("crosscoder", None)):
            dictionary = random_dictionary(cache, stream, args.latents, args.k)
            print(f"| {name} | {row(cache, dictionary, args.rounds)} |", flush=True)
        print(f"\npeak memory: {own_peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
