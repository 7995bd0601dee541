"""Both sides' activations of the first tokens of a corpus, text by text: from a cache, or straight from the models.

Which tokens are read is said once, by a `Selection`, and is the same either way: the first `context` tokens of the
first `max_texts` texts, but for `skip_first` tokens of each and any beginning-of-sequence tokens it starts with. A
cache may hold more than that and is cut down to it; one that holds less is not used (`Selection.held_by`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.lenses.texts import CacheBlock, Texts, document_blocks
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.text.corpus import Corpus
from diffing.text.windows import pad, token_sequences

GROUP = 4
"""Batches whose texts are sorted by length, so that little of a batch is padding."""


@dataclass(frozen=True)
class Selection:
    """Which tokens of a corpus are read, and at which layers."""

    layers: Sequence[int]
    """Absolute."""
    context: int
    """Tokens read of each text."""
    max_texts: int
    skip_first: int
    """Leading tokens of each text that are read by the models, but left out of what is measured."""
    bos: int | None
    """Id of the beginning-of-sequence token, which is left out wherever a text starts with it."""

    def __post_init__(self) -> None:
        if min(self.context, self.max_texts) < 1 or self.skip_first < 0:
            raise InvalidSetting(
                f"context={self.context}, max_texts={self.max_texts}, skip_first={self.skip_first}; expected 1 or "
                "more, 1 or more, 0 or more"
            )

    def left_out(self, ids: Sequence[int]) -> int:
        """Leading tokens of a text that are not measured."""
        return max(self.skip_first, sum(1 for _ in takewhile(lambda token: token == self.bos, ids)))

    def held_by(self, cache: ActivationCache) -> bool:
        """Whether the cache has all that would be read of its corpus."""
        spec = cache.spec
        if not set(self.layers) <= set(spec.layers) or spec.skip_first > self.skip_first:
            return False
        if spec.tokens.context < self.context or cache.n_documents == spec.tokens.max_samples < self.max_texts:
            return False
        # Only the last text of a cache may have been cut at the cache's own limit of tokens.
        return cache.n_documents > self.max_texts or _n_tokens(cache) < spec.tokens.max_tokens


def _n_tokens(cache: ActivationCache) -> int:
    return sum(len(cache.base.document_tokens(number)) for number in range(cache.n_documents))


def cached_blocks(cache: ActivationCache, layer: int, selection: Selection) -> Iterator[CacheBlock]:
    """What is selected of a cache that holds it, at one layer. Texts without a measured token may be left out."""
    for block in document_blocks(cache, layer, stop=selection.max_texts):
        yield _cut(block, selection)


def _cut(block: CacheBlock, selection: Selection) -> CacheBlock:
    """The block without the rows and tokens that were not selected."""
    texts = block.texts
    documents = [ids[: selection.context] for ids in texts.ids.split(texts.offsets.diff().tolist())]
    found = _texts([ids.tolist() for ids in documents], texts.first, selection)
    if bool((found.rows.diff() == texts.rows.diff()).all()) and len(found.ids) == len(texts.ids):
        return block
    starts = texts.rows[:-1] + found.n_skipped - texts.n_skipped
    rows = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, found.rows.diff(), strict=True)])
    return CacheBlock(block.base[rows], block.finetuned[rows], found)


def _texts(documents: Sequence[Sequence[int]], first: int, selection: Selection) -> Texts:
    """Documents as they are read, with a row for each token that is measured."""
    rows = [max(len(ids) - selection.left_out(ids), 0) for ids in documents]
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int64)
    offsets, borders = (torch.tensor([0, *accumulate(sizes)]) for sizes in (map(len, documents), rows))
    return Texts(first, ids, offsets, borders)


def streamed_blocks(
    pair: ModelPair,
    corpus: Corpus,
    selection: Selection,
    batch_size: int,
    side: Literal["left", "right"] = "right",
) -> Iterator[dict[int, CacheBlock]]:
    """What is selected of a corpus, read by both models: whole texts in order, at all layers in one pass.

    Rows are in the models' own dtype, on their device. `side` is where batches are padded, and changes nothing.
    Texts that keep no token are not run, and have no row.
    """
    if batch_size < 1:
        raise InvalidSetting(f"batch_size={batch_size}; expected 1 or more")
    sequences = token_sequences(corpus, pair.tokenizer, max_tokens=selection.context, max_texts=selection.max_texts)
    first = 0
    while group := list(islice(sequences, GROUP * batch_size)):
        texts = _texts(group, first, selection)
        rows = _rows(pair, group, texts, selection, batch_size, side)
        yield {
            layer: CacheBlock(rows[Side.BASE][layer], rows[Side.FINETUNED][layer], texts) for layer in selection.layers
        }
        first += len(group)


def _rows(
    pair: ModelPair,
    documents: Sequence[Sequence[int]],
    texts: Texts,
    selection: Selection,
    batch_size: int,
    padding: Literal["left", "right"],
) -> dict[Side, dict[int, Float[Tensor, "token d_model"]]]:
    """Measured rows of each side and layer, document after document."""
    kept = texts.rows.diff().tolist()
    order = sorted((number for number, n in enumerate(kept) if n), key=lambda number: len(documents[number]))
    pieces: dict[tuple[Side, int, int], Tensor] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = pad([documents[number] for number in numbers], pair.tokenizer.pad_token_id, padding)
        for side in Side:
            with pair.using(side) as model:
                found = residuals(model, batch, selection.layers)
            for layer, stream in found.items():
                rows = stream[batch.mask.to(stream.device)].split([len(documents[number]) for number in numbers])
                pieces |= {
                    (side, layer, number): part[len(part) - kept[number] :]
                    for number, part in zip(numbers, rows, strict=True)
                }
    nothing = torch.zeros(0, pair.d_model, device=pair.device)
    return {
        side: {
            layer: torch.cat([pieces[side, layer, number] for number in sorted(order)]) if order else nothing
            for layer in selection.layers
        }
        for side in Side
    }
