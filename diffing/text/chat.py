"""Conversations as a model reads them, and exactly which tokens the assistant wrote.

Templates trim, rewrite or drop what they are given, so the mask is found by experiment: a mark is put into an assistant
message, the conversation is rendered again, and if the text is otherwise unchanged the mark shows where that place of
the message went. Prefix lengths would count role headers, and are wrong for templates that rewrite history.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import cast

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from diffing.errors import InvalidSetting, SchemaMismatch

THINK_START, THINK_END = "<think>", "</think>"
PRIVATE_USE = range(0xE000, 0xF900)
"""Code points without meaning, from which marks are taken."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text and tokens; `text` already holds any BOS, so it is tokenised without special tokens."""

    ids: list[int]
    assistant_mask: list[bool]
    """One per token: true if the token lies wholly within what an assistant message says."""
    text: str


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
) -> RenderedChat:
    """Render a conversation through the tokenizer's chat template, with its assistant mask.

    Role headers and end-of-turn tokens are not masked, nor is a token that straddles the border of the content. Content
    that the template drops (earlier thinking, say) has no tokens. Raises InvalidSetting for a tokenizer without a chat
    template or without offsets, SchemaMismatch for a conversation that the template rejects or rewrites past tracing.
    """
    if not tokenizer.is_fast:
        raise InvalidSetting(f"tokenizer {tokenizer.name_or_path} has no character offsets; load a fast tokenizer")
    render = partial(chat_text, tokenizer, add_generation_prompt=add_generation_prompt)
    text = render(messages)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    spans = [span for index in answers for span in _Tracer(render, messages, index, text).spans()]
    encoding = _plain_backend(tokenizer, len(tokenizer)).encode(text, add_special_tokens=False)
    mask = [any(start <= first < last <= stop for start, stop in spans) for first, last in encoding.offsets]
    return RenderedChat(ids=encoding.ids, assistant_mask=mask, text=text)


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
) -> str:
    """The conversation as text, special tokens spelled out. Errors as `render_chat`."""
    if not tokenizer.chat_template:
        raise InvalidSetting(
            f"tokenizer {tokenizer.name_or_path} has no chat template; set model.tokenizer_id to an instruct model "
            "of the same family, or use a corpus of format text"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise SchemaMismatch(
            f"the chat template of {tokenizer.name_or_path} rejects a conversation with roles [{roles}]: {error}"
        ) from error
    return cast(str, text)


@lru_cache(maxsize=4)
def _plain_backend(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> Tokenizer:
    """A copy with exact offsets: post-processors may trim whitespace off them, and truncation may have been set.

    The vocabulary's size is part of the key because tokens can be added to a tokenizer.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    return backend


@dataclass(frozen=True)
class _Tracer:
    """Finds the content of one message in the rendered conversation."""

    render: Callable[[Sequence[Mapping[str, str]]], str]
    messages: Sequence[Mapping[str, str]]
    index: int
    """Which message."""
    text: str
    """The rendered conversation."""

    @property
    def content(self) -> str:
        return self.messages[self.index]["content"]

    def spans(self) -> list[tuple[int, int]]:
        """First and last-plus-one character of each piece of the content: one piece, or thinking and answer apart."""
        try:
            pieces = [self._piece(0, len(self.content))]
        except SchemaMismatch:
            if THINK_END not in self.content:
                raise
            thinking_end = self.content.index(THINK_END)
            thinking_start = self.content.find(THINK_START, 0, thinking_end)
            pieces = [
                self._piece(0 if thinking_start < 0 else thinking_start + len(THINK_START), thinking_end),
                self._piece(self.content.rindex(THINK_END) + len(THINK_END), len(self.content)),
            ]
        return [piece for piece in pieces if piece]

    def _piece(self, start: int, stop: int) -> tuple[int, int] | None:
        """Where content[start:stop] went, less the outer whitespace that the template trims; None if it is dropped."""
        piece = self.content[start:stop]
        first = self._place(range(start, stop - len(piece.lstrip()) + 1))
        last = self._place(range(stop, start + len(piece.rstrip()) - 1, -1))
        if first is None and last is None:
            return None
        if first is None or last is None:
            raise SchemaMismatch(self._untraceable())
        span = (first[1], last[1])
        if span[0] == span[1]:
            return None
        if self.text[slice(*span)] != self.content[first[0] : last[0]]:
            raise SchemaMismatch(self._untraceable())
        return span

    def _place(self, candidates: range) -> tuple[int, int] | None:
        """The first of these places in the content that can be traced, and its place in the text; None: dropped."""
        mark = next(mark for mark in map(chr, PRIVATE_USE) if mark not in self.text)
        for at in candidates:
            message = {**self.messages[self.index], "content": self.content[:at] + mark + self.content[at:]}
            marked = self.render([*self.messages[: self.index], message, *self.messages[self.index + 1 :]])
            if marked.count(mark) <= 1 and marked.replace(mark, "") == self.text:
                return (at, marked.index(mark)) if mark in marked else None
        raise SchemaMismatch(self._untraceable())

    def _untraceable(self) -> str:
        return (
            "expected a chat template that writes assistant content unchanged, trimmed, without its thinking, or not "
            f"at all; it rewrites {self.content[:80]!r} otherwise, so which tokens are the assistant's cannot be told; "
            "use a template that keeps the content, or leave such conversations out of the corpus"
        )
