"""Means per position of both residual streams and of their difference, in one streamed pass.

Keeps running sums in float64: memory is O(positions * d_model) whatever the number of texts. The first token of a text
is an attention sink in most models, with a norm of thousands: positions are therefore never pooled, and the mean
residual norm leaves out the first `SKIPPED` tokens of each text (arXiv 2510.13900).

Positions count from the anchor of a text: from its first token unless another is named, such as the first token of an
answer, before which positions are negative.
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
"""Leading tokens of a text that do not count in the mean residual norm."""


@dataclass(frozen=True)
class PositionMeans:
    """Statistics of one layer. All float64, all over the texts that have a position; row i is `positions[i]`."""

    layer: int
    first: int
    """Position of row 0: 0, or negative where tokens before the anchor were read."""
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
    """Mean L2 norm of the finetuned residual stream over the tokens read, less the first `SKIPPED` of each text."""

    @property
    def positions(self) -> range:
        return range(self.first, self.first + len(self.n_texts))

    @property
    def consistency(self) -> Float[Tensor, " pos"]:
        """Norm of the mean difference over the mean norm of the difference: 1 if all texts are shifted alike,
        about 1/sqrt(n_texts) if the shifts are unrelated, and 0 where nothing differs."""
        return self.difference.norm(dim=-1) / self.norm_difference.clamp_min(torch.finfo(torch.float64).tiny)


class _Sums:
    """float64 sums of one layer over the texts seen so far."""

    def __init__(self, n_positions: int, d_model: int, device: torch.device):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n_texts = torch.zeros(n_positions, dtype=torch.long, device=device)
        self.vectors = {key: zeros(n_positions, d_model) for key in ("base", "finetuned", "difference")}
        self.norms = {key: zeros(n_positions) for key in ("base", "finetuned", "difference")}
        self.later_norm, self.n_later = zeros(), torch.zeros((), dtype=torch.long, device=device)

    def add(
        self,
        base: Float[Tensor, "batch pos d_model"],
        finetuned: Float[Tensor, "batch pos d_model"],
        mask: Bool[Tensor, "batch pos"],
        later: Bool[Tensor, "batch pos"],
    ) -> None:
        """Column i holds position i of every text; `later` is `mask` less the tokens that the residual norm skips."""
        self.n_texts += mask.sum(0)
        streams = {"base": base, "finetuned": finetuned, "difference": difference(base, finetuned)}
        for key, stream in streams.items():
            kept = stream.double().masked_fill(~mask[..., None], 0.0)
            norms = kept.norm(dim=-1)
            self.vectors[key] += kept.sum(0)
            self.norms[key] += norms.sum(0)
            if key == "finetuned":
                self.later_norm += norms[later].sum()
        self.n_later += later.sum()

    def means(self, layer: int, first: int) -> PositionMeans:
        if not self.n_later:
            raise EmptyCorpus(
                f"no token is read after the first {SKIPPED} of a text, so there is no mean residual norm: "
                "use longer texts"
            )
        reached = self.n_texts.nonzero()[:, 0]
        rows = slice(int(reached[0]), int(reached[-1]) + 1)
        count = self.n_texts[rows].double().cpu()
        vectors = {key: total[rows].cpu() / count[:, None] for key, total in self.vectors.items()}
        norms = {f"norm_{key}": total[rows].cpu() / count for key, total in self.norms.items()}
        return PositionMeans(
            layer=layer,
            first=first + rows.start,
            n_texts=self.n_texts[rows].cpu(),
            **vectors,
            **norms,
            residual_norm=float(self.later_norm / self.n_later),
        )


def position_means(
    pair: ModelPair,
    batches: Iterable[TokenBatch],
    layers: Sequence[int],
    n_positions: int,
    on_batch: Callable[[int], object] = lambda texts: None,
    *,
    anchors: Sequence[int] | None = None,
    n_before: int = 0,
) -> dict[int, PositionMeans]:
    """One pass of both sides over `batches` (padded on either side), for positions -n_before to n_positions - 1.

    `anchors` are the tokens, counted from 0 within each text, that are position 0, one per text in the order of the
    batches; None takes the first ones. A text counts at the positions it has. An anchor just past the last token is a
    text with positions before it alone. `on_batch` is told the number of texts that were read. Raises
    NonFiniteActivations with the side and the layer.
    """
    _check_window(n_positions, n_before, anchors)
    sums: dict[int, _Sums] = {}
    n_texts = 0
    for batch in batches:
        window = _Window.of(batch, _anchors_of(batch, anchors, n_texts), -n_before, n_positions)
        streams = {}
        for side in Side:
            with pair.using(side) as model:
                streams[side] = residuals(model, batch, layers)
        for layer in layers:
            base, finetuned = (window.cut(streams[side][layer], batch, side, layer) for side in Side)
            if layer not in sums:
                sums[layer] = _Sums(n_before + n_positions, base.shape[-1], base.device)
            sums[layer].add(base, finetuned, window.mask.to(base.device), window.later.to(base.device))
        n_texts += len(batch.ids)
        on_batch(len(batch.ids))
    if not sums:
        raise EmptyCorpus("no text to read: the corpus gave no batch")
    if anchors is not None and n_texts != len(anchors):
        raise InvalidSetting(f"{len(anchors)} anchors for {n_texts} texts; expected one each")
    return {layer: total.means(layer, -n_before) for layer, total in sums.items()}


def _check_window(n_positions: int, n_before: int, anchors: Sequence[int] | None) -> None:
    if anchors is None and n_before:
        raise InvalidSetting(f"n_before={n_before} needs anchors: nothing is before the first token of a text")
    if anchors is None and n_positions <= SKIPPED:
        raise InvalidSetting(f"{n_positions} positions; at least {SKIPPED + 1} are needed for the mean residual norm")
    if n_before < 0 or n_positions < 0 or n_before + n_positions == 0:
        raise InvalidSetting(f"{n_before} positions before the anchor and {n_positions} from it on; expected some")


def _anchors_of(batch: TokenBatch, anchors: Sequence[int] | None, start: int) -> Int[Tensor, " batch"]:
    """Those of a batch whose first text is number `start`."""
    lengths = batch.mask.sum(1).cpu()
    if anchors is None:
        return torch.zeros_like(lengths)
    found = torch.tensor(anchors[start : start + len(lengths)], dtype=torch.long)
    if len(found) != len(lengths):
        raise InvalidSetting(f"{len(anchors)} anchors for {start + len(lengths)} or more texts; expected one each")
    if ((found < 0) | (found > lengths)).any():
        raise InvalidSetting(f"anchors {found.tolist()} lie outside of texts of {lengths.tolist()} tokens")
    return found


@dataclass(frozen=True)
class _Window:
    """Where the positions of each text are in a padded batch."""

    columns: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """Whether the text has the position."""
    later: Bool[Tensor, "batch pos"]
    """Those less the first `SKIPPED` tokens of the text."""

    @classmethod
    def of(cls, batch: TokenBatch, anchors: Int[Tensor, " batch"], first: int, stop: int) -> "_Window":
        real = batch.mask.cpu()
        tokens = anchors[:, None] + torch.arange(first, stop)
        mask = (tokens >= 0) & (tokens < real.sum(1, keepdim=True))
        columns = (real.int().argmax(1, keepdim=True) + tokens).clamp(0, real.shape[1] - 1)
        return cls(columns, mask, mask & (tokens >= SKIPPED))

    def cut(
        self, stream: Float[Tensor, "batch column d_model"], batch: TokenBatch, side: Side, layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream at each position; checks that it is finite at all real tokens of the batch."""
        if not bool(torch.isfinite(stream[batch.mask.to(stream.device)]).all()):
            raise NonFiniteActivations(
                f"NaN or infinite activations of the {side} model at layer {layer}: try model.dtype=float32, "
                "or check the weights"
            )
        columns = self.columns.to(stream.device)[..., None].expand(-1, -1, stream.shape[-1])
        return stream.gather(1, columns)
