"""Tokens read from many labelled vectors, as rows of report tables.

Every vector comes with a label: the columns that say what it is. Those of controls (a side's own mean, a random
direction) stand in the same table as what is claimed, and `own_tokens` keeps what no control shows too.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.axes import Side
from diffing.lenses.logit_lens import TopTokens, logit_lens, top_tokens
from diffing.lenses.patchscope import patchscope
from diffing.models.pair import ModelPair
from diffing.report import Table, View

Label = Mapping[str, object]

BASE_MEAN, RANDOM = "base mean", "random direction"
"""Names of the controls that are read beside what is claimed."""
TOKEN_COLUMNS = {
    "rank": "place in the readout, 1 is the likeliest",
    "token": "decoded token, white space kept",
}


def logit_lens_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Float[Tensor, "batch d_model"],
    labels: Sequence[Label],
    top: int,
) -> list[dict[str, object]]:
    """Rows with `direction` promoted and suppressed, `top` each per vector."""
    promoted, suppressed = logit_lens(model, vectors.to(model.device), top)
    return [
        row | {"direction": direction}
        for direction, found in (("promoted", promoted), ("suppressed", suppressed))
        for row in _rows(tokenizer, found, labels)
    ]


def patchscope_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Float[Tensor, "batch d_model"],
    labels: Sequence[Label],
    layer: int,
    scales: Sequence[float],
    intersection: int,
    top: int,
) -> list[dict[str, object]]:
    """Rows with the `scale` that multiplied the vector; tokens without any probability are left out.

    All scales of all vectors are read in shared batches. The caller gives vectors the length that scale 1 means.
    """
    scaled = torch.cat([vectors.to(model.device) * scale for scale in scales])
    scores = patchscope(model, tokenizer, scaled, layer, intersection)
    return [
        row | {"scale": scale}
        for scale, part in zip(scales, scores.split(len(vectors)), strict=True)
        for row in _rows(tokenizer, top_tokens(part, top), labels)
        if row["probability"] != 0
    ]


def both_lenses(
    pair: ModelPair,
    vectors: Float[Tensor, "batch d_model"],
    labels: Sequence[Label],
    read_by: Sequence[Side],
    layer: int,
    norm: float,
    scales: Sequence[float],
    intersection: int,
    top: int,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of the logit lens and of the patchscope, each vector by the side in `read_by`.

    Vectors are read at unit length by the lens; patchscope scale 1 is the length `norm`.
    """
    lens: list[dict[str, object]] = []
    scope: list[dict[str, object]] = []
    for side in Side:
        chosen = [number for number, reader in enumerate(read_by) if reader is side]
        unit, named = torch.nn.functional.normalize(vectors[chosen], dim=1), [labels[number] for number in chosen]
        with pair.using(side) as model:
            lens += logit_lens_rows(model, pair.tokenizer, unit, named, top)
            scope += patchscope_rows(model, pair.tokenizer, unit * norm, named, layer, scales, intersection, top)
    return lens, scope


def logit_lens_table(rows: Sequence[Label], about: str, columns: Mapping[str, str], group: Sequence[str]) -> Table:
    """`columns` describes those of the labels; `group` is how they are put together."""
    return Table(
        pd.DataFrame(rows),
        about,
        {
            **columns,
            **TOKEN_COLUMNS,
            "probability": "softmax over the vocabulary of the readout, or of its negative (probability)",
            "direction": "promoted: readout of the vector; suppressed: readout of its negated logits",
        },
        View("tokens", "token", group=group, weight="probability"),
    )


def patchscope_table(
    rows: Sequence[Label], about: str, columns: Mapping[str, str], group: Sequence[str], unit: str
) -> Table:
    """As `logit_lens_table`; `unit` is what scale 1 means."""
    return Table(
        pd.DataFrame(rows, columns=None if rows else [*columns, *TOKEN_COLUMNS, "probability", "scale"]),
        about,
        {
            **columns,
            **TOKEN_COLUMNS,
            "probability": "mean next-token probability over the identity prompts, tokens in all of them (probability)",
            "scale": f"length of the patched vector ({unit})",
        },
        View("tokens", "token", group=group, weight="probability"),
    )


def own_tokens(frame: pd.DataFrame, mine: "pd.Series[bool]", controls: "pd.Series[bool]", most: int) -> pd.DataFrame:
    """The first `most` rows of `mine` whose tokens are not blank and stand in no row of `controls`.

    Of a patchscope, only the scale nearest to 1 counts; of a logit lens, only promoted tokens.
    """
    counted = pd.Series(True, frame.index)
    if "direction" in frame.columns:
        counted &= frame["direction"] == "promoted"
    if "scale" in frame.columns and len(frame):
        counted &= frame["scale"] == min(frame["scale"].unique(), key=lambda scale: abs(scale - 1.0))
    shown = set(frame.loc[controls & counted, "token"])
    own = frame[mine & counted]
    return own[~own["token"].isin(shown) & (own["token"].str.strip() != "")].head(most)


def listed(tokens: "pd.Series[str]") -> str:
    """Tokens in words."""
    return ", ".join(repr(token) for token in tokens) or "nothing of its own"


def read_as(tokens: Mapping[str, "pd.Series[str]"]) -> str:
    """What was read, in words; by the names of the lenses' tables."""
    return "; ".join(f"the {lens.replace('_', ' ')} reads {listed(found)}" for lens, found in tokens.items())


def _rows(tokenizer: PreTrainedTokenizerBase, found: TopTokens, labels: Sequence[Label]) -> list[dict[str, object]]:
    return [
        {**label, "rank": rank, "token": tokenizer.decode([token]), "probability": probability}
        for label, ids, probabilities in zip(labels, found.ids, found.probabilities, strict=True)
        for rank, (token, probability) in enumerate(zip(ids.tolist(), probabilities.tolist(), strict=True), 1)
    ]
