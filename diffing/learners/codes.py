"""Sparse latent values in rows of unequal length, and how the active ones are found.

A latent takes part by its score: its value times a weight of the latent. What is passed on is the value. Every rule is
exact. Among equal scores at the boundary, those of smaller rows, then of smaller latents, go first. Nothing of the size
of the [batch, latent] values is sorted: one comparison finds the few that the rest is done with. It compares bits, as
integers: those of positive floats have the same order, and all others but NaN are below. NaN is never active.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

GUESS = 0.93
"""Of the last threshold: low enough that a batch seldom needs a second look, and leaves few values to choose from."""
SAMPLED_ROWS = 32
"""Rows from which a threshold is guessed when the last one did not serve."""
GROUPS = 4
"""Groups per active latent, of which only the maxima are looked at to bound the k-th largest of a row."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Latent values of a batch without the zeros (compressed sparse rows)."""

    offsets: Int64[Tensor, " edge"]
    """One more than there are rows: row i owns the entries from offsets[i] up to offsets[i + 1]."""
    latents: Int64[Tensor, " active"]
    """Ascending within each row."""
    values: Float[Tensor, " active"]
    """In float32 or wider."""
    n_latents: int

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int64[Tensor, " active"]:
        """The row of each entry."""
        numbers = torch.arange(len(self), device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=len(self.latents))

    @property
    def places(self) -> Int64[Tensor, " active"]:
        """Where each entry is in the flat [batch, latent] values; ascending."""
        return self.rows * self.n_latents + self.latents

    def dense(self) -> Float[Tensor, "batch latent"]:
        """With the zeros. Gradients reach `values`."""
        zeros = self.values.new_zeros(len(self) * self.n_latents)
        return zeros.scatter(0, self.places, self.values).view(len(self), self.n_latents)


@torch.no_grad()
def above(
    pre: Float[Tensor, "batch latent"],
    threshold: float | int | Float[Tensor, ""],
    weight: Float[Tensor, " latent"] | None = None,
) -> Codes:
    """The positive values with a score larger than the threshold. With a threshold of 0 or less, those of a ReLU."""
    places, values, scores = _candidates(pre, threshold, weight)
    return _codes(pre, places, values, scores > 0)


@torch.no_grad()
def top_k(pre: Float[Tensor, "batch latent"], k: int, weight: Float[Tensor, " latent"] | None = None) -> Codes:
    """The positive ones among the values with the k largest scores of each row. k: 1 to the number of latents."""
    batch, n_latents = pre.shape
    bits = _bits(pre if weight is None else pre * weight)
    places = _marked(bits >= _bound(bits, k).clamp_min(1))
    values, scores = _scored(pre, places, weight)
    rows = places // n_latents
    slots = torch.arange(len(places), device=pre.device) - _offsets(places, batch, n_latents)[rows]
    table = scores.new_zeros(batch, max(k, int(slots.max()) + 1 if len(slots) else 0))
    table[rows, slots] = scores.where(scores > 0, 0)  # not NaN
    cut = table.topk(k, sorted=False).values.amin(1, keepdim=True)
    larger, equal = table > cut, table == cut
    kept = larger | (equal & (equal.cumsum(1) <= k - larger.sum(1, keepdim=True)) & (table > 0))
    return _codes(pre, places, values, kept[rows, slots])


