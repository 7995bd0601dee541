"""How far the next-token distributions of both sides are apart, token by token, in nats.

Logits of all tokens and the whole vocabulary never exist at once: both heads read some tokens at a time into buffers
that are used again, and these are compared a few rows at a time, in cache. Everything is float32, from bf16 weights
too: logits rounded to bf16 are off by up to 8 % of the divergence, most where the sides are nearly the same.

With r = log p - log q, KL(p || q) is summed as p r - p + q. The last two parts sum to 0, and take the rounding of both
normalisations out of the sum: to first order, a constant error of r cancels in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting, NonFiniteActivations
from diffing.models.pair import ModelPair
from diffing.models.sites import Logits, readout, residuals
from diffing.text.windows import TokenBatch, pad

LOGITS_AT_ONCE = 1 << 24
"""Logits of one side that are held: 64 MiB."""
COMPARED_AT_ONCE = 1 << 21
"""Of those, logits that are compared together on a CPU: what its caches hold. An accelerator takes all of them."""


class Divergence(StrEnum):
    """Of two next-token distributions."""

    KL_FINETUNED_BASE = "kl_finetuned_base"
    """KL(finetuned || base): the finetuned side's expectation of log p_finetuned - log p_base."""
    KL_BASE_FINETUNED = "kl_base_finetuned"
    """KL(base || finetuned)."""
    JENSEN_SHANNON = "jensen_shannon"
    """Mean KL of both sides to their mean: symmetric, at most ln 2."""

    @property
    def formula(self) -> str:
        """As people write it."""
        kl = {self.KL_FINETUNED_BASE: "KL(finetuned || base)", self.KL_BASE_FINETUNED: "KL(base || finetuned)"}
        return kl.get(self, "Jensen-Shannon(finetuned, base)")


@dataclass(eq=False)
class VocabularySums:
    """Sums over measured tokens for each item of the vocabulary."""

    n_tokens: int
    contribution: Float64[Tensor, " vocab"]
    """p_finetuned (log p_finetuned - log p_base), whose sum over the vocabulary is KL(finetuned || base)."""
    probability_base: Float64[Tensor, " vocab"]
    probability_finetuned: Float64[Tensor, " vocab"]

    @property
    def parts(self) -> Float64[Tensor, " vocab"]:
        """What each item adds to KL(finetuned || base): its contribution less the growth of its probability.

        The growths of all items add up to 0, so these add up to the same sum; and none is below 0, whichever way the
        probability moved.
        """
        return (self.contribution - self.probability_finetuned + self.probability_base).clamp(min=0)

    @classmethod
    def zero(cls, n_vocab: int, device: torch.device | str = "cpu") -> "VocabularySums":
        return cls(0, *(torch.zeros(n_vocab, dtype=torch.float64, device=device) for _ in range(3)))

    def cpu(self) -> "VocabularySums":
        return VocabularySums(
            self.n_tokens, self.contribution.cpu(), self.probability_base.cpu(), self.probability_finetuned.cpu()
        )


@dataclass(frozen=True, eq=False)
class Changes:
    """The items of the vocabulary that add most to KL(finetuned || base) after a context, largest first."""

    ids: Int64[Tensor, "context top"]
    part: Float[Tensor, "context top"]
    """p log(p / q) - p + q, in nats."""
    probability_base: Float[Tensor, "context top"]
    probability_finetuned: Float[Tensor, "context top"]


