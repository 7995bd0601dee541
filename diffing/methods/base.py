"""What a method is, and what it may look at.

A method is a frozen dataclass whose fields are its settings; `run` computes and returns a Report, and does no I/O.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.text.corpus import Corpus

Advance = Callable[[int], object]
"""Told how many units of work were just finished."""


@runtime_checkable
class Progress(Protocol):
    """Shows a person what is being done and how long it will take."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]: ...


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda units: None


@dataclass(frozen=True)
class Study:
    """All a method may look at. The pair's weights and the corpora are opened on first touch."""

    pair: ModelPair
    corpora: Sequence[Corpus]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)


class DiffingMethod(Protocol):
    """The whole interface of a method."""

    name: ClassVar[str]

    def run(self, study: Study) -> Report: ...
