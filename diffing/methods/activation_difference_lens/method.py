"""Activation Difference Lens: read the mean activation difference on the first tokens of unrelated text.

A narrow finetune shifts the residual stream in much the same way on any text, already in its first tokens. That mean
shift, one vector per position, is read with the logit lens and a patchscope, and added to the finetuned model while it
answers neutral prompts, as strongly as its answers stay coherent (arXiv 2510.13900). The base and finetuned means and a
random direction of the same norm are read in the same way: what they show too is not the finetune.

Where the training data are known, what was read is measured against them. No agent sees those tables.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from diffing.activations.position_means import SKIPPED
from diffing.errors import InvalidSetting
from diffing.lenses.judge import Judge, LLMJudge
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.scale import SCALES
from diffing.lenses.steering import Answers
from diffing.lenses.strength import StrengthSearch
from diffing.live_tools import LiveTool
from diffing.methods.activation_difference_lens import figures, findings, known_tables, tables
from diffing.methods.activation_difference_lens.carried import CausalSettings, causal_effects
from diffing.methods.activation_difference_lens.lenses import Scoped, lens_rows, patchscopes, scale_rule
from diffing.methods.activation_difference_lens.live import difference_tool
from diffing.methods.activation_difference_lens.reading import Reading, Window, read
from diffing.methods.activation_difference_lens.relevant import (
    RelevanceSettings,
    neutral_corpora,
    readouts,
    relevance_rows,
)
from diffing.methods.activation_difference_lens.similar import SimilaritySettings, similarity_rows
from diffing.methods.activation_difference_lens.steered import Direction, Plan, search_strengths, steered_rows
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.report import Report, Table

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class ActivationDifferenceLens:
    """Settings of the Activation Difference Lens."""

    name: ClassVar[str] = "activation_difference_lens"

    answers: Answers
    """That are given steered and unsteered."""
    layers: Sequence[float | int] = (0.5, 0.85, 0.97)
    """Depths to read: a float is a share of the depth, an int an absolute layer. A patchscope and steering need layers
    above the one they write to; the logit lens reads late ones best."""
    n_positions: int = 32
    """Tokens read of each text, or of the first answer of each conversation."""
    n_before: int = 3
    """Tokens read before that answer."""
    max_texts: int = 1_000
    """Texts read of each corpus."""
    max_prompt_tokens: int = 512
    """Conversations with more before their first answer are left out."""
    batch_size: int = 32
    positions: Sequence[int] = (0, 1, 2, 3, 4)
    """Positions whose means are read with the lenses; in conversations, those before the answer are read too."""
    top: int = 20
    """Tokens kept of each readout."""
    patchscope_scales: Sequence[float] | None = None
    """Lengths of the patched vector, in units of the mean residual norm, of which the best is chosen per vector; None
    takes the 30 of `SCALES`."""
    patchscope_intersection: int = INTERSECTION
    """A token counts if it is among this many likeliest in all identity prompts."""
    judge: str | None = None
    """A language model, as Inspect AI names it, that decides about scales, coherence and relevance; None: rules do."""
    steering_layers: Sequence[float | int] = (0.5,)
    """Depths, among `layers`, whose mean difference steers."""
    steering_positions: Sequence[int] | None = None
    """Positions whose mean difference steers; None takes the most telling one."""
    strengths: Sequence[float] | None = None
    """Steering strengths, in units of the mean residual norm; None searches one per direction."""
    search: StrengthSearch = field(default_factory=StrengthSearch)
    relevance: RelevanceSettings = field(default_factory=RelevanceSettings)
    similarity: SimilaritySettings = field(default_factory=SimilaritySettings)
    causal: CausalSettings = field(default_factory=CausalSettings)

    def __post_init__(self) -> None:
        if outside := [p for p in self.positions if not 0 <= p < self.n_positions]:
            raise InvalidSetting(f"positions {outside} are not among the {self.n_positions} that are read")
        readable = [*range(-self.n_before, 0), *self.positions]
        if unread := [p for p in self.steering_positions or () if p not in readable]:
            raise InvalidSetting(f"steering_positions {unread} are not among the positions {readable}")
        if self.n_positions <= SKIPPED or self.n_before < 0:
            raise InvalidSetting(
                f"n_positions={self.n_positions}, n_before={self.n_before}; expected more than {SKIPPED}, and 0 or more"
            )
        if not_read := [depth for depth in self.steering_layers if depth not in self.layers]:
            raise InvalidSetting(
                f"steering_layers {not_read} are not among the layers {list(self.layers)} that are read"
            )
        if any(length <= 0 for length in (*(self.strengths or ()), *self._scales)):
            raise InvalidSetting("strengths and patchscope_scales are lengths: expected numbers above 0")
        if self.patchscope_scales is not None and not self.patchscope_scales:
            raise InvalidSetting("patchscope_scales=[]; expected one or more, or null for the usual ones")

    @property
    def _scales(self) -> Sequence[float]:
        return SCALES if self.patchscope_scales is None else self.patchscope_scales

    def run(self, study: Study) -> Report:
        window = Window(self.n_positions, self.n_before, self.max_texts, self.max_prompt_tokens, self.batch_size)
        layers = sorted({study.pair.layer_at(depth) for depth in self.layers})
        readings = [each for corpus in study.corpora for each in read(study, corpus, layers, window, self.positions)]
        telling = [reading for reading in readings if reading.positions]
        found = self._measured(study, telling) if telling else {}
        found["positions"] = tables.position_table(readings)
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[corpus.spec for corpus in study.corpora],
            no_difference=not any(reading.differs for reading in readings),
            scalars=findings.scalars(readings, telling, found),
            tables=found,
            tensors=tables.tensors(readings),
            figures=figures.figures(readings, found),
            findings=findings.findings(readings, telling, found),
        )

    def live_tools(self, report: Report, pair: ModelPair) -> Sequence[LiveTool]:
        """The lens on texts that an agent writes."""
        return [difference_tool(report, pair)]

    def _measured(self, study: Study, telling: Sequence[Reading]) -> dict[str, Table]:
        judge = LLMJudge(self.judge) if self.judge else None
        lens = lens_rows(study, telling, self.top)
        rule = scale_rule(study, judge)
        scoped = patchscopes(study, telling, rule, self._scales, self.top, self.patchscope_intersection)
        found = {
            "logit_lens": tables.logit_lens_table(lens),
            "patchscope": tables.patchscope_table([row for each in scoped for row in each.rows()]),
            "patchscope_scales": tables.scale_table([each.choice_row(rule.name) for each in scoped]),
        }
        plans, searched = self._plans(study, telling, judge)
        samples = steered_rows(study, plans, self.answers)
        found["steering"] = tables.samples_table(samples)
        return found | searched | self._against_training(study, telling, lens, scoped, samples, judge)

    def _plans(
        self, study: Study, telling: Sequence[Reading], judge: Judge | None
    ) -> tuple[list[Plan], dict[str, Table]]:
        """How strongly each direction steers, and how that was found; none with a strength of 0."""
        layers = {study.pair.layer_at(depth) for depth in self.steering_layers}
        directions = [
            Direction.of(reading, position)
            for reading in telling
            if reading.means.layer in layers
            for position in (self.steering_positions or [reading.telling])
            if position in reading.positions
        ]
        if self.strengths is not None or not directions:
            return [Plan(direction, self.strengths or (), searched=False) for direction in directions], {}
        searched = search_strengths(study, directions, self.answers, self.search, judge)
        plans = [
            Plan(direction, [strength.mean], searched=True)
            for direction, strength in searched.found
            if strength.mean > 0
        ]
        return plans, {
            "strengths": tables.threshold_table(list(searched.threshold_rows())),
            "coherence": tables.coherence_table(list(searched.probe_rows())),
        }

    def _against_training(
        self,
        study: Study,
        telling: Sequence[Reading],
        lens: Rows,
        scoped: Sequence[Scoped],
        samples: Rows,
        judge: Judge | None,
    ) -> dict[str, Table]:
        """What was read beside the training data, as far as they are known."""
        finetune, found = study.finetune, dict[str, Table]()
        if finetune is None:
            return {}
        neutral = neutral_corpora(study, finetune)
        if self.relevance.max_texts:
            rows = relevance_rows(study, finetune, readouts(lens, scoped), self.relevance, judge)
            found |= {"relevance": known_tables.relevance_table(rows)} if rows else {}
        if self.similarity.max_texts and samples:
            rows = similarity_rows(study, finetune, neutral, tables.answers_by_kind(samples), self.similarity)
            found |= {"similarity": known_tables.similarity_table(rows)} if rows else {}
        if self.causal.max_texts:
            layers = {study.pair.layer_at(depth) for depth in self.steering_layers}
            here = [reading for reading in telling if reading.means.layer in layers]
            corpora = neutral if finetune.corpus is None else [finetune.corpus, *neutral]
            carried = causal_effects(study, here, corpora, self.causal)
            found |= known_tables.causal_tables(carried)
        return found
