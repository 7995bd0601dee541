"""Figures of the Activation Difference Lens."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

from diffing.methods.activation_difference_lens.reading import SOURCES, Reading
from diffing.methods.activation_difference_lens.relevant import OWN
from diffing.report import PALETTE, Figure, Table

MOST_LINES = 6
"""Readings that are drawn as lines; of more, a map of layers and positions shows the shift."""


def figures(readings: Sequence[Reading], found: Mapping[str, Table]) -> dict[str, Figure]:
    """Those for which there is something to draw."""
    drawn = {"norms": _norms(readings)} if len(readings) <= MOST_LINES else _maps(readings)
    if "coherence" in found:
        drawn["coherence"] = _coherence(found["coherence"])
    if "relevance" in found:
        drawn["relevance"] = _relevance(found["relevance"])
    return drawn


def _figure(figure: go.Figure, about: str) -> Figure:
    return Figure(json.loads(figure.to_json()), about)


def _norms(readings: Sequence[Reading]) -> Figure:
    """Relative shift and consistency by position, one colour per corpus and layer, and the consistency of chance."""
    figure = go.Figure()
    several = len({reading.corpus for reading in readings}) > 1
    for reading, colour in zip(readings, cycle(PALETTE), strict=False):
        means = reading.means
        shift = (means.difference.norm(dim=-1) / means.norm_base).tolist()
        label = f"{reading.corpus}, layer {means.layer}" if several else f"layer {means.layer}"
        x = list(means.positions)
        figure.add_scatter(x=x, y=shift, name=f"{label}: shift", mode="lines+markers", line={"color": colour})
        figure.add_scatter(
            x=x, y=means.consistency.tolist(), name=f"{label}: consistency", mode="lines",
            line={"color": colour, "dash": "dot"},
        )  # fmt: skip
    first = readings[0].means
    chance = first.n_texts.double().rsqrt().tolist()
    figure.add_scatter(
        x=list(first.positions), y=chance, name="consistency by chance", mode="lines",
        line={"dash": "dash", "color": "grey"},
    )  # fmt: skip
    figure.update_layout(xaxis_title="position (token)", yaxis_title="ratio", hovermode="x unified")
    about = "How far the residual stream moved, as a share of its norm, and how alike the shift is over texts"
    return _figure(figure, about)


def _maps(readings: Sequence[Reading]) -> dict[str, Figure]:
    """Relative shift by layer and position, one map per corpus."""
    drawn = {}
    for number, corpus in enumerate(dict.fromkeys(reading.corpus for reading in readings), start=1):
        here = [reading for reading in readings if reading.corpus == corpus]
        figure = go.Figure(
            go.Heatmap(
                z=[(each.means.difference.norm(dim=-1) / each.means.norm_base).tolist() for each in here],
                x=list(here[0].means.positions), y=[f"layer {each.means.layer}" for each in here],
                colorscale="Viridis", zmin=0, colorbar={"title": "ratio"},
            )
        )  # fmt: skip
        figure.update_layout(xaxis_title="position (token)", height=180 + 22 * len(here))
        about = f"How far the residual stream moved on {corpus}, as a share of its norm, by layer and position"
        drawn[f"shift_map_{number}"] = _figure(figure, about)
    return drawn


def _coherence(table: Table) -> Figure:
    """One line per direction, over all prompts."""
    figure = go.Figure()
    for (corpus, layer, position), rows in table.frame.groupby(["corpus", "layer", "position"], sort=False):
        counts = rows.groupby("strength")[["coherent", "incoherent"]].sum()
        share = counts["coherent"] / (counts["coherent"] + counts["incoherent"]).replace(0, float("nan"))
        figure.add_scatter(
            x=share.index.tolist(), y=share.tolist(), mode="lines+markers",
            name=f"{corpus}, layer {layer}, position {position}",
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="strength (mean residual norms)", yaxis_title="share of coherent answers",
        yaxis_range=[-0.03, 1.03], showlegend=True,
    )  # fmt: skip
    return _figure(figure, "How coherent answers are by how strongly the mean difference is added, over all prompts")


def _relevance(table: Table) -> Figure:
    """Bars of the mean over positions, per layer and lens; the sources side by side."""
    frame = table.frame[table.frame["against"] == OWN]
    shares = frame.groupby(["corpus", "layer", "lens", "source"], sort=False)["fraction"].mean()
    figure = go.Figure()
    for source, colour in zip(SOURCES, PALETTE, strict=False):
        mine = shares.xs(source, level="source")
        names = [f"{lens}, layer {layer}<br>{corpus}" for corpus, layer, lens in mine.index]
        figure.add_bar(x=names, y=mine.tolist(), name=source, marker_color=colour)
    figure.update_layout(barmode="group", yaxis_title="share of relevant tokens")
    return _figure(
        figure, "Share of tokens that are relevant to the training data, mean over positions, by what was read"
    )
