"""Which side a latent is of, by every rule that its dictionary allows, and the orders in which latents are added.

A crosscoder has a direction on each side, so its latents are classed by their norms and by latent scaling. A dictionary
of the difference has one direction, and its latents are classed by how much of that direction either side's own
activations hold where the latent is active.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.lenses.latents import EXCLUSIVE_NU_ERROR, Kind, LatentStatistics, classes_by_norm, classes_by_scaling

NORM, SCALING, ACTIVATION = "norm", "scaling", "activation"


def paired(statistics: LatentStatistics) -> bool:
    """Whether the latents have a direction on each side."""
    return len(statistics.streams) == 2


def classes(statistics: LatentStatistics) -> dict[str, list[Kind]]:
    """By the name of each rule, the class of every latent."""
    if paired(statistics):
        return {SCALING: classes_by_scaling(statistics), NORM: classes_by_norm(statistics)}
    return {ACTIVATION: classes_by_activation(statistics)}


def classes_by_activation(statistics: LatentStatistics) -> list[Kind]:
    """By `beta_activation`: of one side only if the other's is less than 0.2 of its own, shared if the two have one
    sign, which is a direction that became stronger or weaker. NaN is `other`."""
    base, finetuned = statistics.beta_activation[-1]
    dead = statistics.dead.tolist()
    found = []
    for latent, (b, f) in enumerate(zip(base.tolist(), finetuned.tolist(), strict=True)):
        if dead[latent]:
            found.append(Kind.DEAD)
        elif abs(b) < EXCLUSIVE_NU_ERROR * abs(f):
            found.append(Kind.FINETUNED_ONLY)
        elif abs(f) < EXCLUSIVE_NU_ERROR * abs(b):
            found.append(Kind.BASE_ONLY)
        else:
            found.append(Kind.SHARED if b * f > 0 else Kind.OTHER)
    return found


def nu(statistics: LatentStatistics) -> Float[Tensor, " latent"]:
    """How much of the finetuned direction the base holds too, relative to the finetuned side: 0 is finetuned-only."""
    return statistics.nu_error[-1] if paired(statistics) else statistics.nu_activation


def orders(
    statistics: LatentStatistics, mean_length: Float[Tensor, " latent"]
) -> Mapping[str, Float[Tensor, " latent"]]:
    """By name, values by which latents are added, the largest first; NaN is left out, as every dead latent is.

    `mean_length`: what each latent adds to the difference, on average over all tokens.
    """
    values = {
        "nu": -nu(statistics).abs(),
        "frequency": statistics.frequency,
        "size": mean_length.double(),
    }
    if paired(statistics):
        values = {"delta": statistics.delta, **values}
    return {name: torch.where(statistics.dead, torch.nan, value) for name, value in values.items()}
