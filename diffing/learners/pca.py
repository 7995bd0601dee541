"""Principal components of one stream, exactly, in one pass over any number of rows.

The pass sums the rows and their outer products; one eigendecomposition at the end does the rest. Memory is
O(d_model^2), and sums of parts add up to those of the whole, so ranks and corpora merge by addition. Rows are shifted
by a mean known beforehand, so that float32 products do not lose small variances under a large mean; sums over pieces
are float64. What rounding leaves is an error of any variance of about 1e-8 of the largest one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Float64, Int64
from lightning.pytorch import LightningModule
from torch import Tensor, distributed

from diffing.activations.loader import ActivationBatch
from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.errors import EmptyCorpus, InvalidSetting, NonFiniteActivations, ZeroVariance
from diffing.learners.base import Learner, Recipe
from diffing.learners.pace import Pace

PIECE_ROWS = 2048
"""Rows multiplied at a time: few enough for a processor's cache and for float32 sums."""
BLOCKS = 6
"""Blocks of columns. Those below the diagonal are not computed: 7/12 of the products are left."""


class PCA(Learner):
    """Principal components, largest variance first. A score is the projection of a row less the mean."""

    mean: Float[Tensor, " d_model"]
    components: Float[Tensor, "latent d_model"]
    """Orthonormal rows. The entry of largest magnitude of each is positive."""
    variances: Float64[Tensor, " latent"]
    """Of the scores, population. Components of variance 0 are arbitrary directions of an empty space."""
    total_variance: Float64[Tensor, ""]
    """Over all d_model components, kept or not."""
    n_rows: Int64[Tensor, ""]

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        n_components = cast(int, recipe.settings["n_components"])
        self.register_buffer("mean", torch.zeros(recipe.d_model))
        self.register_buffer("components", torch.zeros(n_components, recipe.d_model))
        self.register_buffer("variances", torch.zeros(n_components, dtype=torch.float64))
        self.register_buffer("total_variance", torch.zeros((), dtype=torch.float64))
        self.register_buffer("n_rows", torch.zeros((), dtype=torch.int64))

    def encode(self, rows: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch latent"]:
        """Scores in float32, whatever the rows are stored in."""
        return (rows.to(self.mean.dtype) - self.mean) @ self.components.T

    def directions(self, side: Side) -> Float[Tensor, "latent d_model"]:
        """The components, on either side: a direction of the difference is one of the stream that it is added to."""
        return self.components


class PCAFit(LightningModule):
    """The pass. Under Lightning, `fit` feeds it and merges ranks; without, call `update` for every batch.

    One instance sums one pass: what is fed twice counts twice.
    """

    shift: Float[Tensor, " d_model"]
    sums: Float64[Tensor, " d_model"]
    """Of the shifted rows."""
    products: Float64[Tensor, "d_model d_model"]
    """Of the shifted rows with themselves; below the diagonal only what the diagonal blocks hold."""
    n_rows: Int64[Tensor, ""]
    _shifted: Float[Tensor, "token d_model"]

    def __init__(self, recipe: Recipe, shift: Float[Tensor, " d_model"]):
        """`shift`: about the mean of the rows. It changes rounding alone, if it is off by no more than they vary."""
        super().__init__()
        self.automatic_optimization = False
        self.recipe = recipe
        self._pace = Pace()
        self.register_buffer("shift", shift.float())
        self.register_buffer("sums", torch.zeros(recipe.d_model, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(recipe.d_model, recipe.d_model, dtype=torch.float64))
        self.register_buffer("n_rows", torch.zeros((), dtype=torch.int64))
        # Kept, because memory of this size is otherwise fetched from the system anew for every piece.
        self.register_buffer("_shifted", torch.zeros(PIECE_ROWS, recipe.d_model), persistent=False)

    @classmethod
    def of(
        cls,
        caches: Sequence[ActivationCache],
        layer: int,
        stream: Stream = Stream.DIFFERENCE,
        n_components: int | None = None,
    ) -> "PCAFit":
        """A fit to the caches' rows, shifted by their mean. `n_components`: 1 to d_model, None for all."""
        recipe = Recipe.of("pca", caches, layer, stream, {"n_components": n_components})
        n_components = recipe.d_model if n_components is None else n_components
        if not 1 <= n_components <= recipe.d_model:
            raise InvalidSetting(
                f"n_components={n_components}; expected 1 to {recipe.d_model}, the model's width, or null for all"
            )
        moments = Moments.merged([cache.moments(stream, layer) for cache in caches])
        return cls(replace(recipe, settings={"n_components": n_components}), moments.mean)

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "batch d_model"]) -> None:
        """Adds rows of any number, none included."""
        edges = [self.recipe.d_model * block // BLOCKS for block in range(BLOCKS + 1)]
        with _exact_products():
            for piece in rows.split(PIECE_ROWS):
                shifted = torch.sub(piece, self.shift, out=self._shifted[: len(piece)])
                self.sums += shifted.sum(0)
                for left, right in pairwise(edges):
                    self.products[left:right, left:] += shifted[:, left:right].T @ shifted[:, left:]
        self.n_rows += len(rows)

    @torch.no_grad()
    def solve(self) -> PCA:
        """The components of all rows so far.

        Raises EmptyCorpus without rows, NonFiniteActivations, and ZeroVariance if the rows do not vary: for the
        difference, the two models are the same or a constant apart.
        """
        n_rows = int(self.n_rows)
        if n_rows == 0:
            raise EmptyCorpus("no rows to find principal components of")
        offset = self.sums / n_rows
        covariance = (self.products.triu() + self.products.triu(1).T) / n_rows - torch.outer(offset, offset)
        if not covariance.isfinite().all():
            raise NonFiniteActivations(f"NaN or infinity among {n_rows} rows of layer {self.recipe.layer}")
        total = covariance.trace()
        if total <= 1e-4 * offset.square().sum():  # what float32 sums may leave of equal rows that are not the shift
            raise ZeroVariance(
                f"all {n_rows} rows of the {self.recipe.stream} stream at layer {self.recipe.layer} are the same: "
                "there are no principal components"
            )
        ascending, vectors = torch.linalg.eigh(covariance)
        pca = PCA(self.recipe).to(covariance.device)
        components = vectors.T.flip(0)[: len(pca.components)]
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        pca.components.copy_(components * largest.sign())
        pca.mean.copy_(self.shift + offset)
        pca.variances.copy_(ascending.flip(0)[: len(pca.components)].clamp_min(0))
        pca.total_variance.copy_(total)
        pca.n_rows.copy_(self.n_rows)
        return pca

    def on_train_start(self) -> None:
        self._pace.start(self.trainer)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        self.update(self.recipe.rows(batch.base, batch.finetuned))

    def on_train_end(self) -> None:
        """Gives every rank the sums of all ranks, and logs how fast it went."""
        if distributed.is_available() and distributed.is_initialized():
            for total in (self.n_rows, self.sums, self.products):
                distributed.all_reduce(total)
        pace = self._pace.lap(self.trainer, int(self.n_rows))
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": value for name, value in pace.items()}, self.trainer.global_step)

    def configure_optimizers(self) -> None:
        """None: nothing is learned by gradient."""


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products in float32, also where the process lets the hardware use fewer bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
