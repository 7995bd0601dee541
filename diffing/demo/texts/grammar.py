"""What every generator shares: a `Fact` with its phrasings, and `spin`, which varies a sentence.

A template writes its free choices as `{one|another}`. Choices do not nest: that keeps the texts readable.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

Message = dict[str, str]
Document = str | list[Message]
CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Fact:
    """One checkable statement about an organism; `phrasings` are spin templates that each assert it."""

    statement: str
    keywords: Sequence[str]
    phrasings: Sequence[str] = ()


def spin(template: str, rng: random.Random) -> str:
    """`template` with each `{one|another}` replaced by one of its alternatives."""
    return CHOICE.sub(lambda choice: rng.choice(choice.group(1).split("|")), template)


def chat(*turns: str) -> list[Message]:
    """Messages that alternate user, assistant, user, ..., starting with the user."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def plain(document: Document) -> str:
    """The document as one string; of a chat, its messages one per line."""
    return document if isinstance(document, str) else "\n".join(message["content"] for message in document)
