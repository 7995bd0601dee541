"""Runs documents through one or both sides of a pair and brings the kept rows to the host, in document order.

Documents run longest first, so that little of a batch is padding, and both sides run on the same batch. On a GPU the
rows of a batch are chosen and rounded there, and copied to pinned memory while the next batch computes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffing.activations.hdf5 import Documents
from diffing.activations.plan import length_batches
from diffing.axes import Side
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.specs import CacheSpec
from diffing.text.windows import TokenBatch, pad

Rows: TypeAlias = Mapping[Side, Mapping[int, Tensor]]
"""[token, d_model] per side and layer, in the stored dtype."""


def harvest(
    pair: ModelPair,
    sides: Sequence[Side],
    spec: CacheSpec,
    documents: Documents,
    batch_tokens: int,
    on_tokens: Callable[[int], object],
) -> Rows:
    """The kept rows of `sides`, at the layers and in the dtype of `spec`. Documents that keep none are not run.

    `on_tokens` is told the tokens of each batch.
    """
    dtype, lengths, ends = getattr(torch, spec.dtype), documents.offsets.diff().tolist(), documents.rows.tolist()
    rows = {side: {layer: torch.empty(ends[-1], pair.d_model, dtype=dtype) for layer in spec.layers} for side in sides}
    sequences = documents.ids.split(lengths)
    read = [number for number in range(len(lengths)) if ends[number + 1] > ends[number]]
    behind: _Copies | None = None
    for batch in length_batches([lengths[number] for number in read], batch_tokens):
        numbers = [read[index] for index in batch]
        places = [slice(ends[number], ends[number + 1]) for number in numbers]
        padded = pad([sequences[number].tolist() for number in numbers], pad_id=0, side="right")
        tokens = TokenBatch(_sent(padded.ids, pair.device), _sent(padded.mask, pair.device))
        kept = _sent(_kept_positions(padded, places), pair.device)
        found = {side: _side_rows(pair, side, tokens, kept, spec, dtype) for side in sides}
        copies = _Copies(places, found, _event(pair.device))
        if behind is not None:
            behind.land(rows)
        behind = copies
        on_tokens(sum(lengths[number] for number in numbers))
    if behind is not None:
        behind.land(rows)
    return rows


@dataclass(frozen=True)
class _Copies:
    """The rows of one batch, on the host or on their way to it."""

    places: Sequence[slice]
    """Of its documents, in the order of the batch."""
    rows: Rows
    arrived: torch.cuda.Event | None

    def land(self, rows: Rows) -> None:
        """Puts them where they belong, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        lengths = [place.stop - place.start for place in self.places]
        for side, layers in self.rows.items():
            for layer, arrived in layers.items():
                for place, piece in zip(self.places, arrived.split(lengths), strict=True):
                    rows[side][layer][place] = piece


def _side_rows(
    pair: ModelPair, side: Side, tokens: TokenBatch, kept: Int64[Tensor, " token"], spec: CacheSpec, dtype: torch.dtype
) -> dict[int, Float[Tensor, "token d_model"]]:
    with pair.using(side) as model:
        found = residuals(model, tokens, spec.layers)
        return {
            layer: _to_host(stream.flatten(0, 1).index_select(0, kept).to(dtype)) for layer, stream in found.items()
        }


def _kept_positions(batch: TokenBatch, places: Sequence[slice]) -> Int64[Tensor, " token"]:
    """Positions in the flattened batch, padded on the right, of the last tokens of each sequence that are kept."""
    width = batch.mask.shape[1]
    ends = [row * width + length for row, length in enumerate(batch.mask.sum(1).tolist())]
    counts = (place.stop - place.start for place in places)
    return torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _to_host(rows: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """The rows on the host: complete only once the device has reached this point, if it is a GPU."""
    if not rows.is_cuda:
        return rows.cpu()
    return torch.empty_like(rows, device="cpu", pin_memory=True).copy_(rows, non_blocking=True)


def _event(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
