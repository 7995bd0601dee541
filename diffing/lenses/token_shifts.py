"""How far, and which way, a finetune moves each token: sizes and angles token by token, and mean differences by group.

Sizes are float32 numbers per token. The cosine distance 1 - cos(b, f) is computed as |b/|b| - f/|f||^2 / 2, the same
number without its cancellation: exactly 0 for equal rows, and right to several digits for nearly parallel ones, where
1 - cos is all rounding. Where a row is zero, what has no meaning is NaN: the cosine distance if either is, the relative
difference if both are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffing.activations.streams import difference
from diffing.lenses.texts import Texts

ALL = "all tokens"
PIECE_ROWS = 2048
"""Rows widened at a time."""


class TokenShifts(NamedTuple):
    """Of n tokens each, in float32."""

    norm_difference: Float[Tensor, " token"]
    """L2 norm of finetuned - base."""
    cosine_distance: Float[Tensor, " token"]
    """1 - cos(base, finetuned), from 0 to 2."""
    relative_difference: Float[Tensor, " token"]
    """Norm of the difference over the sum of both norms, from 0 to 1."""
    norm_base: Float[Tensor, " token"]
    norm_finetuned: Float[Tensor, " token"]


def token_shifts(base: Float[Tensor, "token d_model"], finetuned: Float[Tensor, "token d_model"]) -> TokenShifts:
    """Of rows of the same tokens. What is not finite stays so."""
    parts = [_shifts(*rows) for rows in zip(base.split(PIECE_ROWS), finetuned.split(PIECE_ROWS), strict=True)]
    return TokenShifts(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _shifts(base: Float[Tensor, "token d_model"], finetuned: Float[Tensor, "token d_model"]) -> TokenShifts:
    change = difference(base, finetuned)
    base, finetuned = base.to(change), finetuned.to(change)
    norm, norm_base, norm_finetuned = (torch.linalg.vector_norm(rows, dim=1) for rows in (change, base, finetuned))
    apart = finetuned / norm_finetuned[:, None] - base / norm_base[:, None]
    cosine = (0.5 * apart.square().sum(1)).clamp(max=2)
    cosine = cosine.masked_fill((norm_base == 0) | (norm_finetuned == 0), torch.nan)
    relative = (norm / (norm_base + norm_finetuned)).clamp(max=1)
    return TokenShifts(*(each.float() for each in (norm, cosine, relative, norm_base, norm_finetuned)))


class Places(NamedTuple):
    """Where each scored token of some documents stands."""

    n_documents: int
    document: Int[Tensor, " token"]
    """Among those documents, counted from 0."""
    position: Int[Tensor, " token"]
    """Within its document, counted from 0."""
    ids: Int[Tensor, " token"]


def places(texts: Texts) -> Places:
    """One entry per score of `texts`."""
    document = torch.arange(len(texts)).repeat_interleave(texts.rows.diff())
    position = torch.arange(len(document)) - texts.rows[document] + texts.n_skipped[document]
    return Places(len(texts), document, position, texts.ids[texts.offsets[document] + position])


@dataclass(frozen=True)
class MeanShift:
    """The mean difference over the tokens of one group."""

    group: str
    count: int
    """Tokens, at least one."""
    n_texts: int
    """Texts that they are from."""
    mean: Float64[Tensor, " d_model"]
    mean_norm: float
    """Mean L2 norm of the single differences: what the norm of the mean would be if all were alike."""
    base_mean: Float64[Tensor, " d_model"]
    """Of the base's activations."""
    base_mean_norm: float
    """Mean L2 norm of the base's activations."""


class MeanShifts:
    """Mean differences of groups of tokens: all of them, those at some positions, and those of some token ids.

    Sums are float64 and counts exact: no split of the texts changes a mean by more than its last digits, and small
    differences add up over any number of tokens. The base's means are kept beside them.
    """

    def __init__(
        self, d_model: int, positions: Sequence[int], tokens: Mapping[int, str], device: torch.device | str = "cpu"
    ):
        """`tokens` has the name of each token id."""
        named = [*(f"position {each}" for each in positions), *(f"token {id} {tokens[id]!r}" for id in tokens)]
        self.groups = [ALL, *named]
        self._positions = torch.tensor(list(positions), dtype=torch.int64)[:, None]
        self._ids = torch.tensor(list(tokens), dtype=torch.int64)[:, None]
        self._sums = torch.zeros(len(self.groups), d_model, dtype=torch.float64, device=device)
        self._norms = torch.zeros(len(self.groups), dtype=torch.float64, device=device)
        self._base_sums, self._base_norms = torch.zeros_like(self._sums), torch.zeros_like(self._norms)
        self._count = torch.zeros(len(self.groups), dtype=torch.int64)
        self._n_texts = torch.zeros(len(self.groups), dtype=torch.int64)

    def add(
        self,
        base: Float[Tensor, "token d_model"],
        finetuned: Float[Tensor, "token d_model"],
        shifts: TokenShifts,
        where: Places,
    ) -> None:
        """Rows of whole texts not added before, on the device of the sums."""
        everything = torch.ones(1, len(where.ids), dtype=torch.bool)
        members = torch.cat([everything, where.position == self._positions, where.ids == self._ids])
        self._count += members.sum(1)
        of_text = torch.zeros(len(members), where.n_documents, dtype=torch.int64)
        self._n_texts += (of_text.index_add_(1, where.document, members.long()) > 0).sum(1)
        weights = members.to(self._sums)
        self._norms += weights @ shifts.norm_difference.to(self._norms)
        self._base_norms += weights @ shifts.norm_base.to(self._norms)
        pieces = zip(base.split(PIECE_ROWS), finetuned.split(PIECE_ROWS), weights.split(PIECE_ROWS, 1), strict=True)
        for base_rows, finetuned_rows, weight in pieces:
            self._sums += weight @ difference(base_rows, finetuned_rows).to(self._sums)
            self._base_sums += weight @ base_rows.to(self._sums)

    def merge(self, other: "MeanShifts") -> None:
        """As if the texts added to `other`, other ones with the same groups, had been added here."""
        for mine, theirs in (
            (self._sums, other._sums), (self._norms, other._norms), (self._base_sums, other._base_sums),
            (self._base_norms, other._base_norms), (self._count, other._count), (self._n_texts, other._n_texts),
        ):  # fmt: skip
            mine += theirs.to(mine)

    def result(self) -> list[MeanShift]:
        """One per group that has a token; a group without any is left out."""
        counts = self._count.clamp(min=1).double()
        means, base_means = (sums.cpu() / counts[:, None] for sums in (self._sums, self._base_sums))
        norms, base_norms = ((sums.cpu() / counts).tolist() for sums in (self._norms, self._base_norms))
        return [
            MeanShift(
                self.groups[each], int(self._count[each]), int(self._n_texts[each]), means[each], norms[each],
                base_means[each], base_norms[each],
            )
            for each in self._count.nonzero()[:, 0].tolist()
        ]  # fmt: skip
