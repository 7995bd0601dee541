"""Whether a dictionary holds what the finetuning does, measured on the model's output instead of on activations.

The residual stream of one layer is replaced, and the finetuned model goes on from there. The bridge (arXiv:2504.02922)
starts at the base model's activations and adds what latents say the finetuning added: its KL divergence to the
finetuned model's own output falls to 0 as far as these latents hold the change. Recovered loss and KL ask the same of
the reconstruction of the finetuned activations.

Each batch is run once by either model. The blocks above the layer are run again for each replacement, with the
arguments of that run, and logits of a few tokens at a time are compared in float32.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel

from diffing.activations.streams import difference
from diffing.axes import Side, Stream
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.learners.base import Recipe
from diffing.learners.codes import Codes
from diffing.learners.dictionary import Dictionary
from diffing.learners.sparse import decode
from diffing.lenses.replay import read_at_once, record
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals, unembed
from diffing.text.windows import TokenBatch


@dataclass(frozen=True, eq=False)
class Patch:
    """What is added to the base model's residual stream. With all of it, that is the finetuned model's."""

    latents: Bool[Tensor, " latent"]
    """Whose difference between the sides, f (d_finetuned - d_base), is added; f d for an SAE of the difference."""
    constant: bool = False
    """The difference that is reconstructed where no latent is active: of biases and means."""
    error: bool = False
    """What the reconstruction of the difference lacks."""


@dataclass(frozen=True)
class Effect:
    """Of one replacement, over all measured tokens."""

    kl: float
    """Mean KL(finetuned || replaced) of the next-token distributions, in nats."""
    loss: float
    """Mean cross-entropy of the next token, in nats; NaN if no measured token has a next one."""


@dataclass(frozen=True)
class Recovered:
    """What is left of the finetuned model when its activations are replaced by their reconstruction."""

    original: Effect
    """The finetuned model as it is: its KL is 0."""
    reconstruction: Effect
    base: Effect
    """With the base model's activations in their place."""
    zero: Effect
    """With zeros in their place."""

    def kl(self, reference: Effect) -> float:
        """1: none is lost; 0: no better than the reference (`base` or `zero`); NaN if that loses nothing."""
        return _share(reference.kl, self.reconstruction.kl, 0.0)

    def loss(self, reference: Effect) -> float:
        """The same of the cross-entropy, with the finetuned model's own at 1."""
        return _share(reference.loss, self.reconstruction.loss, self.original.loss)


def controls(n_latents: int) -> dict[str, Patch]:
    """What a bridge is to be seen against: nothing, everything, and the parts that no set of latents has."""
    none, every = torch.zeros(n_latents, dtype=torch.bool), torch.ones(n_latents, dtype=torch.bool)
    return {
        "nothing": Patch(none),
        "constant": Patch(none, constant=True),
        "error": Patch(none, error=True),
        "all latents": Patch(every),
        "reconstruction": Patch(every, constant=True),
        "everything": Patch(every, constant=True, error=True),
    }


def growing(order: Int64[Tensor, " top"], sizes: Sequence[int], n_latents: int) -> dict[int, Patch]:
    """The first latents of an order (`ranked`, or a random permutation), as many as each size says."""
    patches = {}
    for size in sizes:
        if not 0 <= size <= len(order):
            raise InvalidSetting(f"a set of {size} latents of an order of {len(order)}; expected 0 to {len(order)}")
        latents = torch.zeros(n_latents, dtype=torch.bool)
        latents[order[:size]] = True
        patches[size] = Patch(latents)
    return patches


def ranked(values: Float[Tensor, " latent"]) -> Int64[Tensor, " top"]:
    """Latents by value, largest first, those with NaN left out; of equal values the smaller latent is first."""
    order = values.argsort(descending=True, stable=True)
    return order[~values[order].isnan()]


def bridge(
    pair: ModelPair,
    dictionary: Dictionary,
    batches: Iterable[TokenBatch],
    patches: Mapping[str, Patch],
    *,
    skip_first: int = 1,
    on_batch: Callable[[int], object] = lambda sequences: None,
) -> dict[str, Effect]:
    """The effect of each patch, in one pass over the text.

    The first `skip_first` tokens of a sequence, which activation caches leave out, keep the finetuned model's residual
    stream and are not measured. `on_batch` is told the sequences of each batch that is done. Raises IncompatiblePair
    for a dictionary of another width or depth, and EmptyCorpus if there is nothing to measure.
    """
    parts = _Parts(dictionary)
    edits = {name: parts.patched(patch) for name, patch in patches.items()}
    return _effects(pair, dictionary, batches, edits, skip_first, on_batch)


