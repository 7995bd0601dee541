"""What each latent of a dictionary does on stored activations, for all latents in one pass.

Latent scaling (arXiv:2504.02922) asks how much of a target a latent's direction explains: beta is the least-squares
factor of f d to the target rows, without intercept. For a target y and a direction d it needs sum(f d.y), sum(f^2) and
|d|^2 alone; and as the error with the latent's own part put back is e + f d_m, its beta is that of the error e plus
d.d_m / |d|^2. So a pass adds a few numbers per active entry, and nothing of the size [token, latent] or
[latent, d_model] is kept.

Everything is in the dictionary's normalised units, in which both sides have the same variance. A crosscoder is asked
with the direction of either side, because that of the finetuned side means nothing for a latent that only the base has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from diffing.activations.loader import ActivationBatch, StoredRows
from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.errors import InvalidSetting, MissingInput, NonFiniteActivations
from diffing.learners.base import check_fits
from diffing.learners.codes import Codes
from diffing.learners.dictionary import Dictionary
from diffing.learners.sparse import along, decode

EXCLUSIVE_DELTA = 0.1
"""By norm: exclusive to a side if delta is so close to that side's end, shared if so close to the middle."""
EXCLUSIVE_NU_ERROR, EXCLUSIVE_NU_RECONSTRUCTION = 0.2, 0.5
SHARED_NU_ERROR = 0.8
"""By scaling, as the norm rule has it: delta < 0.6 is a norm of at least 0.8 of the other side's."""


class Kind(StrEnum):
    """Which of the two models a latent is of."""

    BASE_ONLY = "base-only"
    SHARED = "shared"
    FINETUNED_ONLY = "finetuned-only"
    OTHER = "other"
    DEAD = "dead"
    """Active nowhere; in no other class."""


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Per latent, on the CPU. A crosscoder has the streams base and finetuned, an SAE the difference alone.

    `beta_*[m, n]` is for the direction that the latent has in stream m and a target of stream n. It is NaN for a latent
    that is active in fewer rows than were asked for, and for a direction that is zero.
    """

    streams: Sequence[Stream]
    n_rows: int
    n_active: Int64[Tensor, " latent"]
    """Rows in which the latent is active."""
    mean: Float64[Tensor, " latent"]
    """Of the values where it is active; NaN for a dead latent."""
    largest: Float64[Tensor, " latent"]
    norms: Float64[Tensor, "stream latent"]
    """Of the decoder directions."""
    dots: Float64[Tensor, "stream stream latent"]
    """Of the decoder directions with each other."""
    beta_error: Float64[Tensor, "stream stream latent"]
    """Target: the error of the reconstruction, with the latent's own contribution put back."""
    beta_reconstruction: Float64[Tensor, "stream stream latent"]
    """Target: the reconstruction, its bias and the latent included."""
    beta_activation: Float64[Tensor, "stream side latent"]
    """Target: a side's activations about their mean, for an SAE in the units of the normalised difference."""
    fve: Float64[Tensor, " stream"]
    """Fraction of the variance that is explained, over all rows; NaN where nothing varies."""

    @property
    def frequency(self) -> Float64[Tensor, " latent"]:
        """Share of the rows in which the latent is active."""
        return self.n_active.double() / self.n_rows

    @property
    def active_per_token(self) -> float:
        """Latents that are active in a row, on average."""
        return float(self.n_active.sum()) / self.n_rows

    @property
    def dead(self) -> Bool[Tensor, " latent"]:
        return self.n_active == 0

    @property
    def delta(self) -> Float64[Tensor, " latent"]:
        """Where the decoder norm is: 0 is in the base only, 1/2 in both, 1 in the finetuned side only."""
        self._need_sides()
        base, finetuned = self.norms
        return 0.5 + 0.5 * (finetuned - base) / self.norms.amax(0)

    @property
    def cosine(self) -> Float64[Tensor, " latent"]:
        """Between both sides' directions; NaN where one is zero."""
        self._need_sides()
        return self.dots[0, 1] / self.norms.prod(0)

    @property
    def nu_error(self) -> Float64[Tensor, "side latent"]:
        """With each side's direction, the other side's `beta_error` over its own.

        The last is the nu^epsilon of the paper: high where a direction that looks finetuned-only is in the base too.
        """
        return self._other_over_own(self.beta_error)

    @property
    def nu_reconstruction(self) -> Float64[Tensor, "side latent"]:
        """The same of `beta_reconstruction`: high where other latents make up for the direction in the other side."""
        return self._other_over_own(self.beta_reconstruction)

    @property
    def nu_activation(self) -> Float64[Tensor, " latent"]:
        """`beta_activation` of the base over that of the finetuned side, with the last direction."""
        base, finetuned = self.beta_activation[-1]
        return _ratio(base, finetuned)

    def _other_over_own(self, beta: Float64[Tensor, "side side latent"]) -> Float64[Tensor, "side latent"]:
        self._need_sides()
        return torch.stack([_ratio(beta[0, 1], beta[0, 0]), _ratio(beta[1, 0], beta[1, 1])])

    def _need_sides(self) -> None:
        if len(self.streams) < 2:
            raise InvalidSetting(
                "a dictionary of the difference has one direction per latent, and no classes or norm shares: compare "
                "beta_activation and nu_activation, or give a crosscoder"
            )