@torch.no_grad()
def divergences(
    base: Logits, finetuned: Logits, kinds: Sequence[Divergence], sums: VocabularySums | None = None
) -> Float[Tensor, "token divergence"]:
    """The divergence of each kind at each token, in float32; `sums` grow by these tokens.

    Infinite where one side rules out what the other does not. Raises IncompatiblePair for vocabularies of different
    size.
    """
    if base.n_vocab != finetuned.n_vocab:
        raise IncompatiblePair(
            f"the output head of the base has {base.n_vocab} entries and that of the finetuned model "
            f"{finetuned.n_vocab}; a divergence needs one vocabulary: give a finetune that added no tokens, or resize "
            "its embeddings to the base's"
        )
    n_tokens, device = len(base.normed), base.normed.device
    found = torch.empty(n_tokens, len(kinds), device=device)
    rows = max(1, LOGITS_AT_ONCE // base.n_vocab)
    compared = max(1, COMPARED_AT_ONCE // base.n_vocab) if device.type == "cpu" else rows
    # Two tensors, so that both are aligned alike: identical sides then round alike, and give exactly 0.
    buffers = [torch.empty(min(rows, n_tokens), base.n_vocab, device=device) for _ in Side]
    for start in range(0, n_tokens, rows):
        part = slice(start, start + rows)
        of_part = found[part]
        z_base, z_finetuned = (
            side.rows(part, buffer[: len(of_part)]) for side, buffer in zip((base, finetuned), buffers, strict=True)
        )
        for block in zip(z_base.split(compared), z_finetuned.split(compared), of_part.split(compared), strict=True):
            _compare(*block, kinds, sums)
    if sums is not None:
        sums.n_tokens += n_tokens
    return found


def batch_divergences(
    pair: ModelPair, batch: TokenBatch, kinds: Sequence[Divergence], sums: VocabularySums | None, skip_first: int = 0
) -> list[Float[Tensor, "_ divergence"]]:
    """Of the tokens of each sequence from `skip_first` on, in their order, on the CPU.

    Entry i of a sequence that skips none compares what both sides expect after its tokens 0 to i. The last token counts
    as all others do; padding, on either side, does not.
    """
    measured = (batch.mask & (batch.position_ids >= skip_first)).to(pair.device)
    last, logits = pair.n_layers - 1, {}
    for side in Side:
        with pair.using(side) as model:
            logits[side] = readout(model, residuals(model, batch, [last])[last][measured])
    found = divergences(logits[Side.BASE], logits[Side.FINETUNED], kinds, sums).cpu()
    if not bool(found.isfinite().all()):
        raise NonFiniteActivations(
            "NaN or infinite divergence of the next-token distributions: try model.dtype=float32, or check the weights"
        )
    return list(found.split(measured.sum(1).tolist()))


@dataclass(frozen=True, eq=False)
class TextDivergences:
    """What was measured on the texts of a corpus."""

    kinds: Sequence[Divergence]
    values: Sequence[Float[Tensor, "_ divergence"]]
    """Per text, of its tokens from `skip_first` on: none for a text that is shorter."""
    sums: VocabularySums


def text_divergences(
    pair: ModelPair,
    texts: Sequence[Sequence[int]],
    kinds: Sequence[Divergence],
    *,
    batch_size: int,
    skip_first: int = 0,
    on_texts: Callable[[int], object] = lambda texts: None,
) -> TextDivergences:
    """One pass over all texts, those of like length together.

    `on_texts` is told how many texts each batch had. Raises EmptyCorpus if no text is longer than `skip_first`.
    """
    if batch_size < 1 or skip_first < 0 or not kinds:
        raise InvalidSetting(
            f"batch_size={batch_size}, skip_first={skip_first}, divergences={list(kinds)}; expected 1 or more, 0 or "
            "more, and at least one"
        )
    longest = max(map(len, texts), default=0)
    if longest <= skip_first:
        raise EmptyCorpus(
            f"no token to measure in {len(texts)} texts: the longest has {longest}, and the first {skip_first} of each "
            "are left out; lower skip_first or use longer texts"
        )
    with pair.using(Side.BASE) as model:
        sums = VocabularySums.zero(len(model.get_output_embeddings().weight), pair.device)
    values = [torch.empty(0, len(kinds)) for _ in texts]
    # The longest come first: what does not fit into memory fails at once.
    order = sorted((i for i, text in enumerate(texts) if len(text) > skip_first), key=lambda i: -len(texts[i]))
    on_texts(len(texts) - len(order))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = pad([texts[i] for i in numbers], pair.tokenizer.pad_token_id, side="right")
        for i, found in zip(numbers, batch_divergences(pair, batch, kinds, sums, skip_first), strict=True):
            values[i] = found
        on_texts(len(numbers))
    return TextDivergences(tuple(kinds), values, sums)


@torch.no_grad()
def next_token_changes(pair: ModelPair, contexts: Sequence[Sequence[int]], top: int, batch_size: int) -> Changes:
    """What either side expects after whole contexts, of the `top` items that differ most."""
    found = []
    for start in range(0, len(contexts), batch_size):
        batch = pad(contexts[start : start + batch_size], pair.tokenizer.pad_token_id, side="right")
        rows, last = torch.arange(len(batch.ids)), batch.mask.sum(1) - 1
        log_p = {}
        for side in Side:
            with pair.using(side) as model:
                hidden = residuals(model, batch, [pair.n_layers - 1])[pair.n_layers - 1]
                log_p[side] = readout(model, hidden[rows, last]).rows(slice(None)).log_softmax(-1)
        base, finetuned = log_p[Side.BASE].exp(), log_p[Side.FINETUNED].exp()
        parts = _product(finetuned, log_p[Side.FINETUNED] - log_p[Side.BASE]).sub_(finetuned).add_(base)
        part, ids = parts.clamp_(min=0).topk(min(top, parts.shape[1]))
        found.append((ids.cpu(), part.cpu(), base.gather(1, ids).cpu(), finetuned.gather(1, ids).cpu()))
    return Changes(*(torch.cat(columns) for columns in zip(*found, strict=True)))


def _compare(
    base: Float[Tensor, "token vocab"],
    finetuned: Float[Tensor, "token vocab"],
    found: Float[Tensor, "token divergence"],
    kinds: Sequence[Divergence],
    sums: VocabularySums | None,
) -> None:
    """Fills `found`; the logits are overwritten."""
    log_base, log_finetuned = (torch.log_softmax(logits, -1, out=logits) for logits in (base, finetuned))
    p_finetuned = log_finetuned.exp()
    ratio = log_finetuned.sub_(log_base)
    p_base = log_base.exp_()
    weighted = _product(p_finetuned, ratio)
    if sums is not None:
        sums.contribution += weighted.sum(0)
        sums.probability_base += p_base.sum(0)
        sums.probability_finetuned += p_finetuned.sum(0)
    for column, kind in enumerate(kinds):
        match kind:
            case Divergence.KL_FINETUNED_BASE:
                terms = (weighted - p_finetuned).add_(p_base)
            case Divergence.KL_BASE_FINETUNED:
                terms = _product(p_base, -ratio).sub_(p_base).add_(p_finetuned)
            case Divergence.JENSEN_SHANNON:
                terms = _jensen_shannon(p_base, p_finetuned)
        found[:, column] = terms.sum(-1).clamp_(min=0)  # rounding may leave -1e-8


def _product(
    probability: Float[Tensor, "token vocab"], log_ratio: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token vocab"]:
    """probability * log_ratio, and 0 where the probability is, whatever the ratio to it: it is p log p in the limit."""
    lowest = torch.finfo(log_ratio.dtype).min
    return torch.nan_to_num(log_ratio, nan=0.0, posinf=torch.inf, neginf=lowest).mul_(probability)


def _jensen_shannon(
    p_base: Float[Tensor, "token vocab"], p_finetuned: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token vocab"]:
    """(p log 2p/(p + q) + q log 2q/(p + q)) / 2, with 2p/(p + q) = 1 + t and 2q/(p + q) = 1 - t."""
    total = (p_finetuned + p_base).clamp_(min=torch.finfo(p_base.dtype).tiny)
    # The nearest floats to 1 and -1 inside: an item that one side all but rules out adds its p log p of 0, not of NaN.
    inside = 1 - torch.finfo(p_base.dtype).eps / 2
    t = (p_finetuned - p_base).div_(total).clamp_(-inside, inside)
    terms = t.log1p().mul_(p_finetuned)
    return terms.add_(t.neg_().log1p_().mul_(p_base)).mul_(0.5)
