"""Figures of a dictionary: where its latents are, and how much of the output's change they carry."""

import json
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from diffing.methods.base_dictionary import rules
from diffing.methods.base_dictionary.bridging import RANDOM
from diffing.methods.base_dictionary.reading import Latents, Reading
from diffing.methods.base_dictionary.trainings import histories
from diffing.report import PALETTE, Figure

MOST_POINTS = 5000
"""Of a scatter, per layer; more are thinned at random."""
_NU_RANGE = (-0.5, 1.5)


def figures(measured: Sequence[Latents], readings: Sequence[Reading]) -> dict[str, Figure]:
    """Those that this kind of dictionary has, and the bridge where it was measured."""
    if not measured:
        return {}
    found = {"scatter": _scatter(measured)}
    if rules.paired(measured[0].statistics):
        found["delta_histogram"] = _delta_histogram(measured)
    else:
        found["nu_histogram"] = _nu_histogram(measured)
    if readings:
        found["bridge"] = _bridge(readings)
    if histories(measured):
        found["training"] = _training(measured)
    return found


def _delta_histogram(measured: Sequence[Latents]) -> Figure:
    return _histogram(
        [(latents.layer, _alive(latents, latents.statistics.delta)) for latents in measured],
        (0.0, 1.0),
        "delta: 0 base only, 1/2 in both, 1 finetuned only",
        "Where the decoder norm of each latent that is not dead is",
    )


def _nu_histogram(measured: Sequence[Latents]) -> Figure:
    return _histogram(
        [(latents.layer, _alive(latents, rules.nu(latents.statistics))) for latents in measured],
        _NU_RANGE,
        "nu: 0 finetuned only, 1 alike on both sides",
        "How much of each latent's direction the base's activations hold, relative to the finetuned side's "
        f"(latents that are not dead; those beyond {_NU_RANGE} are in the outermost bins)",
    )


def _histogram(
    values: Sequence[tuple[int, Float[Tensor, " _"]]], span: tuple[float, float], axis: str, about: str
) -> Figure:
    figure = go.Figure()
    for (layer, found), colour in zip(values, cycle(PALETTE), strict=False):
        counts, edges = np.histogram(found[~found.isnan()].clamp(*span).numpy(), bins=50, range=span)
        figure.add_bar(
            x=((edges[1:] + edges[:-1]) / 2).tolist(), y=counts.tolist(), name=f"layer {layer}", marker_color=colour
        )
    figure.update_layout(xaxis_title=axis, yaxis_title="latents", barmode="overlay", bargap=0)
    figure.update_traces(opacity=0.7)
    return _figure(figure, about)


def _scatter(measured: Sequence[Latents]) -> Figure:
    """delta by nu if the latents have two directions, else mean length by nu; coloured by frequency."""
    paired = rules.paired(measured[0].statistics)
    figure = go.Figure()
    for number, latents in enumerate(measured):
        found = latents.statistics
        keep = (~found.dead & ~rules.nu(found).isnan()).nonzero()[:, 0]
        if len(keep) > MOST_POINTS:
            drawn = torch.randperm(len(keep), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]
            keep = keep[drawn.sort().values]
        across = found.delta if paired else latents.mean_length.double()
        figure.add_scatter(
            x=across[keep].tolist(),
            y=rules.nu(found)[keep].clamp(*_NU_RANGE).tolist(),
            text=[f"latent {latent}" for latent in keep.tolist()],
            mode="markers",
            name=f"layer {latents.layer}",
            marker={
                "symbol": ("circle", "diamond", "square", "cross")[number % 4],
                "size": 5,
                "color": found.frequency[keep].log10().tolist(),
                "coloraxis": "coloraxis",
            },
        )
    across_title = "delta" if paired else "mean length (residual stream units)"
    figure.update_layout(
        xaxis_title=across_title,
        yaxis_title="nu",
        coloraxis={"colorscale": "Viridis", "colorbar": {"title": "log10 frequency"}},
    )
    if not paired:
        figure.update_xaxes(type="log")
    return _figure(
        figure,
        f"{across_title} and nu of the latents that are not dead, coloured by frequency (nu beyond {_NU_RANGE} at the "
        f"edge; at most {MOST_POINTS} latents a layer)",
    )


def _bridge(readings: Sequence[Reading]) -> Figure:
    figure = go.Figure()
    for reading in readings:
        bridge = reading.bridge
        for (order, curve), colour in zip(bridge.curves.items(), cycle(PALETTE), strict=False):
            control = order.startswith(RANDOM)
            figure.add_scatter(
                x=list(curve),
                y=[effect.kl for effect in curve.values()],
                name=f"layer {reading.layer}: {order}",
                legendgroup=f"layer {reading.layer}",
                line={"color": "grey" if control else colour, "dash": "dot" if control else "solid"},
                mode="lines+markers",
            )
        for name, dash in (("nothing", "dash"), ("constant", "dashdot"), ("reconstruction", "longdash")):
            figure.add_hline(
                y=bridge.controls[name].kl,
                line_dash=dash,
                line_color="grey",
                annotation_text=f"{reading.layer}: {name}",
            )
    figure.update_layout(xaxis_title="latents added", yaxis_title="KL to the finetuned model (nats per token)")
    figure.update_xaxes(type="log")
    return _figure(figure, "KL to the finetuned model's output as latents are added to the base's activations")


def _training(measured: Sequence[Latents]) -> Figure:
    """One above the other: the loss, the variance explained, the share of dead latents. One colour per layer."""
    panels = {"loss": "loss", "fve": "variance explained", "dead": "share of dead latents"}
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.04)
    for (layer, logged), colour in zip(histories(measured).items(), cycle(PALETTE), strict=False):
        for row, start in enumerate(panels, 1):
            drawn = [name for name in logged.columns if name.split("_")[0] == start]
            for name, dash in zip(drawn, ("solid", "dot"), strict=False):
                figure.add_scatter(
                    x=logged["step"].tolist(), y=logged[name].tolist(), row=row, col=1, mode="lines",
                    line={"color": colour, "dash": dash}, legendgroup=f"layer {layer}", showlegend=row == 2,
                    name=" ".join([f"layer {layer}", *name.split("_")[1:]]),
                )  # fmt: skip
    for row, title in enumerate(panels.values(), 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_yaxes(rangemode="nonnegative", row=len(panels), col=1)  # a share; all zeros would be drawn mid-way
    figure.update_xaxes(title_text="step", row=len(panels), col=1)
    figure.update_layout(height=640)
    return _figure(
        figure,
        "How the training of each layer's dictionary went: the loss (1: as bad as predicting the mean), the share of "
        "the variance explained of what is named, and the share of latents that count as dead",
    )


def _alive(latents: Latents, values: Float[Tensor, " latent"]) -> Float[Tensor, " alive"]:
    return values[~latents.statistics.dead]


def _figure(figure: go.Figure, about: str) -> Figure:
    return Figure(json.loads(figure.to_json()), about)
