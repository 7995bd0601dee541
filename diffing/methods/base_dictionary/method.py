"""Fits a sparse dictionary to each layer of the caches, and reports what its latents are and do.

What is learned is read with instruments, and everything that is claimed has a control beside it: class counts beside
those of a pair that differs by noise, latents that lower the KL beside latents drawn at random, sets of latents beside
random sets, readouts beside those of the base's mean and a random direction, answers steered by a latent beside
unsteered and randomly steered ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from diffing.errors import ZeroVariance
from diffing.learners.base import check_fits
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.training import DictionaryFit, train
from diffing.lenses.steering import steering_findings
from diffing.methods.base import Study
from diffing.methods.base_dictionary import faithful, findings, measuring, shown, tables, trainings
from diffing.methods.base_dictionary.figures import figures
from diffing.methods.base_dictionary.reading import Latents, Reading
from diffing.methods.base_dictionary.settings import DictionarySettings
from diffing.report import Directions, Finding, NamedTensor, Report, Scalar, Table

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(frozen=True)
class DictionaryMethod(DictionarySettings):
    """A method is a name and a kind of dictionary."""

    name: ClassVar[str]
    kind: ClassVar[type[Dictionary]]

    def particular(self, sparsity: Sparsity) -> Mapping[str, Any]:
        """What the recipe of this kind needs besides."""
        return {}

    def fit(self, study: Study, logger: "Logger | None") -> dict[str, Dictionary]:
        """Trainings of each layer; none for one at which the two sides do not differ, or at which all rows differ
        alike."""
        sparsity, training = self.plan(study.caches, study.seed)
        fitted = {}
        for layer in study.cached_layers(self.layers):
            if not study.differs(layer):
                continue
            for number in range(self.seeds):
                name, seeded = _learner(layer, number), replace(training, seed=study.seed + number)
                try:
                    fitting = DictionaryFit.of(
                        self.kind, study.caches, layer, sparsity, seeded, **self.particular(sparsity)
                    )
                except ZeroVariance:
                    break
                rest = partial(self._train, study, name, fitting, logger)
                fitted[name] = study.scratch.fitted(fitting.learner.recipe, rest)
        return fitted

    def _train(self, study: Study, name: str, fitting: DictionaryFit, logger: "Logger | None") -> Dictionary:
        """The rest of a training that was interrupted, or all of it."""
        batch_size, shown = fitting.settings.batch_size, 0

        def show(rows: int) -> None:
            nonlocal shown
            advance(fitting.steps_done * batch_size - shown)
            shown = fitting.steps_done * batch_size

        title = f"{self.name} of {name.replace('_', ' ')}"
        with study.progress.stage(title, fitting.steps * batch_size) as advance:
            return train(
                fitting,
                study.caches,
                logger=logger,
                device=study.pair.device,
                checkpoint=study.scratch.checkpoint(fitting.learner.recipe),
                every_n_steps=study.scratch.every_n_steps,
                on_batch=show,
            )

    def run(self, study: Study) -> Report:
        layers = study.cached_layers(self.layers)
        differs = [layer for layer in layers if study.differs(layer)]
        measured = [
            measuring.measure_latents(self, study, self._dictionary(study, _learner(layer)))
            for layer in layers
            if _learner(layer) in study.learners
        ]
        readings = [
            measuring.measure_effects(self, study, latents)
            for latents in measured
            if not bool(latents.statistics.dead.all())
        ]
        laid_out = {"differences": tables.difference_table(study.caches, layers)}
        if measured:
            laid_out |= _of_all(measured, readings)
            laid_out |= trainings.tables_of(measured, self._repeats(study, measured))
        if readings:
            laid_out |= self._of_some(study, readings)
        numbers = findings.headline(measured, readings)
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[cache.finetuned.spec.tokens.corpus for cache in study.caches],
            no_difference=not differs,
            scalars={name: Scalar(value, about) for name, (value, about) in numbers.items()},
            tables=laid_out,
            tensors=_tensors(readings),
            figures=figures(measured, readings),
            findings=_findings(layers, differs, measured, readings, laid_out),
        )

    def _repeats(self, study: Study, measured: Sequence[Latents]) -> list[trainings.Repeat]:
        """What the trainings with other seeds have of each layer's latents."""
        return [
            trainings.Repeat.of(latents, self._dictionary(study, _learner(latents.layer, number)))
            for latents in measured
            for number in range(1, self.seeds)
        ]

    def _dictionary(self, study: Study, name: str) -> Dictionary:
        dictionary = study.learner(name)
        assert isinstance(dictionary, self.kind)
        for cache in study.caches:
            check_fits(dictionary.recipe, cache)
        return dictionary

    def _of_some(self, study: Study, readings: Sequence[Reading]) -> dict[str, Table]:
        """Tables of the latents that are shown."""
        lens: list[dict] = []
        scope: list[dict] = []
        samples: list[dict] = []
        with study.progress.stage("logit lens and patchscope", len(readings)) as advance:
            for reading in readings:
                for rows, found in zip((lens, scope), measuring.read_out(self, study, reading), strict=True):
                    rows += found
                advance(1)
        for reading in measuring.reading_layers(self, study, readings):
            samples += measuring.steer(self, study, reading)
        return {
            "logit_lens": shown.logit_lens_table(lens),
            "patchscope": shown.patchscope_table(scope),
            "examples": shown.example_table(readings, study.pair.tokenizer),
            "steering": shown.steering_table(samples),
        }


