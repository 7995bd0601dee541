"""What a scripted investigator is told and does, in no protocol's words."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import AnyStr


@dataclass(frozen=True)
class Acts:
    """What an investigator does: thinks, says something, and calls tools."""

    calls: Sequence[tuple[str, Mapping[str, object]]] = ()
    text: str = ""
    stop: str = ""
    """Of Anthropic's words: refusal, max_tokens, ...; empty for what the calls imply."""
    thinking: str = ""


@dataclass(frozen=True)
class Called:
    """A call of an investigator, and how it was answered."""

    tool: str
    arguments: Mapping[str, object]
    result: str
    failed: bool = False


@dataclass(frozen=True)
class Seen:
    """A request, in no protocol's words."""

    tools: Sequence[str]
    texts: Sequence[str]
    """System, user and tool texts, in order."""
    results: Sequence[str]
    """Those of tools."""
    turn: int
    """Messages of the investigator so far."""
    calls: Sequence[Called] = ()
    """Those that were answered, in order; of Anthropic's protocol alone."""


@dataclass(frozen=True)
class Tokens:
    """What a service charges for, each token in one place."""

    uncached: int = 0
    written: int = 0
    """To the cache of prompts."""
    read: int = 0
    """From it."""
    output: int = 0
    """With those of thinking."""
    thinking: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(mine + others for mine, others in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def input(self) -> int:
        return self.uncached + self.written + self.read

    @property
    def total(self) -> int:
        return self.input + self.output


def inputs(answer: Acts) -> list[str]:
    """Arguments of the calls as JSON. Where an answer has come to its limit, the last call is cut in its middle."""
    sent = [json.dumps(dict(arguments), ensure_ascii=False) if arguments else "" for _, arguments in answer.calls]
    if sent and answer.stop in ("max_tokens", "model_context_window_exceeded"):
        sent[-1] = sent[-1][: len(sent[-1]) // 2]
    return sent


Script = Callable[[Seen], Acts]


def steps(*acts: Acts) -> Script:
    """One after the other, whatever comes of them; the last again and again."""
    return lambda seen: acts[min(seen.turn, len(acts) - 1)]


def pieces(text: AnyStr, size: int) -> list[AnyStr]:
    """Pieces of so many characters; none of an empty text."""
    return [text[start : start + size] for start in range(0, len(text), size)]
