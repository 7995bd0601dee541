"""Streaming PCA against the incremental ones of scikit-learn and TorchDR, on the same rows in memory.

    pip install -c constraints.txt -e .[benchmarks]
    python benchmarks/pca.py [rows] [width] [rounds]

All keep all components. The peers get batches of 32,768 rows and of their default size. Rounds are interleaved; times
and ratios are medians over them. The error is the largest relative one among the 64 largest variances, against float64
products of all rows. OMP_NUM_THREADS sets the threads.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.decomposition import IncrementalPCA as SklearnPCA
from torch import Tensor
from torchdr import IncrementalPCA as TorchdrPCA

from diffing.axes import Stream
from diffing.learners.base import Recipe
from diffing.learners.pca import PCAFit

BATCH = 32_768
Case = tuple[str, Callable[[Tensor, int | None], Tensor], int | None]


def made(n_rows: int, width: int) -> Tensor:
    """Rows with variances that fall by powers, in random directions, around a mean larger than most of them."""
    random = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    scales = torch.arange(1, width + 1).pow(-0.5)[:, None] * 10
    mean = 5 * torch.randn(width, generator=random)
    rows = torch.empty(n_rows, width)
    for part in rows.split(BATCH):
        torch.addmm(mean, torch.randn(len(part), width, generator=random), scales * rotation, out=part)
    return rows


def exact(rows: Tensor) -> Tensor:
    """Population variances along the principal components, largest first."""
    mean = rows.mean(0, dtype=torch.float64)
    products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(BATCH):
        centred = part.double() - mean
        products += centred.T @ centred
    return torch.linalg.eigvalsh(products / len(rows)).flip(0)


def ours(rows: Tensor, batch: int | None) -> Tensor:
    recipe = Recipe("pca", "", "", 0, Stream.DIFFERENCE, rows.shape[1], [], {"n_components": rows.shape[1]})
    fit = PCAFit(recipe, rows[:BATCH].mean(0))
    for part in rows.split(batch or len(rows)):
        fit.update(part)
    return fit.solve().variances


def sklearn(rows: Tensor, batch: int | None) -> Tensor:
    return _population(SklearnPCA(batch_size=batch).fit(rows.numpy()).explained_variance_, rows)


def torchdr(rows: Tensor, batch: int | None) -> Tensor:
    fitted = TorchdrPCA(n_components=rows.shape[1], batch_size=batch, device="cpu").fit(rows)
    return _population(fitted.explained_variance_, rows)


def _population(variances: Tensor | np.ndarray, rows: Tensor) -> Tensor:
    return torch.as_tensor(variances).double() * (len(rows) - 1) / len(rows)


CASES: Sequence[Case] = (
    ("this project", ours, BATCH),
    ("scikit-learn IncrementalPCA", sklearn, BATCH),
    ("scikit-learn IncrementalPCA", sklearn, None),
    ("TorchDR IncrementalPCA", torchdr, BATCH),
    ("TorchDR IncrementalPCA", torchdr, None),
)


def main() -> None:
    """Command line: see above."""
    n_rows, width, rounds = (int(value) for value in (sys.argv[1:] + ["200000", "576", "3"][len(sys.argv) - 1 :]))
    rows = made(n_rows, width)
    truth = exact(rows)[:64]
    seconds: list[list[float]] = [[] for _ in CASES]
    errors = [0.0 for _ in CASES]
    for _ in range(rounds):
        for case, (_, run, batch) in enumerate(CASES):
            since = time.perf_counter()
            variances = run(rows, batch)
            seconds[case].append(time.perf_counter() - since)
            errors[case] = max(errors[case], float(((variances[:64] - truth) / truth).abs().max()))
    print(f"{n_rows:,} x {width} float32, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| implementation | batch | s | times ours | error |\n|---|---|---|---|---|")
    for case, (name, _, batch) in enumerate(CASES):
        ratio = statistics.median(own / first for own, first in zip(seconds[case], seconds[0], strict=True))
        size = "default" if batch is None else f"{batch:,}"
        print(f"| {name} | {size} | {statistics.median(seconds[case]):.2f} | {ratio:.1f} | {errors[case]:.0e} |")


if __name__ == "__main__":
    main()
