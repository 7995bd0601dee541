"""Shares with their intervals: closed forms, coverage, and who stays in the denominator."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.results.rates import FALSE_POSITIVES, IDENTIFIED, SENSITIVITY, rates_table, warnings_on, wilson
from tests.results import planted


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 10, (0.0, 0.2775)),  # z^2 / (n + z^2)
        (10, 10, (0.7225, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (4, 16, (0.1018, 0.4950)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, (0.0624, 0.1605)),  # likewise
        (1, 29, (0.0061, 0.1718)),  # likewise
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_intervals_are_those_of_the_tables(count: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson(count, total) == pytest.approx(expected, abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_the_shares_whose_score_test_is_at_its_limit(drawn: tuple[int, int]) -> None:
    count, total = drawn
    low, high = wilson(count, total)
    assert 0 <= low <= count / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(count / total - end) / math.sqrt(end * (1 - end) / total) == pytest.approx(1.959964, rel=1e-5)


def test_wilson_intervals_cover_nominally() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.5):
        covered = [low <= share <= high for low, high in (wilson(int(k), 20) for k in rng.binomial(20, share, 2000))]
        assert 0.92 <= np.mean(covered) <= 0.98


def rate_of(table: pd.DataFrame, method: str, rate: str) -> pd.Series:
    (row,) = [row for _, row in table[(table.method == method) & (table.rate == rate)].iterrows()]
    return row


def test_samples_without_submission_claim_nothing_and_stay_in_every_denominator() -> None:
    rows = []
    for null, claims, nothing, failed in ((False, 5, 1, 2), (True, 1, 3, 4)):
        outcomes = [("submitted", False)] * claims + [("submitted", True)] * nothing + [("error", None)] * failed
        for repeat, (outcome, says_null) in enumerate(outcomes):
            row = planted.graded("case_1", repeat, "kl", 0) | planted.labels("kl", f"null={null}", null)
            level = (
                None if outcome == "error" else 5 if null and says_null else 4 if not says_null and repeat < 2 else 1
            )
            rows.append(row | {"outcome": outcome, "no_meaningful_difference": says_null, "level": level})
    table = rates_table(planted.joined([planted.prepared(planted.Part("x", planted.frame(rows)))]).grades).frame
    sensitivity, found, wrong = (rate_of(table, "kl", each) for each in (SENSITIVITY, IDENTIFIED, FALSE_POSITIVES))
    assert (sensitivity["count"], sensitivity["samples"], sensitivity["submitted"]) == (5, 8, 6)
    assert (found["count"], found["samples"]) == (2, 8)
    assert (wrong["count"], wrong["samples"], wrong["submitted"]) == (1, 8, 4)
    assert (wrong["low"], wrong["high"]) == wilson(1, 8)
    assert len(table) == 3, "one method and access: nothing to sum up"


def test_a_planted_rate_of_false_positives_is_found_and_repeated_blackbox_runs_are_one_condition() -> None:
    study = planted.Study(effects={"kl": 1.0, "pca": 0.0}, nulls=4, repeats=20, false_positives=0.25, organisms=1)
    table = rates_table(planted.collected(study).grades).frame
    wrong = table[table.rate == FALSE_POSITIVES].set_index("method")
    assert list(wrong.index) == ["kl", "no report", "pca", "all"]
    assert ((wrong.low <= 0.25) & (wrong.high >= 0.25)).all()
    assert dict(wrong.samples) == {"kl": 240, "no report": 480, "pca": 240, "all": 960}
    assert set(wrong.pairs) == {4}


def test_a_suite_without_null_pairs_is_said_to_have_none() -> None:
    without, with_one = (planted.collected(planted.Study(organisms=2, nulls=nulls)).grades for nulls in (0, 1))
    assert FALSE_POSITIVES not in set(rates_table(without).frame.rate)
    (warning,) = warnings_on(without)
    assert "NO NULL PAIR" in warning
    assert warnings_on(with_one) == []
