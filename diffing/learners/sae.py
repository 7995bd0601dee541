"""Sparse autoencoder of one stream, by default of the difference finetuned - base.

Directions have norm 1 in normalised units, so a latent's value is the size of what it adds. The gradient keeps to the
sphere: its component along a direction, which the normalisation after the step would undo, does not enter the
optimiser's moments. Batch top-k: Bussmann et al. 2024 (arXiv 2412.06410).
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from diffing.axes import Side
from diffing.learners.dictionary import Dictionary


class SAE(Dictionary):
    """f = max(0, encoder (x - decoder_bias) + encoder_bias) where active; x^ = f decoder + decoder_bias."""

    n_streams: ClassVar[int] = 1
    centred: ClassVar[bool] = True

    def directions(self, side: Side) -> Float[Tensor, "latent d_model"]:
        """The same on either side: a direction of the difference is one of the stream that it is added to."""
        return self.decoder / self.scale

    @torch.no_grad()
    def initialise(self, random: torch.Generator) -> None:
        """Random unit directions, which the encoder reads. The biases are 0: the mean of normalised rows."""
        self.decoder.copy_(normalize(torch.randn(self.decoder.shape, generator=random)))
        self.encoder.copy_(self.decoder)

    @torch.no_grad()
    def confine_gradients(self) -> None:
        gradient = self.decoder.grad
        assert gradient is not None
        along = torch.einsum("ij,ij->i", gradient, self.decoder)
        gradient.addcmul_(along[:, None], self.decoder, value=-1)

    @torch.no_grad()
    def confine_weights(self) -> None:
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True))
