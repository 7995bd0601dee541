"""How much of the finetune's effect on the next-token loss the mean difference carries, beside random directions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.position_means import SKIPPED
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses.causal import (
    CausalEffect,
    Edit,
    Edited,
    Subset,
    causal_effect,
    random_differences,
    random_directions,
    read_texts,
)
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.methods.base import Study
from diffing.models.sites import residuals
from diffing.text.corpus import Corpus
from diffing.text.windows import batches, token_sequences

DIFFERENCE, RANDOM, RANDOM_DIFFERENCE = "difference", "random", "random difference"
TEXTS_FOR_ROWS, TOKENS_FOR_ROWS = 100, 128
"""Of the first corpus, whose activations random differences are drawn from."""


@dataclass(frozen=True)
class CausalSettings:
    """On what the loss is measured, and beside how many controls."""

    max_texts: int = 0
    """Texts of the training data and of each corpus; 0 leaves the causal effect out."""
    max_tokens: int = 1_024
    """Tokens of each."""
    edits: Sequence[str] = (Edit.BASE_TO_FINETUNED, Edit.FINETUNED_TO_BASE, Edit.ZERO_FINETUNED)
    n_random: int = 64
    """Isotropic random directions, and so many differences of two tokens' activations."""
    after: int = 20
    """The loss is averaged over all predictions, and over those made after so many tokens."""
    tokens_at_once: int = 8_192

    def __post_init__(self) -> None:
        if unknown := [edit for edit in self.edits if edit not in list(Edit)]:
            raise InvalidSetting(f"causal.edits {unknown}; expected some of {', '.join(Edit)}")
        if self.max_texts < 0 or self.n_random < 2:
            raise InvalidSetting(
                f"causal.max_texts={self.max_texts}, causal.n_random={self.n_random}; expected 0 or more, and 2 or more"
            )


@dataclass(frozen=True)
class Carried:
    """Rows of the tables `causal_effect` and `losses`, and the corpora that have nothing to predict."""

    effects: Sequence[Mapping[str, object]]
    losses: Sequence[Mapping[str, object]]
    left_out: Sequence[str]


def causal_effects(
    study: Study, readings: Sequence[Reading], corpora: Sequence[Corpus], settings: CausalSettings
) -> Carried:
    """Every position of every reading, on every corpus. All directions of a layer go through each text together."""
    effects: list[dict[str, object]] = []
    losses: list[dict[str, object]] = []
    left_out: list[str] = []
    for layer in sorted({reading.means.layer for reading in readings}):
        here = [reading for reading in readings if reading.means.layer == layer]
        groups = _groups(study, layer, here, settings.n_random)
        positions = sorted({position for reading in here for position in reading.positions if position >= 0})
        subsets = {"all": Subset(), f"after {settings.after}": Subset(after=settings.after)}
        subsets |= {f"without {position}": Subset(without=position) for position in positions}
        for corpus in corpora:
            name = corpus.spec.name
            try:
                found = _measure(study, corpus, layer, groups, subsets, settings)
            except EmptyCorpus:  # a conversation in which no assistant speaks
                left_out.append(name)
                continue
            effects += [{"corpus": name, "layer": layer} | row for row in _effect_rows(found, here)]
            losses += [{"corpus": name, "layer": layer} | row for row in _loss_rows(found)]
    return Carried(effects, losses, sorted(set(left_out)))


def _measure(
    study: Study,
    corpus: Corpus,
    layer: int,
    groups: Mapping[str, Float[Tensor, "direction d_model"]],
    subsets: Mapping[str, Subset],
    settings: CausalSettings,
) -> CausalEffect:
    limits = {"max_tokens": settings.max_tokens, "max_texts": settings.max_texts}
    texts = list(read_texts(corpus, study.pair.tokenizer, **limits))
    with study.progress.stage(f"causal effect at layer {layer} on {corpus.spec.name}", len(texts)) as advance:
        return causal_effect(
            study.pair, layer, groups, texts, edits=[Edit(edit) for edit in settings.edits], subsets=subsets,
            tokens_at_once=settings.tokens_at_once, on_text=advance,
        )  # fmt: skip


def _groups(study: Study, layer: int, readings: Sequence[Reading], n_random: int) -> dict[str, Tensor]:
    """The mean differences of each reading, and the controls."""
    found = {reading.corpus: reading.vectors["difference"] for reading in readings}
    d_model = next(iter(found.values())).shape[1]
    return found | {
        RANDOM: random_directions(n_random, d_model, study.seed),
        RANDOM_DIFFERENCE: random_differences(_token_rows(study, layer), n_random, study.seed).float(),
    }


def _token_rows(study: Study, layer: int) -> Float[Tensor, "token d_model"]:
    """The base's activations on texts of the first corpus, less the first tokens of each."""
    tokenizer = study.pair.tokenizer
    texts = token_sequences(study.corpora[0], tokenizer, max_tokens=TOKENS_FOR_ROWS, max_texts=TEXTS_FOR_ROWS)
    found = []
    with torch.no_grad(), study.pair.using(Side.BASE) as model:
        for batch in batches(texts, 16, pad_id=tokenizer.pad_token_id, side="right"):
            kept = batch.mask & (batch.position_ids >= SKIPPED)
            found.append(residuals(model, batch, [layer])[layer][kept.to(model.device)].float().cpu())
    return torch.cat(found)


def _effect_rows(found: CausalEffect, readings: Sequence[Reading]) -> Iterator[dict[str, object]]:
    """Each position's direction, on the subsets that are about it; each group of controls, as mean and range."""
    positions = {reading.corpus: reading.positions for reading in readings}
    controls: dict[tuple, list[Edited]] = {}
    for each in found.edited:
        if each.group in positions:
            position = positions[each.group][each.direction]
            if not each.subset.startswith("without") or each.subset == f"without {position}":
                yield _row([each], DIFFERENCE, each.group, float(position))
        elif not each.subset.startswith("without"):
            controls.setdefault((each.edit, each.subset, each.group), []).append(each)
    for (_, _, group), directions in controls.items():
        yield _row(directions, group, "", math.nan)


def _row(directions: Sequence[Edited], kind: str, read_on: str, position: float) -> dict[str, object]:
    increases = np.array([each.increase for each in directions])
    shares = np.array([each.share_of_gap for each in directions])
    first = directions[0]
    return {
        "edit": str(first.edit), "direction": kind, "read_on": read_on, "position": position, "subset": first.subset,
        "n_directions": len(directions), "n_predictions": first.loss.count,
        "loss": float(np.mean([each.loss.mean for each in directions])), "increase": float(increases.mean()),
        "least_increase": float(increases.min()), "most_increase": float(increases.max()),
        "share_of_gap": float(shares.mean()), "least_share": float(shares.min()), "most_share": float(shares.max()),
    }  # fmt: skip


def _loss_rows(found: CausalEffect) -> Iterator[dict[str, object]]:
    for side, losses in found.unedited.items():
        for subset, loss in losses.items():
            if not subset.startswith("without"):
                yield {
                    "side": str(side), "subset": subset, "n_predictions": loss.count, "mean": loss.mean,
                    "median": loss.median, "least": loss.min, "most": loss.max,
                }  # fmt: skip
