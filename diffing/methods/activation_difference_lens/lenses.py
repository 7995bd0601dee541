"""Logit lens and patchscope on every vector of every reading."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from diffing.axes import Side
from diffing.lenses.geometry import TokenGeometry
from diffing.lenses.judge import Judge, Unanswered
from diffing.lenses.patchscope import IDENTITY_WORDS
from diffing.lenses.readouts import logit_lens_rows
from diffing.lenses.scale import CoherentScale, JudgedScale, ScaleChoice, ScaleReadout, ScaleRule, read_scales
from diffing.methods.activation_difference_lens.reading import SOURCES, Reading, reader
from diffing.methods.base import Study

ROWS_AT_ONCE = 128
"""Vectors times scales that a patchscope reads in one batch."""


@dataclass(frozen=True)
class Scoped:
    """What a patchscope read in one vector, at all scales."""

    label: Mapping[str, object]
    readouts: Sequence[ScaleReadout]
    choice: ScaleChoice | Unanswered

    @property
    def chosen(self) -> ScaleReadout | None:
        return None if isinstance(self.choice, Unanswered) else self.choice.readout

    @property
    def selected(self) -> Sequence[int]:
        """Places, in the chosen readout, of the tokens that belong together."""
        return self.choice.selected if isinstance(self.choice, ScaleChoice) else ()

    def rows(self) -> Iterator[dict[str, object]]:
        """Tokens at the chosen scale and, where another was chosen, at scale 1."""
        plain = [readout for readout in self.readouts if readout.scale == 1.0 and readout is not self.chosen]
        for readout in [*([self.chosen] if self.chosen else []), *plain]:
            chosen = readout is self.chosen
            selected = self.selected if chosen else ()
            for place, (token, probability) in enumerate(zip(readout.tokens, readout.probabilities, strict=True)):
                yield {
                    **self.label, "read_at": "chosen scale" if chosen else "scale 1", "scale": readout.scale,
                    "chosen": chosen, "selected": place in selected, "rank": place + 1, "token": token,
                    "probability": probability,
                }  # fmt: skip

    def choice_row(self, rule: str) -> dict[str, object]:
        choice = self.choice
        if isinstance(choice, Unanswered):
            found: dict[str, object] = {"scale": float("nan"), "selected": [], "unanswered": 1, "reason": choice.reason}
        else:
            tokens = choice.selected_tokens
            found = {"scale": choice.readout.scale, "selected": tokens, "unanswered": choice.unanswered, "reason": ""}
        return {**self.label, **found, "by": rule}


def lens_rows(study: Study, readings: Sequence[Reading], top: int) -> list[dict[str, object]]:
    """Rows of the logit lens."""
    rows = []
    for source in SOURCES:
        with study.pair.using(reader(source)) as model:
            for reading in readings:
                rows += logit_lens_rows(
                    model, study.pair.tokenizer, reading.vectors[source], reading.labels(source), top
                )
    return rows


def scale_rule(study: Study, judge: Judge | None) -> ScaleRule:
    """The judge, or without one the coherence of tokens in the finetuned model's output embedding."""
    if judge is not None:
        return JudgedScale(judge)
    with study.pair.using(Side.FINETUNED) as model:
        words = [word for words in IDENTITY_WORDS for word in words]
        return CoherentScale(TokenGeometry.of(model, study.pair.tokenizer, without=words))


def patchscopes(
    study: Study, readings: Sequence[Reading], rule: ScaleRule, scales: Sequence[float], top: int, intersection: int
) -> list[Scoped]:
    """Every vector at every scale, the vectors of one layer and reader in the same batches; then one choice each."""
    found: list[tuple[dict[str, object], list[ScaleReadout]]] = []
    total = len(scales) * len(SOURCES) * sum(len(reading.positions) for reading in readings)
    with study.progress.stage("patchscope at all scales", total) as advance:
        for reading in readings:
            for side in Side:
                sources = [source for source in SOURCES if reader(source) is side]
                with study.pair.using(side) as model:
                    vectors = torch.cat([reading.scaled(source) for source in sources]).to(model.device)
                    readouts = read_scales(
                        model, study.pair.tokenizer, vectors, reading.means.layer, scales, top, intersection,
                        ROWS_AT_ONCE, advance,
                    )  # fmt: skip
                found += zip([label for source in sources for label in reading.labels(source)], readouts, strict=True)
    choices = rule([readouts for _, readouts in found])
    return [Scoped(*each, choice) for each, choice in zip(found, choices, strict=True)]
