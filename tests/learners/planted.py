"""Rows of both sides that are sparse sums of known directions, and how well a dictionary finds them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.learners.base import Recipe
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.schedules import Training
from tests.activations.stores import write_cache

D_MODEL = 32


@dataclass(frozen=True, eq=False)
class Planted:
    """row[side] = offset[side] + gain[side] * (sum_j coefficient[j] * atoms[side, j] + noise)."""

    base: Float[Tensor, "token d_model"]
    finetuned: Float[Tensor, "token d_model"]
    atoms: Float[Tensor, "side latent d_model"]
    """Unit rows, shared concepts first, then base-only, then finetuned-only; zeros where a side has none."""
    coefficients: Float[Tensor, "token latent"]
    n_shared: int
    n_base: int
    n_finetuned: int


@cache
def planted(
    n_rows: int = 40_000,
    n_shared: int = 16,
    n_base: int = 4,
    n_finetuned: int = 4,
    *,
    active: float = 1 / 12,
    noise: float = 0.01,
    gains: tuple[float, float] = (1.0, 7.0),
    offsets: tuple[float, float] = (3.0, -20.0),
    base_gain: float = 0.0,
    seed: int = 0,
    d_model: int = D_MODEL,
) -> Planted:
    """Concepts are on with probability `active`, by default 2 at a time, each with 1 + an exponential.

    Shared concepts have the same direction on both sides. `base_gain` is the share that the base has of the finetuned
    side's own concepts.
    """
    random = torch.Generator().manual_seed(seed)
    n_concepts = n_shared + n_base + n_finetuned
    directions = normalize(torch.randn(n_concepts, d_model, generator=random))
    atoms = torch.stack([directions, directions])
    atoms[1, n_shared : n_shared + n_base] = 0
    atoms[0, n_shared + n_base :] *= base_gain
    on = torch.rand(n_rows, n_concepts, generator=random) < active
    size = 1 - torch.log(1 - torch.rand(n_rows, n_concepts, generator=random))
    coefficients = on * size
    sides = []
    for side in range(2):
        clean = coefficients @ atoms[side]
        noisy = clean + noise * torch.randn(clean.shape, generator=random)
        sides.append(offsets[side] * torch.linspace(-1, 1, d_model) + gains[side] * noisy)
    return Planted(*sides, atoms, coefficients, n_shared, n_base, n_finetuned)


def cosines(
    first: Float[Tensor, "latent d_model"], second: Float[Tensor, "other d_model"]
) -> Float[Tensor, "latent other"]:
    """Of every row with every row; 0 for rows of zeros."""
    return normalize(first) @ normalize(second).T


def write(root: Path, rows: Planted, corpus: str = "planted") -> ActivationCache:
    """A store of layer 0."""
    return write_cache(root, {0: rows.base}, {0: rows.finetuned}, corpus=corpus, documents_per_shard=2_000)


def quick(**changes: object) -> Training:
    """A training that takes about a second."""
    standard = {"batch_size": 256, "epochs": 1_000, "max_steps": 30, "lr": 1e-2, "warmup_steps": 10}
    return Training(**(standard | changes))


def at_random(kind: type[Dictionary], recipe: Recipe, threshold: float = 0.5) -> Dictionary:
    """A dictionary with weights, biases and normalisers of no meaning."""
    learner, random = kind(recipe), torch.Generator().manual_seed(0)
    learner.initialise(random)
    for tensor in (learner.encoder_bias, learner.decoder_bias, learner.mean):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    learner.scale.copy_(torch.tensor([0.5, 3.0])[: len(learner.scale)])
    learner.threshold.fill_(threshold)
    return learner


def recipe_of(kind: type[Dictionary], sparsity: Sparsity, d_model: int = D_MODEL, **particular: object) -> Recipe:
    """A recipe of no cache."""
    stream = Stream.DIFFERENCE if kind.n_streams == 1 else None
    settings = {**kind.settings_of(sparsity, **particular), "weights": None}
    return Recipe(kind.__name__.lower(), "0" * 16, "a base and a finetune", 0, stream, d_model, ["cache"], settings)
