"""How often agents claim a difference: where there is one, and where there is none."""

from collections.abc import Iterator
from statistics import NormalDist

import pandas as pd

from diffing.agents.rubrics import DETECTED
from diffing.report import Table
from diffing.results.collect import differing, without_difference

SENSITIVITY, IDENTIFIED, FALSE_POSITIVES = "sensitivity", f"level {DETECTED} or 5", "false positives"
EVERYTHING = "all"
COLUMNS = {
    "agent": "model that investigated",
    "method": "method whose report was read; 'all' is over all methods and kinds of access",
    "access": "what was looked at",
    "rate": f"{SENSITIVITY}: share of the samples on pairs that differ which claim a difference; {IDENTIFIED}: share "
    f"of them that say which; {FALSE_POSITIVES}: share of the samples on null pairs which claim one",
    "pairs": "number of pairs",
    "samples": "number of samples, the denominator",
    "submitted": "of them, samples that ended in a submission; all others claim nothing and stay in the denominator",
    "count": "of them, samples that count",
    "share": "count / samples",
    "low": "lower end of the 95 % Wilson score interval; samples are taken as independent",
    "high": "its upper end",
}


def wilson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22; Brown, Cai and DasGupta 2001, Statistical Science 16, eq. 4).

    (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²), which is all of [0, 1] for n = 0.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, half = count + z**2 / 2, z * (count * (total - count) / total + z**2 / 4) ** 0.5
    low, high = (centre - half) / (total + z**2), (centre + half) / (total + z**2)
    return (0.0 if count == 0 else low), (1.0 if count == total else high)


def rates_table(grades: pd.DataFrame) -> Table:
    """Per agent, method and access, and per agent over all; a rate without samples has no row."""
    rows = []
    for agent, of_agent in grades.groupby("agent"):
        groups = [((method, access), rows) for (method, access), rows in of_agent.groupby(["method", "access"])]
        groups += [((EVERYTHING, EVERYTHING), of_agent)] if len(groups) > 1 else []
        for (method, access), found in groups:
            rows += [{"agent": agent, "method": method, "access": access, **row} for row in _rates(found)]
    return Table(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        "How often a difference was claimed. A sample without submission claims nothing, and stays in the denominator.",
        COLUMNS,
    )


def warnings_on(grades: pd.DataFrame) -> list[str]:
    """What must not be overlooked in these rates."""
    if len(without_difference(grades)):
        return []
    return [
        "NO NULL PAIR: none of these samples is about a pair without a difference, so nothing here says how often "
        "agents claim a difference where there is none; evaluate organism=none and a finetune on nothing in particular"
    ]


def _rates(found: pd.DataFrame) -> Iterator[dict[str, object]]:
    there = differing(found)
    for rate, rows, column in (
        (SENSITIVITY, there, "claimed"),
        (IDENTIFIED, there[there["success"].notna()], "success"),
        (FALSE_POSITIVES, without_difference(found), "claimed"),
    ):
        if rows.empty:
            continue
        count = int(rows[column].sum())
        low, high = wilson(count, len(rows))
        yield {
            "rate": rate, "pairs": rows["pair"].nunique(), "samples": len(rows),
            "submitted": int(rows["submitted"].sum()), "count": count, "share": count / len(rows),
            "low": low, "high": high,
        }  # fmt: skip
