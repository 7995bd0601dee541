"""Answers of the finetuned model with the mean difference added, as strongly as they stay coherent."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side
from diffing.lenses.coherence import CoherenceRule
from diffing.lenses.judge import Judge
from diffing.lenses.steering import Answers, Condition, Sample, beside_controls, direction_rows
from diffing.lenses.strength import Asked, CoherentStrength, StrengthSearch, coherence_rule, coherent_strength
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.methods.base import Study


@dataclass(frozen=True)
class Direction:
    """The mean difference at one position, as long as the mean residual norm: that is strength 1."""

    corpus: str
    layer: int
    position: int
    vector: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, reading: Reading, position: int) -> "Direction":
        return cls(reading.corpus, reading.means.layer, position, reading.at("difference", position))

    @property
    def name(self) -> str:
        return f"the mean difference at position {self.position} on {self.corpus}"

    @property
    def where(self) -> dict[str, object]:
        """Columns of the tables."""
        return {"corpus": self.corpus, "layer": self.layer, "position": self.position}


@dataclass(frozen=True)
class Searched:
    """What the search for the strength of each direction found."""

    rule: str
    found: Sequence[tuple[Direction, CoherentStrength]]

    def threshold_rows(self) -> Iterator[dict[str, object]]:
        for direction, strength in self.found:
            for each in strength.thresholds:
                limit = each.limit if math.isfinite(each.limit) else math.nan
                yield {
                    **direction.where, "prompt": each.prompt, "strength": each.strength if each.decided else math.nan,
                    "limit": limit, "outcome": str(each.outcome), "by": self.rule,
                }  # fmt: skip

    def probe_rows(self) -> Iterator[dict[str, object]]:
        for direction, strength in self.found:
            for threshold in strength.thresholds:
                for probe in threshold.probes:
                    yield {
                        **direction.where, "prompt": probe.prompt, "strength": probe.strength,
                        "coherent": probe.coherent, "incoherent": probe.incoherent, "unanswered": probe.unanswered,
                        "share": probe.share, "standard_error": probe.standard_error,
                    }  # fmt: skip


def search_strengths(
    study: Study, directions: Sequence[Direction], answers: Answers, search: StrengthSearch, judge: Judge | None
) -> Searched:
    """One search per direction, all by one rule. Answers are drawn as `answers` will be."""
    with study.progress.stage("answers by which strengths are searched", None) as advance:
        asked = Asked(study.pair, answers.sampling(study.seed), answers.batch_size, advance)
        rule: CoherenceRule = coherence_rule(asked, judge, search)
        found = [
            (direction, coherent_strength(asked, direction.vector, direction.layer, rule, search))
            for direction in directions
        ]
    return Searched(rule.name, found)


@dataclass(frozen=True)
class Plan:
    """How one direction steers."""

    direction: Direction
    strengths: Sequence[float]
    searched: bool

    def conditions(self, seed: int) -> list[Condition]:
        """Unsteered; steered at each strength; a random direction that is as long as at the greatest."""
        named = {self.direction.name: self.direction.vector}
        found = beside_controls(named, self.strengths, seed)
        if not self.searched:
            return found
        return [replace(each, name="steered") if each.kind == "steered" else each for each in found]


def steered_rows(study: Study, plans: Sequence[Plan], answers: Answers) -> list[dict[str, object]]:
    """Rows of the steering table. Unsteered answers are drawn once, and stand beside each direction."""
    if not plans:
        return []
    rows: list[dict[str, object]] = []
    conditions = [plan.conditions(study.seed) for plan in plans]
    total = answers.count(conditions[0][:1]) + sum(answers.count(each[1:]) for each in conditions)
    title, pair = "steered and unsteered answers", study.pair
    with study.progress.stage(title, total) as advance, pair.using(Side.FINETUNED) as model:

        def draw(drawn: Sequence[Condition], layer: int) -> list[Sample]:
            return answers.draw(model, pair.tokenizer, drawn, layer, study.seed, advance)

        unsteered = draw(conditions[0][:1], plans[0].direction.layer)
        for plan, planned in zip(plans, conditions, strict=True):
            samples = unsteered + draw(planned[1:], plan.direction.layer)
            rows += [plan.direction.where | row for row in direction_rows(samples)]
    return rows
