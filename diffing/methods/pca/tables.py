"""How the PCA lays out its results: tables with their descriptions, figure and findings."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go
import torch
from transformers import PreTrainedTokenizerBase

from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.learners.pca import PCA
from diffing.lenses import examples as max_activating
from diffing.lenses import readouts, steering
from diffing.lenses.examples import Examples
from diffing.lenses.readouts import BASE_MEAN, RANDOM, listed, own_tokens, read_as
from diffing.report import PALETTE, Figure, Finding, Table

MEAN = "mean"
ALL = "all"
HEAVY_TAIL = 100
"""Kurtosis from which a component is said to be carried by few tokens."""
_LAYER = {"layer": "decoder block, absolute, counted from 0"}
_WHERE = {
    "corpus": "corpus whose mean it is; all: fitted to all of them",
    **_LAYER,
    "vector": "what was read: the mean of the analysed stream, either end of a component, or a control (the base's own "
    "mean activation, a random direction)",
}


def component(number: int, sign: int) -> str:
    """Name of one end of a component."""
    return f"component {number} {'+' if sign > 0 else '-'}"


def mean_table(caches: Sequence[ActivationCache], layers: Sequence[int], target: Stream) -> Table:
    rows = []
    for cache in caches:
        for layer in layers:
            analysed, base = cache.moments(target, layer), cache.moments(Stream.BASE, layer)
            mean, variance = float(analysed.mean.norm()), float(analysed.variance.sum())
            mean_square = mean**2 + variance
            rows.append(
                {
                    "corpus": cache.corpus,
                    "layer": layer,
                    "rows": analysed.count,
                    "documents": cache.base.n_documents,
                    "mean_norm": mean,
                    "rms_norm": analysed.rms_norm,
                    "relative_norm": analysed.rms_norm / base.rms_norm,
                    "mean_share": mean**2 / mean_square if mean_square else 0.0,
                    "mean_share_by_chance": variance / mean_square / cache.base.n_documents if mean_square else 0.0,
                }
            )
    return Table(
        pd.DataFrame(rows),
        f"How large the {target} is, and how much of it is its mean",
        {
            "corpus": "corpus whose tokens were read",
            **_LAYER,
            "rows": "tokens",
            "documents": "documents they come from",
            "mean_norm": f"L2 norm of the mean {target} (residual stream units)",
            "rms_norm": f"root mean square of the L2 norm of the {target} (residual stream units)",
            "relative_norm": "rms_norm over that of the base's residual stream (ratio)",
            "mean_share": "share of the mean square that is the mean's: 1 if all tokens are alike, and what centring "
            "hides (ratio)",
            "mean_share_by_chance": "what mean_share would be if documents were alike inside and unrelated to each "
            "other (ratio)",
        },
    )


def component_table(fitted: Sequence[tuple[int, PCA, Sequence[tuple[float, float]], Sequence[float]]]) -> Table:
    """One row per component. Of those that were read: the lengths of both ends, and the kurtosis."""
    rows = []
    for layer, pca, ends, kurtosis in fitted:
        shares = pca.variances / pca.total_variance
        mean = torch.nn.functional.normalize(pca.mean, dim=0)
        mean_square = float(pca.total_variance) + float(pca.mean.double().square().sum())
        for number, share in enumerate(shares.tolist()):
            largest, smallest = ends[number] if number < len(ends) else (math.nan, math.nan)
            rows.append(
                {
                    "layer": layer,
                    "component": number,
                    "variance": float(pca.variances[number]),
                    "share": share,
                    "cumulative": float(shares[: number + 1].sum()),
                    "share_with_mean": float(pca.variances[number]) / mean_square,
                    "cosine_to_mean": float(pca.components[number] @ mean),
                    "largest": largest,
                    "smallest": -smallest,
                    "kurtosis": kurtosis[number] if number < len(kurtosis) else math.nan,
                }
            )
    return Table(
        pd.DataFrame(rows),
        "Principal components, largest variance first",
        _LAYER
        | {
            "component": "number of the component, counted from 0",
            "variance": "variance of the projections (residual stream units, squared)",
            "share": "share of the variance about the mean (ratio)",
            "cumulative": "share of this component and all before it (ratio)",
            "share_with_mean": "variance over the mean square, which the mean is part of (ratio)",
            "cosine_to_mean": "cosine between the component and the mean over all corpora (-1 to 1)",
            "largest": "largest projection, less the mean (residual stream units; components that were read)",
            "smallest": "smallest projection, less the mean (residual stream units; components that were read)",
            "kurtosis": "mean fourth power of the projections over their squared variance: 3 if they are normal, "
            "hundreds or more if a few tokens carry the component (components that were read)",
        },
    )


def logit_lens_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Logit lens: tokens that each direction promotes and suppresses when read by the model's own head"
    group = ("vector", "direction", "layer", "corpus")
    return readouts.logit_lens_table(rows, about, _WHERE, group)


def patchscope_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Token-identity patchscope: tokens the model reads in each direction when it stands in for a word"
    return readouts.patchscope_table(
        rows, about, _WHERE, ("vector", "scale", "layer", "corpus"), "root mean square norms of the residual stream"
    )


def example_table(
    found: Mapping[int, Mapping[str, Examples]], tokenizer: PreTrainedTokenizerBase, read: int, target: Stream
) -> Table:
    """Windows of every layer in one table."""
    names = [MEAN, *(f"component {number}" for number in range(read))]
    return max_activating.stacked(
        [
            max_activating.example_table(
                examples,
                tokenizer,
                "Texts on which each direction is largest and smallest, with the projection of every token",
                labels={"layer": [layer] * len(names), "vector": names},
                columns=_LAYER | {"vector": "direction projected on: of the mean, or of a component"},
                unit=f"projection of the {target} (of a component: less the mean; residual stream units)",
            )
            for layer, examples in found.items()
        ]
    )


def steering_table(rows: Sequence[Mapping[str, object]]) -> Table:
    return steering.steering_table(
        rows,
        "Answers of the finetuned model, unsteered, with a direction added, and with a random direction of its length",
        _LAYER,
        direction="what steered the answers: the mean or one end of a component",
        strength="length of the added vector, in units of the largest projection met in the direction",
    )


def mean_findings(measured: Mapping[str, Table], target: Stream) -> list[Finding]:
    """Per layer and corpus: how large the mean is, and what is read of it alone."""
    found = []
    lens = measured["logit_lens"].frame
    for row in measured["means"].frame.itertuples():
        if row.layer not in set(lens["layer"]):
            continue
        read = {
            name: _own(measured[name].frame, int(row.layer), MEAN, str(row.corpus))
            for name in ("logit_lens", "patchscope")
        }
        words = read_as({name: own["token"] for name, own in read.items()})
        found.append(
            Finding(
                f"On {row.corpus}, layer {row.layer}, the {target} has {row.relative_norm:.1%} of the size of the "
                f"base's activations; its mean over tokens holds {row.mean_share:.1%} of it "
                f"({row.mean_share_by_chance:.2%} by chance). Of that mean, {words}.",
                "logit_lens",
                [int(index) for index in read["logit_lens"].index],
            )
        )
    return found


def component_findings(measured: Mapping[str, Table], read: int) -> list[Finding]:
    """Per layer and component that was read: its share, how many tokens carry it, and what is read of it alone."""
    found = []
    frame = measured["components"].frame
    for row in frame[frame["component"] < read].itertuples():
        ends = {
            sign: _own(measured["logit_lens"].frame, int(row.layer), component(int(row.component), sign), ALL)
            for sign in (1, -1)
        }
        words = "; ".join(
            f"at its {'+' if sign > 0 else '-'} end {listed(own['token'].head(6))}" for sign, own in ends.items()
        )
        carried = f", and few tokens carry it (kurtosis {row.kurtosis:.0f})" if row.kurtosis > HEAVY_TAIL else ""
        found.append(
            Finding(
                f"Component {row.component} of layer {row.layer} explains {row.share:.1%} of the variance{carried}. "
                f"The logit lens reads {words}.",
                "components",
                [int(row.Index)],
            )
        )
    return found


def _own(frame: pd.DataFrame, layer: int, vector: str, corpus: str) -> pd.DataFrame:
    here = frame["layer"] == layer
    mine = here & (frame["vector"] == vector) & (frame["corpus"] == corpus)
    return own_tokens(frame, mine, here & frame["vector"].isin([BASE_MEAN, RANDOM]), most=12)


def scree_figure(fitted: Sequence[tuple[int, PCA]]) -> Figure:
    """Share of the variance per component, one colour per layer, and what it would be if all had the same."""
    figure = go.Figure()
    for (layer, pca), colour in zip(fitted, cycle(PALETTE), strict=False):
        shares = pca.variances / pca.total_variance
        figure.add_scatter(
            y=shares.tolist(), name=f"layer {layer}: share", mode="lines+markers", line={"color": colour}
        )
        figure.add_scatter(
            y=shares.cumsum(0).tolist(), name=f"layer {layer}: cumulative", line={"color": colour, "dash": "dot"}
        )
    flat = [1 / pca.recipe.d_model for _, pca in fitted[:1] for _ in pca.variances]
    figure.add_scatter(y=flat, name="if all directions varied alike", line={"color": "grey", "dash": "dash"})
    figure.update_layout(xaxis_title="component", yaxis_title="share of the variance", hovermode="x unified")
    figure.update_yaxes(type="log")
    return Figure(json.loads(figure.to_json()), "How much of the variance each principal component explains")
