"""What a method is, and what it may look at.

A method is a frozen dataclass whose fields are its settings; `run` computes and returns a Report, and does no I/O.
A method that reads activation caches through learners has a `fit` too, which computes and returns the learners.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.errors import InvalidSetting, UnknownName
from diffing.learners.base import Learner, load_learner
from diffing.learners.scratch import Scratch
from diffing.live_tools import LiveTool
from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.specs import JSON, CorpusSpec
from diffing.text.corpus import Corpus, pin

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Advance = Callable[[int], object]
"""Told how many units of work were just finished."""


@runtime_checkable
class Progress(Protocol):
    """Shows a person what is being done and how long it will take; `total` is None where nobody can know it."""

    def stage(self, title: str, total: int | None) -> AbstractContextManager[Advance]: ...


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        yield lambda units: None


@dataclass(frozen=True)
class Finetune:
    """What an organism was finetuned on, as its config says: what a method's readouts may be measured against.

    Nothing of it is read but for tables, scalars and findings that are marked `ground_truth`.
    """

    organism: str
    description: str
    corpus_spec: CorpusSpec | None
    """Training texts, not yet pinned; None if they are not known."""

    @cached_property
    def corpus(self) -> Corpus | None:
        """The training texts; found on first touch."""
        return None if self.corpus_spec is None else Corpus(pin(self.corpus_spec))


@dataclass(frozen=True)
class Study:
    """All a method may look at. The pair's weights, the corpora, caches and learners are opened on first touch."""

    pair: ModelPair
    corpora: Sequence[Corpus]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    caches: Sequence[ActivationCache] = ()
    """One per corpus whose activations are stored."""
    learners: Mapping[str, Path] = field(default_factory=dict)
    """Folders of what was fitted, by the names that `fit` gave."""
    scratch: Scratch = field(default_factory=Scratch)
    """Where a fit goes on that was interrupted."""
    finetune: Finetune | None = None
    """What the finetuned side was finetuned on, if that is known."""
    other_finetunes: Sequence[Finetune] = ()
    """Of other organisms: a baseline for what is measured against `finetune`."""

    def cached_layers(self, depths: Sequence[float | int] | None) -> list[int]:
        """Absolute layers to analyse, ascending; None takes all that are cached.

        Raises InvalidSetting for one that is not cached.
        """
        cached = self.caches[0].layers
        layers = list(cached) if depths is None else [self.pair.layer_at(depth) for depth in depths]
        if missing := [layer for layer in layers if layer not in cached]:
            raise InvalidSetting(
                f"layers {missing} are not in the caches, which hold {list(cached)}; add them to preprocessing.layers"
            )
        return sorted(set(layers))

    def moments(self, stream: Stream, layer: int) -> Moments:
        """Over the rows of all caches."""
        return Moments.merged([cache.moments(stream, layer) for cache in self.caches])

    def differs(self, layer: int) -> bool:
        """Whether any stored difference is other than exactly zero."""
        moments = self.moments(Stream.DIFFERENCE, layer)
        return bool(moments.mean.any() or moments.m2.any())

    def learner(self, name: str) -> Learner:
        """The learner of that name, loaded."""
        if name not in self.learners:
            raise UnknownName("learner", name, list(self.learners))
        return load_learner(self.learners[name])


class DiffingMethod(Protocol):
    """The whole interface of a method."""

    name: ClassVar[str]

    def run(self, study: Study) -> Report: ...


@runtime_checkable
class CacheReader(Protocol):
    """A method that reads activation caches where there are any, and the models where there are none."""

    name: ClassVar[str]

    def run(self, study: Study) -> Report: ...

    def can_read(self, cache: ActivationCache, pair: ModelPair) -> bool:
        """Whether the cache holds all that would be read of its corpus through the models."""
        ...


@runtime_checkable
class LearningMethod(Protocol):
    """A method that reads caches through learners, which it fits first."""

    name: ClassVar[str]

    def run(self, study: Study) -> Report: ...

    def learner_settings(self) -> Mapping[str, JSON]:
        """Those of its settings that the learners depend on: with the caches and the seed they identify them."""
        ...

    def fit(self, study: Study, logger: "Logger | None") -> Mapping[str, Learner]:
        """Fits what `run` will ask `study` for, from `study.caches`; empty where there is nothing to fit."""
        ...


@runtime_checkable
class HasLiveTools(Protocol):
    """A method by which agents may put questions of their own to the pair of a report."""

    def live_tools(self, report: Report, pair: ModelPair) -> Sequence[LiveTool]:
        """Loads nothing: the pair's weights load when a tool is first called."""
        ...
