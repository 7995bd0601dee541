"""Figures of activation analysis: distributions over tokens, both sides' norms, and the shift by layer."""

import json
from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from diffing.methods.activation_analysis.measuring import Measured
from diffing.report import PALETTE, Figure

_SHOWN = {
    "norm_difference": "L2 norm of the difference",
    "relative_difference": "norm of the difference over the sum of both norms",
    "cosine_distance": "cosine distance",
}


def figures(measured: Sequence[Measured]) -> dict[str, Figure]:
    return {"histograms": _histograms(measured), "norms": _norms(measured), "by_layer": _by_layer(measured)}


def _label(each: Measured, measured: Sequence[Measured]) -> str:
    return f"{each.corpus}, layer {each.layer}" if len({m.corpus for m in measured}) > 1 else f"layer {each.layer}"


def _histograms(measured: Sequence[Measured]) -> Figure:
    """One panel per measure, one colour per corpus and layer."""
    figure = make_subplots(rows=len(_SHOWN), subplot_titles=list(_SHOWN.values()), vertical_spacing=0.1)
    for each, colour in zip(measured, cycle(PALETTE), strict=False):
        label = _label(each, measured)
        for row, measure in enumerate(_SHOWN, 1):
            summary = each.summaries.get(measure)
            if summary is not None:
                figure.add_scatter(
                    x=summary.histogram.centres, y=summary.histogram.density(summary.count), name=label,
                    legendgroup=label, showlegend=row == 1, line={"color": colour, "shape": "hvh"}, row=row, col=1,
                )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(title="share per factor of 10")
    figure.update_layout(height=800)
    return Figure(
        json.loads(figure.to_json()),
        "How the shift is distributed over tokens: share of tokens per factor of ten. Tokens that do not differ at all "
        "have no place on a logarithmic axis; the table says how many there are",
    )


def _norms(measured: Sequence[Measured]) -> Figure:
    """The finetuned side solid, the base dotted."""
    figure = go.Figure()
    for each, colour in zip(measured, cycle(PALETTE), strict=False):
        for side, dash in (("finetuned", "solid"), ("base", "dot")):
            summary = each.summaries[f"norm_{side}"]
            figure.add_scatter(
                x=summary.histogram.centres, y=summary.histogram.density(summary.count),
                name=f"{_label(each, measured)}: {side}", line={"color": colour, "dash": dash, "shape": "hvh"},
            )  # fmt: skip
    figure.update_xaxes(type="log", title="L2 norm of the residual stream")
    figure.update_yaxes(title="share of tokens per factor of 10")
    return Figure(json.loads(figure.to_json()), "Norms of the residual stream of both sides, over tokens")


def _by_layer(measured: Sequence[Measured]) -> Figure:
    """Mean norm of the difference and norm of the mean difference, one colour per corpus."""
    figure = go.Figure()
    corpora = list(dict.fromkeys(each.corpus for each in measured))
    for corpus, colour in zip(corpora, cycle(PALETTE), strict=False):
        own = sorted((each for each in measured if each.corpus == corpus), key=lambda each: each.layer)
        layers = [each.layer for each in own]
        means = [each.summaries["norm_difference"].mean for each in own]
        figure.add_scatter(x=layers, y=means, name=f"{corpus}: mean norm", mode="lines+markers", line={"color": colour})
        figure.add_scatter(
            x=layers, y=[float(each.overall.mean.norm()) for each in own], name=f"{corpus}: norm of the mean",
            mode="lines+markers", line={"color": colour, "dash": "dot"},
        )  # fmt: skip
    figure.update_layout(xaxis_title="layer", yaxis_title="L2 norm of the difference", hovermode="x unified")
    return Figure(
        json.loads(figure.to_json()),
        "How far tokens are moved on average, by layer, and how much of that they share: the norm of their mean",
    )
