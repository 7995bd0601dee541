"""The causal effect of a direction on the next-token loss: the other model's coordinate along it, or none.

At the output of block l, h becomes h + a u on all tokens, u the unit vector of the direction: a = (s - h)·u puts the
coordinate of the other model's residual stream s on the same text in the place of h's own, a = -h·u leaves none. What a
direction carries shows against random ones (arXiv 2510.13900). a is found and h + a u computed in float64, and rounded
once to the dtype of h: a component of h on which u is 0 keeps its bits, each other is the nearest number to h + a u.

Both models are run once per text, which is alone in its batch: no padding, and no result depends on how texts were
batched. The blocks above l go on with many directions at once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.activations.streams import difference
from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.lenses.replay import Recording, read_at_once, record
from diffing.models.pair import ModelPair
from diffing.models.sites import unembed
from diffing.text.chat import render_chat
from diffing.text.corpus import Corpus
from diffing.text.windows import pad, token_sequences

MAX_DRAWS = 16
"""Pairs of rows drawn per random difference wanted: of equal rows there is no direction."""


class Edit(StrEnum):
    """What happens to the coordinate along a direction, and in which model."""

    BASE_TO_FINETUNED = "base_to_finetuned"
    """The finetuned model runs, with the base's coordinate."""
    FINETUNED_TO_BASE = "finetuned_to_base"
    """The base runs, with the finetuned model's coordinate."""
    ZERO_FINETUNED = "zero_finetuned"
    """The finetuned model runs, without its coordinate."""
    ZERO_BASE = "zero_base"

    @property
    def runs(self) -> Side:
        return Side.FINETUNED if self in (Edit.BASE_TO_FINETUNED, Edit.ZERO_FINETUNED) else Side.BASE

    @property
    def source(self) -> Side | None:
        """Whose coordinate is put in; None: 0."""
        return {Edit.BASE_TO_FINETUNED: Side.BASE, Edit.FINETUNED_TO_BASE: Side.FINETUNED}.get(self)


@dataclass(frozen=True)
class Subset:
    """Which predictions are averaged. Position p, counted from 0 at the first token of a text, predicts token p + 1."""

    after: int | None = None
    """Only predictions made at positions above this one."""
    without: int | None = None
    """All but the prediction made at this position."""


@dataclass(frozen=True)
class ScoredText:
    """Tokens of one text, unpadded."""

    ids: Sequence[int]
    counts: Sequence[bool] | None = None
    """Per token: whether its prediction counts. None: of each token but the first, which none precedes."""

    @property
    def predictions(self) -> list[int]:
        """Positions whose next token counts."""
        return [at for at in range(len(self.ids) - 1) if self.counts is None or self.counts[at + 1]]


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the next token, in nats, over the predictions of a subset; NaN if there are none."""

    count: int
    mean: float
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Edited:
    """One model after one edit along one direction, on one subset."""

    edit: Edit
    group: str
    direction: int
    """Row of the group."""
    subset: str
    loss: Loss
    increase: float
    """Of the mean loss over that of the same model unedited."""
    share_of_gap: float
    """The increase over (mean loss of the other model - mean loss of this one): 1 if the edit alone makes this one as
    good or bad as the other. NaN if both have the same loss, for there is no gap to have a share of."""


@dataclass(frozen=True)
class CausalEffect:
    unedited: Mapping[Side, Mapping[str, Loss]]
    """Per side and subset."""
    edited: Sequence[Edited]


def random_directions(n: int, d_model: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Isotropic Gaussian vectors."""
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))


