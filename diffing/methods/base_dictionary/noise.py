"""A pair that differs by noise alone: the base's stored rows, and the same plus as much Gaussian noise as the real
finetuned rows differ by. What a dictionary's statistics find there, they find by chance."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache, SideStore
from diffing.axes import Stream


class NoisyCache(ActivationCache):
    """The caches' base, and a finetuned side that is the base plus the mean difference plus isotropic noise.

    Noise is drawn anew for every read; moments are the expected ones. For one pass in stored order.
    """

    def __init__(self, cache: ActivationCache, seed: int):
        super().__init__(cache.base.folder, cache.finetuned.folder)
        self.finetuned = _NoisyStore(cache, seed)


class _NoisyStore(SideStore):
    def __init__(self, cache: ActivationCache, seed: int):
        super().__init__(cache.finetuned.folder)
        self._base, self._seed = cache.base, seed
        self._differences = {layer: cache.moments(Stream.DIFFERENCE, layer) for layer in cache.layers}

    def read(
        self, layer: int, start: int, stop: int, out: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "token d_model"]:
        rows = self._base.read(layer, start, stop)
        mean, deviation = self._differences[layer].mean.float(), self._variance(layer) ** 0.5
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + start)
        noise = torch.randn(rows.shape, generator=generator) * deviation
        moved = (rows.float() + mean + noise).to(rows.dtype)
        return moved if out is None else out.copy_(moved)

    def moments(self, stream: Stream, layer: int) -> Moments:
        found = self._differences[layer]
        noise = torch.full_like(found.m2, found.count * self._variance(layer))
        if stream is Stream.DIFFERENCE:
            return Moments(found.count, found.mean, noise)
        base = self._base.moments(Stream.BASE, layer)
        return Moments(found.count, base.mean + found.mean, base.m2 + noise)

    def _variance(self, layer: int) -> float:
        """Of each coordinate of the noise."""
        return float(self._differences[layer].variance.mean())
