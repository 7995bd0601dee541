"""Means per position of both residual streams and of their difference, in one streamed pass.

Keeps running sums in float64: memory is O(positions * d_model) whatever the number of texts. Position 0 is an attention
sink in most models, with a norm of thousands: positions are therefore never pooled, and the mean residual norm leaves
out the first `SKIPPED` ones (arXiv 2510.13900).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffing.activations.streams import difference
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, NonFiniteActivations
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.text.windows import TokenBatch

SKIPPED = 5
"""Leading positions that do not count in the mean residual norm."""


@dataclass(frozen=True)
class PositionMeans:
    """Statistics of one layer. All float64, all over the texts that reach a position."""

    layer: int
    n_texts: Int[Tensor, " pos"]
    base: Float[Tensor, "pos d_model"]
    finetuned: Float[Tensor, "pos d_model"]
    difference: Float[Tensor, "pos d_model"]
    """Mean of finetuned - base."""
    norm_base: Float[Tensor, " pos"]
    """Mean L2 norm of the residual stream."""
    norm_finetuned: Float[Tensor, " pos"]
    norm_difference: Float[Tensor, " pos"]
    """Mean over texts of the L2 norm of the difference (not the norm of the mean)."""
    residual_norm: float
    """Mean L2 norm of the finetuned residual stream over texts and positions >= `SKIPPED`."""

    @property
    def consistency(self) -> Float[Tensor, " pos"]:
        """Norm of the mean difference over the mean norm of the difference: 1 if all texts are shifted alike,
        about 1/sqrt(n_texts) if the shifts are unrelated, and 0 where nothing differs."""
        return self.difference.norm(dim=-1) / self.norm_difference.clamp_min(torch.finfo(torch.float64).tiny)


class _Sums:
    """float64 sums of one layer over the texts seen so far."""

    def __init__(self, n_positions: int, d_model: int, device: torch.device):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.n_texts = torch.zeros(n_positions, dtype=torch.long, device=device)
        self.vectors = {key: zeros(n_positions, d_model) for key in ("base", "finetuned", "difference")}
        self.norms = {key: zeros(n_positions) for key in ("base", "finetuned", "difference")}

    def add(
        self,
        base: Float[Tensor, "batch pos d_model"],
        finetuned: Float[Tensor, "batch pos d_model"],
        mask: Bool[Tensor, "batch pos"],
    ) -> None:
        """Rows are left-aligned: column j holds position j of every text."""
        width = mask.shape[1]
        self.n_texts[:width] += mask.sum(0)
        streams = {"base": base, "finetuned": finetuned, "difference": difference(base, finetuned)}
        for key, stream in streams.items():
            kept = stream.double().masked_fill(~mask[..., None], 0.0)
            self.vectors[key][:width] += kept.sum(0)
            self.norms[key][:width] += kept.norm(dim=-1).sum(0)

    def means(self, layer: int) -> PositionMeans:
        reached = int((self.n_texts > 0).sum())
        count = self.n_texts[:reached].double().cpu()
        vectors = {key: total[:reached].cpu() / count[:, None] for key, total in self.vectors.items()}
        norms = {key: total[:reached].cpu() / count for key, total in self.norms.items()}
        later = count[SKIPPED:]
        if later.sum() == 0:
            raise EmptyCorpus(
                f"no text reaches position {SKIPPED}, so there is no mean residual norm: use longer texts"
            )
        return PositionMeans(
            layer=layer,
            n_texts=self.n_texts[:reached].cpu(),
            **vectors,
            **{f"norm_{key}": norm for key, norm in norms.items()},
            residual_norm=float((norms["finetuned"][SKIPPED:] * later).sum() / later.sum()),
        )


def position_means(
    pair: ModelPair,
    batches: Iterable[TokenBatch],
    layers: Sequence[int],
    n_positions: int,
    on_batch: Callable[[int], object] = lambda texts: None,
) -> dict[int, PositionMeans]:
    """One pass of both sides over `batches` (padded on either side, at most `n_positions` tokens a text).

    `on_batch` is told the number of texts that were read. Raises NonFiniteActivations with the side and the layer.
    """
    if n_positions <= SKIPPED:
        raise InvalidSetting(f"{n_positions} positions; at least {SKIPPED + 1} are needed for the mean residual norm")
    sums: dict[int, _Sums] = {}
    for batch in batches:
        streams = {}
        for side in Side:
            with pair.using(side) as model:
                streams[side] = residuals(model, batch, layers)
        for layer in layers:
            base, finetuned = (_left_aligned(streams[side][layer], batch, side, layer) for side in Side)
            if layer not in sums:
                sums[layer] = _Sums(n_positions, base.shape[-1], base.device)
            sums[layer].add(base, finetuned, _left_aligned_mask(batch).to(base.device))
        on_batch(len(batch.ids))
    if not sums:
        raise EmptyCorpus("no text to read: the corpus gave no batch")
    return {layer: total.means(layer) for layer, total in sums.items()}


def _left_aligned_mask(batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
    lengths = batch.mask.sum(1)
    return torch.arange(batch.mask.shape[1])[None, :] < lengths[:, None].cpu()


def _left_aligned(
    stream: Float[Tensor, "batch pos d_model"], batch: TokenBatch, side: Side, layer: int
) -> Float[Tensor, "batch pos d_model"]:
    """Each row shifted so that its first real token is in column 0; checks that real tokens are finite."""
    mask = batch.mask.to(stream.device)
    if not bool(torch.isfinite(stream[mask]).all()):
        raise NonFiniteActivations(
            f"NaN or infinite activations of the {side} model at layer {layer}: try model.dtype=float32, "
            "or check the weights"
        )
    # A stable sort by "is padding" brings the real tokens to the front and keeps their order.
    order = (~mask).long().argsort(dim=1, stable=True)
    return stream.gather(1, order[..., None].expand_as(stream))
