"""Runs the instruments on one layer's dictionary: statistics, bridge, examples, readouts and steering."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side
from diffing.learners.dictionary import Dictionary
from diffing.lenses.examples import Examples, TopExamples
from diffing.lenses.latents import latent_statistics
from diffing.lenses.quantiles import QuantileExamples
from diffing.lenses.readouts import BASE_MEAN, RANDOM, Label, both_lenses
from diffing.lenses.steering import beside_controls, direction_rows
from diffing.methods.base import Study
from diffing.methods.base_dictionary import bridging, rules, shown
from diffing.methods.base_dictionary.noise import NoisyCache
from diffing.methods.base_dictionary.reading import Latents, Reading, add_examples, ranking
from diffing.methods.base_dictionary.settings import DictionarySettings
from diffing.models.generation import Where


def measure_latents(settings: DictionarySettings, study: Study, dictionary: Dictionary) -> Latents:
    """What every latent does, on the caches and on noise."""
    layer, n_rows = dictionary.recipe.layer, sum(cache.n_rows for cache in study.caches)
    dictionary.to(study.pair.device)
    passes = {"latents": list(study.caches)}
    if settings.noise:
        passes["latents on noise"] = [NoisyCache(cache, study.seed) for cache in study.caches]
    found = []
    for title, caches in passes.items():
        with study.progress.stage(f"{title}, layer {layer}", n_rows) as advance:
            found.append(latent_statistics(dictionary, caches, on_rows=advance))
    return Latents.of(dictionary, study.caches, found[0], found[1] if settings.noise else None)


def measure_effects(settings: DictionarySettings, study: Study, latents: Latents) -> Reading:
    """What latents do to the output, which of them do most, and where these are active."""
    texts = bridging.Texts.of(study.caches, settings.bridge_documents, settings.bridge_tokens)
    lengths = [latents.mean_length, latents.largest_length]
    with study.progress.stage(f"bridge, layer {latents.layer}", len(texts.sequences)) as advance:
        bridge = bridging.measure(
            study.pair, latents.dictionary, texts,
            tried=bridging.candidates(lengths, settings.candidates),
            orders=rules.orders(latents.statistics, latents.mean_length),
            sizes=settings.bridge_sizes, random_sets=settings.random_sets, seed=study.seed,
            batch_size=settings.bridge_batch_size, on_batch=advance,
        )  # fmt: skip
    top = ranking(latents, bridge)[: settings.read]
    drawn = latents.at_random(settings.drawn, study.seed, top)
    return Reading(latents, bridge, top, drawn, *_examples(settings, study, latents, [*top, *drawn]))


def _examples(
    settings: DictionarySettings, study: Study, latents: Latents, chosen: Sequence[int]
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """Per corpus, the largest windows of some latents, and windows from all of their range."""
    lengths, (before, after) = latents.vectors.own[chosen].norm(dim=1), settings.window
    largest = latents.statistics.largest[chosen].float() * lengths
    top, banded = {}, {}
    for cache in study.caches:
        heap = TopExamples(len(chosen), settings.examples, before, after, device=study.pair.device)
        drawn = QuantileExamples(largest, settings.per_band, before, after, seed=study.seed, device=study.pair.device)
        with study.progress.stage(f"examples on {cache.corpus}, layer {latents.layer}", cache.n_rows) as advance:
            collectors: list[TopExamples | QuantileExamples] = [heap, drawn] if settings.per_band else [heap]
            add_examples(collectors, latents.dictionary, cache, chosen, lengths, advance)
        top[cache.corpus], banded[cache.corpus] = heap.result(above=0.0), drawn.result()
    return top, banded


def read_out(settings: DictionarySettings, study: Study, reading: Reading) -> tuple[list[dict], list[dict]]:
    """Rows of the logit lens and of the patchscope; the base's mean is read by the base."""
    vectors, labels = _vectors(study, reading)
    read_by = [Side.BASE if label["vector"] == BASE_MEAN else Side.FINETUNED for label in labels]
    return both_lenses(
        study.pair, vectors, labels, read_by, reading.layer, reading.latents.residual_norm,
        settings.patchscope_scales, settings.patchscope_intersection, settings.top,
    )  # fmt: skip


def _vectors(study: Study, reading: Reading) -> tuple[Float[Tensor, "batch d_model"], list[Label]]:
    """Directions of the latents shown, their changes where these are other vectors, and the controls."""
    latents = reading.latents
    named = []
    for why, chosen in (("top", reading.top), ("drawn", reading.random)):
        for latent in chosen:
            named.append((shown.named(latent), why, latents.vectors.own[latent]))
            if rules.paired(latents.statistics):
                named.append((shown.named(latent) + shown.CHANGE, why, latents.vectors.change[latent]))
    generator = torch.Generator().manual_seed(study.seed)
    named.append((shown.CONSTANT, "constant", latents.vectors.constant))
    named.append((BASE_MEAN, "control", latents.base_mean))
    named.append((RANDOM, "control", torch.randn(latents.base_mean.shape, generator=generator)))
    labels: list[Label] = [{"layer": reading.layer, "vector": name, "why": why} for name, why, _ in named]
    return torch.stack([vector for _, _, vector in named]), labels


def steer(settings: DictionarySettings, study: Study, reading: Reading) -> list[dict]:
    """Rows of answers of the finetuned model, steered by each of the first latents and by its controls."""
    directions = {shown.named(latent): reading.latents.at_largest(latent) for latent in reading.top[: settings.steered]}
    places = [Where(place) for place in settings.steering_at]
    conditions = beside_controls(directions, settings.strengths, study.seed, places)
    total, title = settings.answers.count(conditions), f"samples steered at layer {reading.layer}"
    with study.progress.stage(title, total) as advance, study.pair.using(Side.FINETUNED) as model:
        samples = settings.answers.draw(model, study.pair.tokenizer, conditions, reading.layer, study.seed, advance)
    return [{"layer": reading.layer, **row} for row in direction_rows(samples)]


def reading_layers(settings: DictionarySettings, study: Study, readings: Sequence[Reading]) -> list[Reading]:
    """Those whose latents steer."""
    wanted = {study.pair.layer_at(depth) for depth in settings.steering_layers}
    return [reading for reading in readings if reading.layer in wanted]
