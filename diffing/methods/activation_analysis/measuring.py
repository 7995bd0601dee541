"""What is kept of one layer on one corpus, while blocks of texts go by and afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side
from diffing.errors import NonFiniteActivations
from diffing.lenses.distributions import Distribution, Histogram
from diffing.lenses.examples import Examples, TopExamples
from diffing.lenses.texts import CacheBlock, Texts
from diffing.lenses.token_shifts import ALL, MeanShift, MeanShifts, TokenShifts, places, token_shifts

LARGEST = ("norm_difference", "cosine_distance", "norm_base", "norm_finetuned")
"""Measures whose largest tokens are shown."""
AVERAGED = ("norm_difference", "cosine_distance")
"""Measures whose texts with the largest mean are shown."""
BINS = 60


@dataclass(frozen=True)
class Limits:
    """How much of the tokens is kept."""

    positions: Sequence[int]
    tokens: Mapping[int, str]
    """Ids that have a mean of their own, with their names."""
    percentiles: Sequence[float | int]
    examples: int
    window: Sequence[int]


@dataclass(frozen=True)
class Summary:
    """One measure over all tokens. Nothing but the counts where no token has it."""

    count: int
    n_undefined: int
    n_zero: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: Sequence[float]
    histogram: Histogram


@dataclass(frozen=True)
class Measured:
    """One layer on one corpus."""

    corpus: str
    layer: int
    source: str
    """Where the activations came from."""
    n_texts: int
    """Texts with a measured token."""
    n_skipped: int
    """Texts that are too short to have one."""
    summaries: Mapping[str, Summary]
    """Per measure of `TokenShifts` that any token has."""
    means: Sequence[MeanShift]
    """Of all tokens, then of each group that has any."""
    largest: Examples
    averaged: Examples

    @property
    def differs(self) -> bool:
        """Whether any token has another activation on one side than on the other."""
        return self.summaries["norm_difference"].maximum > 0

    @property
    def overall(self) -> MeanShift:
        """The mean over all tokens."""
        return self.means[0]

    @property
    def relative_size(self) -> float:
        """Mean norm of the difference over that of the base; 0 where neither side has any."""
        norm_base = self.summaries["norm_base"].mean
        return self.summaries["norm_difference"].mean / norm_base if norm_base else 0.0


class LayerShifts:
    """Takes the blocks of one layer of one corpus, in any order, and forgets them."""

    def __init__(self, layer: int, d_model: int, limits: Limits, device: torch.device):
        before, after = limits.window
        self.layer, self.device = layer, device
        self._percentiles = limits.percentiles
        self._distributions = {measure: Distribution(device) for measure in TokenShifts._fields}
        self._means = MeanShifts(d_model, limits.positions, limits.tokens, device)
        self._largest, self._averaged = (
            TopExamples(len(measures), limits.examples, before, after, device=device)
            for measures in (LARGEST, AVERAGED)
        )

    def add(self, block: CacheBlock) -> None:
        """Whole texts that were not added before. Raises NonFiniteActivations."""
        if not len(block.base):
            return
        base, finetuned = block.base.to(self.device), block.finetuned.to(self.device)
        shifts = token_shifts(base, finetuned)
        for side, norm in ((Side.BASE, shifts.norm_base), (Side.FINETUNED, shifts.norm_finetuned)):
            if not bool(norm.isfinite().all()):
                raise NonFiniteActivations(
                    f"NaN or infinite activations of the {side} model at layer {self.layer}: try model.dtype=float32, "
                    "or check the weights"
                )
        for measure, values in shifts._asdict().items():
            self._distributions[measure].add(values)
        self._means.add(base, finetuned, shifts, places(block.texts))
        scores = {measure: values.nan_to_num(nan=0.0) for measure, values in shifts._asdict().items()}
        self._largest.add(torch.stack([scores[each] for each in LARGEST], 1), block.texts)
        averaged = torch.stack([scores[each] for each in AVERAGED], 1)
        self._averaged.add(averaged, block.texts, _mean_of_texts(averaged, block.texts))

    def result(self, corpus: str, source: str, n_texts: int) -> Measured | None:
        """None if there was no token; `n_texts` were looked at."""
        means = self._means.result()
        if not means:
            return None
        assert means[0].group == ALL
        return Measured(
            corpus, self.layer, source, means[0].n_texts, n_texts - means[0].n_texts,
            {name: self._summary(each) for name, each in self._distributions.items() if each.count},
            means, self._largest.result(), self._averaged.result(),
        )  # fmt: skip

    def _summary(self, found: Distribution) -> Summary:
        return Summary(
            found.count, found.n_undefined, found.n_zero, found.mean, found.std, found.minimum, found.maximum,
            found.percentiles(self._percentiles), found.histogram(BINS),
        )  # fmt: skip


def _mean_of_texts(scores: Float[Tensor, "token score"], texts: Texts) -> Float[Tensor, "document score"]:
    """NaN for a text without a score."""
    n_rows = texts.rows.diff().to(scores.device)
    document = torch.arange(len(texts), device=scores.device).repeat_interleave(n_rows)
    sums = torch.zeros(len(texts), scores.shape[1], dtype=torch.float64, device=scores.device)
    return sums.index_add_(0, document, scores.double()) / n_rows[:, None]