def recovered(
    pair: ModelPair,
    dictionary: Dictionary,
    batches: Iterable[TokenBatch],
    *,
    skip_first: int = 1,
    on_batch: Callable[[int], object] = lambda sequences: None,
) -> Recovered:
    """Replaces the finetuned model's activations by their reconstruction: for an SAE of the difference, the base
    model's and the reconstructed difference. Arguments and errors as of `bridge`."""
    parts = _Parts(dictionary)
    edits: dict[str, _Edit] = {
        "original": lambda rows: rows.finetuned,
        "reconstruction": parts.reconstructed,
        "base": lambda rows: rows.base,
        "zero": lambda rows: torch.zeros_like(rows.finetuned),
    }
    return Recovered(**_effects(pair, dictionary, batches, edits, skip_first, on_batch))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Measured tokens of a batch."""

    base: Float[Tensor, "token d_model"]
    finetuned: Float[Tensor, "token d_model"]
    codes: Codes


_Edit = Callable[[_Rows], Float[Tensor, "token d_model"]]


class _Parts:
    """What a dictionary says of the difference between the two residual streams, in their own units."""

    def __init__(self, dictionary: Dictionary):
        stream = dictionary.recipe.stream
        if stream not in (None, Stream.DIFFERENCE):
            raise InvalidSetting(
                f"a bridge needs a dictionary of both sides or of their difference, got one of {stream}"
            )
        self.dictionary, self.paired = dictionary, stream is None
        directions = dictionary.directions(Side.FINETUNED)
        self.directions = difference(dictionary.directions(Side.BASE), directions) if self.paired else directions
        nothing = torch.zeros(2, dtype=torch.int64, device=directions.device)
        no_codes = Codes(nothing, nothing[:0], directions.new_zeros(0), len(directions))
        self.constant = self._difference(no_codes)[0]

    def patched(self, patch: Patch) -> _Edit:
        kept = patch.latents.to(self.directions.device)

        def edit(rows: _Rows) -> Tensor:
            values = rows.codes.values * kept[rows.codes.latents]
            constant = self.constant if patch.constant else torch.zeros_like(self.constant)
            moved = rows.base + decode(replace(rows.codes, values=values), self.directions, constant)
            if patch.error:
                moved = moved + (difference(rows.base, rows.finetuned) - self._difference(rows.codes))
            return moved

        return edit

    def reconstructed(self, rows: _Rows) -> Tensor:
        decoded = self.dictionary.decode(rows.codes)
        return decoded[:, 1] if self.paired else rows.base + decoded

    def _difference(self, codes: Codes) -> Float[Tensor, "token d_model"]:
        decoded = self.dictionary.decode(codes)
        return difference(decoded[:, 0], decoded[:, 1]) if self.paired else decoded


@torch.no_grad()
def _effects(
    pair: ModelPair,
    dictionary: Dictionary,
    batches: Iterable[TokenBatch],
    edits: Mapping[str, _Edit],
    skip_first: int,
    on_batch: Callable[[int], object],
) -> dict[str, Effect]:
    _check_fits(pair, dictionary.recipe)
    sums = {name: torch.zeros(2, dtype=torch.float64, device=pair.device) for name in edits}
    n_tokens = n_targets = n_sequences = 0
    for batch in batches:
        measured = (batch.mask & (batch.position_ids >= skip_first)).to(pair.device)
        targets = _targets(batch).to(pair.device)[measured]
        if len(targets):
            _add_batch(pair, dictionary, batch, measured, targets, edits, sums)
        n_tokens, n_targets = n_tokens + len(targets), n_targets + int((targets >= 0).sum())
        n_sequences += len(batch.ids)
        on_batch(len(batch.ids))
    if not n_tokens:
        raise EmptyCorpus(
            f"no token to measure in {n_sequences} sequences; the first {skip_first} of each are left out"
        )
    return {
        name: Effect(float(kl) / n_tokens, float(loss) / n_targets if n_targets else math.nan)
        for name, (kl, loss) in sums.items()
    }


def _add_batch(
    pair: ModelPair,
    dictionary: Dictionary,
    batch: TokenBatch,
    measured: Bool[Tensor, "batch pos"],
    targets: Int64[Tensor, " token"],
    edits: Mapping[str, _Edit],
    sums: Mapping[str, Float64[Tensor, "2"]],
) -> None:
    """Adds KL and cross-entropy of a batch's measured tokens to the sums."""
    layer, device = dictionary.recipe.layer, dictionary.decoder.device
    with pair.using(Side.BASE) as model:
        base = residuals(model, batch, [layer])[layer]
    with pair.using(Side.FINETUNED) as model:
        run = record(model, batch, layer)
        before, after = base[measured].float().to(device), run.hidden[measured].float().to(device)
        rows = _Rows(before, after, dictionary.codes(dictionary.recipe.rows(before, after)))
        ends = {}
        for name, edit in edits.items():
            hidden = run.hidden.clone()
            hidden[measured] = edit(rows).to(hidden)
            ends[name] = run.upper_half(hidden)[measured]
        _compare(model, run.end[measured], ends, targets, sums)


def _compare(
    model: PreTrainedModel,
    own: Float[Tensor, "token d_model"],
    ends: Mapping[str, Float[Tensor, "token d_model"]],
    targets: Int64[Tensor, " token"],
    sums: Mapping[str, Float64[Tensor, "2"]],
) -> None:
    for part in read_at_once(model, len(own)):
        expected = unembed(model, own[part]).log_softmax(-1)
        weights, next_tokens = expected.exp(), targets[part]
        known = next_tokens >= 0
        for name, end in ends.items():
            found = unembed(model, end[part]).log_softmax(-1)
            sums[name][1] -= found[known, next_tokens[known]].sum(dtype=torch.float64)
            sums[name][0] += expected.sub(found).mul_(weights).sum(-1).sum(dtype=torch.float64)


def _targets(batch: TokenBatch) -> Int64[Tensor, "batch pos"]:
    """The token after each one, -1 where there is none."""
    following = torch.full_like(batch.ids, -1)
    following[:, :-1] = torch.where(batch.mask[:, 1:], batch.ids[:, 1:], -1)
    return following


def _check_fits(pair: ModelPair, recipe: Recipe) -> None:
    if recipe.layer >= pair.n_layers or recipe.d_model != pair.d_model:
        raise IncompatiblePair(
            f"this {recipe.kind} is of layer {recipe.layer} and width {recipe.d_model}, the models of "
            f"{pair.spec.base.name} have {pair.n_layers} layers of width {pair.d_model}; give those it was fitted to"
        )


def _share(reference: float, reconstruction: float, original: float) -> float:
    """Where the reconstruction is between the reference (0) and the original (1)."""
    return math.nan if reference == original else (reference - reconstruction) / (reference - original)
