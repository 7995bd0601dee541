"""How activation analysis lays out its results: tables with their descriptions, and tensors."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.lenses import examples as max_activating
from diffing.lenses import readouts
from diffing.lenses.token_shifts import MeanShift
from diffing.methods.activation_analysis.measuring import AVERAGED, LARGEST, Measured
from diffing.report import Directions, NamedTensor, Table, slug

BASE_MEAN, RANDOM = "base mean", "random direction"
_WHERE = {
    "corpus": "corpus whose texts were read",
    "layer": "decoder block, absolute, counted from 0",
}
_GROUP = (
    "all tokens; those at one position of their text, counted from 0; or those of one token id of the chat template "
    "(of an empty user turn, and the start of the answer). The tokens that are left out of every text count nowhere: "
    "position 0 has no mean if skip_first is 1"
)
_VECTOR = {
    **_WHERE,
    "vector": f"what was read: the mean difference over a group of tokens ({_GROUP}); or a control (the base's own "
    "mean activation over all tokens, a random direction)",
}
_MEASURES = {
    "norm_difference": "norm_difference: L2 norm of finetuned - base (residual stream units)",
    "cosine_distance": "cosine_distance: 1 - cos(base, finetuned) (0 to 2; undefined where a side is zero)",
    "relative_difference": "relative_difference: norm of the difference over the sum of both norms (0 to 1; undefined "
    "where both are zero)",
    "norm_base": "norm_base, norm_finetuned: L2 norm of each side (residual stream units)",
}


def reading_table(measured: Sequence[Measured]) -> Table:
    rows = [
        {
            "corpus": each.corpus,
            "layer": each.layer,
            "source": each.source,
            "texts": each.n_texts,
            "texts_skipped": each.n_skipped,
            "tokens": each.overall.count,
        }
        for each in measured
    ]
    return Table(
        pd.DataFrame(rows),
        "What was read",
        _WHERE
        | {
            "source": "where the activations came from: both models, or a cache of them; and their precision",
            "texts": "texts that were measured",
            "texts_skipped": "texts that were not, because all of their tokens are left out (skip_first and "
            "beginning-of-sequence tokens)",
            "tokens": "tokens that were measured",
        },
    )


def summary_table(measured: Sequence[Measured], percentiles: Sequence[float | int]) -> Table:
    rows = [
        {
            "corpus": each.corpus,
            "layer": each.layer,
            "measure": measure,
            "tokens": summary.count,
            "undefined": summary.n_undefined,
            "zero": summary.n_zero,
            "mean": summary.mean,
            "std": summary.std,
            "min": summary.minimum,
            "max": summary.maximum,
            **dict(zip(map(percentile_column, percentiles), summary.percentiles, strict=True)),
        }
        for each in measured
        for measure, summary in each.summaries.items()
    ]
    described = {
        percentile_column(
            each
        ): f"{each:g}th percentile: the least value that so many percent of tokens do not exceed, "
        "to 0.03 % of it (units of the measure)"
        for each in percentiles
    }
    return Table(
        pd.DataFrame(rows),
        "How far the finetune moved tokens, and how large the activations of both sides are",
        _WHERE
        | {
            "measure": "; ".join(_MEASURES.values()),
            "tokens": "tokens that have the measure",
            "undefined": "tokens for which it is undefined; they are left out",
            "zero": "tokens at which it is exactly 0",
            "mean": "mean over tokens (units of the measure)",
            "std": "standard deviation of the population: squared deviations divided by the number of tokens (units of "
            "the measure)",
            "min": "smallest value (units of the measure)",
            "max": "largest value (units of the measure)",
        }
        | described,
    )


def percentile_column(percentile: float | int) -> str:
    return f"p{percentile:g}"


def mean_table(measured: Sequence[Measured]) -> Table:
    rows = [
        {
            "corpus": each.corpus,
            "layer": each.layer,
            "row": number,
            "vector": mean.group,
            "tokens": mean.count,
            "texts": mean.n_texts,
            "norm": float(mean.mean.norm()),
            "mean_norm": mean.mean_norm,
            "consistency": consistency(mean),
            "consistency_by_chance": mean.n_texts**-0.5,
            "consistency_base": base_consistency(mean),
            "cosine_to_all": _cosine(mean.mean, each.overall.mean),
        }
        for each in measured
        for number, mean in enumerate(each.means)
    ]
    return Table(
        pd.DataFrame(rows),
        "The mean difference over groups of tokens, and how alike the differences of a group are. A group without a "
        "token is absent",
        _WHERE
        | {
            "row": "row of the tensor CORPUS_layer_LAYER_means that holds it",
            "vector": f"mean difference over: {_GROUP}",
            "tokens": "tokens of the group",
            "texts": "texts that they are from",
            "norm": "L2 norm of the mean difference (residual stream units)",
            "mean_norm": "mean L2 norm of the single differences (residual stream units)",
            "consistency": "norm over mean_norm: 1 if all tokens shift alike (ratio; 0 where nothing differs)",
            "consistency_by_chance": "1 / sqrt(texts): what consistency would be if texts were alike inside and "
            "unrelated to each other (ratio)",
            "consistency_base": "the same ratio of the base's own activations: 1 if the tokens of the group have "
            "the same context in every text, as in a system prompt; consistency then says nothing (ratio)",
            "cosine_to_all": "cosine to the mean over all tokens (-1 to 1; missing where either is zero)",
        },
    )


def consistency(mean: MeanShift) -> float:
    """Norm of the mean over the mean norm; 0 where nothing differs."""
    return float(mean.mean.norm()) / mean.mean_norm if mean.mean_norm else 0.0


def base_consistency(mean: MeanShift) -> float:
    """The same of the base's activations."""
    return float(mean.base_mean.norm()) / mean.base_mean_norm if mean.base_mean_norm else 0.0


