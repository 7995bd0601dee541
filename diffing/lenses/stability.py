"""Which latents of a dictionary another training finds too.

Two trainings that differ by their seed have no latent in common by number, so latents are compared by what they write:
the cosine between their decoder directions, in normalised units and over both sides at once for a crosscoder. A latent
is matched if it and the other one are each other's nearest and near enough (0.9 is usual). That is one to one: two
latents that share what is one latent elsewhere count as one match.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from diffing.activations.order import generator
from diffing.errors import IncompatiblePair
from diffing.learners.dictionary import Dictionary

NEAR = 0.9
"""Cosine from which two directions count as the same."""
BLOCK = 4096
"""Latents that are compared with all others at a time."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Per latent of the first dictionary, on the CPU. Latents that were left out have NaN, -1 and False."""

    cosine: Float[Tensor, " latent"]
    """With the nearest latent of the other dictionary."""
    nearest: Int64[Tensor, " latent"]
    """Which one that is."""
    matched: Bool[Tensor, " latent"]
    """Whether each is the other's nearest, and near."""


def matches(first: Dictionary, second: Dictionary, alive: Bool[Tensor, " latent"]) -> Matches:
    """The latents of `first` that are `alive` among those of `second`. Raises IncompatiblePair if they are of other
    models, layers or kinds."""
    one, other = (
        (recipe.kind, recipe.pair_digest, recipe.layer, recipe.stream, recipe.d_model)
        for recipe in (first.recipe, second.recipe)
    )
    if one != other:
        raise IncompatiblePair(f"dictionaries of {one} and {other} have no latents to compare; give two of the same")
    return nearest(first.decoder, second.decoder.to(first.decoder), alive)


def matches_by_chance(first: Dictionary, second: Dictionary, alive: Bool[Tensor, " latent"], seed: int) -> Matches:
    """The same of `first` among random directions that are as long, on each side, as those of `second`."""
    lengths = torch.linalg.vector_norm(second.decoder.unflatten(1, tuple(second.mean.shape)), dim=2, keepdim=True)
    random = torch.randn((len(lengths), *second.mean.shape), generator=generator("directions by chance", seed))
    directions = normalize(random, dim=2).to(first.decoder) * lengths.to(first.decoder)
    return nearest(first.decoder, directions.flatten(1), alive)


@torch.no_grad()
def nearest(
    first: Float[Tensor, "latent width"], second: Float[Tensor, "other width"], alive: Bool[Tensor, " latent"]
) -> Matches:
    """By cosine. Rows of zeros are near nothing."""
    asked = alive.nonzero()[:, 0].to(first.device)
    ours, theirs = normalize(first[asked]), normalize(second)
    best, place = (torch.empty(len(asked), dtype=dtype, device=first.device) for dtype in (first.dtype, torch.int64))
    back = torch.full((len(second),), -torch.inf, dtype=first.dtype, device=first.device)
    back_place = torch.full((len(second),), -1, device=first.device)
    for start in range(0, len(asked), BLOCK):
        cosines = ours[start : start + BLOCK] @ theirs.T
        best[start : start + BLOCK], place[start : start + BLOCK] = cosines.max(1)
        largest, where = cosines.max(0)
        nearer = largest > back
        back, back_place = torch.where(nearer, largest, back), torch.where(nearer, start + where, back_place)
    mutual = back_place[place] == torch.arange(len(asked), device=first.device)
    found = Matches(
        torch.full((len(first),), torch.nan),
        torch.full((len(first),), -1),
        torch.zeros(len(first), dtype=torch.bool),
    )
    asked = asked.cpu()
    found.cosine[asked], found.nearest[asked] = best.cpu().float(), place.cpu()
    found.matched[asked] = (mutual & (best >= NEAR)).cpu()
    return found
