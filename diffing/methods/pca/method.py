"""PCA of cached activations: along which directions did the finetune move the residual stream, and how much.

The mean difference is what all tokens share; the components are how tokens differ beyond it. Centring hides the mean,
so it is reported beside them, with its share of the mean square. Each direction is read with the logit lens and a
patchscope, shown on the texts where it is largest and smallest, and added to the finetuned model while it answers
neutral prompts. The base's mean and a random direction are read in the same way: what they show is not the finetune.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.moments import Moments
from diffing.axes import Side, Stream
from diffing.errors import InvalidSetting
from diffing.learners.base import check_fits
from diffing.learners.fitting import fit
from diffing.learners.pca import PCA, PCAFit
from diffing.lenses.examples import Examples, TopExamples
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.readouts import BASE_MEAN, RANDOM, Label, both_lenses
from diffing.lenses.steering import Answers, beside_controls, direction_rows, steering_findings
from diffing.lenses.texts import document_blocks
from diffing.methods.base import Study
from diffing.methods.pca import tables
from diffing.report import Directions, Finding, NamedTensor, Report, Scalar, Table, slug
from diffing.specs import JSON

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

UNIT = "the largest projection met in that direction"
"""What steering strength 1 is."""


@dataclass(frozen=True)
class Reading:
    """The directions of one layer: the mean of each corpus, and the components over all of them."""

    layer: int
    pca: PCA
    means: Mapping[str, Float[Tensor, " d_model"]]
    """Of the analysed stream, per corpus."""
    base_mean: Float[Tensor, " d_model"]
    residual_norm: float
    """Root mean square norm of the finetuned residual stream: the length that patchscope scale 1 means."""
    examples: Mapping[str, Examples]
    """Per corpus. Scores are the projections on the mean direction over all corpora, then on each component read."""
    kurtosis: Float[Tensor, " latent"]
    """Of the projections on each component read: 3 for a normal distribution, large if few tokens carry it."""

    @property
    def mean_direction(self) -> Float[Tensor, " d_model"]:
        return torch.nn.functional.normalize(self.pca.mean, dim=0)

    def largest(self, score: int, smallest: bool) -> float:
        """The largest projection met in a direction (number of a score, and which of its ends)."""
        found = [
            float(value)
            for examples in self.examples.values()
            for value in examples.value[(examples.score == score) & (examples.smallest == smallest)].abs()
        ]
        return max(found, default=0.0)


@dataclass(frozen=True)
class PrincipalComponents:
    """Settings of the PCA."""

    name: ClassVar[str] = "pca"

    answers: Answers
    """That are given steered and unsteered."""
    layers: Sequence[float | int] | None = None
    """Depths to analyse, among those that are cached; None takes all."""
    target: str = Stream.DIFFERENCE
    """What is decomposed: difference, base or finetuned."""
    n_components: int | None = 64
    """Components that are fitted and kept; None keeps all."""
    read: int = 4
    """Components, of the first, that are read, shown on examples and steered with."""
    batch_size: int = 8192
    top: int = 20
    """Tokens kept of each readout."""
    patchscope_scales: Sequence[float] = (0.5, 1.0, 2.0)
    """Lengths of the patched vector, in root mean square norms of the residual stream."""
    patchscope_intersection: int = INTERSECTION
    examples: int = 10
    """Windows shown per corpus, direction and end."""
    window: Sequence[int] = (24, 12)
    """Tokens shown before and after the peak."""
    steering_layers: Sequence[float | int] = (0.5,)
    """Depths, among the analysed ones, whose directions steer."""
    steered: int = 2
    """Components, of the first, that steer, besides the mean."""
    strengths: Sequence[float] = (0.5, 1.0)
    """Steering strengths, in units of the largest projection met in that direction."""

    def __post_init__(self) -> None:
        if self.target not in list(Stream):
            raise InvalidSetting(f"target={self.target}; expected one of {', '.join(Stream)}")
        kept = self.n_components or self.read
        if not 0 < self.read <= kept or not 0 <= self.steered <= self.read:
            raise InvalidSetting(
                f"read={self.read}, steered={self.steered}, n_components={self.n_components}; expected "
                "0 <= steered <= read <= n_components, and read of 1 or more"
            )
        if any(length <= 0 for length in (*self.strengths, *self.patchscope_scales)):
            raise InvalidSetting("strengths and patchscope_scales are lengths: expected numbers above 0")

    @property
    def _stream(self) -> Stream:
        return Stream(self.target)

    def learner_settings(self) -> Mapping[str, JSON]:
        layers = None if self.layers is None else list(self.layers)
        return {"layers": layers, "target": self.target, "n_components": self.n_components}

    def fit(self, study: Study, logger: "Logger | None") -> dict[str, PCA]:
        """One streamed pass per layer; nothing for a layer at which nothing varies."""
        fitted = {}
        for layer in study.cached_layers(self.layers):
            if _constant(study.moments(self._stream, layer)):
                continue
            pass_over = PCAFit.of(study.caches, layer, self._stream, self.n_components)
            solve = partial(self._solved, study, pass_over, logger)
            fitted[_learner(layer)] = study.scratch.fitted(pass_over.recipe, solve)
        return fitted

    def _solved(self, study: Study, pass_over: PCAFit, logger: "Logger | None") -> PCA:
        layer, n_rows = pass_over.recipe.layer, sum(cache.n_rows for cache in study.caches)
        data = ActivationDataModule(study.caches, layer, self.batch_size, study.seed)
        with study.progress.stage(f"principal components of layer {layer}", n_rows) as advance:
            fit(pass_over, data, logger=logger, device=study.pair.device, on_batch=advance)
        return pass_over.solve().cpu()

    def run(self, study: Study) -> Report:
        layers = study.cached_layers(self.layers)
        differs = [layer for layer in layers if study.differs(layer)]
        readings = [self._reading(study, layer) for layer in layers if _learner(layer) in study.learners]
        for reading in readings:
            for cache in study.caches:
                check_fits(reading.pca.recipe, cache)
        measured = {"means": tables.mean_table(study.caches, layers, self._stream)}
        if readings and differs:
            measured |= self._measured(study, readings)
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[cache.finetuned.spec.tokens.corpus for cache in study.caches],
            no_difference=not differs,
            scalars=_scalars(readings[-1]) if readings and differs else {},
            tables=measured,
            tensors=_tensors(readings),
            figures={"scree": tables.scree_figure([(r.layer, r.pca) for r in readings])} if readings else {},
            findings=self._findings(layers, differs, readings, measured),
        )

    def _reading(self, study: Study, layer: int) -> Reading:
        pca = study.learner(_learner(layer))
        assert isinstance(pca, PCA)
        means = {cache.corpus: cache.moments(self._stream, layer).mean.float() for cache in study.caches}
        base_mean = study.moments(Stream.BASE, layer).mean.float()
        residual_norm = study.moments(Stream.FINETUNED, layer).rms_norm
        return Reading(layer, pca, means, base_mean, residual_norm, *self._examples(study, layer, pca))

    def _examples(self, study: Study, layer: int, pca: PCA) -> tuple[dict[str, Examples], Float[Tensor, " latent"]]:
        """Windows per corpus, and the kurtosis of the projections over all corpora."""
        found = {}
        mean = torch.nn.functional.normalize(pca.mean, dim=0)
        device = study.pair.device
        pca, mean = pca.to(device), mean.to(device)
        read = min(self.read, len(pca.components))
        before, after = self.window
        fourth = torch.zeros(read, dtype=torch.float64, device=device)
        for cache in study.caches:
            heap = TopExamples(1 + read, self.examples, before, after, both_ends=True, device=device)
            with study.progress.stage(f"examples on {cache.corpus}, layer {layer}", cache.n_rows) as advance:
                for block in document_blocks(cache, layer):
                    rows = block.stream(self._stream).to(device)
                    projections = pca.encode(rows)[:, :read]
                    fourth += projections.double().pow(4).sum(0)
                    heap.add(torch.cat([(rows @ mean)[:, None], projections], dim=1), block.texts)
                    advance(len(rows))
            found[cache.corpus] = heap.result()
        pca.cpu()
        n_rows = sum(cache.n_rows for cache in study.caches)
        return found, (fourth.cpu() / n_rows / pca.variances[:read].square()).float()

    def _measured(self, study: Study, readings: Sequence[Reading]) -> dict[str, Table]:
        lens: list[dict] = []
        scope: list[dict] = []
        samples: list[dict] = []
        with study.progress.stage("logit lens and patchscope", len(readings)) as advance:
            for reading in readings:
                for rows, found in zip((lens, scope), self._readouts(study, reading), strict=True):
                    rows += found
                advance(1)
        steering_layers = {study.pair.layer_at(depth) for depth in self.steering_layers}
        for reading in readings:
            if reading.layer in steering_layers:
                samples += self._steer(study, reading)
        return {
            "components": tables.component_table([(r.layer, r.pca, _ends(r), r.kurtosis.tolist()) for r in readings]),
            "logit_lens": tables.logit_lens_table(lens),
            "patchscope": tables.patchscope_table(scope),
            "examples": tables.example_table(
                {r.layer: r.examples for r in readings}, study.pair.tokenizer, self.read, self._stream
            ),
            "steering": tables.steering_table(samples),
        }

    def _readouts(self, study: Study, reading: Reading) -> tuple[list[dict], list[dict]]:
        """Rows of the logit lens and of the patchscope; the base's mean is read by the base."""
        vectors, labels = self._vectors(study, reading)
        read_by = [Side.BASE if label["vector"] == BASE_MEAN else Side.FINETUNED for label in labels]
        return both_lenses(
            study.pair, vectors, labels, read_by, reading.layer, reading.residual_norm, self.patchscope_scales,
            self.patchscope_intersection, self.top,
        )  # fmt: skip

    def _vectors(self, study: Study, reading: Reading) -> tuple[Float[Tensor, "batch d_model"], list[Label]]:
        """What is read of a layer: means, both ends of the components, and the two controls."""
        generator = torch.Generator().manual_seed(study.seed)
        named = [(tables.MEAN, corpus, mean) for corpus, mean in reading.means.items()]
        for number, component in enumerate(reading.pca.components[: self.read]):
            named += [(tables.component(number, sign), tables.ALL, sign * component) for sign in (1, -1)]
        named.append((BASE_MEAN, tables.ALL, reading.base_mean))
        named.append((RANDOM, tables.ALL, torch.randn(reading.base_mean.shape, generator=generator)))
        labels: list[Label] = [
            {"corpus": corpus, "layer": reading.layer, "vector": name} for name, corpus, vector in named
        ]
        return torch.stack([vector for _, _, vector in named]), labels

    def _steer(self, study: Study, reading: Reading) -> list[dict]:
        """Rows of answers, steered by each direction and by its controls."""
        conditions = beside_controls(self._directions(reading), self.strengths, study.seed)
        total, title = self.answers.count(conditions), f"samples steered at layer {reading.layer}"
        with study.progress.stage(title, total) as advance, study.pair.using(Side.FINETUNED) as model:
            samples = self.answers.draw(model, study.pair.tokenizer, conditions, reading.layer, study.seed, advance)
        return [{"layer": reading.layer, **row} for row in direction_rows(samples)]

    def _directions(self, reading: Reading) -> dict[str, Float[Tensor, " d_model"]]:
        """What steers, as long as the largest projection met in that direction: the mean, and both ends of
        components."""
        found = {tables.MEAN: reading.largest(0, smallest=False) * reading.mean_direction}
        for number, component in enumerate(reading.pca.components[: self.steered]):
            for sign in (1, -1):
                largest = reading.largest(number + 1, smallest=sign < 0)
                found[tables.component(number, sign)] = sign * largest * component
        return found

    def _findings(
        self,
        layers: Sequence[int],
        differs: Sequence[int],
        readings: Sequence[Reading],
        measured: Mapping[str, Table],
    ) -> list[Finding]:
        if not differs:
            where = ", ".join(str(layer) for layer in layers)
            return [Finding(f"No difference: at layers {where} both sides have the same activations.", "means")]
        if not readings:
            return [Finding(f"The {self.target} stream is the same on every token: it has a mean and no components.")]
        return [
            *tables.mean_findings(measured, self._stream),
            *tables.component_findings(measured, self.read),
            *steering_findings(measured["steering"]),
        ]


