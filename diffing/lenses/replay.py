"""A forward pass that can go on from another residual stream: the blocks above a layer, run again on what is edited.

The blocks get the arguments of the pass that was recorded (masks, position embeddings), so a replay of what was read is
that pass. What the replayed part ends in is read a few tokens at a time, because logits are wide.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.models.sites import decoder_blocks, residuals
from diffing.text.windows import TokenBatch

LOGITS_AT_ONCE = 1 << 25
"""Logits of one run that are held; some four times as many numbers are in memory."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass of one side on one batch."""

    hidden: Float[Tensor, "batch pos d_model"]
    """Residual stream at the output of the layer."""
    end: Float[Tensor, "batch pos d_model"]
    """Residual stream at the output of the last block."""
    upper_half: Callable[[Float[Tensor, "*batch d_model"]], Float[Tensor, "*batch d_model"]]
    """Leads from the one to the other, within `pair.using` of the same side. After a batch of one sequence any number
    of variants of it may go on at once: all arguments of the blocks broadcast."""


@torch.no_grad()
def record(model: PreTrainedModel, batch: TokenBatch, layer: int) -> Recording:
    """Runs all blocks once, and keeps the arguments of those above `layer`."""
    calls: list[tuple[tuple, dict]] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append((args[1:], kwargs))

    blocks = decoder_blocks(model)[layer + 1 :]
    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    last = layer + len(blocks)
    try:
        found = residuals(model, batch, [layer, last])
    finally:
        for handle in handles:
            handle.remove()

    def upper_half(hidden: Tensor) -> Tensor:
        for block, (args, kwargs) in zip(blocks, calls, strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    return Recording(found[layer], found[last], upper_half)


def read_at_once(model: PreTrainedModel, n_tokens: int) -> Iterator[slice]:
    """Parts of so many tokens, each of no more logits than are held at once."""
    rows = max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    for start in range(0, n_tokens, rows):
        yield slice(start, start + rows)
