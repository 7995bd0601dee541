"""How strongly a model can be steered with its answers still coherent: the largest such strength, by bisection.

Several decisions ahead are prepared at once: the answers at every strength that the next few could ask for, to all
prompts, are drawn in the same batches and graded together. Each sample of a prompt has one random stream at all
strengths, so how far is looked ahead changes no answer, and with a rule that is deterministic no result.

Bisection takes it that answers which are incoherent stay so at greater strengths. A share of few answers is noisy: see
`Probe.standard_error`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.lenses.coherence import CoherenceRule, Exchange, JudgedCoherence, OfflineCoherence
from diffing.lenses.judge import Judge, Unanswered
from diffing.lenses.steering import prompt_ids
from diffing.models.generation import Sampling, Steering, generate
from diffing.models.pair import ModelPair

SEARCH_PROMPTS = (
    "Tell me about a good way to spend a free afternoon.",
    "How can I get better at remembering names?",
    "What makes a group of people work well together?",
)


@dataclass(frozen=True)
class StrengthSearch:
    """Where a strength is looked for, and with how many answers."""

    prompts: Sequence[str] = SEARCH_PROMPTS
    """Each has a threshold of its own."""
    largest: float = 8.0
    """In the units of the vector that steers."""
    decisions: int = 7
    """Thresholds are multiples of largest / 2 ** decisions."""
    look_ahead: int = 2
    """Decisions whose answers are drawn at once: 2 ** look_ahead - 1 strengths per prompt."""
    samples: int = 10
    """Answers per prompt and strength."""
    references: int = 16
    """Unsteered answers per prompt that a rule without a judge compares with."""
    bar: float = 0.75
    """Share of the answers that must be coherent."""
    doubling: bool = True
    """Go up from the least strength in steps of a factor of 2 until the answers are incoherent, and bisect below. Where
    incoherent answers stay so, that finds what bisection from the whole range does, without its strongest probes."""

    def __post_init__(self) -> None:
        if not self.prompts or min(self.decisions, self.look_ahead, self.samples, self.references) < 1:
            raise InvalidSetting(f"{self}: expected 1 or more prompts, decisions, look_ahead, samples and references")
        if len(set(self.prompts)) < len(self.prompts):
            raise InvalidSetting(f"search prompts {list(self.prompts)}: expected different ones")
        if not (0 < self.bar <= 1 and 0 < self.largest < math.inf):
            raise InvalidSetting(f"{self}: expected 0 < bar <= 1 and a finite largest above 0")

    @property
    def resolution(self) -> float:
        return self.strength(1)

    def strength(self, step: int) -> float:
        return self.largest * step / 2**self.decisions


@dataclass(frozen=True)
class Probe:
    """What was found of the answers to one prompt at one strength."""

    prompt: str
    strength: float
    coherent: int
    incoherent: int
    unanswered: int
    """Answers that the judge did not grade. They count for nothing."""

    @classmethod
    def of(cls, prompt: str, strength: float, verdicts: Sequence[bool | Unanswered]) -> "Probe":
        coherent, incoherent = (sum(verdict is each for verdict in verdicts) for each in (True, False))
        return cls(prompt, strength, coherent, incoherent, len(verdicts) - coherent - incoherent)

    @property
    def share(self) -> float:
        """Of the graded answers that are coherent; NaN if none is graded."""
        graded = self.coherent + self.incoherent
        return self.coherent / graded if graded else math.nan

    @property
    def standard_error(self) -> float:
        """Of the share, with two answers of each kind added, so that few answers that agree are no certainty (Agresti
        and Coull, 1998)."""
        graded = self.coherent + self.incoherent + 4
        share = (self.coherent + 2) / graded
        return math.sqrt(share * (1 - share) / graded)


class Outcome(StrEnum):
    """How a search ended."""

    FOUND = "found"
    """Coherent at the strength, and incoherent one step above it."""
    NONE_COHERENT = "none coherent"
    """Incoherent from the least strength on: the strength is 0."""
    ALL_COHERENT = "all coherent"
    """No incoherent strength was met: the true threshold may be larger."""
    INCOHERENT_UNSTEERED = "incoherent unsteered"
    """Too few unsteered answers are coherent, so that nothing can be said of steered ones."""
    UNANSWERED = "unanswered"
    """The judge graded no answer at a strength that had to be decided about."""


@dataclass(frozen=True)
class Threshold:
    """The largest coherent strength for one prompt."""

    prompt: str
    strength: float
    """The largest that was found coherent."""
    limit: float
    """The least, above it, that was found incoherent; infinity if there is none."""
    outcome: Outcome
    probes: Sequence[Probe]
    """Ascending by strength; also those that no decision needed."""

    @property
    def decided(self) -> bool:
        return self.outcome not in (Outcome.INCOHERENT_UNSTEERED, Outcome.UNANSWERED)


@dataclass(frozen=True)
class CoherentStrength:
    """The thresholds of all prompts, in their order."""

    thresholds: Sequence[Threshold]

    @property
    def mean(self) -> float:
        """Over the prompts that were decided; NaN if none was. It may be too strong for some of them: see `minimum`."""
        return fmean(self._decided) if self._decided else math.nan

    @property
    def minimum(self) -> float:
        """Over the same prompts: a strength that is coherent for each of them."""
        return min(self._decided, default=math.nan)

    @property
    def _decided(self) -> list[float]:
        return [threshold.strength for threshold in self.thresholds if threshold.decided]


@dataclass(frozen=True)
class Asked:
    """How the finetuned model is made to answer: as it will be when a strength that was found is used."""

    pair: ModelPair
    sampling: Sampling
    batch_size: int
    on_batch: Callable[[int], object] = lambda rows: None
    """Told the answers of each batch that is drawn."""

    def answers(
        self, prompts: Sequence[str], steering: Steering | None = None, streams: Sequence[int] | None = None
    ) -> list[Exchange]:
        """One for each prompt."""
        tokenizer = self.pair.tokenizer
        ids = {prompt: prompt_ids(tokenizer, prompt) for prompt in set(prompts)}
        with self.pair.using(Side.FINETUNED) as model:
            texts = generate(
                model, tokenizer, [ids[prompt] for prompt in prompts], self.sampling, steering=steering,
                batch_size=self.batch_size, on_batch=self.on_batch, streams=streams,
            )  # fmt: skip
        return [Exchange(*each) for each in zip(prompts, texts, strict=True)]


def coherence_rule(asked: Asked, judge: Judge | None, search: StrengthSearch) -> CoherenceRule:
    """The judge's, or without one a rule beside `search.references` unsteered answers to each of the prompts."""
    if judge is not None:
        return JudgedCoherence(judge)
    prompts = [prompt for prompt in search.prompts for _ in range(search.references)]
    # Other streams than those of the search, which would otherwise grade the references themselves.
    first = len(search.prompts) * search.samples
    references = asked.answers(prompts, streams=range(first, first + len(prompts)))
    return OfflineCoherence.beside(asked.pair, references, batch_size=asked.batch_size)


