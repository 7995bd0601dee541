"""Runs the instruments on one layer's dictionary: statistics, bridge, examples, readouts and steering."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Side
from diffing.learners.dictionary import Dictionary
from diffing.lenses.examples import TopExamples
from diffing.lenses.latents import latent_statistics
from diffing.lenses.readouts import Label, both_lenses
from diffing.lenses.steering import Condition, steered_samples
from diffing.methods.base import Study
from diffing.methods.base_dictionary import bridging, rules, shown
from diffing.methods.base_dictionary.noise import NoisyCache
from diffing.methods.base_dictionary.reading import Latents, Reading, ranking, top_examples
from diffing.methods.base_dictionary.settings import DictionarySettings
from diffing.models.generation import Sampling


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
            found.append(latent_statistics(dictionary, caches, on_rows=_increments(advance)))
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
            batch_size=settings.bridge_batch_size, on_batch=_increments(advance),
        )  # fmt: skip
    top = ranking(latents, bridge)[: settings.read]
    drawn = latents.at_random(settings.drawn, study.seed, top)
    chosen = [*top, *drawn]
    before, after = settings.window
    own_lengths = latents.vectors.own[chosen].norm(dim=1)
    examples = {}
    for cache in study.caches:
        heap = TopExamples(len(chosen), settings.examples, before, after, device=study.pair.device)
        with study.progress.stage(f"examples on {cache.corpus}, layer {latents.layer}", cache.n_rows) as advance:
            examples[cache.corpus] = top_examples(latents.dictionary, cache, chosen, own_lengths, heap, advance)
    return Reading(latents, bridge, top, drawn, examples)


def read_out(settings: DictionarySettings, study: Study, reading: Reading) -> tuple[list[dict], list[dict]]:
    """Rows of the logit lens and of the patchscope; the base's mean is read by the base."""
    vectors, labels = _vectors(study, reading)
    read_by = [Side.BASE if label["vector"] == shown.BASE_MEAN else Side.FINETUNED for label in labels]
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
    named.append((shown.BASE_MEAN, "control", latents.base_mean))
    named.append((shown.RANDOM, "control", torch.randn(latents.base_mean.shape, generator=generator)))
    labels: list[Label] = [{"layer": reading.layer, "vector": name, "why": why} for name, why, _ in named]
    return torch.stack([vector for _, _, vector in named]), labels


def steer(settings: DictionarySettings, study: Study, reading: Reading) -> list[dict]:
    """Rows of samples of the finetuned model."""
    conditions = _conditions(settings, study, reading)
    total = len(settings.prompts) * len(conditions) * settings.samples_per_prompt
    sampling = Sampling(settings.max_new_tokens, settings.temperature, seed=study.seed)
    title = f"samples steered at layer {reading.layer}"
    with study.progress.stage(title, total) as advance, study.pair.using(Side.FINETUNED) as model:
        samples = steered_samples(
            model, study.pair.tokenizer, settings.prompts, conditions, reading.layer, settings.samples_per_prompt,
            sampling, settings.steering_batch_size, advance,
        )  # fmt: skip
    length = {condition.name: float(condition.vector.norm()) for condition in conditions}
    return [{"layer": reading.layer, **sample.as_row(), "length": length[sample.condition.name]} for sample in samples]


def _conditions(settings: DictionarySettings, study: Study, reading: Reading) -> list[Condition]:
    """Unsteered; each latent at each fraction of its largest value; a random direction as long as any."""
    latents = reading.latents
    steered = [
        Condition(
            f"{shown.named(latent)}{shown.FRACTION}{strength:g}", "steered", strength,
            strength * float(latents.statistics.largest[latent]) * latents.vectors.own[latent],
        )
        for latent in reading.top[: settings.steered]
        for strength in settings.strengths
    ]  # fmt: skip
    longest = max((float(condition.vector.norm()) for condition in steered), default=0.0)
    generator = torch.Generator().manual_seed(study.seed)
    random = torch.nn.functional.normalize(torch.randn(latents.base_mean.shape, generator=generator), dim=0)
    return [
        Condition("unsteered", "unsteered", 0.0, torch.zeros_like(random)),
        *steered,
        Condition(shown.RANDOM, "random", max(settings.strengths, default=0.0), longest * random),
    ]


def _increments(advance: Callable[[int], object]) -> Callable[[int], None]:
    """For those who are told how much is done so far, and tell how much more it is."""
    done = 0

    def tell(so_far: int) -> None:
        nonlocal done
        advance(so_far - done)
        done = so_far

    return tell


def reading_layers(settings: DictionarySettings, study: Study, readings: Sequence[Reading]) -> list[Reading]:
    """Those whose latents steer."""
    wanted = {study.pair.layer_at(depth) for depth in settings.steering_layers}
    return [reading for reading in readings if reading.layer in wanted]
