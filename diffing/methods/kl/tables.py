"""How the KL divergence lays out its results: tables with their descriptions."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from transformers import PreTrainedTokenizerBase

from diffing.lenses import examples as max_activating
from diffing.methods.kl.measured import Measured
from diffing.report import Table, View

RANKINGS = ("largest token", "mean over the text")
"""What windows are ranked by."""
RAISED, LOWERED = "made likelier", "made less likely"
SINGLE_POSITIONS = 16
"""Positions that have a row of their own; later ones share rows, each twice as wide as the one before."""
_CORPUS = {"corpus": "corpus whose texts were read"}


def statistics(values: Float64[np.ndarray, " value"], percentiles: Sequence[float | int]) -> dict[str, float | int]:
    """Columns of the table of statistics for one or more values."""
    largest = np.sort(values)[-math.ceil(len(values) / 100) :]
    total = values.sum()
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        **{_percentile(each): float(np.percentile(values, each)) for each in percentiles},
        "max": float(values.max()),
        "top_share": float(largest.sum() / total) if total else 0.0,
    }


def statistics_table(measured: Sequence[Measured], percentiles: Sequence[float | int]) -> Table:
    """One row per corpus and kind for tokens, and one for texts."""
    rows = [
        {"corpus": each.corpus, "divergence": kind.formula, "over": over, **statistics(values[:, column], percentiles)}
        for each in measured
        for column, kind in enumerate(each.kinds)
        for over, values in (("tokens", each.values), ("texts", each.text_means))
    ]
    return Table(
        pd.DataFrame(rows),
        "Divergence of the next-token distributions, over all measured tokens and over the means of texts",
        {
            **_CORPUS,
            "divergence": "what was measured: KL(p || q) is the mean under p of log p - log q",
            "over": "tokens: all measured tokens of the corpus count alike; texts: each text counts once, with the "
            "mean over its measured tokens",
            "count": "measured tokens, or texts that have any",
            "mean": "mean (nats)",
            "std": "standard deviation of the population, so 0 for a single value (nats)",
            "min": "smallest value (nats)",
            **{
                _percentile(each): f"percentile {each:g}, by linear interpolation between values (nats)"
                for each in percentiles
            },
            "max": "largest value (nats)",
            "top_share": "share of the sum that the largest 1 % of the values (rounded up) have: 0.01 if all are alike "
            "(ratio)",
        },
    )


def position_table(measured: Sequence[Measured]) -> Table:
    """Means of the first kind, by position within the text."""
    rows = []
    for each in measured:
        bins = position_bins(each.positions)
        for first in np.unique(bins):
            values, positions = each.main[bins == first], each.positions[bins == first]
            rows.append(
                {
                    "corpus": each.corpus,
                    "position": int(first),
                    "last": int(positions.max()),
                    "tokens": len(values),
                    "mean": float(values.mean()),
                    "median": float(np.median(values)),
                }
            )
    return Table(
        pd.DataFrame(rows),
        f"{measured[0].kinds[0].formula} of the next-token distributions by position within the text",
        {
            **_CORPUS,
            "position": "first position of the row: that of the last token of the context, counted from 0, so that the "
            "row of position 0 compares what is expected after one token",
            "last": "last position of the row that was met; from "
            f"{SINGLE_POSITIONS} on, rows span 2^n to 2^(n + 1) - 1 tokens",
            "tokens": "measured tokens there",
            "mean": "mean (nats)",
            "median": "median (nats)",
        },
    )


def position_bins(positions: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
    """The first position of the row that each position belongs to."""
    far = 2 ** np.floor(np.log2(np.maximum(positions, 1))).astype(np.int64)
    return np.where(positions < SINGLE_POSITIONS, positions, far)


def vocabulary_table(measured: Sequence[Measured], tokenizer: PreTrainedTokenizerBase, top: int) -> Table:
    """Items that add most to KL(finetuned || base), whatever kind is looked at."""
    rows = []
    for each in measured:
        n_tokens, parts = each.sums.n_tokens, each.sums.parts
        total = float(parts.sum())
        growth = each.sums.probability_finetuned - each.sums.probability_base
        for direction, moved in ((RAISED, growth > 0), (LOWERED, growth < 0)):
            order = parts.masked_fill(~moved, 0.0).argsort(descending=True, stable=True)[:top]
            rows += [
                {
                    "corpus": each.corpus,
                    "direction": direction,
                    "rank": rank,
                    "token": tokenizer.decode([item]),
                    "token_id": item,
                    "divergence": float(parts[item]) / n_tokens,
                    "share": float(parts[item]) / total,
                    "probability_base": float(each.sums.probability_base[item]) / n_tokens,
                    "probability_finetuned": float(each.sums.probability_finetuned[item]) / n_tokens,
                    "contribution": float(each.sums.contribution[item]) / n_tokens,
                }
                for rank, item in enumerate(order[moved[order] & (parts[order] > 0)].tolist(), 1)
            ]
    columns = {
        **_CORPUS,
        "direction": f"{RAISED}: the finetuned model gives the item more probability, on average over tokens; "
        f"{LOWERED}: less",
        "rank": "place among the items of this direction, 1 adds most to the divergence",
        "token": "decoded vocabulary item, white space kept, as the token that is expected next",
        "token_id": "its number in the vocabulary",
        "divergence": "mean over the measured tokens of p log(p / q) - p + q, p of the finetuned model and q of the "
        "base; never below 0, and all items add up to the mean KL(finetuned || base) (nats)",
        "share": "divergence over that mean; those of all items add up to 1 (ratio)",
        "probability_base": "mean probability that the base gives the item (probability)",
        "probability_finetuned": "mean probability that the finetuned model gives the item (probability)",
        "contribution": "mean over the measured tokens of p log(p / q) alone; all items add up to the same sum, but an "
        "item whose probability grew has more than its part, and the others have less than 0 (nats)",
    }
    return Table(
        pd.DataFrame(rows, columns=list(columns)),
        "Vocabulary items that add most to KL(finetuned || base), as the token that is expected next",
        columns,
        View("tokens", "token", group=("direction", "corpus"), weight="divergence"),
    )


def token_table(measured: Sequence[Measured], tokenizer: PreTrainedTokenizerBase, min_count: int, top: int) -> Table:
    """Tokens after which the distribution changes most."""
    parts = []
    for each in measured:
        by_token = pd.Series(each.main).groupby(each.ids).agg(["size", "mean"])
        often = by_token[by_token["size"] >= min_count].sort_values("mean", ascending=False, kind="stable").head(top)
        parts.append(
            pd.DataFrame(
                {
                    "corpus": each.corpus,
                    "rank": range(1, len(often) + 1),
                    "token": [tokenizer.decode([token]) for token in often.index],
                    "token_id": often.index,
                    "count": often["size"].to_numpy(),
                    "mean": often["mean"].to_numpy(),
                    "share": (often["size"] * often["mean"]).to_numpy() / (each.main.sum() or 1.0),
                }
            )
        )
    formula = measured[0].kinds[0].formula
    return Table(
        pd.concat(parts, ignore_index=True),
        f"Tokens after which {formula} is largest: it is that of what is expected next, given the text up to the token",
        {
            **_CORPUS,
            "rank": "place by mean, 1 is the largest",
            "token": f"decoded token, white space kept, of those met {min_count} times or more",
            "token_id": "its number in the vocabulary",
            "count": "times that the token was measured in the corpus",
            "mean": f"mean {formula} after the token (nats)",
            "share": "share of the sum over all tokens of the corpus that these have (ratio)",
        },
        View("tokens", "token", group=("corpus",), weight="mean"),
    )


def example_table(measured: Sequence[Measured], tokenizer: PreTrainedTokenizerBase) -> Table:
    """Windows of all corpora."""
    formula = measured[0].kinds[0].formula
    return max_activating.example_table(
        {each.corpus: each.examples for each in measured},
        tokenizer,
        f"Texts on which {formula} is largest. The colour of a token is the divergence of what is expected after it, "
        "given the text up to and with it",
        labels={"ranked_by": RANKINGS},
        columns={"ranked_by": "what the windows are ranked by: the largest token of a text, or the mean over the text; "
                 "either way the window is around the largest token"},
        unit=f"{formula} (nats)",
    )  # fmt: skip


def peak_table(measured: Sequence[Measured], examples: Table, tokenizer: PreTrainedTokenizerBase) -> Table:
    """What either side expects after the peaks of `examples`, of those windows that are ranked by them."""
    frame, rows = examples.frame, []
    for each in measured:
        windows = frame[(frame["corpus"] == each.corpus) & (frame["ranked_by"] == RANKINGS[0])]
        for number, (_, window) in enumerate(windows.iterrows()):
            peak = int(np.nanargmax(window["values"]))
            rows += [
                {
                    "corpus": each.corpus,
                    "rank": window["rank"],
                    "context": "".join(window["tokens"][: peak + 1]),
                    "value": window["value"],
                    "token": tokenizer.decode([item]),
                    "token_id": item,
                    "divergence": float(each.changes.part[number, place]),
                    "probability_base": float(each.changes.probability_base[number, place]),
                    "probability_finetuned": float(each.changes.probability_finetuned[number, place]),
                }
                for place, item in enumerate(each.changes.ids[number].tolist())
            ]
    formula = measured[0].kinds[0].formula
    return Table(
        pd.DataFrame(rows),
        f"What both sides expect after the contexts where {formula} is largest",
        {
            **_CORPUS,
            "rank": "place of the context among the windows of its corpus that are ranked by their largest token",
            "context": "end of the text up to and with the peak (both sides read all of it)",
            "value": f"{formula} after the context (nats)",
            "token": "decoded vocabulary item, white space kept, of those that add most to KL(finetuned || base) here",
            "token_id": "its number in the vocabulary",
            "divergence": "what the item adds: p log(p / q) - p + q, p of the finetuned model and q of the base (nats)",
            "probability_base": "probability that the base gives the item (probability)",
            "probability_finetuned": "probability that the finetuned model gives the item (probability)",
        },
    )


def _percentile(each: float | int) -> str:
    return f"p{each:g}"
