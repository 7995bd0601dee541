"""Krippendorff's alpha on his own example, and what is a unit."""

import numpy as np
import pandas as pd
import pytest

from diffing.results.agreement import agreement_table, alpha, levels_given
from tests.results import planted

NONE = None
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
"""Four observers, twelve units (Krippendorff 2011, section C); ordinal alpha 0.815."""


def test_alpha_of_the_published_example() -> None:
    units = [[level for level in unit if level is not None] for unit in zip(*PUBLISHED, strict=True)]
    assert alpha(units) == pytest.approx(0.815, abs=5e-4)
    assert alpha([*units, [4], [], [2]]) == alpha(units), "one rating says nothing about agreement"


def test_agreement_is_one_chance_is_zero_and_without_variation_there_is_none() -> None:
    rng = np.random.default_rng(0)
    assert alpha([[1, 1], [3, 3, 3], [5, 5]]) == 1
    assert alpha(rng.integers(1, 6, (4000, 2)).tolist()) == pytest.approx(0, abs=0.05)
    assert alpha([[1, 5], [5, 1]] * 20) < -0.9
    assert alpha([[3, 3], [3, 3]]) is None
    assert alpha([[3], [4]]) is None


def verdicts(levels: dict[tuple[str, str, int], int | None]) -> pd.DataFrame:
    """By run, judge and repeat; each has two statements, and one on a claim, which has no level."""
    rows = []
    for (run, judge, repeat), level in levels.items():
        row = planted.verdict({"sample": run, "repeat": 1}, judge, level, repeat) | {"source": "x", "run": run}
        rows += [row, row | {"statement": 1}, row | {"kind": "claim", "statement": 0, "level": None}]
    return pd.DataFrame(rows).astype({"level": "Int64"})


def test_a_level_counts_once_however_many_statements_it_was_given_for() -> None:
    levels = {("a", "one", 1): 2, ("a", "two", 1): 3, ("b", "one", 1): 5, ("b", "two", 1): 5, ("c", "one", 1): None}
    given = levels_given(verdicts(levels))
    assert len(given) == 4
    (row,) = agreement_table(verdicts(levels)).frame.to_dict("records")
    assert (row["between"], row["raters"], row["samples"], row["levels"]) == ("all judges", 2, 2, 4)
    assert row["alpha"] == pytest.approx(alpha([[2, 3], [5, 5]]))


def test_repeats_of_a_judge_agree_with_themselves_and_never_with_another_run() -> None:
    """Runs of other repeats have the same sample: merged without it, they would be compared crosswise."""
    drawn = np.random.default_rng(1).integers(1, 6, 30)
    levels = {}
    for run, level in enumerate(drawn):
        for repeat in (1, 2, 3):
            levels[f"case/{run}", "steady", repeat] = int(level)
            levels[f"case/{run}", "other", repeat] = 6 - int(level)
    table = agreement_table(verdicts(levels)).frame.set_index("between")
    assert list(table.index) == ["all judges", "repeats of other", "repeats of steady"]
    assert table.alpha["repeats of steady"] == 1
    assert table.alpha["all judges"] < -0.5
    assert (table.samples == 30).all()


def test_more_than_two_judges_are_compared_by_twos_too() -> None:
    levels = {(run, judge, 1): level for run, level in (("a", 1), ("b", 5)) for judge in ("x", "y", "z")}
    assert list(agreement_table(verdicts(levels)).frame.between) == ["all judges", "x and y", "x and z", "y and z"]


def test_judges_of_different_severity_agree_less_than_ones_of_the_same() -> None:
    """The same draws with and without a planted difference between graders."""
    found = [
        planted.collected(planted.Study(graders={"a": -apart, "b": apart}, organism_sd=3.0, seed=5)).verdicts
        for apart in (0.0, 3.0)
    ]
    same, apart = (agreement_table(each).frame.alpha[0] for each in found)
    assert same > apart + 0.2
