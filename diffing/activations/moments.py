"""Count, mean and variance per coordinate, in float64 whatever the rows are stored in, and the scaling made from them.

Moments of parts merge into those of the whole (Chan, Golub and LeVeque 1983), so shards, corpora and ranks each keep
their own. Sums are taken pairwise with elementwise operations alone: the same rows give the same bits on any device and
with any number of threads, which lets files that hold moments be compared byte by byte.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffing.errors import InvalidSetting, NonFiniteActivations, ZeroVariance

PIECE_ROWS = 1024
"""Rows widened to float64 at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of `count` rows, on the CPU. Zeros where there is no row."""

    count: int
    mean: Float64[Tensor, " d_model"]
    m2: Float64[Tensor, " d_model"]
    """Sum of squared deviations from the mean."""

    @classmethod
    def of(cls, rows: Float[Tensor, "token d_model"]) -> "Moments":
        """Two passes within each piece of `PIECE_ROWS`, then a merge. Not finite where the rows are not."""
        piece = torch.empty(PIECE_ROWS, rows.shape[1], dtype=torch.float64, device=rows.device)
        scratch = torch.empty(PIECE_ROWS // 2, rows.shape[1], dtype=torch.float64, device=rows.device)
        parts = []
        for part in rows.split(PIECE_ROWS):
            if len(part):
                wide = piece[: len(part)].copy_(part)
                mean = _column_sums(wide, scratch) / len(part)
                m2 = _column_sums(wide.sub_(mean).square_(), scratch)
                parts.append((len(part), mean, m2))
        nothing = torch.zeros(rows.shape[1], dtype=torch.float64)
        return cls.merged([cls(0, nothing, nothing)] + [cls(n, mean.cpu(), m2.cpu()) for n, mean, m2 in parts])

    @classmethod
    def merged(cls, parts: Sequence["Moments"]) -> "Moments":
        """Moments of all rows of the parts (at least one part, each of the same width)."""
        count = sum(part.count for part in parts)
        mean, m2 = torch.zeros_like(parts[0].mean), torch.zeros_like(parts[0].m2)
        for part in parts:
            mean += part.mean * (part.count / max(count, 1))
        for part in parts:
            m2 += part.m2 + part.count * (part.mean - mean).square()
        return cls(count, mean, m2)

    @property
    def variance(self) -> Float64[Tensor, " d_model"]:
        """Of the population: divided by the count."""
        return self.m2 / max(self.count, 1)

    @property
    def rms_norm(self) -> float:
        """Root mean square of the rows' L2 norms."""
        return math.sqrt(float(self.mean.square().sum() + self.variance.sum()))


@dataclass(frozen=True, eq=False)
class Normaliser:
    """x~ = scale * (x - mean): one scale for all coordinates, so that their relative variances stay."""

    mean: Float64[Tensor, " d_model"]
    scale: float

    @classmethod
    def from_moments(cls, moments: Moments, target_norm: float) -> "Normaliser":
        """The scale that makes E|x~|^2 = target_norm^2.

        Raises ZeroVariance if the rows do not vary, and NonFiniteActivations if their variance is not a number.
        """
        if not target_norm > 0:
            raise InvalidSetting(f"target norm {target_norm}; expected more than 0")
        total = float(moments.variance.sum())
        if not math.isfinite(total):
            raise NonFiniteActivations(f"the variance of the {moments.count} rows to normalise is {total}")
        # The float64 mean of equal rows is off by some rounding, so equal rows have a variance of about (eps |mean|)^2.
        if total <= (64 * torch.finfo(torch.float64).eps * float(moments.mean.norm())) ** 2:
            raise ZeroVariance(
                f"nothing varies in the {moments.count} rows to normalise: the two models may be the same, "
                "or the corpus holds one token over and over"
            )
        return cls(moments.mean, target_norm / math.sqrt(total))

    def apply(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalised rows, in float32 or wider."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return (wide - self.mean.to(wide)) * self.scale

    def invert(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The rows that `apply` was given, in float32 or wider."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return wide / self.scale + self.mean.to(wide)


def _column_sums(
    rows: Float64[Tensor, "token d_model"], scratch: Float64[Tensor, "half d_model"]
) -> Float64[Tensor, " d_model"]:
    """Pairwise sum over rows (at least one, at most twice those of `scratch`)."""
    if len(rows) == 1:
        return rows[0].clone()
    half = len(rows) // 2
    torch.add(rows[:half], rows[half : 2 * half], out=scratch[:half])
    if len(rows) % 2:
        scratch[0] += rows[-1]
    left = half
    while left > 1:
        half = left // 2
        scratch[:half] += scratch[left - half : left]
        left -= half
    return scratch[0].clone()
