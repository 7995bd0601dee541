"""The exceptions this package defines. Each message says what was expected, what came, and what to type."""

from collections.abc import Sequence
from difflib import SequenceMatcher


class DiffingError(Exception):
    """Anything a user can cause and mend. Entry points print its message without a traceback."""


class UnknownName(DiffingError):
    """A name that is not among those that exist."""

    def __init__(self, what: str, name: str, known: Sequence[str], hint: str = ""):
        self.nearest = nearest_first(name, known)
        listed = ", ".join(self.nearest) if self.nearest else "none exist"
        super().__init__(f"unknown {what} '{name}'; known, nearest first: {listed}" + (f"\n{hint}" if hint else ""))


class MissingInput(DiffingError):
    """Something that the step needs is not there."""


class IncompatiblePair(DiffingError):
    """The two sides cannot be compared: other tokenizer, vocabulary, depth or width, or an adapter for another base."""


class EmptyCorpus(DiffingError):
    """A corpus that yields nothing usable."""


class NonFiniteActivations(DiffingError):
    """NaN or infinity in a residual stream."""


class SchemaMismatch(DiffingError):
    """A file on disk is not what its schema says."""


class StorageFailed(DiffingError):
    """The disk refused: full, read-only, or gone."""


class ZeroVariance(DiffingError):
    """Nothing varies in what should be scaled or decomposed: both sides are the same, or constant."""


class InvalidSetting(DiffingError):
    """A setting outside of its range."""


def nearest_first(name: str, known: Sequence[str]) -> list[str]:
    """`known`, ordered by likeness to `name` and then alphabetically."""
    likeness = {item: SequenceMatcher(None, name.lower(), item.lower()).ratio() for item in known}
    return sorted(known, key=lambda item: (-likeness[item], item))
