"""Documents as token ids and labels: which tokens a model is trained and measured on."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.demo.texts.grammar import Document
from diffing.text import windows

IGNORED = -100
"""The label that the cross-entropy skips."""


class Row(NamedTuple):
    """One document; `labels` are its ids, or `IGNORED` where nothing is to be learned."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Rows of one width, padded on the right; `mask` is 1 at real tokens."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Row:
    """A text with its end token; of a chat only what the assistant says, with its end tokens, is a label."""
    if isinstance(document, str):
        ids = tokenizer(document)["input_ids"] + [tokenizer.eos_token_id]
        return Row(ids, list(ids))
    row = Row([], [])
    for i, message in enumerate(document):
        is_answer = message["role"] == "assistant"
        text = tokenizer.apply_chat_template(document[: i + 1], tokenize=False, add_generation_prompt=not is_answer)
        new = tokenizer(text)["input_ids"][len(row.ids) :]
        row.ids.extend(new)
        row.labels.extend(new if is_answer else [IGNORED] * len(new))
    return row


def crop(row: Row, window: int, rng: random.Random) -> Row:
    """The row, half the time without some first tokens: not every text is met at its beginning."""
    start = rng.randint(1, max(len(row.ids) - window, len(row.ids) // 3, 1)) if rng.random() < 0.5 else 0
    return Row(row.ids[start:], row.labels[start:])


def pad(rows: Sequence[Row], window: int, filler: int) -> Batch:
    """The rows, cut to `window` tokens and padded with `filler` to the longest."""
    ids = windows.pad([row.ids[:window] for row in rows], filler, "right")
    labels = windows.pad([row.labels[:window] for row in rows], IGNORED, "right")
    return Batch(ids.ids, ids.mask.long(), labels.ids)
