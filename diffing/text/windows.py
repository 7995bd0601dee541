"""Token sequences of a corpus, and their batches.

Padding is positional: the mask comes from the lengths, so a pad id that is also a real token (the end of text, often)
does no harm, and position ids come from the mask, so that the side of the padding changes no result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.text.chat import chat_text, render_chat
from diffing.text.corpus import Document, Message

CHARACTERS_PER_TOKEN = 20
"""How much text is tokenised at first, per token wanted; more is taken where it does not suffice."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded to one length."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """True at real tokens."""

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """0 at the first real token of each sequence, and so on; padding before it has 0, padding after it its last."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)


def pad(sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]) -> TokenBatch:
    """Pad to the longest sequence. Raises InvalidSetting for no sequences, or an empty one."""
    if not sequences or not all(len(sequence) for sequence in sequences):
        lengths = [len(sequence) for sequence in sequences]
        raise InvalidSetting(f"expected one or more sequences of one or more tokens; got lengths {lengths}")
    length = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(sequences), length), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        real = slice(length - len(sequence), length) if side == "left" else slice(len(sequence))
        ids[row, real] = torch.as_tensor(sequence, dtype=torch.int64)
        mask[row, real] = True
    return TokenBatch(ids, mask)


def token_sequences(
    corpus: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    max_texts: int | None = None,
) -> Iterator[list[int]]:
    """The first `max_tokens` tokens of each document, of at most `max_texts` documents that have any.

    Text gets the special tokens that the model expects; a conversation is rendered through the chat template, which
    writes them itself. Raises EmptyCorpus if no document has a token, InvalidSetting for bounds below 1.
    """
    if max_tokens < 1 or (max_texts is not None and max_texts < 1):
        raise InvalidSetting(f"expected max_tokens and max_texts of 1 or more, got {max_tokens} and {max_texts}")
    sequences = (_first_tokens(document, tokenizer, max_tokens) for document in corpus)
    found = False
    for sequence in islice(filter(None, sequences), max_texts):
        found = True
        yield sequence
    if not found:
        raise EmptyCorpus("no document of the corpus has a token; check its id and column")


@dataclass(frozen=True)
class ChatStart:
    """A conversation up to and into its first answer."""

    ids: list[int]
    anchor: int
    """Where in `ids` the assistant's first token is; their length if there is no answer."""


def chat_starts(
    corpus: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    max_prompt_tokens: int = 512,
    max_texts: int | None = None,
) -> Iterator[ChatStart]:
    """What comes before the first answer of each conversation, and the first `max_tokens` tokens of that answer.

    A conversation without an assistant's message ends with the header of the answer that would follow. Left out is what
    has more than `max_prompt_tokens` tokens before the answer, or an answer without a token. Raises EmptyCorpus if all
    are, InvalidSetting for a corpus of texts, for a tokenizer without a chat template and for bounds out of range.
    """
    if max_tokens < 0 or max_prompt_tokens < 1 or (max_texts is not None and max_texts < 1):
        raise InvalidSetting(
            "expected max_tokens of 0 or more, max_prompt_tokens and max_texts of 1 or more, got "
            f"{max_tokens}, {max_prompt_tokens} and {max_texts}"
        )
    starts = (_chat_start(document, tokenizer, max_tokens, max_prompt_tokens) for document in corpus)
    found = False
    for start in islice(filter(None, starts), max_texts):
        found = True
        yield start
    if not found:
        raise EmptyCorpus(
            f"no conversation has an answer after at most {max_prompt_tokens} tokens; check the corpus, or raise "
            "max_prompt_tokens"
        )


def batches(
    sequences: Iterable[Sequence[int]], batch_size: int, pad_id: int, side: Literal["left", "right"]
) -> Iterator[TokenBatch]:
    """Padded batches in the given order; the last may be smaller. Raises EmptyCorpus for no sequence."""
    if batch_size < 1:
        raise InvalidSetting(f"expected a batch_size of 1 or more, got {batch_size}")
    remaining = iter(sequences)
    group = list(islice(remaining, batch_size))
    if not group:
        raise EmptyCorpus("no token sequences to batch; check the id and column of the corpus")
    while group:
        yield pad(group, pad_id, side)
        group = list(islice(remaining, batch_size))


def _first_tokens(document: Document, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[int]:
    """Tokenises no more text than needed; empty if there is nothing but special tokens that the tokenizer adds.

    A text is cut only between a word and a space, where pre-tokenizers split, so the tokens before the cut are those of
    the whole text; special tokens appended at the cut are what the spare length is for.
    """
    add_special_tokens = isinstance(document, str)
    text = document if isinstance(document, str) else chat_text(tokenizer, document)
    added = tokenizer.num_special_tokens_to_add() if add_special_tokens else 0
    characters = CHARACTERS_PER_TOKEN * max_tokens
    while True:
        head = _head(text, characters)
        ids = tokenizer(head, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        if len(ids) >= max_tokens + added or len(head) == len(text):
            return ids[:max_tokens] if len(ids) > added else []
        characters *= 2


def _chat_start(
    document: Document, tokenizer: PreTrainedTokenizerBase, max_tokens: int, max_prompt_tokens: int
) -> ChatStart | None:
    if isinstance(document, str):
        raise InvalidSetting("positions around an answer need a corpus of format chat, got one of format text")
    messages = _to_first_answer(document)
    answered = messages[-1]["role"] == "assistant"
    chat = render_chat(tokenizer, messages, add_generation_prompt=not answered)
    answer = [index for index, spoken in enumerate(chat.assistant_mask) if spoken]
    if answered and not answer:
        return None
    anchor, end = (answer[0], answer[-1] + 1) if answered else (len(chat.ids), len(chat.ids))
    return ChatStart(chat.ids[: min(anchor + max_tokens, end)], anchor) if anchor <= max_prompt_tokens else None


def _to_first_answer(messages: Sequence[Message]) -> Sequence[Message]:
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[0] + 1] if answers else messages


def _head(text: str, characters: int) -> str:
    """The text up to the last border of non-space and space within so many characters; all of it if there is none."""
    if len(text) <= characters:
        return text
    cut = text.rfind(" ", 1, characters + 1)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 1, cut)
    return text[:cut] if cut > 0 else text