def classes_by_norm(statistics: LatentStatistics) -> list[Kind]:
    """By where the decoder norm is (`delta`). Blind to shrinkage: a latent may lack a norm that the data would give."""
    delta = statistics.delta
    return _classes(
        statistics,
        {
            Kind.BASE_ONLY: delta < EXCLUSIVE_DELTA,
            Kind.FINETUNED_ONLY: delta > 1 - EXCLUSIVE_DELTA,
            Kind.SHARED: (delta - 0.5).abs() < EXCLUSIVE_DELTA,
        },
    )


def classes_by_scaling(statistics: LatentStatistics) -> list[Kind]:
    """By the paper's rule: exclusive if neither error nor reconstruction of the other side holds the direction, with
    either sign. Shared if the errors of both sides hold about as much of it. Latents with a ratio of NaN are `other`.
    """
    error, reconstruction = statistics.nu_error, statistics.nu_reconstruction
    base, finetuned = (error.abs() < EXCLUSIVE_NU_ERROR) & (reconstruction.abs() < EXCLUSIVE_NU_RECONSTRUCTION)
    # A direction that one side lacks can pass by chance with its own meaningless direction: the larger side decides.
    larger = statistics.delta > 0.5
    return _classes(
        statistics,
        {
            Kind.BASE_ONLY: base & ~larger,
            Kind.FINETUNED_ONLY: finetuned & larger,
            Kind.SHARED: (error > SHARED_NU_ERROR).all(0),
        },
    )


def _classes(statistics: LatentStatistics, masks: Mapping[Kind, Bool[Tensor, " latent"]]) -> list[Kind]:
    kinds = [Kind.OTHER] * len(statistics.n_active)
    for kind, mask in (*masks.items(), (Kind.DEAD, statistics.dead)):
        for latent in mask.nonzero()[:, 0].tolist():
            kinds[latent] = kind
    return kinds


def _ratio(above: Float64[Tensor, " latent"], below: Float64[Tensor, " latent"]) -> Float64[Tensor, " latent"]:
    """NaN in place of infinity."""
    return torch.where(below == 0, math.nan, above / below)


