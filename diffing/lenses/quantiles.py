"""Examples from all over a score's range: windows around tokens drawn from bands of its positive values.

The largest windows (`TopExamples`) show what a latent is where it is strongest; what it is on most of the tokens on
which it is active may be something else. The range from 0 to a score's largest value, which has to be known, is cut
into bands of the same width, and of the tokens whose value is in a band some are drawn, each with the same chance.

A token draws a number per score from a stream that the seed and its document decide, and the least of a band stay
(a reservoir): the result depends on no block size and no order of blocks.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffing.errors import InvalidSetting, NonFiniteActivations
from diffing.lenses.examples import Examples
from diffing.lenses.texts import Texts, windows

BANDS = ("75-100 %", "50-75 %", "25-50 %", "0-25 %")
"""Of the largest value; the upper end of a band belongs to it."""


class _Drawn(NamedTuple):
    """Tokens, in columns of one band of one score each."""

    column: Int[Tensor, " drawn"]
    draw: Float64[Tensor, " drawn"]
    value: Float[Tensor, " drawn"]
    document: Int[Tensor, " drawn"]
    position: Int[Tensor, " drawn"]
    ids: Int[Tensor, "drawn pos"]
    trace: Float[Tensor, "drawn pos"]


class QuantileExamples:
    """`per_band` windows of each band of each score on one corpus: up to `before` tokens, the drawn one, `after` more.

    `largest` is each score's largest value on all that is added; what exceeds it by rounding is in the highest band.
    """

    def __init__(
        self,
        largest: Float[Tensor, " score"],
        per_band: int,
        before: int,
        after: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if min(per_band, before, after) < 0:
            raise InvalidSetting(f"expected per_band, before and after of 0 or more; got {per_band}, {before}, {after}")
        self.per_band, self.before, self.after, self.seed = per_band, before, after, seed
        self._inner = (largest.float()[:, None] * torch.arange(1, len(BANDS)) / len(BANDS)).to(device)
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        window = torch.zeros(0, before + 1 + after, device=device)
        self._held = _Drawn(nothing, nothing.double(), nothing.float(), nothing, nothing, window.int(), window)

    def add(self, scores: Float[Tensor, "token score"], texts: Texts) -> None:
        """Scores, on the device, of documents that were not added before, in any order of blocks.

        Tokens with a score of 0 or less are in no band. Raises NonFiniteActivations.
        """
        texts.check(scores, len(self._inner))
        scores, texts = scores.detach().float(), texts.to(scores.device)
        if not bool(scores.isfinite().all()):
            raise NonFiniteActivations(f"NaN or infinity among the scores of documents from {texts.first} on")
        row, score = (scores > 0).nonzero(as_tuple=True)
        band = (scores[row, score, None] <= self._inner[score]).sum(1)
        column, draw = score * len(BANDS) + band, self._draws(texts).to(scores.device)[row, score]
        kept = _least(column, draw, self.per_band)
        row, score = row[kept], score[kept]
        document = torch.searchsorted(texts.rows, row, right=True) - 1
        position = row - texts.rows[document] + texts.n_skipped[document]
        seen = windows(texts, scores, score, document, position, self.before, self.after)
        new = _Drawn(column[kept], draw[kept], scores[row, score], texts.first + document, position, *seen)
        both = _Drawn(*(torch.cat(fields) for fields in zip(self._held, new, strict=True)))
        kept = _least(both.column, both.draw, self.per_band)
        self._held = _Drawn(*(field[kept] for field in both))

    def result(self) -> Examples:
        """What was drawn; score s of it is band `BANDS[s % len(BANDS)]` of score s // len(BANDS). The rank is by value,
        within what was drawn of a band."""
        column, _, value, document, position, ids, trace = (field.cpu() for field in self._held)
        order = torch.from_numpy(np.lexsort((position, document, -value, column)))
        column = column[order]
        return Examples(
            column,
            torch.zeros_like(column, dtype=torch.bool),
            1 + _places(column),
            *(field[order] for field in (value, document, position, ids, trace)),
        )

    def _draws(self, texts: Texts) -> Float64[Tensor, "token score"]:
        generator = torch.Generator()
        drawn = [torch.zeros(0, len(self._inner), dtype=torch.float64)]
        for document, n_rows in enumerate(texts.rows.diff().tolist(), texts.first):
            generator.manual_seed(self.seed * 1_000_003 + document)
            drawn.append(torch.rand(n_rows, len(self._inner), generator=generator, dtype=torch.float64))
        return torch.cat(drawn)


def _least(column: Int[Tensor, " drawn"], draw: Float64[Tensor, " drawn"], most: int) -> Int[Tensor, " kept"]:
    """Where the least draws of each column are, `most` at most."""
    order = draw.argsort()
    order = order[column[order].argsort(stable=True)]
    return order[_places(column[order]) < most]


def _places(column: Int[Tensor, " drawn"]) -> Int[Tensor, " drawn"]:
    """Of each entry among those of its column, counted from 0; columns are ascending."""
    return torch.arange(len(column), device=column.device) - torch.searchsorted(column, column)
