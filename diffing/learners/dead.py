"""Latents that are never active, and the loss through which they learn nevertheless (AuxK, arXiv 2406.04093)."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear

from diffing.learners.codes import Codes
from diffing.learners.dictionary import Dictionary
from diffing.learners.ranks import over_ranks, world_size

LOOK_EVERY = 50
"""Steps between searches for dead latents: each one waits for the device."""


class DeadLatents(nn.Module):
    """How many rows each latent has not been active in, and which are therefore to be revived."""

    rows_since: Int64[Tensor, " latent"]
    """Rows of all ranks since the latent was last active."""
    listed: Bool[Tensor, " latent"]
    """Dead when they were last looked for."""

    def __init__(self, n_latents: int, after_rows: int):
        super().__init__()
        self.after_rows = after_rows
        self.register_buffer("rows_since", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("listed", torch.zeros(n_latents, dtype=torch.bool))
        self._found: Tensor | None = None

    @property
    def dead(self) -> Bool[Tensor, " latent"]:
        return self.rows_since >= self.after_rows

    def candidates(self, step: int) -> Int64[Tensor, " dead"]:
        """Latents that were dead at the last search; some may have become active since."""
        if step % LOOK_EVERY == 0:
            self.listed.copy_(self.dead)
            self._found = None
        if self._found is None:
            self._found = self.listed.nonzero().squeeze(1)
        return self._found

    def count(self, codes: Codes) -> None:
        """After each step: all ranks' rows have passed, and their codes were active."""
        active = torch.zeros_like(self.listed, dtype=torch.uint8)
        active[codes.latents] = 1
        active = over_ranks(active, "max")
        self.rows_since.add_(len(codes) * world_size()).masked_fill_(active.bool(), 0)

    def _load_from_state_dict(self, *args: object) -> None:
        self._found = None
        super()._load_from_state_dict(*args)


def revival_loss(
    learner: Dictionary,
    dead: DeadLatents,
    candidates: Int64[Tensor, " dead"],
    rows: Float[Tensor, "batch width"],
    error: Float[Tensor, "batch width"],
    k: int,
) -> Float[Tensor, ""]:
    """How badly each row's `k` likeliest dead latents reconstruct what the others leave, relative to its variance.

    `error` is row - reconstruction. A latent counts with its value if that is positive and else with 0, but its
    pre-activation has a gradient in both cases: a latent that is negative everywhere would otherwise stay so. Latents
    that are not dead, and the biases of the rows, get none.
    """
    error = error.detach()
    encoder, decoder = learner.encoder[candidates], learner.decoder[candidates]
    inputs = rows - learner.decoder_bias.detach() if learner.centred else rows
    pre = linear(inputs, encoder, learner.encoder_bias[candidates])
    weight = learner.score_weight()
    scores = pre.detach() if weight is None else pre.detach() * weight[candidates].detach()
    scores = scores.masked_fill(~dead.dead[candidates], -torch.inf)
    best = scores.topk(min(k, len(candidates)), dim=1, sorted=False)
    values = pre.gather(1, best.indices)
    values = values + (values.relu() - values).detach()
    values = values.masked_fill(best.values == -torch.inf, 0)
    contribution = torch.zeros_like(pre).scatter(1, best.indices, values) @ decoder
    return relative_error(error, contribution)


def relative_error(error: Float[Tensor, "batch width"], explained: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """Mean of |error - explained|^2 relative to the variance of `error` over all ranks' rows; 0 if it has none."""
    n_rows = len(error) * world_size()
    mean = over_ranks(error.sum(0)) / n_rows
    variance = over_ranks(error.square().sum()) / n_rows - mean.square().sum()
    loss = (error - explained).square().sum(1).mean() / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    return torch.where(variance > 0, loss, torch.zeros_like(loss))
