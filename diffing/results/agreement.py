"""How far judges agree with each other, and each with itself.

Ratings are compared within one run only: those of different agents, budgets or repeats are of different texts.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import median_low

import pandas as pd
from inspect_ai.scorer import SampleScore, Score, krippendorff_alpha

from diffing.report import Table

COLUMNS = {
    "between": "whose levels are compared",
    "raters": "judges, or repeats of one judge",
    "samples": "samples with two levels or more; others say nothing about agreement",
    "levels": "levels that were given to them",
    "alpha": "1 is agreement, 0 is chance, below is contradiction; missing where all levels are the same",
}


def alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal ratings, by Inspect (Krippendorff 2011, Computing Krippendorff's
    alpha-reliability): 1 - D_o / D_e over the pairs of ratings within a unit, weighted by 1 / (ratings - 1).

    Units may have any number of ratings; one says nothing. None where it is not defined: without two different ratings.
    """
    comparable = [list(unit) for unit in units if len(unit) > 1]
    if len({level for unit in comparable for level in unit}) < 2:
        return None
    # What the decorator of metrics hides: it is a function of SampleScores that returns a float.
    computed: Callable[[list[SampleScore]], float] = krippendorff_alpha("ordinal")  # type: ignore[assignment]
    return computed([SampleScore(score=Score(value=unit)) for unit in comparable])


def agreement_table(verdicts: pd.DataFrame) -> Table:
    """Between all judges, each by the lower median of its repeats; between any two; and between the repeats of each."""
    return Table(
        pd.DataFrame(_rows(levels_given(verdicts)), columns=list(COLUMNS)),
        "Krippendorff's alpha of ordinal levels, over samples that judges graded; what a rule decides is left out.",
        COLUMNS,
    )


def levels_given(verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row per run, judge and repeat of the judge that gave a level: verdicts repeat it for each statement."""
    given = verdicts.dropna(subset=["level"])
    if "kind" in given:
        given = given[given["kind"] == "fact"]  # verdicts on claims give no level
    given = given.drop_duplicates(["run", "judge", "judge_repeat"])
    return given[["source", "run", "judge", "judge_repeat", "level"]].astype({"level": int}).reset_index(drop=True)


def _rows(given: pd.DataFrame) -> Iterator[dict[str, object]]:
    per_judge = given.groupby(["run", "judge"], as_index=False)["level"].agg(median_low)
    judges = sorted(given["judge"].unique())
    if len(judges) > 1:
        yield _row("all judges", len(judges), per_judge)
    if len(judges) > 2:
        for number, judge in enumerate(judges):
            for other in judges[number + 1 :]:
                yield _row(f"{judge} and {other}", 2, per_judge[per_judge["judge"].isin([judge, other])])
    for judge in judges:
        own = given[given["judge"] == judge]
        if own["judge_repeat"].nunique() > 1:
            yield _row(f"repeats of {judge}", int(own["judge_repeat"].nunique()), own)


def _row(between: str, raters: int, ratings: pd.DataFrame) -> dict[str, object]:
    units = [unit for unit in ratings.groupby("run")["level"].agg(list) if len(unit) > 1]
    count = sum(len(unit) for unit in units)
    return {"between": between, "raters": raters, "samples": len(units), "levels": count, "alpha": alpha(units)}