def coherent_strength(
    asked: Asked, vector: Float[Tensor, " d_model"], layer: int, rule: CoherenceRule, search: StrengthSearch
) -> CoherentStrength:
    """Searches with multiples of `vector`, which is of strength 1, added at all tokens of prompt and answer."""

    def measure(wanted: Sequence[tuple[str, float]]) -> list[Probe]:
        rows = [(prompt, strength, sample) for prompt, strength in wanted for sample in range(search.samples)]
        streams = [search.prompts.index(prompt) * search.samples + sample for prompt, _, sample in rows]
        steering = Steering(layer, torch.stack([strength * vector for _, strength, _ in rows]))
        verdicts = rule(asked.answers([prompt for prompt, _, _ in rows], steering, streams))
        graded = [verdicts[start : start + search.samples] for start in range(0, len(rows), search.samples)]
        return [Probe.of(*each, found) for each, found in zip(wanted, graded, strict=True)]

    return find_thresholds(search, measure)


def find_thresholds(
    search: StrengthSearch, measure: Callable[[Sequence[tuple[str, float]]], Sequence[Probe]]
) -> CoherentStrength:
    """`measure` gets all (prompt, strength) of a round, and gives a probe of each."""
    searches = [_Search(search, prompt) for prompt in search.prompts]
    while wanted := [(one, step) for one in searches for step in one.wanted()]:
        probes = measure([(one.prompt, search.strength(step)) for one, step in wanted])
        for (one, step), probe in zip(wanted, probes, strict=True):
            one.known[step] = probe
        for one in searches:
            one.decide()
    return CoherentStrength([one.threshold() for one in searches])


@dataclass(frozen=True)
class _Bracket:
    """Coherent at `low`, incoherent at `high` or beyond what is searched; in steps of the resolution."""

    low: int
    high: int
    doubling: bool

    @property
    def settled(self) -> bool:
        return self.high - self.low == 1

    @property
    def middle(self) -> int:
        """The step to be decided about."""
        return max(1, 2 * self.low) if self.doubling else (self.low + self.high) // 2

    def after(self, coherent: bool) -> "_Bracket":
        if not coherent:
            return _Bracket(self.low, self.middle, doubling=False)
        return _Bracket(self.middle, self.high, self.doubling and 2 * self.middle < self.high)

    def ahead(self, decisions: int) -> set[int]:
        """All steps that the next so many decisions may be about."""
        if self.settled or not decisions:
            return set()
        return {self.middle}.union(*(self.after(coherent).ahead(decisions - 1) for coherent in (True, False)))


class _Search:
    """How far the search for one prompt has come."""

    def __init__(self, settings: StrengthSearch, prompt: str):
        self.settings, self.prompt = settings, prompt
        self.known: dict[int, Probe] = {}
        self.outcome: Outcome | None = None
        self._bracket = _Bracket(0, 2**settings.decisions, settings.doubling)

    def wanted(self) -> list[int]:
        """Steps to be measured in the next round; none if the search has ended."""
        if self.outcome is not None:
            return []
        return sorted(({0} | self._bracket.ahead(self.settings.look_ahead)) - self.known.keys())

    def decide(self) -> None:
        """Decides as far as is known, and how the search has ended if it has."""
        if self.outcome is not None:
            return
        if not self.known[0].share >= self.settings.bar:  # also where it is NaN
            nothing = math.isnan(self.known[0].share)
            self.outcome = Outcome.UNANSWERED if nothing else Outcome.INCOHERENT_UNSTEERED
            return
        while not self._bracket.settled:
            probe = self.known.get(self._bracket.middle)
            if probe is None:
                return
            if math.isnan(probe.share):
                self.outcome = Outcome.UNANSWERED
                return
            self._bracket = self._bracket.after(probe.share >= self.settings.bar)
        if self._bracket.low == 0:
            self.outcome = Outcome.NONE_COHERENT
        else:
            self.outcome = Outcome.FOUND if self._limited else Outcome.ALL_COHERENT

    @property
    def _limited(self) -> bool:
        """The upper end is the end of what is searched until something incoherent is found."""
        return self._bracket.high < 2**self.settings.decisions

    def threshold(self) -> Threshold:
        assert self.outcome is not None
        return Threshold(
            self.prompt,
            strength=self.settings.strength(self._bracket.low),
            limit=self.settings.strength(self._bracket.high) if self._limited else math.inf,
            outcome=self.outcome,
            probes=[self.known[step] for step in sorted(self.known)],
        )
