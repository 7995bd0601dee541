"""Where the sign lives: a difference is always finetuned - base, in float32 or wider."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.axes import Stream


def difference(base: Float[Tensor, "*shape"], finetuned: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """finetuned - base, exact to float32 rounding: bf16 operands are widened first."""
    wide = torch.promote_types(torch.promote_types(base.dtype, finetuned.dtype), torch.float32)
    return finetuned.to(wide) - base.to(wide)


def select(
    stream: Stream, base: Float[Tensor, "*shape"], finetuned: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The rows of a stream, in float32 or wider."""
    if stream is Stream.DIFFERENCE:
        return difference(base, finetuned)
    rows = base if stream is Stream.BASE else finetuned
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
