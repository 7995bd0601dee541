"""Logit lens: which tokens a residual direction promotes and suppresses when read by the model's own head.

p = softmax(W_U LN_f(v)) and, for suppressed tokens, softmax(-W_U LN_f(v)), in float32 (nostalgebraist, 2020; arXiv
2510.13900 section 3). Under RMSNorm the inverse equals the lens of -v, and a positive rescaling of v changes nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from diffing.models.sites import unembed


@dataclass(frozen=True)
class TopTokens:
    """The `top` likeliest tokens per row, in falling order of probability."""

    ids: Int[Tensor, "batch top"]
    probabilities: Float[Tensor, "batch top"]


def logit_lens(
    model: PreTrainedModel, vectors: Float[Tensor, "batch d_model"], top: int
) -> tuple[TopTokens, TopTokens]:
    """(promoted, suppressed) tokens of each vector."""
    logits = unembed(model, vectors.float())
    return top_tokens(torch.softmax(logits, -1), top), top_tokens(torch.softmax(-logits, -1), top)


def top_tokens(probabilities: Float[Tensor, "batch vocab"], top: int) -> TopTokens:
    """The `top` largest entries per row; ties go to the smaller token id."""
    values, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    return TopTokens(ids[:, :top].cpu(), values[:, :top].cpu())