def random_differences(rows: Float[Tensor, "token d_model"], n: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Differences of two tokens' activations, in float32 or wider, drawn from `rows` with replacement of pairs.

    Raises InvalidSetting if the rows are nearly all the same.
    """
    if len(rows) < 2:
        raise InvalidSetting(f"random differences need 2 rows of activations or more, got {len(rows)}")
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(len(rows), (MAX_DRAWS * n,), generator=draw)
    second = (first + 1 + torch.randint(len(rows) - 1, first.shape, generator=draw)) % len(rows)
    drawn = difference(rows[first.to(rows.device)], rows[second.to(rows.device)])
    found = drawn[drawn.norm(dim=-1) > 0][:n]
    if len(found) < n:
        raise InvalidSetting(
            f"only {len(found)} of {len(drawn)} pairs of rows differ, {n} are needed; give other texts"
        )
    return found


def read_texts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, max_texts: int | None = None
) -> Iterator[ScoredText]:
    """The first `max_tokens` tokens of each of `max_texts` documents that have a prediction that counts.

    In a conversation a token counts if it lies wholly within what an assistant message says: neither role headers nor
    the end-of-turn token do. Raises EmptyCorpus if nothing counts, and what `render_chat` raises.
    """
    found = (text for text in _all_texts(corpus, tokenizer, max_tokens) if text.predictions)
    empty = True
    for text in islice(found, max_texts):
        empty = False
        yield text
    if empty:
        raise EmptyCorpus(
            f"corpus '{corpus.spec.name}' has nothing to predict in its first {max_tokens} tokens; a conversation "
            "needs an assistant message that begins there"
        )


def _all_texts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Iterator[ScoredText]:
    if corpus.spec.format == "text":
        yield from map(ScoredText, token_sequences(corpus, tokenizer, max_tokens=max_tokens))
        return
    for document in corpus:
        assert not isinstance(document, str)  # Corpus checks its format
        chat = render_chat(tokenizer, document)
        yield ScoredText(chat.ids[:max_tokens], chat.assistant_mask[:max_tokens])


@torch.no_grad()
def causal_effect(
    pair: ModelPair,
    layer: int,
    groups: Mapping[str, Float[Tensor, "direction d_model"]],
    texts: Iterable[ScoredText],
    *,
    edits: Sequence[Edit] = (Edit.BASE_TO_FINETUNED,),
    subsets: Mapping[str, Subset] | None = None,
    tokens_at_once: int = 1 << 13,
    on_text: Callable[[int], object] = lambda texts: None,
) -> CausalEffect:
    """The loss of each edit along each direction (of any length but 0) of each group, one by one, in one pass.

    `subsets` defaults to `all`. So many tokens as `tokens_at_once` go through the upper blocks together, or one text if
    it is longer; 4 bytes are kept per edit, direction and prediction. `on_text` is told 1 after each text. A direction
    along which nothing moves has exactly the unedited loss. Raises IncompatiblePair for directions of another width,
    InvalidSetting for one without a length, EmptyCorpus if there is nothing to predict.
    """
    subsets = {"all": Subset()} if subsets is None else subsets
    units = _units(groups, pair).to(pair.device)
    losses: dict[Side | Edit, list[Tensor]] = {key: [] for key in (*Side, *edits)}
    positions: list[int] = []
    for text in texts:
        if text.predictions:
            for key, found in _losses(pair, layer, units, text, edits, tokens_at_once).items():
                losses[key].append(found.cpu())
            positions += text.predictions
        on_text(1)
    if not positions:
        raise EmptyCorpus("the texts have no prediction that counts; give texts of two tokens or more")
    masks = {name: _mask(np.array(positions), subset) for name, subset in subsets.items()}
    all_losses = {key: torch.cat(found, dim=1).numpy() for key, found in losses.items()}
    unedited = {side: {name: _loss(all_losses[side][0, mask]) for name, mask in masks.items()} for side in Side}
    names = [(group, direction) for group, vectors in groups.items() for direction in range(len(vectors))]
    edited = [
        _edited(edit, *name, subset, _loss(row[mask]), unedited)
        for edit in edits
        for name, row in zip(names, all_losses[edit], strict=True)
        for subset, mask in masks.items()
    ]
    return CausalEffect(unedited, edited)


def shifts(
    hidden: Float[Tensor, "pos d_model"],
    source: Float[Tensor, "pos d_model"] | None,
    units: Float64[Tensor, "direction d_model"],
) -> Float64[Tensor, "direction pos"]:
    """How far each token moves along each unit vector to get the coordinate of `source`, or 0 if that is None."""
    way = -hidden.double() if source is None else source.double() - hidden.double()
    return units @ way.T


def moved(
    hidden: Float[Tensor, "pos d_model"],
    shift: Float64[Tensor, "direction pos"],
    units: Float64[Tensor, "direction d_model"],
) -> Float[Tensor, "direction pos d_model"]:
    """h + a u for each direction, rounded once to the dtype of h."""
    return torch.addcmul(hidden.double(), shift[..., None], units[:, None]).to(hidden.dtype)


def _units(groups: Mapping[str, Tensor], pair: ModelPair) -> Float64[Tensor, "direction d_model"]:
    if not groups:
        raise InvalidSetting("no directions to edit along: give at least one group")
    found = []
    for name, vectors in groups.items():
        if vectors.shape[1] != pair.d_model:
            raise IncompatiblePair(
                f"the directions '{name}' have width {vectors.shape[1]}, the models of {pair.spec.base.name} "
                f"{pair.d_model}; give directions of this pair's residual stream"
            )
        lengths = vectors.double().norm(dim=-1, keepdim=True)
        if not bool(((lengths > 0) & lengths.isfinite()).all()):
            raise InvalidSetting(f"a vector of '{name}' is 0 or not finite, which is no direction; leave it out")
        found.append((vectors.double() / lengths).cpu())
    return torch.cat(found)


def _losses(
    pair: ModelPair,
    layer: int,
    units: Float64[Tensor, "direction d_model"],
    text: ScoredText,
    edits: Sequence[Edit],
    tokens_at_once: int,
) -> dict[Side | Edit, Tensor]:
    """Cross-entropy of each prediction that counts: [1, pos] of either side, [direction, pos] after each edit."""
    batch = pad([text.ids], 0, "right")
    at = torch.tensor(text.predictions, device=pair.device)
    targets = batch.ids[0].to(pair.device)[at + 1]
    recordings: dict[Side, Recording] = {}
    found: dict[Side | Edit, Tensor] = {}
    for side in Side:
        with pair.using(side) as model:
            recordings[side] = record(model, batch, layer)
            found[side] = _cross_entropy(model, recordings[side].end[:, at], targets)
    for edit in edits:
        run = recordings[edit.runs]
        hidden, source = run.hidden[0], None if edit.source is None else recordings[edit.source].hidden[0]
        shift = shifts(hidden, source, units)
        found[edit] = found[edit.runs].repeat(len(units), 1)
        moving = (shift != 0).any(dim=1).nonzero()[:, 0]
        at_once = max(1, tokens_at_once // len(hidden))
        with pair.using(edit.runs) as model:
            for start in range(0, len(moving), at_once):
                part = moving[start : start + at_once]
                end = run.upper_half(moved(hidden, shift[part], units[part]))
                found[edit][part] = _cross_entropy(model, end[:, at], targets)
    return found


def _cross_entropy(
    model: PreTrainedModel, end: Float[Tensor, "direction pos d_model"], targets: Int64[Tensor, " pos"]
) -> Float[Tensor, "direction pos"]:
    rows, wanted = end.flatten(0, 1), targets.repeat(len(end))
    parts = [
        nn.functional.cross_entropy(unembed(model, rows[part]), wanted[part], reduction="none")
        for part in read_at_once(model, len(rows))
    ]
    return torch.cat(parts).unflatten(0, end.shape[:2])


def _mask(positions: np.ndarray, subset: Subset) -> np.ndarray:
    """Which predictions, by the positions they were made at."""
    kept = np.ones(len(positions), dtype=bool) if subset.after is None else positions > subset.after
    return kept if subset.without is None else kept & (positions != subset.without)


def _loss(values: np.ndarray) -> Loss:
    if not len(values):
        return Loss(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(values.mean(dtype=np.float64))
    return Loss(len(values), mean, float(np.median(values)), float(values.min()), float(values.max()))


def _edited(
    edit: Edit, group: str, direction: int, subset: str, loss: Loss, unedited: Mapping[Side, Mapping[str, Loss]]
) -> Edited:
    own = unedited[edit.runs][subset].mean
    other = unedited[Side.BASE if edit.runs is Side.FINETUNED else Side.FINETUNED][subset].mean
    increase, gap = loss.mean - own, other - own
    return Edited(edit, group, direction, subset, loss, increase, math.nan if gap == 0 else increase / gap)
