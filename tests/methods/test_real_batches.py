"""What the three methods without training measure on real text with the real pair is the same for all batches."""

from itertools import product

import pytest
import torch
from torch import Tensor

from diffing.activations.position_means import position_means
from diffing.lenses.divergence import Divergence, batch_divergences
from diffing.lenses.paired_texts import Selection, streamed_blocks
from diffing.models.pair import ModelPair
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from diffing.text.windows import TokenBatch, batches, token_sequences

CORPUS = CorpusSpec(name="python_docs", source="embedded", id="python_docs", max_documents=16)
TOKENS, LAYER = 24, 14
WAYS = [(size, side) for size, side in product((1, 4, 16), ("left", "right")) if (size, side) != (1, "left")]
"""Alone and padded on the right is what the others are compared with."""


def padded(pair: ModelPair, size: int, side: str) -> list[TokenBatch]:
    """Texts of the lengths that they have, and some cut short, so that every batch has padding."""
    texts = token_sequences(Corpus(CORPUS), pair.tokenizer, max_tokens=TOKENS)
    uneven = [ids[: TOKENS - 3 * (number % 5)] for number, ids in enumerate(texts)]
    return list(batches(uneven, size, pair.tokenizer.pad_token_id, side))


def means(pair: ModelPair, size: int, side: str) -> Tensor:
    found = position_means(pair, padded(pair, size, side), [LAYER], TOKENS)[LAYER]
    return found.difference[1:]  # the sink at 0 is a hundred times as long, and its rounding as large


def divergences(pair: ModelPair, size: int, side: str) -> Tensor:
    kinds = [Divergence.KL_FINETUNED_BASE]
    rows = [row for batch in padded(pair, size, side) for row in batch_divergences(pair, batch, kinds, None)]
    return torch.cat(rows)[:, 0]


def norms(pair: ModelPair, size: int, side: str) -> Tensor:
    selection = Selection([LAYER], TOKENS, 16, 1, pair.tokenizer.bos_token_id)
    blocks = streamed_blocks(pair, Corpus(CORPUS), selection, size, side)
    return torch.cat([(block[LAYER].finetuned - block[LAYER].base).norm(dim=-1) for block in blocks])


@pytest.mark.real_model
@pytest.mark.parametrize("measure", [means, divergences, norms])
def test_batches_and_padding_change_nothing_but_rounding(real_pair: ModelPair, measure) -> None:
    expected = measure(real_pair, 1, "right")
    assert len(expected) > 20
    for size, side in WAYS:
        found = measure(real_pair, size, side)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()))
