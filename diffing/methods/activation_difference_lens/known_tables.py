"""Tables of what was read beside the training data. All are marked as ground truth, which agents never see."""

from collections.abc import Mapping, Sequence

import pandas as pd

from diffing.methods.activation_difference_lens.carried import Carried
from diffing.methods.activation_difference_lens.tables import SOURCE, WHERE, Row
from diffing.report import Table


def relevance_table(rows: Sequence[Row]) -> Table:
    return Table(
        pd.DataFrame(rows),
        "How much of each readout speaks of the training data, beside tokens that are merely frequent there and the "
        "domains of other organisms",
        WHERE
        | SOURCE
        | {
            "lens": "logit lens (promoted tokens), or patchscope (at the chosen scale)",
            "against": "own domain: the claim; frequent tokens, other organism: its baselines, on the same tokens",
            "organism": "the other organism",
            "fraction": "relevant over labelled tokens (ratio)",
            "weighted": "the same, by probability (ratio)",
            "selected": "the same, of the tokens that were selected as coherent (ratio)",
            "n_tokens": "tokens of the readout",
            "unanswered": "tokens that a judge did not label; they count for nothing (count)",
            "relevant": "the relevant tokens, as they decode",
            "by": "how relevance was decided",
        },
        ground_truth=True,
    )


def similarity_table(rows: Sequence[Row]) -> Table:
    return Table(
        pd.DataFrame(rows),
        "How alike answers are to the training texts and to unrelated ones, in the space of an embedding model",
        {
            "texts": "answers, by what was added; or the training texts themselves, as what could be reached at most",
            "compared_with": "texts that they are compared with",
            "similarity": "mean cosine over all pairs of two different texts (-1 to 1)",
            "low": "2.5th percentile of that over resamples of the texts",
            "high": "97.5th percentile",
            "n_texts": "texts of the first kind",
            "n_compared": "texts of the second kind",
        },
        ground_truth=True,
    )


def causal_tables(carried: Carried) -> Mapping[str, Table]:
    """`causal_effect` and `losses`; none if no corpus had anything to predict."""
    if not carried.effects:
        return {}
    subset = {"subset": "predictions that count: all, those after a position, or all but the one at the position"}
    where = {"corpus": "corpus on whose texts the loss was measured", "layer": WHERE["layer"]}
    effects = Table(
        pd.DataFrame(carried.effects),
        "What becomes of the next-token loss if one coordinate of the residual stream is replaced on all tokens",
        where
        | {
            "edit": "what is replaced: base_to_finetuned runs the finetuned model with the base's coordinate, "
            "finetuned_to_base the base with the finetuned one; zero_* removes it",
            "direction": "the mean difference at one position, a random direction, or the difference of two tokens",
            "read_on": "corpus that the mean difference is of",
            "position": "position that it is of",
        }
        | subset
        | {
            "n_directions": "directions that the row is over, each edited alone",
            "n_predictions": "predictions that the loss is over",
            "loss": "mean loss after the edit (nats per token), mean over the directions",
            "increase": "of that over the same model unedited (nats per token)",
            "least_increase": "the least over the directions",
            "most_increase": "the largest over the directions",
            "share_of_gap": "increase over the difference between the two models' losses: 1 if the edit alone makes "
            "one as good or bad as the other (ratio), mean over the directions",
            "least_share": "the least over the directions",
            "most_share": "the largest over the directions",
        },
        ground_truth=True,
    )
    losses = Table(
        pd.DataFrame(carried.losses),
        "Next-token loss of both sides, unedited",
        where
        | {"side": "base or finetuned"}
        | subset
        | {
            "n_predictions": "predictions that the loss is over",
            "mean": "mean loss (nats per token)",
            "median": "median loss (nats per token)",
            "least": "smallest loss of a token (nats)",
            "most": "largest loss of a token (nats)",
        },
        ground_truth=True,
    )
    return {"causal_effect": effects, "losses": losses}
