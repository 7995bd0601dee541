"""Conditions by pairs as a heat map, levels as stacked bars, effects and contrasts as points with intervals."""

import json
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from diffing.agents.rubrics import LEVELS
from diffing.html.cells import words
from diffing.report import PALETTE, Figure, Table
from diffing.results.collect import KEYS, NO_REPORT
from diffing.results.tables import NOT_GRADED, WITHOUT, pair_head

ROW_HEIGHT, FRAME_HEIGHT = 30, 170
"""Of horizontal figures (px): so that every row has its label."""
LEVEL_COLOURS = ["#b2182b", "#ef8a62", "#d9c27e", "#67a9cf", "#2166ac"]
OTHER_COLOURS = {WITHOUT: "#7f7f7f", NOT_GRADED: "#c7c7c7"}


def heat_map(cells: pd.DataFrame) -> Figure | None:
    """Mean level by condition and pair; None where nothing was graded."""
    graded = cells[cells["graded"] > 0]
    if graded.empty:
        return None
    labels, heads = condition_labels(graded), [pair_head(cell) for cell in graded.to_dict("records")]
    graded = graded.assign(label=labels, head=heads)
    pairs = graded.sort_values(["null", "pair"])["head"].unique().tolist()
    wide = graded.pivot(index="label", columns="head", values="level")
    wide = wide.loc[list(dict.fromkeys(labels)), pairs]
    values = [[None if pd.isna(value) else float(value) for value in row] for row in wide.to_numpy()]
    figure = go.Figure(go.Heatmap(
        z=values, x=pairs, y=wide.index.tolist(), zmin=1, zmax=5, colorscale="RdBu", xgap=2, ygap=2,
        texttemplate="%{z:.2f}", colorbar={"title": {"text": "level"}},
        hovertemplate="%{y}<br>%{x}: %{z:.2f}<extra></extra>",
    ))  # fmt: skip
    figure.update_layout(height=_height(len(wide)))
    figure.update_yaxes(autorange="reversed")
    return Figure(json.loads(figure.to_json()), "Mean level of the graded samples, 1 to 5, by condition and pair")


def spread_figure(spread: pd.DataFrame) -> Figure | None:
    """Share of each level by condition, failed samples among them."""
    if spread.empty:
        return None
    labelled = spread.assign(label=condition_labels(spread))
    order = list(dict.fromkeys(labelled["label"]))
    colours = dict(zip(map(str, LEVELS), LEVEL_COLOURS, strict=True)) | OTHER_COLOURS
    figure = go.Figure()
    for outcome, colour in colours.items():
        found = labelled[labelled["outcome"] == outcome].set_index("label").reindex(order)
        if found["samples"].notna().any():
            figure.add_bar(
                y=order, x=found["share"].fillna(0).tolist(), name=f"level {outcome}" if outcome.isdigit() else outcome,
                orientation="h", marker={"color": colour}, customdata=found["samples"].fillna(0).tolist(),
                hovertemplate="%{y}: %{customdata} samples",
            )  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title="share of the samples", height=_height(len(order)))
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return Figure(json.loads(figure.to_json()), "Levels reached on pairs that differ, by condition")


def forest(labels: Sequence[str], frame: pd.DataFrame, value: str, unit: str, about: str) -> Figure:
    """Rows of `frame` as points with the interval from `low` to `high`, and a line at zero."""
    figure = go.Figure(go.Scatter(
        x=frame[value].tolist(), y=list(labels), mode="markers", marker={"color": PALETTE[0], "size": 9},
        error_x={
            "type": "data", "symmetric": False, "color": PALETTE[0],
            "array": (frame["high"] - frame[value]).tolist(), "arrayminus": (frame[value] - frame["low"]).tolist(),
        },
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    ))  # fmt: skip
    figure.add_vline(x=0, line={"dash": "dot", "color": "#7f7f7f"})
    figure.update_layout(xaxis_title=unit, height=_height(len(frame)))
    figure.update_yaxes(autorange="reversed", type="category")
    return Figure(json.loads(figure.to_json()), about)


def contrasts_figures(contrasts: pd.DataFrame) -> dict[str, Figure]:
    """One per measure: their units differ."""
    found = {}
    for measure, rows in contrasts.groupby("measure", sort=False):
        several = rows["agent"].nunique() > 1
        labels = [
            f"{row.method}, {row.interactions} interactions" + (f" ({row.agent})" if several else "")
            + ("" if row.trusted else f": {row.organisms} organisms")
            for row in rows.itertuples()
        ]  # fmt: skip
        about = f"What the report adds to {words(measure)}, with 95 % intervals by bootstrap over organisms"
        found[f"contrast_{measure}"] = forest(labels, rows, "difference", f"difference in {words(measure)}", about)
    return found


def effects_figure(effects: Table) -> Figure:
    """The coefficients and spreads of the model; its cutpoints only place the levels."""
    rows = effects.frame[~effects.frame["effect"].str.startswith("cutpoint")]
    about = "Posterior means and 95 % intervals of highest density of the ordinal model"
    return forest(rows["effect"].tolist(), rows, "mean", "log odds of a higher level", about)


def condition_labels(frame: pd.DataFrame) -> list[str]:
    """What tells the conditions of `frame` apart, in words."""
    several = frame["agent"].nunique() > 1
    labels = []
    for agent, method, access, interactions in frame[KEYS].itertuples(index=False, name=None):
        what = "blackbox" if method == NO_REPORT else method if access == "method" else f"{method}, {access}"
        labels.append(f"{what}, {interactions} interactions" + (f" ({agent})" if several else ""))
    return labels


def _height(rows: int) -> int:
    return FRAME_HEIGHT + ROW_HEIGHT * rows
