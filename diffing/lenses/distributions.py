"""Statistics of a stream of numbers that are 0 or more, in bounded memory: nothing of the stream is kept.

Mean and standard deviation are float64, minimum and maximum exact. Percentiles and histograms come from counts in fine
bins: a float32 that is not negative keeps its order when its bits are read as an integer, so the upper bits number bins
of equal relative width, 2048 to each factor of two, over the whole range of floats. A percentile is the middle of its
bin: off by 2^-12 of its value (0.025 %) at most. Counts add up, so no split of the stream changes a percentile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffing.activations.moments import Moments
from diffing.errors import NonFiniteActivations

DROPPED_BITS = 12
BINS = 1 << (31 - DROPPED_BITS)
"""8 bits of exponent and 11 of mantissa: 4 MiB of counts."""
_NORMAL = 1 << (23 - DROPPED_BITS)
"""First bin whose floats have all their digits, at 1e-38. Below, a percentile is within 6e-42."""


@dataclass(frozen=True)
class Histogram:
    """Counts of the values from 1.2e-38 on, in bins of about equal width on a logarithmic axis."""

    edges: Sequence[float]
    """One more than there are bins, ascending; none if there is no value."""
    counts: Sequence[int]

    def density(self, total: int) -> list[float]:
        """Share of `total` values per factor of ten: bins differ a little in width."""
        widths = [math.log10(high / low) for low, high in zip(self.edges, self.edges[1:], strict=False)]
        return [count / total / width for count, width in zip(self.counts, widths, strict=True)]

    @property
    def centres(self) -> list[float]:
        """Geometric middle of each bin."""
        return [math.sqrt(low * high) for low, high in zip(self.edges, self.edges[1:], strict=False)]


class Distribution:
    """What is known of the values added so far. NaN is an undefined value: counted, and left out of all else."""

    def __init__(self, device: torch.device | str = "cpu"):
        self._bins = torch.zeros(BINS, dtype=torch.int64, device=device)
        self._moments = Moments.of(torch.zeros(0, 1))
        self.n_undefined = 0
        self.n_zero = 0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: Float[Tensor, " token"]) -> None:
        """Values are taken as float32. Raises NonFiniteActivations for an infinite or negative one."""
        values = values.float().to(self._bins.device)
        defined = values[~values.isnan()]
        self.n_undefined += len(values) - len(defined)
        if not len(defined):
            return
        low, high = float(defined.min()), float(defined.max())
        if low < 0 or math.isinf(high):
            raise NonFiniteActivations(f"expected finite numbers of 0 or more, got {low if low < 0 else high}")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.n_zero += int((defined == 0).sum())
        # The sign bit of a negative zero would make a negative number of a bin.
        bins = defined.abs().view(torch.int32).long() >> DROPPED_BITS
        self._bins.index_add_(0, bins, torch.ones_like(bins))
        self._moments = Moments.merged([self._moments, Moments.of(defined[:, None])])

    def merge(self, other: "Distribution") -> None:
        """As if everything added to `other` had been added here."""
        self._bins += other._bins.to(self._bins.device)
        self._moments = Moments.merged([self._moments, other._moments])
        self.n_undefined += other.n_undefined
        self.n_zero += other.n_zero
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    @property
    def count(self) -> int:
        """Defined values."""
        return self._moments.count

    @property
    def mean(self) -> float:
        return float(self._moments.mean)

    @property
    def std(self) -> float:
        """Of the population: the squared deviations are divided by the count."""
        return math.sqrt(float(self._moments.variance))

    def percentiles(self, wanted: Sequence[float | int]) -> list[float]:
        """Nearest rank: the least value that at least so many percent of the values do not exceed.

        To the resolution of a bin, and never outside of what was met. There must be a value.
        """
        cumulative = self._bins.cumsum(0)
        ranks = [max(math.ceil(round(self.count * each / 100, 6)), 1) for each in wanted]
        found = torch.searchsorted(cumulative, torch.tensor(ranks, device=cumulative.device))
        middles = ((_lower_edges(found) + _lower_edges(found + 1)) / 2).masked_fill(found.cpu() == 0, 0.0)
        return middles.clamp(self.minimum, self.maximum).tolist()

    def histogram(self, most: int) -> Histogram:
        """In at most `most` bins. Zeros have no place on a logarithmic axis: see `n_zero`."""
        counts = self._bins.cpu()
        filled = counts[_NORMAL:].nonzero()[:, 0] + _NORMAL
        if not len(filled):
            return Histogram([], [])
        first, last = int(filled[0]), int(filled[-1])
        width = -(-(last + 1 - first) // most)
        starts = torch.arange(first, last + width + 1, width)
        padded = torch.nn.functional.pad(counts[first : last + 1], (0, int(starts[-1]) - last - 1))
        return Histogram(_lower_edges(starts).tolist(), padded.reshape(-1, width).sum(1).tolist())


def _lower_edges(bins: Int64[Tensor, " bin"]) -> Float64[Tensor, " bin"]:
    """The least value of each bin."""
    return (bins.cpu() << DROPPED_BITS).int().view(torch.float32).double()