@torch.no_grad()
def latent_statistics(
    dictionary: Dictionary,
    caches: Sequence[ActivationCache],
    *,
    min_active: int = 10,
    block_rows: int = 2048,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> LatentStatistics:
    """One pass over all rows of the caches. Latents active in fewer than `min_active` rows get no beta.

    `on_rows` is told the rows of each block that is done. Raises IncompatiblePair for caches of another pair or layers,
    NonFiniteActivations, and EmptyCorpus without a row.
    """
    if not caches:
        raise MissingInput("latent statistics need activations, got no cache: name at least one corpus")
    for cache in caches:
        check_fits(dictionary.recipe, cache)
    layer = dictionary.recipe.layer
    sums = _Sums(dictionary, caches)
    for batch in StoredRows(caches, layer, block_rows):
        sums.add(batch.to(dictionary.decoder.device))
        on_rows(len(batch))
    if not sums.spread.squares.isfinite().all():
        raise NonFiniteActivations(
            f"NaN or infinity among the {sums.n_rows} rows of layer {layer}, or in this {dictionary.recipe.kind}"
        )
    return sums.result(min_active)


class _Spread:
    """Sums of rows and of their squares, of several streams."""

    def __init__(self, n_streams: int, d_model: int, device: torch.device):
        self.rows = torch.zeros(n_streams, d_model, dtype=torch.float64, device=device)
        self.squares = torch.zeros(n_streams, dtype=torch.float64, device=device)

    def add(self, rows: Float[Tensor, "token stream d_model"]) -> None:
        self.rows += rows.sum(0, dtype=torch.float64)
        self.squares += torch.linalg.vector_norm(rows, dim=(0, 2), dtype=torch.float64).square()

    def variance(self, n_rows: int) -> Float64[Tensor, " stream"]:
        """Of the population, over all coordinates."""
        return self.squares / n_rows - (self.rows / n_rows).square().sum(1)


class _Scaled(NamedTuple):
    """What betas are computed of: rows in normalised units, one stream after another."""

    error: Float[Tensor, "token stream d_model"]
    reconstruction: Float[Tensor, "token stream d_model"]
    activations: Float[Tensor, "token side d_model"] | None
    """None where they are the sum of the other two."""


class _Sums:
    """The running sums of the pass, in float64."""

    def __init__(self, dictionary: Dictionary, caches: Sequence[ActivationCache]):
        self.dictionary, self.recipe = dictionary, dictionary.recipe
        stream = self.recipe.stream
        self.streams = (Stream.BASE, Stream.FINETUNED) if stream is None else (stream,)
        n_latents, device = len(dictionary.decoder), dictionary.decoder.device
        shape = (n_latents, len(self.streams), self.recipe.d_model)
        self.directions = dictionary.decoder.detach().view(shape).transpose(0, 1).contiguous()
        moments = {
            of: Moments.merged([cache.moments(of, self.recipe.layer) for cache in caches])
            for of in {*self.streams, Stream.BASE, Stream.FINETUNED}
        }
        variance = torch.stack([moments[of].variance.sum() for of in self.streams])
        self.variance = variance * dictionary.scale.cpu().double().square()
        means = torch.stack([moments[Stream(side)].mean for side in Side])
        self.means = means.to(device, dictionary.decoder.dtype)
        self.n_rows = 0
        self.spread = _Spread(len(self.streams), self.recipe.d_model, device)
        self.n_active = torch.zeros(n_latents, dtype=torch.int64, device=device)
        self.largest = torch.zeros(n_latents, dtype=dictionary.decoder.dtype, device=device)
        self.values, self.squares = torch.zeros(2, n_latents, dtype=torch.float64, device=device)
        n_targets = 2 * len(self.streams) + (0 if stream is None else 2)
        self.products = torch.zeros(len(self.streams), n_targets, n_latents, dtype=torch.float64, device=device)

    def add(self, batch: ActivationBatch) -> None:
        rows = self.recipe.rows(batch.base, batch.finetuned).to(self.dictionary.decoder.dtype)
        codes = self.dictionary.codes(rows)
        scaled = self._scaled(batch, rows, codes)
        self.n_rows += len(rows)
        self.spread.add(scaled.error)
        self.n_active += torch.bincount(codes.latents, minlength=codes.n_latents)
        self.largest.scatter_reduce_(0, codes.latents, codes.values, "amax")
        values = codes.values.double()
        self.values.index_add_(0, codes.latents, values)
        self.squares.index_add_(0, codes.latents, values.square())
        targets = [target.contiguous() for part in scaled if part is not None for target in part.unbind(1)]
        for direction, directions in enumerate(self.directions):
            for number, target in enumerate(targets):
                products = values * along(codes, target, directions)
                self.products[direction, number].index_add_(0, codes.latents, products)

    def _scaled(self, batch: ActivationBatch, rows: Tensor, codes: Codes) -> _Scaled:
        shape = (len(rows), len(self.streams), self.recipe.d_model)
        normal = self.dictionary.normalise(rows).view(shape)
        reconstruction = decode(codes, self.dictionary.decoder, self.dictionary.decoder_bias).view(shape)
        activations = None
        if self.recipe.stream is not None:
            both = torch.stack([batch.stream(Stream(side)) for side in Side], dim=1)
            activations = (both.to(self.means) - self.means) * self.dictionary.scale
        return _Scaled(normal - reconstruction, reconstruction, activations)

    def result(self, min_active: int) -> LatentStatistics:
        n = len(self.streams)
        n_active, values, squares = self.n_active.cpu(), self.values.cpu(), self.squares.cpu()
        directions = self.directions.double()
        dots = torch.stack([(directions * one).sum(-1) for one in directions]).cpu()
        norms = dots.diagonal().T.sqrt()
        below = squares * norms.square()[:, None]
        beta = torch.where((n_active >= max(min_active, 1)) & (below > 0), self.products.cpu() / below, math.nan)
        error, reconstruction, activation = beta[:, :n], beta[:, n : 2 * n], beta[:, 2 * n :]
        return LatentStatistics(
            streams=self.streams,
            n_rows=self.n_rows,
            n_active=n_active,
            mean=values / torch.where(n_active > 0, n_active, math.nan),
            largest=self.largest.cpu().double(),
            norms=norms,
            dots=dots,
            beta_error=error + dots / norms.square()[:, None],
            beta_reconstruction=reconstruction,
            beta_activation=activation if activation.shape[1] else error + reconstruction,
            fve=1 - _ratio(self.spread.variance(self.n_rows).cpu(), self.variance),
        )
