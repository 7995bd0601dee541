"""What every fitted learner is: a torch module of one pair and one layer that knows how it was made.

    weights.safetensors    the state dict
    training.json          what was logged while it was trained, if it was trained in steps
    recipe.json            written last: a folder without it is not a learner

A learner is built from its recipe alone and then filled, so loading one needs neither a config nor the caches.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffing.activations.store import ActivationCache
from diffing.activations.streams import select
from diffing.axes import Side, Stream
from diffing.errors import IncompatiblePair, MissingInput, SchemaMismatch, StorageFailed
from diffing.specs import JSON, Spec

SCHEMA_VERSION = 1
LEARNERS = {
    "pca": ("diffing.learners.pca", "PCA"),
    "sae": ("diffing.learners.sae", "SAE"),
    "crosscoder": ("diffing.learners.crosscoder", "Crosscoder"),
}
"""Module and class of each kind, imported when one is loaded."""


@dataclass(frozen=True)
class Recipe(Spec):
    """What a learner was fitted to, and how. Equal digests mean equal learners."""

    kind: str
    """A key of `LEARNERS`."""
    pair_digest: str
    pair: str
    """The two models, for messages."""
    layer: int
    stream: Stream | None
    """What it reads; None reads both sides, next to each other."""
    d_model: int
    caches: Sequence[str]
    """Digests of the activation caches it was fitted to."""
    settings: Mapping[str, JSON]
    """All that is particular to the kind, shapes included."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "caches", tuple(self.caches))

    @classmethod
    def of(
        cls,
        kind: str,
        caches: Sequence[ActivationCache],
        layer: int,
        stream: Stream | None,
        settings: Mapping[str, JSON],
    ) -> "Recipe":
        """The recipe of a fit to `caches`. Raises IncompatiblePair if they are not of one pair or lack the layer."""
        if not caches:
            raise MissingInput(f"{kind} needs activations to fit, got no cache: name at least one corpus")
        first = caches[0]
        digests = [cache.digest for cache in caches]
        recipe = cls(kind, first.pair_digest, _pair(first), layer, stream, first.d_model, digests, settings)
        for cache in caches:
            check_fits(recipe, cache)
        return recipe

    @classmethod
    def from_json(cls, stored: Mapping) -> "Recipe":
        """Inverse of `as_json`. Raises TypeError, KeyError or ValueError for what another version wrote."""
        return cls(**{**stored, "stream": None if stored["stream"] is None else Stream(stored["stream"])})

    def identity(self) -> Mapping[str, object]:
        return {key: value for key, value in self.as_json().items() if key != "pair"}

    def rows(
        self, base: Float[Tensor, "batch d_model"], finetuned: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch *side d_model"]:
        """What the learner reads of both sides' activations, in float32 or wider."""
        if self.stream is None:
            return torch.stack([select(Stream(side), base, finetuned) for side in Side], dim=1)
        return select(self.stream, base, finetuned)


class Learner(nn.Module, ABC):
    """A fitted decomposition of one layer's activations. `__init__` takes the recipe alone and sets every shape."""

    history: Mapping[str, Sequence[float | int]]
    """What was logged of its training, by name: an entry for each time, `step` among the names. No part of what the
    learner is: timings differ from run to run. Empty if it was not trained in steps."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe, self.history = recipe, {}

    @abstractmethod
    def encode(self, rows: Float[Tensor, "batch *side d_model"]) -> Float[Tensor, "batch latent"]:
        """Latent values of rows that `recipe.rows` gave."""

    @abstractmethod
    def directions(self, side: Side) -> Float[Tensor, "latent d_model"]:
        """What one unit of each latent adds to that side's residual stream, in its units."""

    def save(self, folder: Path) -> None:
        """Writes what `load_learner` reads. Raises StorageFailed if the disk refuses."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        recipe = {"schema_version": SCHEMA_VERSION, **self.recipe.as_json()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "weights.safetensors")
            if self.history:
                (folder / "training.json").write_text(json.dumps(self.history), "utf-8")
            (folder / "recipe.json").write_text(json.dumps(recipe, indent=1, ensure_ascii=False), "utf-8")
        except (OSError, SafetensorError) as error:
            raise StorageFailed(f"cannot write the {self.recipe.kind} to {folder}: {error}") from error


def load_learner(folder: Path) -> Learner:
    """Inverse of `Learner.save`. Raises MissingInput for no learner, SchemaMismatch for a torn or foreign one."""
    recipe = _read_recipe(folder)
    if recipe.kind not in LEARNERS:
        raise SchemaMismatch(f"{folder} holds a learner of kind '{recipe.kind}'; expected one of {sorted(LEARNERS)}")
    module, name = LEARNERS[recipe.kind]
    try:
        learner: Learner = getattr(import_module(module), name)(recipe)
        learner.load_state_dict(load_file(folder / "weights.safetensors"))
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise SchemaMismatch(
            f"{folder}: weights.safetensors is not what recipe.json says ({type(error).__name__}: {error}); "
            f"fit the {recipe.kind} again"
        ) from error
    learner.history = _read_history(folder / "training.json")
    return learner


def check_fits(recipe: Recipe, cache: ActivationCache) -> None:
    """Raises IncompatiblePair unless the cache is of the recipe's pair and holds its layer."""
    if cache.pair_digest != recipe.pair_digest:
        raise IncompatiblePair(
            f"this {recipe.kind} is of the pair {recipe.pair} ({recipe.pair_digest}), but the activations of "
            f"{cache.corpus} are of {_pair(cache)} ({cache.pair_digest}); give both of one pair"
        )
    if recipe.layer not in cache.layers:
        raise IncompatiblePair(
            f"this {recipe.kind} is of layer {recipe.layer}, but the activations of {cache.corpus} are of layers "
            f"{list(cache.layers)}; choose one of these, or collect that layer too (pipeline.mode=preprocessing)"
        )


def _pair(cache: ActivationCache) -> str:
    spec = cache.finetuned.spec
    assert spec.finetuned is not None, "a finetuned store has a variant"
    return f"{spec.base.id} and {spec.finetuned.id or 'itself'}"


def _read_history(path: Path) -> dict[str, list[float | int]]:
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise SchemaMismatch(f"{path} is not what was logged of a training ({error}); delete it") from error


def _read_recipe(folder: Path) -> Recipe:
    path = folder / "recipe.json"
    if not path.is_file():
        raise MissingInput(f"no learner in {folder}: expected a folder that holds recipe.json and weights.safetensors")
    try:
        stored = json.loads(path.read_text("utf-8"))
        version = stored.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise SchemaMismatch(f"{path} has schema version {version}; this version of diffing reads {SCHEMA_VERSION}")
        return Recipe.from_json(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemaMismatch(f"{path} is not the recipe of a learner ({error}); fit it again") from error
