"""The causal part of a reading: what latents do to the finetuned model's output, one by one and as sets that grow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.learners.dictionary import Dictionary
from diffing.lenses.faithfulness import Effect, Patch, Recovered, bridge, controls, growing, ranked, recovered
from diffing.models.pair import ModelPair
from diffing.text.windows import TokenBatch, batches

NOTHING = "nothing"
RANDOM = "random"


@dataclass(frozen=True)
class Texts:
    """Tokens that the models read while latents are added; the first `skipped` of each text are not measured."""

    sequences: Sequence[Sequence[int]]
    skipped: int

    @classmethod
    def of(cls, caches: Sequence[ActivationCache], documents: int, max_tokens: int) -> "Texts":
        """The first tokens of documents that are spread evenly over each cache, as many from each."""
        sequences, skipped = [], 0
        for cache in caches:
            rows = cache.base.document_rows().diff()
            usable = (rows > 0).nonzero()[:, 0]
            chosen = torch.linspace(0, len(usable) - 1, min(documents, len(usable))).long()
            for document in usable[chosen].tolist():
                ids = cache.base.document_tokens(document)
                skipped = max(skipped, len(ids) - int(rows[document]))
                sequences.append(ids[:max_tokens].tolist())
        return cls(sequences, skipped)

    def batches(self, batch_size: int, pad_id: int) -> Iterator[TokenBatch]:
        return batches(self.sequences, batch_size, pad_id, side="right")


@dataclass(frozen=True)
class Bridge:
    """KL to the finetuned output, from the base's activations plus parts of what the dictionary says changed."""

    controls: Mapping[str, Effect]
    curves: Mapping[str, Mapping[int, Effect]]
    """By order, then by how many latents were added."""
    alone: Mapping[int, Effect]
    """By latent, of those that were tried by themselves."""
    recovered: Recovered

    @property
    def nothing(self) -> float:
        """KL of the base's own activations."""
        return self.controls[NOTHING].kl

    def contribution(self, latent: int) -> float:
        """By how much adding this latent alone lowers the KL (nats per token)."""
        return self.nothing - self.alone[latent].kl

    def share(self, kl: float) -> float:
        """Of the KL between the two models, what is gone; NaN if there is none."""
        return (self.nothing - kl) / self.nothing if self.nothing else float("nan")


def candidates(by: Sequence[Float[Tensor, " latent"]], most: int) -> list[int]:
    """The first latents by each measure in turn, until there are `most`; those with NaN or 0 are left out."""
    columns = [[latent for latent in ranked(values).tolist() if values[latent] > 0] for values in by]
    merged = [column[place] for place in range(max(map(len, columns))) for column in columns if place < len(column)]
    return list(dict.fromkeys(merged))[:most]


def measure(
    pair: ModelPair,
    dictionary: Dictionary,
    texts: Texts,
    *,
    tried: Sequence[int],
    orders: Mapping[str, Float[Tensor, " latent"]],
    sizes: Sequence[int],
    random_sets: int,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], object],
) -> Bridge:
    """Three runs over the texts; `on_batch` is told the sequences of each batch of the first, by far the longest."""
    n_latents = len(dictionary.decoder)
    generator = torch.Generator().manual_seed(seed)
    everyone = ranked(orders["frequency"])
    sequences = {name: ranked(values) for name, values in orders.items()}
    for number in range(random_sets):
        sequences[f"{RANDOM} {number}"] = everyone[torch.randperm(len(everyone), generator=generator)]
    patches, alone = dict(controls(n_latents)), {}
    for latent in tried:
        alone[latent] = f"latent {latent}"
        patches[alone[latent]] = _only(latent, n_latents)
    named = _growing(sequences, sizes, n_latents)
    patches |= {name: patch for curve in named.values() for name, patch in curve.values()}

    def run(wanted: Mapping[str, Patch], told: Callable[[int], object]) -> dict[str, Effect]:
        read = texts.batches(batch_size, _pad_id(pair))
        return bridge(pair, dictionary, read, wanted, skip_first=texts.skipped, on_batch=told)

    effects = run(patches, on_batch)
    gain = {latent: effects[NOTHING].kl - effects[name].kl for latent, name in alone.items()}
    best = torch.tensor(sorted(gain, key=lambda latent: -gain[latent]), dtype=torch.int64)
    last = _growing({"contribution": best}, sizes, n_latents)
    if last["contribution"]:
        effects |= run(dict(last["contribution"].values()), lambda sequences: None)
    replaced = recovered(pair, dictionary, texts.batches(batch_size, _pad_id(pair)), skip_first=texts.skipped)
    return Bridge(
        {name: effects[name] for name in controls(n_latents)},
        {order: {size: effects[name] for size, (name, _) in curve.items()} for order, curve in (named | last).items()},
        {latent: effects[name] for latent, name in alone.items()},
        replaced,
    )


def _growing(
    sequences: Mapping[str, Tensor], sizes: Sequence[int], n_latents: int
) -> dict[str, dict[int, tuple[str, Patch]]]:
    """By order and size, a patch and a name of its own."""
    return {
        order: {
            size: (f"{order}, {size} latents", patch)
            for size, patch in growing(latents, [s for s in sizes if s <= len(latents)], n_latents).items()
        }
        for order, latents in sequences.items()
    }


def _only(latent: int, n_latents: int) -> Patch:
    kept = torch.zeros(n_latents, dtype=torch.bool)
    kept[latent] = True
    return Patch(kept)


def _pad_id(pair: ModelPair) -> int:
    pad_id = pair.tokenizer.pad_token_id
    assert isinstance(pad_id, int), "a pair's tokenizer has a padding token"
    return pad_id
