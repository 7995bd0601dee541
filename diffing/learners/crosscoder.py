"""Crosscoder: one set of latents that reads both sides and has a direction on each (Lindsey et al. 2024).

The norms of the directions are free, so a latent whose direction has shrunk to nothing on one side belongs to the
other. Latents compete by value times the norm of what they write (Minder et al. 2025, arXiv 2504.02922), so scaling a
latent's encoder up and its directions down changes nothing. With a partition, some latents write to one side alone by
construction (dedicated feature crosscoder, arXiv 2602.11729).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.learners.base import Recipe
from diffing.learners.dictionary import CODE_WEIGHTS, Dictionary, Sparsity
from diffing.specs import JSON


class Crosscoder(Dictionary):
    """f = max(0, encoder x + encoder_bias) where active; x^ = f decoder + decoder_bias; x is base, then finetuned."""

    n_streams: ClassVar[int] = 2
    centred: ClassVar[bool] = False

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.code_weight = cast(str, recipe.settings["code_weight"])
        partition = cast("Sequence[int] | None", recipe.settings["partition"])
        n_base, _, n_finetuned = (0, 0, 0) if partition is None else partition
        self._base_only = slice(0, n_base)
        self._finetuned_only = slice(self.sparsity.n_latents - n_finetuned, self.sparsity.n_latents)

    @classmethod
    def settings_of(
        cls,
        sparsity: Sparsity,
        code_weight: str = "l1",
        partition: Sequence[int] | None = None,
    ) -> dict[str, JSON]:
        """`code_weight`: a latent's norms on both sides added up (`l1`), the norm of both together (`l2`), 1 (`none`).

        `partition`: how many of the latents, in this order, write to the base alone, to both, to the finetuned alone.
        """
        if code_weight not in CODE_WEIGHTS:
            raise InvalidSetting(f"code_weight '{code_weight}'; expected one of {', '.join(CODE_WEIGHTS)}")
        if partition is not None and (
            len(partition) != 3 or min(partition) < 0 or sum(partition) != sparsity.n_latents
        ):
            raise InvalidSetting(
                f"partition {list(partition)}; expected three numbers of latents (base only, shared, finetuned only) "
                f"that add up to n_latents={sparsity.n_latents}"
            )
        split = None if partition is None else list(partition)
        return {**asdict(sparsity), "code_weight": code_weight, "partition": split}

    def directions(self, side: Side) -> Float[Tensor, "latent d_model"]:
        """Each side has its own."""
        number = list(Side).index(side)
        return self.decoders()[:, number] / self.scale[number]

    def decoders(self) -> Float[Tensor, "latent side d_model"]:
        """The decoder of each side."""
        return self.decoder.unflatten(1, tuple(self.mean.shape))

    def norms(self) -> Float[Tensor, "latent side"]:
        """Of the directions on each side, in normalised units, in which both sides vary as much."""
        return torch.linalg.vector_norm(self.decoders(), dim=2)

    def score_weight(self) -> Float[Tensor, " latent"] | None:
        if self.code_weight == "none":
            return None
        return self.norms().sum(1) if self.code_weight == "l1" else torch.linalg.vector_norm(self.decoder, dim=1)

    @torch.no_grad()
    def initialise(self, random: torch.Generator) -> None:
        """Random unit directions, the same on both sides. Encoded and decoded, a row is projected onto each:
        with the encoder as long as the decoder, the two sides would add up to twice that."""
        shape = self.sparsity.n_latents, 1, self.recipe.d_model
        self.decoders().copy_(normalize(torch.randn(shape, generator=random), dim=2).expand_as(self.decoders()))
        self._without_opposing(self.decoder)
        self.encoder.copy_(self.decoder / self.decoder.square().sum(1, keepdim=True))

    @torch.no_grad()
    def confine_gradients(self) -> None:
        """Directions that are zero by the partition get no gradient, hence no moment and no step."""
        assert self.decoder.grad is not None
        self._without_opposing(self.decoder.grad)

    def _without_opposing(self, decoder: Float[Tensor, "latent width"]) -> None:
        decoder[self._base_only, self.recipe.d_model :] = 0
        decoder[self._finetuned_only, : self.recipe.d_model] = 0