def _learner(layer: int) -> str:
    return f"layer_{layer}"


def _constant(moments: Moments) -> bool:
    """Whether all rows are the same but for the rounding of the mean."""
    return float(moments.variance.sum()) <= 1e-6 * float(moments.mean.square().sum())


def _ends(reading: Reading) -> list[tuple[float, float]]:
    """Largest projection on each end of each component that was read."""
    scores = 1 + max(int(examples.score.max()) for examples in reading.examples.values())
    return [(reading.largest(score, False), reading.largest(score, True)) for score in range(1, scores)]


def _scalars(reading: Reading) -> dict[str, Scalar]:
    """Headline numbers of the deepest layer."""
    pca = reading.pca
    mean_square = float(pca.mean.double().square().sum())
    return {
        "layer": Scalar(reading.layer, "the deepest layer analysed (absolute, counted from 0)"),
        "rows": Scalar(int(pca.n_rows), "tokens decomposed"),
        "mean_norm": Scalar(mean_square**0.5, "L2 norm of the mean (residual stream units)"),
        "mean_share": Scalar(
            mean_square / (mean_square + float(pca.total_variance)), "share of the mean square that is the mean's"
        ),
        "first_share": Scalar(
            float(pca.variances[0] / pca.total_variance), "share of the variance that the first component explains"
        ),
        "residual_norm": Scalar(reading.residual_norm, "root mean square norm of the finetuned residual stream"),
    }


def _tensors(readings: Sequence[Reading]) -> dict[str, NamedTensor]:
    stored = {}
    for reading in readings:
        where, read = f"layer_{reading.layer}", len(reading.kurtosis)
        largest = [max(reading.largest(number + 1, smallest) for smallest in (False, True)) for number in range(read)]
        stored[f"{where}_components"] = NamedTensor(
            reading.pca.components,
            f"principal components, unit length, layer {reading.layer}",
            ("latent", "d_model"),
            Directions(reading.layer, [f"component {number}" for number in range(read)], largest, UNIT),
        )
        along_mean = Directions(reading.layer, [tables.MEAN], [reading.largest(0, smallest=False)], UNIT)
        stored[f"{where}_mean"] = NamedTensor(
            reading.pca.mean, f"mean over all corpora, layer {reading.layer}", ("d_model",), along_mean
        )
        for corpus, mean in reading.means.items():
            stored[f"{where}_mean_{slug(corpus)}"] = NamedTensor(
                mean, f"mean on {corpus}, layer {reading.layer}", ("d_model",), along_mean
            )
    return stored
