"""What a report adds: agents with it against the same agents without, on the same pairs and within the same budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from diffing.agents.task import Access
from diffing.report import Table
from diffing.results.collect import differing

FEWEST_CLUSTERS = 5
"""With fewer organisms there are so few ways to draw them that the percentiles mean little."""
ALL = "all"
MEASURES = ("level", "success", "fact_recall")
COLUMNS = {
    "agent": "model that investigated",
    "method": "method whose report was read",
    "interactions": "budget of both sides; 'all' averages over those that both sides have, each for itself",
    "measure": "level: mean level of graded samples; success: share of all samples that reached level 4; fact_recall: "
    "mean share of the facts that were named",
    "organisms": "number of clusters: organisms with samples on both sides",
    "runs_method": "samples with the report that count",
    "runs_blackbox": "samples without it that count",
    "difference": "with the report - without, averaged over pairs and budgets and then over organisms",
    "low": "lower end of the 95 % percentile interval of the cluster bootstrap",
    "high": "its upper end",
    "trusted": f"whether there are {FEWEST_CLUSTERS} organisms or more; the interval of fewer cannot be trusted",
}
Arms = Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]
"""By organism, for each of its pairs and budgets: values with the report, and values without."""


@dataclass(frozen=True)
class Contrast:
    difference: float
    low: float
    high: float


def contrast(arms: Arms, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Contrast:
    """Mean difference over organisms, with a percentile interval (Efron and Tibshirani 1993, ch. 13) of a two-stage
    cluster bootstrap: organisms are drawn with replacement, and the runs of each drawn one within side, pair and
    budget
    (Davison and Hinkley 1997, section 3.8).
    """
    rng, clusters = np.random.default_rng(seed), len(arms)
    drawn = np.stack([_resampled(pairs, (resamples, clusters), rng) for pairs in arms.values()])
    chosen = rng.integers(clusters, size=(resamples, clusters))
    means = np.take_along_axis(drawn, chosen[None], axis=0)[0].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    observed = [np.mean([with_it.mean() - without.mean() for with_it, without in pairs]) for pairs in arms.values()]
    return Contrast(float(np.mean(observed)), float(low), float(high))


def contrasts_table(grades: pd.DataFrame, resamples: int = 2000) -> Table:
    """One row per agent, method, budget and measure; over pairs that differ."""
    there = differing(grades)
    without = there[there["access"] == Access.BLACKBOX.value]
    rows = []
    for (agent, method), found in there[there["access"] == Access.METHOD.value].groupby(["agent", "method"]):
        same = without[without["agent"] == agent]
        budgets = sorted({*found["interactions"]} & {*same["interactions"]})
        for budget, measure in product([*budgets, *([ALL] if len(budgets) > 1 else [])], MEASURES):
            within = budgets if budget == ALL else [budget]
            with_it, blackbox = (side[side["interactions"].isin(within)] for side in (found, same))
            arms = _arms(with_it, blackbox, measure)
            if arms:
                named = {"agent": agent, "method": method, "interactions": budget, "measure": measure}
                rows.append({**named, **_row(arms, contrast(arms, resamples))})
    return Table(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        "What the report adds to the same agent within the same budget, on the same pairs, all of which differ. "
        "Intervals are by bootstrap over organisms, and over runs within them.",
        COLUMNS,
    )


def warnings_on(table: Table) -> list[str]:
    few = table.frame[~table.frame["trusted"].astype(bool)]
    if few.empty:
        return []
    least, most = few["organisms"].min(), few["organisms"].max()
    counts = str(least) if least == most else f"{least} to {most}"
    return [
        f"TOO FEW ORGANISMS: {len(few)} of {len(table.frame)} contrasts have {counts} organisms on both sides; their "
        f"intervals cannot be trusted below {FEWEST_CLUSTERS}"
    ]


def _row(arms: Arms, found: Contrast) -> dict[str, object]:
    sizes = [(len(one), len(other)) for pairs in arms.values() for one, other in pairs]
    return {
        "organisms": len(arms),
        "runs_method": sum(one for one, _ in sizes),
        "runs_blackbox": sum(other for _, other in sizes),
        "difference": found.difference, "low": found.low, "high": found.high,
        "trusted": len(arms) >= FEWEST_CLUSTERS,
    }  # fmt: skip


def _arms(with_it: pd.DataFrame, without: pd.DataFrame, measure: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Pairs and budgets that have values on both sides."""
    place = ["organism", "pair", "interactions"]
    sides = [
        {key: rows[measure].astype(float).to_numpy() for key, rows in side[side[measure].notna()].groupby(place)}
        for side in (with_it, without)
    ]
    arms: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for key in sides[0]:
        if key in sides[1]:
            arms.setdefault(key[0], []).append((sides[0][key], sides[1][key]))
    return dict(sorted(arms.items()))


def _resampled(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Differences of one organism, its runs drawn anew for each entry of `shape`."""
    total = np.zeros(shape)
    for pair in pairs:
        means = [side[rng.integers(len(side), size=(*shape, len(side)))].mean(axis=-1) for side in pair]
        total += means[0] - means[1]
    return total / len(pairs)
