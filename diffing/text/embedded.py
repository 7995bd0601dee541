"""Corpora that need no download: English text that Python installations carry, and everyday chat prompts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from diffing.text.records import FileRows, Row, line_rows

DOCUMENT_CHARACTERS = 400
"""A document of `python_docs` ends at the first paragraph border after this many characters."""


@cache
def python_docs() -> Sequence[Row]:
    """The prose of the Python language reference, as `help("topics")` shows it: one row `{"text": ...}` a document.

    Some 400 documents, most of them 400 to 1500 characters long, none spanning two topics, no paragraph twice.
    The text differs between Python versions: `diffing.text.corpus.pin` makes a digest cover it.
    """
    return tuple({"text": document} for document in prose_documents(topics))


def chat_prompts() -> FileRows:
    """Short everyday requests: one row `{"messages": [{"role": "user", "content": ...}]}` a conversation."""
    return line_rows(Path(__file__).with_name("chat_prompts.jsonl"))


EMBEDDED: Mapping[str, Callable[[], Sequence[Row] | FileRows]] = {
    "python_docs": python_docs,
    "chat_prompts": chat_prompts,
}


def prose_documents(topics: Mapping[str, str]) -> Iterator[str]:
    """Cut the prose of help topics (name to reStructuredText, rendered) into documents at paragraph borders."""
    seen: set[str] = set()
    for name in sorted(topics):
        pieces: list[str] = []
        piece = ""
        for block in re.split(r"\n *\n", topics[name].strip("\n")):
            paragraph = _prose(block)
            if not paragraph or paragraph in seen:
                continue
            seen.add(paragraph)
            piece = f"{piece}\n\n{paragraph}" if piece else paragraph
            if len(piece) >= DOCUMENT_CHARACTERS:
                pieces.append(piece)
                piece = ""
        if len(piece) >= DOCUMENT_CHARACTERS // 2 or not pieces:
            pieces.append(piece)
        elif piece:
            pieces[-1] += f"\n\n{piece}"
        yield from filter(None, pieces)


def _prose(block: str) -> str | None:
    """A paragraph on one line without markup; None for code, grammar, signatures, headings and stubs of sentences."""
    lines = [line.strip() for line in block.splitlines()]
    if any(re.fullmatch(r"([*=\-~^+\"])\1{2,}", line) for line in lines) or re.search(r">>>|::=", block):
        return None
    text = re.sub(r"(?<=\w)- (?=\w)", "-", " ".join(lines))
    text = re.sub(r"(?<!\w)(\*{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", text)
    text = re.sub(r" +", " ", re.sub(r"^(\* |\d+\. |\[\d+\] )+| ?\[\d+\]", "", text)).strip()
    letters = sum(character.isalpha() or character == " " for character in text)
    is_sentence = len(re.findall(r"[A-Za-z]{2,}", text)) >= 6 and text.endswith((".", "!", "?", ".)", '."', ".”"))
    return text if is_sentence and letters >= 0.85 * len(text) else None
