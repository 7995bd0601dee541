"""Stems of words, by which a word of one text is found in another: `baking` finds `bakes`."""

import re

from diffing.agents.words import content_word

_ENDINGS = ("ings", "ing", "edly", "ed", "ers", "er", "ies", "es", "s", "ly", "y", "e")


def words(text: str) -> list[str]:
    """Words and numbers, case folded."""
    return re.findall(r"[^\W_]+", text.casefold())


def stem(word: str) -> str:
    """The word without one common English ending, if three letters stay, then without `er` (so that `gathered` and
    `gather` are the same), and without a doubled last letter."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if word.endswith("er") and len(word) >= 5:
        word = word[:-2]
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word.isalpha() else word


def stems(text: str) -> list[str]:
    return [stem(word) for word in words(text)]


def same(wanted: str, found: str) -> bool:
    """Equal stems, or one of five letters or more that the other goes on from."""
    return wanted == found or (len(wanted) >= 5 and wanted.isalpha() and found.startswith(wanted))


def terms(text: str) -> set[str]:
    """Stems of what a text says: content words, numbers, and words in other scripts, where none are known as empty."""
    return {stem(word) for word in words(text) if content_word(word) or not word.isascii() or is_number(word)}


def is_number(term: str) -> bool:
    """Whether it holds a digit."""
    return any(char.isdigit() for char in term)