def _cosine(one: Tensor, other: Tensor) -> float:
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else math.nan


def window_table(measured: Sequence[Measured], tokenizer: PreTrainedTokenizerBase) -> Table:
    parts = []
    for each in measured:
        for found, aggregate, measures in ((each.largest, "max", LARGEST), (each.averaged, "mean", AVERAGED)):
            labels: dict[str, Sequence[object]] = {
                "layer": [each.layer] * len(measures),
                "score": [f"{aggregate} {measure}" for measure in measures],
            }
            part = max_activating.example_table(
                {each.corpus: found}, tokenizer, "Texts with the largest scores, and the score of every token",
                labels=labels,
                columns={
                    "layer": _WHERE["layer"],
                    "score": "what texts are ranked by: the largest value (max) or the mean over a text, its first "
                    f"tokens left out, of a measure. {'; '.join(_MEASURES.values())}",
                },
                unit="the measure (in its units; a cosine distance that is undefined shows as 0)",
            )  # fmt: skip
            parts.append(part)
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    return Table(frame, parts[0].about, parts[0].columns, parts[0].view)


def logit_lens_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Logit lens: tokens that each mean difference promotes and suppresses when read by the model's own head"
    return readouts.logit_lens_table(rows, about, _VECTOR, ("vector", "direction", "layer", "corpus"))


def patchscope_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Token-identity patchscope: tokens the model reads in each mean difference when it stands in for a word"
    return readouts.patchscope_table(
        rows, about, _VECTOR, ("vector", "scale", "layer", "corpus"), "mean norms of the finetuned residual stream"
    )


def tensors(measured: Sequence[Measured]) -> dict[str, NamedTensor]:
    """One [group, d_model] tensor per corpus and layer, in float32; the table of means says what each row is."""
    return {
        f"{slug(each.corpus)}_layer_{each.layer}_means": NamedTensor(
            torch.stack([mean.mean for mean in each.means]).float(),
            f"mean difference over groups of tokens on {each.corpus}, layer {each.layer}; groups as in table "
            "mean_vectors",
            ("group", "d_model"),
            Directions(
                each.layer,
                [mean.group for mean in each.means],
                [each.summaries["norm_finetuned"].mean] * len(each.means),
                "mean norm of the finetuned residual stream",
            ),
        )
        for each in measured
    }
