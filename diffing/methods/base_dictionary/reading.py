"""All that is measured of one layer's dictionary, before it is laid out as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache
from diffing.activations.streams import difference
from diffing.axes import Side, Stream
from diffing.learners.codes import Codes
from diffing.learners.dictionary import Dictionary
from diffing.lenses.examples import Examples, TopExamples
from diffing.lenses.latents import Kind, LatentStatistics
from diffing.lenses.quantiles import QuantileExamples
from diffing.lenses.texts import document_blocks
from diffing.methods.base_dictionary import rules
from diffing.methods.base_dictionary.bridging import Bridge


@dataclass(frozen=True, eq=False)
class Vectors:
    """What one unit of each latent adds, in the units of the residual stream, on the CPU."""

    change: Float[Tensor, "latent d_model"]
    """To the difference finetuned - base."""
    own: Float[Tensor, "latent d_model"]
    """To the side on which it is longer; a dictionary of the difference has this direction alone."""
    norms: Mapping[str, Float[Tensor, " latent"]]
    """Of its directions: per side, or of the difference."""
    constant: Float[Tensor, " d_model"]
    """The difference that is reconstructed where no latent is active."""

    @classmethod
    def of(cls, dictionary: Dictionary) -> "Vectors":
        base, finetuned = (dictionary.directions(side).detach().cpu().float() for side in Side)
        silent = dictionary.decode(dictionary.encoder_bias.new_zeros(1, len(base))).cpu().float()[0]
        if dictionary.recipe.stream is not None:
            return cls(finetuned, finetuned, {Stream.DIFFERENCE: finetuned.norm(dim=1)}, silent)
        norms: dict[str, Tensor] = {Side.BASE: base.norm(dim=1), Side.FINETUNED: finetuned.norm(dim=1)}
        longer = (norms[Side.FINETUNED] >= norms[Side.BASE])[:, None]
        return cls(difference(base, finetuned), torch.where(longer, finetuned, base), norms, difference(*silent))


@dataclass(frozen=True, eq=False)
class Latents:
    """A layer's dictionary, and what its latents do on the caches."""

    layer: int
    dictionary: Dictionary
    statistics: LatentStatistics
    classes: Mapping[str, Sequence[Kind]]
    """By rule."""
    noise: Mapping[str, Sequence[Kind]] | None
    """The same on a pair that differs by noise alone, by those rules that depend on rows."""
    vectors: Vectors
    base_mean: Float[Tensor, " d_model"]
    residual_norm: float
    """Root mean square norm of the finetuned residual stream: the length that patchscope scale 1 means."""

    @classmethod
    def of(
        cls,
        dictionary: Dictionary,
        caches: Sequence[ActivationCache],
        statistics: LatentStatistics,
        noise: LatentStatistics | None,
    ) -> "Latents":
        layer = dictionary.recipe.layer
        base, finetuned = (Moments.merged([cache.moments(Stream(side), layer) for cache in caches]) for side in Side)
        chance = None if noise is None else rules.classes(noise)
        if chance is not None:
            chance.pop(rules.NORM, None)
        return cls(
            layer, dictionary, statistics, rules.classes(statistics), chance, Vectors.of(dictionary),
            base.mean.float(), finetuned.rms_norm,
        )  # fmt: skip

    @property
    def mean_length(self) -> Float[Tensor, " latent"]:
        """Of what a latent adds to the difference, on average over all tokens (residual stream units)."""
        mean = (self.statistics.frequency * self.statistics.mean).nan_to_num(0.0)
        return (mean * self.vectors.change.norm(dim=1)).float()

    @property
    def largest_length(self) -> Float[Tensor, " latent"]:
        """Of what a latent adds to the difference where it is largest (residual stream units)."""
        return (self.statistics.largest * self.vectors.change.norm(dim=1)).float()

    def at_largest(self, latent: int) -> Float[Tensor, " d_model"]:
        """What a latent adds where it is largest, to the side on which it is longer."""
        return float(self.statistics.largest[latent]) * self.vectors.own[latent]

    def at_random(self, n: int, seed: int, but: Sequence[int]) -> list[int]:
        """Latents that are not dead, drawn from those that are not in `but`."""
        alive = [latent for latent in (~self.statistics.dead).nonzero()[:, 0].tolist() if latent not in but]
        order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))
        return [alive[place] for place in order[:n].tolist()]


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer's latents, what they do to the output, and what is shown of some of them."""

    latents: Latents
    bridge: Bridge
    top: Sequence[int]
    """By how much each alone lowers the KL, the one that lowers it most first."""
    random: Sequence[int]
    """Latents shown beside them, drawn at random."""
    examples: Mapping[str, Examples]
    """Largest windows, per corpus. Score i is that of `shown[i]`."""
    banded: Mapping[str, Examples]
    """Windows drawn from all of a latent's range, per corpus; score i is that of `shown[i // len(BANDS)]`."""

    @property
    def layer(self) -> int:
        return self.latents.layer

    @property
    def shown(self) -> list[int]:
        return [*self.top, *self.random]


def ranking(latents: Latents, bridge: Bridge) -> list[int]:
    """Latents that were tried alone, by contribution, and by their mean length where that is the same."""
    return sorted(bridge.alone, key=lambda latent: (-bridge.contribution(latent), -latents.mean_length[latent]))


@torch.no_grad()
def add_examples(
    collectors: Sequence[TopExamples | QuantileExamples],
    dictionary: Dictionary,
    cache: ActivationCache,
    shown: Sequence[int],
    lengths: Float[Tensor, " score"],
    on_rows: Callable[[int], object],
    block_rows: int = 2048,
) -> None:
    """What each of the latents `shown` adds on every token of a cache; `lengths` is what one unit of each adds."""
    device = dictionary.decoder.device
    for block in document_blocks(cache, dictionary.recipe.layer, block_rows):
        rows = dictionary.recipe.rows(block.base.to(device), block.finetuned.to(device))
        values = columns(dictionary.codes(rows), shown)
        for collector in collectors:
            collector.add(values * lengths.to(values), block.texts)
        on_rows(len(rows))


def columns(codes: Codes, latents: Sequence[int]) -> Float[Tensor, "token score"]:
    """Values of some latents, dense."""
    place = torch.full((codes.n_latents,), -1, dtype=torch.int64, device=codes.latents.device)
    place[torch.tensor(latents, device=place.device)] = torch.arange(len(latents), device=place.device)
    column = place[codes.latents]
    wanted = column >= 0
    values = codes.values.new_zeros(len(codes), len(latents))
    values[codes.rows[wanted], column[wanted]] = codes.values[wanted]
    return values
