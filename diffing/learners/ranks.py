"""What data-parallel ranks must agree on, so that together they do what one device would."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed
from torch.nn.functional import pad

from diffing.learners.codes import BatchTopK, Codes


def world_size() -> int:
    """1 outside of distributed training."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def over_ranks(value: Shaped[Tensor, "*shape"], how: Literal["sum", "min", "max"] = "sum") -> Shaped[Tensor, "*shape"]:
    """Sum, minimum or maximum over the ranks, on each of them. Without gradient; the argument itself on one."""
    if world_size() == 1:
        return value
    reduced = value.detach().clone()
    distributed.all_reduce(reduced, getattr(distributed.ReduceOp, how.upper()))
    return reduced


class SharedBatchTopK:
    """Batch top-k of the rows of all ranks together, each rank getting the codes of its own rows.

    Were every rank to choose for itself, a rank of quiet rows would keep what a rank of loud ones has to drop.
    """

    def __init__(self) -> None:
        self._own = BatchTopK()

    @torch.no_grad()
    def __call__(self, pre: Float[Tensor, "batch latent"], k: int, weight: Float[Tensor, " latent"] | None) -> Codes:
        """See BatchTopK. Equal scores count in the order of the ranks. Every rank has as many rows."""
        world = world_size()
        codes = self._own(pre, min(k * world, pre.shape[1]), weight)
        if world == 1:
            return codes
        wanted = k * len(pre) * world
        scores = codes.values if weight is None else codes.values * weight[codes.latents]
        offered = pad(scores, (0, wanted - len(scores)))  # a zero is never chosen
        everyones = [torch.empty_like(offered) for _ in range(world)]
        distributed.all_gather(everyones, offered)
        all_scores = torch.stack(everyones)
        cut = all_scores.flatten().kthvalue(all_scores.numel() - wanted + 1).values
        ties_before = (all_scores[: distributed.get_rank()] == cut).sum()
        room = wanted - (all_scores > cut).sum() - ties_before
        equal = scores == cut
        return _kept(codes, (scores > cut) | (equal & (equal.cumsum(0) <= room)))


def _kept(codes: Codes, kept: Tensor) -> Codes:
    return Codes(pad(kept.cumsum(0), (1, 0))[codes.offsets], codes.latents[kept], codes.values[kept], codes.n_latents)
