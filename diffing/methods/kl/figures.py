"""Figures of the KL divergence: how its values are spread, and where in the text they are."""

import json
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go

from diffing.methods.kl.measured import Measured
from diffing.report import PALETTE, Figure, Table

BINS_PER_DECADE = 10
LOWEST = 1e-7
"""Smaller values are shown in the first bin: float32 logits do not tell them from 0."""


def figures(measured: Sequence[Measured], by_position: Table) -> dict[str, Figure]:
    return {"distribution": distribution_figure(measured), "by_position": position_figure(measured, by_position)}


def distribution_figure(measured: Sequence[Measured]) -> Figure:
    """Share of the tokens per bin of the logarithm, one colour per corpus, and the means."""
    figure = go.Figure()
    highest = max(float(each.main.max()) for each in measured)
    n_bins = max(1, int(np.ceil((np.log10(max(highest, LOWEST)) - np.log10(LOWEST)) * BINS_PER_DECADE)))
    edges = np.log10(LOWEST) + np.arange(n_bins + 1) / BINS_PER_DECADE
    for each, colour in zip(measured, cycle(PALETTE), strict=False):
        counts, _ = np.histogram(np.log10(each.main.clip(LOWEST, 10 ** edges[-1])), edges)
        figure.add_scatter(
            x=(10 ** ((edges[:-1] + edges[1:]) / 2)).tolist(), y=(counts / counts.sum()).tolist(), name=each.corpus,
            mode="lines", line={"color": colour, "shape": "hvh"},
        )  # fmt: skip
        if each.mean > 0:
            figure.add_vline(x=each.mean, line={"color": colour, "dash": "dot"})
    formula = measured[0].kinds[0].formula
    figure.update_layout(xaxis_title=f"{formula} (nats)", yaxis_title="share of the tokens", hovermode="x unified")
    figure.update_xaxes(type="log")
    return Figure(
        json.loads(figure.to_json()),
        f"How {formula} is spread over the tokens of each corpus, {BINS_PER_DECADE} bins to a factor of ten; values "
        f"below {LOWEST:g} are in the first bin, dotted lines are means",
    )


def position_figure(measured: Sequence[Measured], by_position: Table) -> Figure:
    """Mean by position, one colour per corpus."""
    figure = go.Figure()
    for each, colour in zip(measured, cycle(PALETTE), strict=False):
        rows = by_position.frame[by_position.frame["corpus"] == each.corpus]
        figure.add_scatter(
            x=((rows["position"] + rows["last"]) / 2).tolist(), y=rows["mean"].tolist(), name=each.corpus,
            mode="lines+markers", line={"color": colour}, customdata=rows["tokens"].tolist(),
            hovertemplate="%{y:.4g} nats, %{customdata} tokens",
        )  # fmt: skip
    formula = measured[0].kinds[0].formula
    figure.update_layout(
        xaxis_title="position within the text (token)", yaxis_title=f"mean {formula} (nats)", hovermode="x unified"
    )
    return Figure(json.loads(figure.to_json()), f"Mean {formula} by position; far positions share a point")