def _learner(layer: int, number: int = 0) -> str:
    return f"layer_{layer}" if number == 0 else f"layer_{layer}_seed_{number}"


def _of_all(measured: Sequence[Latents], readings: Sequence[Reading]) -> dict[str, Table]:
    """Tables of all latents, and of what they do to the output."""
    laid_out = {
        "latents": tables.latent_table(measured, {reading.layer: reading.bridge for reading in readings}),
        "classes": tables.class_table(measured),
        "faithfulness": faithful.faithfulness_table(measured, readings),
    }
    if readings:
        laid_out["contributions"] = tables.contribution_table(readings)
        laid_out["bridge"] = faithful.bridge_table(readings)
    return laid_out


def _findings(
    layers: Sequence[int],
    differs: Sequence[int],
    measured: Sequence[Latents],
    readings: Sequence[Reading],
    laid_out: Mapping[str, Table],
) -> list[Finding]:
    if not differs:
        where = ", ".join(str(layer) for layer in layers)
        return [Finding(f"No difference: at layers {where} both sides have the same activations.", "differences")]
    found = []
    by_layer = {reading.layer: reading for reading in readings}
    done = {latents.layer: latents for latents in measured}
    for layer in differs:
        if layer not in done:
            found.append(
                Finding(f"At layer {layer} the difference is the same on every token: it has a mean and no latents.")
            )
            continue
        found += findings.dictionary_findings(laid_out, done[layer])
        found += findings.stability_findings(laid_out, layer)
        if layer in by_layer:
            found += findings.faithfulness_findings(laid_out, by_layer[layer])
            found += findings.constant_findings(laid_out, by_layer[layer])
            found += findings.latent_findings(laid_out, by_layer[layer])
    return [*found, *(steering_findings(laid_out["steering"]) if readings else ())]


def _tensors(readings: Sequence[Reading]) -> dict[str, NamedTensor]:
    return {
        f"layer_{reading.layer}_top_latents": NamedTensor(
            reading.latents.vectors.own[list(reading.top)],
            f"what value 1 of latents {', '.join(map(str, reading.top))} adds at layer {reading.layer} to the side on "
            "which it is longer (residual stream units)",
            ("latent", "d_model"),
            Directions(
                reading.layer,
                [shown.named(latent) for latent in reading.top],
                [float(reading.latents.at_largest(latent).norm()) for latent in reading.top],
                "the latent's largest value met",
            ),
        )
        for reading in readings
    }
