"""Activation Difference Lens: read the mean activation difference on the first tokens of unrelated text.

A narrow finetune shifts the residual stream in much the same way on any text, already in its first tokens. That mean
shift, one vector per position, is read with the logit lens and a patchscope, and added to the finetuned model while it
answers neutral prompts (arXiv 2510.13900). The base and finetuned means and a random direction of the same norm are
read in the same way: what they show too is not the finetune.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.position_means import SKIPPED, PositionMeans, position_means
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.readouts import logit_lens_rows, patchscope_rows
from diffing.lenses.steering import Answers, Condition
from diffing.methods.activation_difference_lens import tables
from diffing.methods.base import Study
from diffing.report import Finding, NamedTensor, Report, Scalar, Table, slug
from diffing.text.corpus import Corpus
from diffing.text.windows import batches, token_sequences

SOURCES = ("difference", "base", "finetuned", "random")


@dataclass(frozen=True)
class Reading:
    """What was measured at one layer on one corpus, and the vectors that are read there."""

    corpus: str
    means: PositionMeans
    vectors: Mapping[str, Float[Tensor, "pos d_model"]]
    """Per source of `SOURCES`, at the positions that are read, in float32."""
    positions: Sequence[int]

    @property
    def telling(self) -> int:
        """The position, other than the sink at 0 if there is a choice, whose shift is largest for its residual norm."""
        candidates = [position for position in self.positions if position > 0] or list(self.positions)
        shift = self.means.difference.norm(dim=-1) / self.means.norm_base
        return max(candidates, key=lambda position: float(shift[position]))

    def scaled(self, source: str) -> Float[Tensor, "pos d_model"]:
        """The vectors of a source, rescaled to the mean residual norm of the finetuned model."""
        vectors = self.vectors[source]
        return vectors / vectors.norm(dim=-1, keepdim=True) * self.means.residual_norm

    def labels(self, source: str) -> list[dict]:
        """What each vector of a source is, as columns of the tables."""
        where = {"corpus": self.corpus, "layer": self.means.layer, "source": source}
        return [where | {"position": position} for position in self.positions]


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
    """Tokens read of each text."""
    max_texts: int = 1_000
    """Texts read of each corpus."""
    batch_size: int = 32
    positions: Sequence[int] = (0, 1, 2, 3, 4)
    """Positions whose means are read with the lenses."""
    top: int = 20
    """Tokens kept of each readout."""
    patchscope_scales: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    """Lengths of the patched vector, in units of the mean residual norm."""
    patchscope_intersection: int = INTERSECTION
    """A token counts if it is among this many likeliest in all identity prompts."""
    steering_layers: Sequence[float | int] = (0.5,)
    """Depths, among `layers`, whose mean difference steers."""
    steering_positions: Sequence[int] | None = None
    """Positions whose mean difference steers; None takes the most telling one."""
    strengths: Sequence[float] = (0.5, 1.0)
    """Steering strengths, in units of the mean residual norm."""

    def __post_init__(self) -> None:
        if outside := [p for p in self.positions if not 0 <= p < self.n_positions]:
            raise InvalidSetting(f"positions {outside} are not among the {self.n_positions} that are read")
        if unread := [p for p in self.steering_positions or () if p not in self.positions]:
            raise InvalidSetting(f"steering_positions {unread} are not among the positions {list(self.positions)}")
        if self.n_positions <= SKIPPED:
            raise InvalidSetting(f"n_positions={self.n_positions}; expected more than {SKIPPED}")
        if not_read := [depth for depth in self.steering_layers if depth not in self.layers]:
            raise InvalidSetting(
                f"steering_layers {not_read} are not among the layers {list(self.layers)} that are read"
            )
        if any(strength <= 0 for strength in (*self.strengths, *self.patchscope_scales)):
            raise InvalidSetting("strengths and patchscope_scales are lengths: expected numbers above 0")

    def run(self, study: Study) -> Report:
        readings = [reading for corpus in study.corpora for reading in self._read(study, corpus)]
        identical = all(float(reading.means.norm_difference.max()) == 0.0 for reading in readings)
        measured: dict[str, Table] = {}
        layers = ", ".join(str(layer) for layer in sorted({reading.means.layer for reading in readings}))
        same = f"No difference: at layers {layers} both sides have the same activations on every text."
        findings = [Finding(same, "positions")]
        if not identical:
            measured = self._readouts(study, readings)
            lenses = {name: measured[name] for name in ("logit_lens", "patchscope")}
            findings = tables.steering_findings(measured["steering"])
            findings += [tables.finding(r.corpus, r.means, r.telling, lenses) for r in readings]
        measured["positions"] = tables.position_table([(r.corpus, r.means) for r in readings])
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[corpus.spec for corpus in study.corpora],
            no_difference=identical,
            scalars=_scalars(readings),
            tables=measured,
            tensors=_tensors(readings),
            figures={"norms": tables.norm_figure([(r.corpus, r.means) for r in readings])},
            findings=findings,
        )

    def _read(self, study: Study, corpus: Corpus) -> list[Reading]:
        """One streamed pass over one corpus."""
        tokenizer = study.pair.tokenizer
        layers = sorted({study.pair.layer_at(depth) for depth in self.layers})
        texts = list(token_sequences(corpus, tokenizer, max_tokens=self.n_positions, max_texts=self.max_texts))
        with study.progress.stage(f"activations of both sides on {corpus.spec.name}", len(texts)) as advance:
            padded = batches(texts, self.batch_size, pad_id=tokenizer.pad_token_id, side="right")
            means = position_means(study.pair, padded, layers, self.n_positions, advance)
        return [self._reading(study, corpus.spec.name, means[layer]) for layer in layers]

    def _reading(self, study: Study, corpus: str, means: PositionMeans) -> Reading:
        positions = [position for position in self.positions if position < len(means.n_texts)]
        vectors = {key: getattr(means, key)[positions].float() for key in ("difference", "base", "finetuned")}
        generator = torch.Generator().manual_seed(study.seed)
        vectors["random"] = torch.randn(vectors["difference"].shape, generator=generator)
        return Reading(corpus, means, vectors, positions)

    def _readouts(self, study: Study, readings: Sequence[Reading]) -> dict[str, Table]:
        """Lenses on every reading, and samples steered by it."""
        lens_rows, scope_rows, sample_rows = [], [], []
        with study.progress.stage("logit lens and patchscope", len(readings) * len(SOURCES)) as advance:
            for reading in readings:
                for source in SOURCES:
                    lens_rows += self._logit_lens(study, reading, source)
                    scope_rows += self._patchscope(study, reading, source)
                    advance(1)
        steering_layers = {study.pair.layer_at(depth) for depth in self.steering_layers}
        for reading in readings:
            if reading.means.layer in steering_layers:
                sample_rows += self._steer(study, reading)
        return {
            "logit_lens": tables.logit_lens_table(lens_rows),
            "patchscope": tables.patchscope_table(scope_rows),
            "steering": tables.steering_table(sample_rows),
        }

    def _logit_lens(self, study: Study, reading: Reading, source: str) -> list[dict]:
        with study.pair.using(_reader(source)) as model:
            return logit_lens_rows(
                model, study.pair.tokenizer, reading.vectors[source], reading.labels(source), self.top
            )

    def _patchscope(self, study: Study, reading: Reading, source: str) -> list[dict]:
        with study.pair.using(_reader(source)) as model:
            return patchscope_rows(
                model, study.pair.tokenizer, reading.scaled(source), reading.labels(source), reading.means.layer,
                self.patchscope_scales, self.patchscope_intersection, self.top,
            )  # fmt: skip

    def _steer(self, study: Study, reading: Reading) -> list[dict]:
        layer, positions = reading.means.layer, self.steering_positions or [reading.telling]
        rows = []
        for position in positions:
            conditions = self._conditions(reading, position)
            total, title = self.answers.count(conditions), f"samples steered by position {position} at layer {layer}"
            with study.progress.stage(title, total) as advance, study.pair.using(Side.FINETUNED) as model:
                samples = self.answers.draw(model, study.pair.tokenizer, conditions, layer, study.seed, advance)
            where = {"corpus": reading.corpus, "layer": layer, "position": position}
            rows += [where | sample.as_row() for sample in samples]
        return rows

    def _conditions(self, reading: Reading, position: int) -> list[Condition]:
        """Unsteered, steered at each strength, and steered by a random direction at the largest one."""
        at = reading.positions.index(position)
        steer, random = reading.scaled("difference")[at], reading.scaled("random")[at]
        largest = max(self.strengths)
        return [
            Condition("unsteered", "unsteered", 0.0, torch.zeros_like(steer)),
            *(Condition(f"steered {strength:g}", "steered", strength, strength * steer) for strength in self.strengths),
            Condition(f"random direction {largest:g}", "random", largest, largest * random),
        ]


def _reader(source: str) -> Side:
    """Each side's mean is read by its own model; differences and random directions by the finetuned one."""
    return Side.BASE if source == "base" else Side.FINETUNED


