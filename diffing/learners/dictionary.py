"""A sparse dictionary: rows as a bias plus a few of many directions, each times a positive latent value.

Inside, it sees each stream it reads centred and divided by one number, so that all streams have the same size and a
coordinate keeps its share of the variance. Directions and reconstructions come out in the units of the residual
stream. Which latents are active in a row depends on that row alone.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffing.activations.moments import Normaliser
from diffing.errors import InvalidSetting, NonFiniteActivations
from diffing.learners.base import Learner, Recipe
from diffing.learners.codes import Codes, above, top_k
from diffing.learners.sparse import decode
from diffing.specs import JSON

ACTIVATIONS = ("batch_top_k", "top_k", "relu")
CODE_WEIGHTS = ("none", "l1", "l2")


@dataclass(frozen=True)
class Sparsity:
    """How many latents there are, and which of them are active in a row."""

    n_latents: int
    k: int | None = 100
    """Active latents per row: of the batch on average (`batch_top_k`), of each (`top_k`), or unused (`relu`)."""
    activation: str = "batch_top_k"
    """Or `top_k` or `relu`."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InvalidSetting(f"activation '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if self.n_latents < 1:
            raise InvalidSetting(f"n_latents={self.n_latents}; expected 1 or more")
        if self.activation != "relu" and (self.k is None or not 1 <= self.k <= self.n_latents):
            raise InvalidSetting(
                f"k={self.k}; expected 1 to n_latents={self.n_latents}: of so many latents, k are active in a row"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, JSON]) -> "Sparsity":
        """Inverse of `asdict`; other settings are ignored."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})  # type: ignore[arg-type]


class Dictionary(Learner):
    """What SAEs and crosscoders share. `width` is the concatenation of the streams that are read."""

    n_streams: ClassVar[int]
    centred: ClassVar[bool]
    """Whether the decoder's bias is taken from the rows before they are encoded."""

    encoder: Float[Tensor, "latent width"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent width"]
    """The latents' directions, in normalised units."""
    decoder_bias: Float[Tensor, " width"]
    threshold: Float[Tensor, ""]
    """Of `batch_top_k`: the score above which a latent is active, whatever batch its row is in."""
    mean: Float[Tensor, "side d_model"]
    """Of each stream that is read; its rows are normalised as (row - mean) * scale."""
    scale: Float[Tensor, " side"]

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.sparsity = Sparsity.from_settings(recipe.settings)
        n_latents, width = self.sparsity.n_latents, self.n_streams * recipe.d_model
        shapes = {
            "encoder": (n_latents, width), "encoder_bias": (n_latents,),
            "decoder": (n_latents, width), "decoder_bias": (width,),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(self.n_streams, recipe.d_model))
        self.register_buffer("scale", torch.ones(self.n_streams))

    @classmethod
    def settings_of(cls, sparsity: Sparsity) -> dict[str, JSON]:
        """What a recipe says of a dictionary, whatever it is fitted to."""
        return asdict(sparsity)

    def set_normalisers(self, normalisers: list[Normaliser]) -> None:
        """One for each stream."""
        self.mean.copy_(torch.stack([normaliser.mean for normaliser in normalisers]))
        self.scale.copy_(torch.tensor([normaliser.scale for normaliser in normalisers]))

    def normalise(self, rows: Float[Tensor, "batch *side d_model"]) -> Float[Tensor, "batch width"]:
        """Rows that `recipe.rows` gave, as the dictionary sees them."""
        streams = rows.to(self.mean.dtype).view(len(rows), *self.mean.shape)
        return ((streams - self.mean) * self.scale[:, None]).flatten(1)

    def denormalise(self, normalised: Float[Tensor, "batch width"]) -> Float[Tensor, "batch *side d_model"]:
        """Inverse of `normalise`."""
        streams = normalised.view(len(normalised), *self.mean.shape) / self.scale[:, None] + self.mean
        return streams if self.recipe.stream is None else streams.squeeze(1)

    def pre_activations(self, normalised: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent"]:
        """Latent values before those that are not active are set to zero."""
        rows = normalised - self.decoder_bias if self.centred else normalised
        return nn.functional.linear(rows, self.encoder, self.encoder_bias)

    def score_weight(self) -> Float[Tensor, " latent"] | None:
        """What latent values are multiplied by to compare them with each other; None is 1 for all."""
        return None

    def codes(self, rows: Float[Tensor, "batch *side d_model"]) -> Codes:
        """Latent values of each row, without the zeros. Raises NonFiniteActivations."""
        if not rows.isfinite().all():
            raise NonFiniteActivations(f"NaN or infinity among {len(rows)} rows of layer {self.recipe.layer}")
        pre = self.pre_activations(self.normalise(rows))
        if self.sparsity.activation == "top_k":
            return top_k(pre, cast(int, self.sparsity.k), self.score_weight())
        if self.sparsity.activation == "relu":
            return above(pre, 0.0)
        return above(pre, self.threshold, self.score_weight())

    def encode(self, rows: Float[Tensor, "batch *side d_model"]) -> Float[Tensor, "batch latent"]:
        """`codes` with the zeros."""
        return self.codes(rows).dense()

    def decode(self, latents: Codes | Float[Tensor, "batch latent"]) -> Float[Tensor, "batch *side d_model"]:
        """Rows of the residual stream from latent values."""
        if isinstance(latents, Codes):
            return self.denormalise(decode(latents, self.decoder, self.decoder_bias))
        return self.denormalise(latents @ self.decoder + self.decoder_bias)

    def reconstruct(self, rows: Float[Tensor, "batch *side d_model"]) -> Float[Tensor, "batch *side d_model"]:
        """`decode` of `codes`."""
        return self.decode(self.codes(rows))

    @abstractmethod
    def initialise(self, random: torch.Generator) -> None:
        """Sets the weights that training starts from."""

    def confine_gradients(self) -> None:
        """Takes from the gradients what would move the weights to where they may not be."""

    def confine_weights(self) -> None:
        """Takes the weights back to where they may be, after a step."""