class BatchTopK:
    """The k * batch largest positive scores of a whole batch.

    Remembers about where the last threshold was, which makes the next call faster and never changes what it returns.
    """

    def __init__(self) -> None:
        self._guess: Tensor | None = None

    @torch.no_grad()
    def __call__(
        self, pre: Float[Tensor, "batch latent"], k: int, weight: Float[Tensor, " latent"] | None = None
    ) -> Codes:
        wanted = k * len(pre)
        for floor in self._floors(pre, k, weight):
            places, values, scores = _candidates(pre, floor, weight)
            if 0 < wanted <= scores.count_nonzero():
                break
        else:
            return _codes(pre, places, values, scores > 0)
        cut = scores.kthvalue(len(scores) - wanted + 1).values
        self._guess = GUESS * cut
        larger, equal = scores > cut, scores == cut
        kept = larger | (equal & (equal.cumsum(0) <= wanted - larger.sum()))
        return _codes(pre, places, values, kept)

    def _floors(self, pre: Tensor, k: int, weight: Tensor | None) -> Iterator[float | Tensor]:
        """Thresholds that should leave enough, likeliest first. The last leaves all."""
        if self._guess is not None:
            yield self._guess
        sample = pre[:: max(1, len(pre) // SAMPLED_ROWS)].to(_wide(pre))
        scores = (sample if weight is None else sample * weight).flatten()
        expected = 2 * k * len(sample)
        if 0 < expected < len(scores):
            yield scores.kthvalue(len(scores) - expected + 1).values
        yield 0.0


def _candidates(
    pre: Float[Tensor, "batch latent"],
    threshold: float | int | Float[Tensor, ""],
    weight: Float[Tensor, " latent"] | None,
) -> tuple[Int64[Tensor, " candidate"], Float[Tensor, " candidate"], Float[Tensor, " candidate"]]:
    """Places, values and scores of all with a score above 0 and the threshold, and of few others, with a score of 0."""
    threshold = torch.as_tensor(threshold, dtype=_wide(pre), device=pre.device).clamp_min(0)
    limit = threshold if weight is None else threshold / weight
    # Rounded down: the comparison in the dtype of `pre` must let through all whose score is large enough.
    limit = (limit * (1 - 2 * torch.finfo(pre.dtype).eps)).to(pre.dtype)
    places = _marked(_bits(pre) >= _bits(limit).clamp_min(1))
    values, scores = _scored(pre, places, weight)
    return places, values, scores.where(scores > threshold, 0)


def _scored(
    pre: Float[Tensor, "batch latent"], places: Int64[Tensor, " candidate"], weight: Float[Tensor, " latent"] | None
) -> tuple[Float[Tensor, " candidate"], Float[Tensor, " candidate"]]:
    """Values and scores at places of the flat batch."""
    values = pre.take(places).to(_wide(pre))
    return values, values if weight is None else values * weight[places % pre.shape[1]]


def _bits(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def _bound(bits: Int[Tensor, "batch latent"], k: int) -> Int[Tensor, "batch 1"]:
    """At most the k-th largest of each row, and not much less: the k-th largest of the maxima of groups."""
    size = bits.shape[1] // (GROUPS * k)
    if size > 1:
        bits = bits[:, : size * GROUPS * k].unflatten(1, (size, GROUPS * k)).amax(1)
    return bits.topk(k, sorted=False).values.amin(1, keepdim=True)


def _marked(mask: Bool[Tensor, "batch latent"]) -> Int64[Tensor, " active"]:
    """Where few of many are true, in the flat mask."""
    flat = mask.flatten()
    if len(flat) % 8:
        return flat.nonzero().squeeze(1)
    # Eight at a time first, because `nonzero` takes its time over each that is false.
    eights = flat.view(torch.int64).nonzero().squeeze(1)
    true = flat.view(-1, 8)[eights].flatten().nonzero().squeeze(1)
    return eights[true // 8] * 8 + true % 8


def _codes(
    pre: Float[Tensor, "batch latent"],
    places: Int64[Tensor, " candidate"],
    values: Float[Tensor, " candidate"],
    kept: Bool[Tensor, " candidate"],
) -> Codes:
    """Those of the values at ascending places of the flat batch that are kept."""
    index = kept.nonzero().squeeze(1)
    places = places[index]
    return Codes(_offsets(places, *pre.shape), places % pre.shape[1], values[index], pre.shape[1])


def _offsets(places: Int64[Tensor, " active"], batch: int, n_latents: int) -> Int64[Tensor, " edge"]:
    return torch.searchsorted(places, torch.arange(batch + 1, device=places.device) * n_latents)


def _wide(pre: Tensor) -> torch.dtype:
    return torch.promote_types(pre.dtype, torch.float32)