def _scalars(readings: Sequence[Reading]) -> dict[str, Scalar]:
    """Headline numbers of the reading with the largest shift."""
    reading = max(readings, key=lambda r: float(r.means.difference[r.telling].norm() / r.means.norm_base[r.telling]))
    means, at = reading.means, reading.telling
    shift = means.difference[at].norm()
    return {
        "layer": Scalar(means.layer, "layer of the largest shift (absolute, counted from 0)"),
        "telling_position": Scalar(
            at, "position with the largest shift for its residual norm (the sink at 0 left out)"
        ),
        "shift_norm": Scalar(float(shift), "L2 norm of the mean difference there (residual stream units)"),
        "relative_shift": Scalar(
            float(shift / means.norm_base[at]), "that norm over the base's mean residual norm there (ratio)"
        ),
        "consistency": Scalar(
            float(means.consistency[at]),
            "norm of the mean difference over the mean norm of the differences: 1 if all texts shift alike (ratio)",
        ),
        "residual_norm": Scalar(
            means.residual_norm, f"mean L2 norm of the finetuned residual stream from position {SKIPPED} on"
        ),
    }


def _tensors(readings: Sequence[Reading]) -> dict[str, NamedTensor]:
    """One [pos, d_model] tensor per corpus, layer and kind of mean, in float32."""
    return {
        f"{slug(reading.corpus)}_layer_{reading.means.layer}_{key}": NamedTensor(
            getattr(reading.means, key).float(),
            f"mean {key} of the residual stream on {reading.corpus}, layer {reading.means.layer}",
            ("pos", "d_model"),
        )
        for reading in readings
        for key in ("difference", "base", "finetuned")
    }
