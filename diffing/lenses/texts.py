"""Documents of a corpus in blocks, as whatever gives each of their tokens a number reads them, and windows of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.activations.streams import select
from diffing.axes import Stream
from diffing.errors import SchemaMismatch


@dataclass(frozen=True)
class Texts:
    """Consecutive documents of a corpus. The scored tokens of a document are a suffix of it, possibly empty."""

    first: int
    """Number of the first document in its corpus."""
    ids: Int[Tensor, " token"]
    """Tokens of all documents, one document after another."""
    offsets: Int[Tensor, " documents_plus_1"]
    """Document j has the tokens `ids[offsets[j] : offsets[j + 1]]`."""
    rows: Int[Tensor, " documents_plus_1"]
    """Document j has the scores `rows[j] : rows[j + 1]`."""

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], first: int, n_skipped: int = 0) -> "Texts":
        """Token lists as they are; the first `n_skipped` tokens of each have no score."""
        lengths = torch.tensor([0, *map(len, documents)], dtype=torch.int64)
        ids = torch.tensor([token for document in documents for token in document], dtype=torch.int64)
        scored = (lengths - n_skipped).clamp(min=0)
        return cls(first, ids, lengths.cumsum(0), scored.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_skipped(self) -> Int[Tensor, " document"]:
        """Tokens of each document that have no score, at its start."""
        return self.offsets.diff() - self.rows.diff()

    def to(self, device: torch.device) -> "Texts":
        return Texts(self.first, self.ids.to(device), self.offsets.to(device), self.rows.to(device))

    def check(self, scores: Float[Tensor, "token score"], n_scores: int) -> None:
        """Raises SchemaMismatch unless there are `n_scores` scores of each token that should have them."""
        n_rows, n_tokens = int(self.rows[-1]), int(self.offsets[-1])
        if scores.shape != (n_rows, n_scores) or len(self.ids) != n_tokens or len(self.rows) != len(self.offsets):
            raise SchemaMismatch(
                f"scores of examples: expected [{n_rows}, {n_scores}] of documents with {n_tokens} tokens, got "
                f"{list(scores.shape)} and {len(self.ids)} tokens"
            )
        if bool((self.n_skipped < 0).any()):
            raise SchemaMismatch("scores of examples: a document has more scores than tokens")


@dataclass(frozen=True)
class CacheBlock:
    """Whole documents of a cache, at one layer."""

    base: Float[Tensor, "token d_model"]
    finetuned: Float[Tensor, "token d_model"]
    texts: Texts

    def stream(self, stream: Stream) -> Float[Tensor, "token d_model"]:
        """Rows of a stream, in float32 or wider."""
        return select(stream, self.base, self.finetuned)


def document_blocks(
    cache: ActivationCache, layer: int, rows: int = 8192, *, start: int = 0, stop: int | None = None
) -> Iterator[CacheBlock]:
    """Documents `start` to `stop` in order, as many at a time as have up to `rows` rows; one that has more comes alone.

    Documents without a row may be left out.
    """
    borders = cache.base.document_rows()
    last = len(borders) - 1 if stop is None else min(stop, len(borders) - 1)
    while start < last:
        fitting = int(torch.searchsorted(borders, int(borders[start]) + rows, right=True)) - 1
        end = min(max(fitting, start + 1), last)
        low, high = int(borders[start]), int(borders[end])
        if low < high:
            documents = [cache.base.document_tokens(number) for number in range(start, end)]
            lengths = torch.tensor([0, *map(len, documents)], dtype=torch.int64)
            texts = Texts(start, torch.cat(documents), lengths.cumsum(0), borders[start : end + 1] - low)
            yield CacheBlock(*cache.read(layer, low, high), texts)
        start = end


def windows(
    texts: Texts,
    scores: Float[Tensor, "token score"],
    score: Int[Tensor, "*window"],
    document: Int[Tensor, "*window"],
    position: Int[Tensor, "*window"],
    before: int,
    after: int,
) -> tuple[Int[Tensor, "*window pos"], Float[Tensor, "*window pos"]]:
    """Up to `before` tokens, the one at a position of a document of the block, and up to `after` more, from the first
    of them on: the tokens, -1 after the end, and a score of each, NaN where it has none."""
    length, skipped = texts.offsets.diff()[document], texts.n_skipped[document]
    tokens = (position - before).clamp(min=0)[..., None] + torch.arange(before + 1 + after, device=position.device)
    inside = tokens < torch.minimum(length, position + after + 1)[..., None]
    ids = texts.ids[(texts.offsets[document][..., None] + tokens).clamp(max=len(texts.ids) - 1)]
    rows = (texts.rows[document] - skipped)[..., None] + tokens
    trace = scores[rows.clamp(0, len(scores) - 1), score[..., None]]
    unscored = ~inside | (tokens < skipped[..., None])
    return ids.masked_fill(~inside, -1).int(), trace.masked_fill(unscored, math.nan)
