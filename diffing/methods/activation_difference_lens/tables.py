"""How the Activation Difference Lens lays out its results: tables with their descriptions, figure and findings."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from diffing.activations.position_means import PositionMeans
from diffing.lenses import readouts
from diffing.lenses.readouts import listed, own_tokens
from diffing.lenses.steering import SAMPLE_COLUMNS, words_steered_towards
from diffing.report import PALETTE, Figure, Finding, Table, View

Measured = Sequence[tuple[str, PositionMeans]]
"""(corpus, means) of every reading."""

_WHERE = {
    "corpus": "corpus whose texts were read",
    "layer": "decoder block, absolute, counted from 0",
    "position": "token position within the text, counted from 0",
}
_SOURCE = {
    "source": "what was read: the mean difference (finetuned - base), the mean of one side, or a random direction",
}


def position_table(measured: Measured) -> Table:
    rows = []
    for corpus, means in measured:
        shift = means.difference.norm(dim=-1)
        for position in range(len(means.n_texts)):
            rows.append(
                {
                    "corpus": corpus,
                    "layer": means.layer,
                    "position": position,
                    "n_texts": int(means.n_texts[position]),
                    "shift_norm": float(shift[position]),
                    "relative_shift": float(shift[position] / means.norm_base[position]),
                    "consistency": float(means.consistency[position]),
                    "norm_base": float(means.norm_base[position]),
                    "norm_finetuned": float(means.norm_finetuned[position]),
                }
            )
    return Table(
        pd.DataFrame(rows),
        "How far the residual stream moved at each position, on average over texts",
        _WHERE
        | {
            "n_texts": "texts that reach this position",
            "shift_norm": "L2 norm of the mean difference, finetuned - base (residual stream units)",
            "relative_shift": "shift_norm over norm_base (ratio)",
            "consistency": "shift_norm over the mean norm of single differences: 1 if all texts shift alike, "
            "1/sqrt(n_texts) by chance (ratio)",
            "norm_base": "mean L2 norm of the base's residual stream (residual stream units)",
            "norm_finetuned": "mean L2 norm of the finetuned residual stream (residual stream units)",
        },
    )


def logit_lens_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Logit lens: tokens that each vector promotes and suppresses when read by the model's own head"
    return readouts.logit_lens_table(
        rows, about, _WHERE | _SOURCE, ("source", "position", "direction", "layer", "corpus")
    )


def patchscope_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Token-identity patchscope: tokens the model reads in each vector when it stands in for a word"
    return readouts.patchscope_table(
        rows, about, _WHERE | _SOURCE, ("source", "position", "scale", "layer", "corpus"), "mean residual norms"
    )


def steering_table(rows: Sequence[Mapping[str, object]]) -> Table:
    columns = [*_WHERE, "prompt", "condition", "kind", "strength", "sample", "text"]
    return Table(
        pd.DataFrame(rows, columns=columns),
        "Answers of the finetuned model, unsteered, with the mean difference added, and with a random direction added",
        _WHERE
        | {
            **SAMPLE_COLUMNS,
            "strength": "length of the added vector (mean residual norms)",
        },
        View("samples", "text", group=("prompt", "position", "layer", "corpus"), compare="condition"),
    )


def finding(corpus: str, means: PositionMeans, position: int, readouts: Mapping[str, Table]) -> Finding:
    """The most telling position of one layer in words: what was read there from the difference, and neither from the
    base's mean nor from a random direction."""
    shift = float(means.difference[position].norm() / means.norm_base[position])
    read = {name: _own_tokens(table.frame, corpus, means.layer, position) for name, table in readouts.items()}
    words = "; ".join(f"the {name.replace('_', ' ')} reads {listed(rows['token'])}" for name, rows in read.items())
    return Finding(
        f"On {corpus}, layer {means.layer}, position {position}, the finetune moves the residual stream by "
        f"{shift:.1%} of its norm, with consistency {float(means.consistency[position]):.2f} over "
        f"{int(means.n_texts[position])} texts. Of that shift, {words}.",
        "logit_lens",
        [int(row) for row in read["logit_lens"].index],
    )


def _own_tokens(frame: pd.DataFrame, corpus: str, layer: int, position: int) -> pd.DataFrame:
    """Rows of the difference's readout whose tokens neither the base's mean nor a random direction shows too."""
    here = (frame["corpus"] == corpus) & (frame["layer"] == layer) & (frame["position"] == position)
    mine, controls = here & (frame["source"] == "difference"), here & frame["source"].isin(["base", "random"])
    return own_tokens(frame, mine, controls, most=12)


def steering_findings(steering: Table) -> list[Finding]:
    """Per steered position, the words that steered answers use and the unsteered and randomly steered ones do not."""
    found = []
    for (corpus, layer, position), frame in steering.frame.groupby(["corpus", "layer", "position"]):
        texts = {kind: list(rows["text"]) for kind, rows in frame.groupby("kind")}
        words = words_steered_towards(texts["steered"], [texts["unsteered"], texts["random"]])
        where = (
            f"Steered by the difference on {corpus} (layer {layer}, position {position}), answers to neutral prompts"
        )
        claim = (
            f"{where} speak of {', '.join(words)}; unsteered and randomly steered answers do not, or far less often."
            if words
            else f"{where} share no words that unsteered and randomly steered answers lack."
        )
        found.append(Finding(claim, "steering", [int(row) for row in frame[frame["kind"] == "steered"].index[:6]]))
    return found


def norm_figure(measured: Measured) -> Figure:
    """Relative shift and consistency by position, one colour per corpus and layer, and the consistency of chance."""
    figure = go.Figure()
    for (corpus, means), colour in zip(measured, cycle(PALETTE), strict=False):
        shift = (means.difference.norm(dim=-1) / means.norm_base).tolist()
        label = f"{corpus}, layer {means.layer}" if len({name for name, _ in measured}) > 1 else f"layer {means.layer}"
        figure.add_scatter(y=shift, name=f"{label}: shift", mode="lines+markers", line={"color": colour})
        figure.add_scatter(
            y=means.consistency.tolist(),
            name=f"{label}: consistency",
            mode="lines",
            line={"color": colour, "dash": "dot"},
        )
    chance = measured[0][1].n_texts.double().rsqrt().tolist()
    figure.add_scatter(y=chance, name="consistency by chance", mode="lines", line={"dash": "dash", "color": "grey"})
    figure.update_layout(xaxis_title="position (token)", yaxis_title="ratio", hovermode="x unified")
    return Figure(
        json.loads(figure.to_json()),
        "How far the residual stream moved, as a share of its norm, and how alike the shift is over texts",
    )
