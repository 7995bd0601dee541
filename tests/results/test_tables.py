"""Cells, levels and costs count failed samples, and what is unknown stays unknown."""

import pandas as pd
import pytest

from diffing.results.collect import Part, joined, prepared
from diffing.results.tables import cells_table, costs_table, matrix_table, spread_table
from tests.results import planted

KL = planted.labels("kl", "tea", null=False)
NULL = planted.labels("kl", "none", null=True)


def grades(*rows: dict[str, object], drop: tuple[str, ...] = ()) -> pd.DataFrame:
    made = [planted.graded("case_1", number, "kl", 0) | KL | row for number, row in enumerate(rows)]
    return joined([prepared(Part("x", planted.frame(made).drop(columns=list(drop))))]).grades


def test_failed_samples_are_attempts_without_level_and_ungraded_ones_are_not_attempts() -> None:
    """A judge that failed says nothing about success; an agent that failed did not succeed."""
    found = grades({"level": 5}, {"level": 2}, {"outcome": "refused"}, {"outcome": "error"}, {"level": None})
    (cell,) = cells_table(found).frame.to_dict("records")
    assert (cell["samples"], cell["submitted"], cell["graded"]) == (5, 3, 2)
    assert (cell["level"], cell["successes"], cell["attempts"]) == (3.5, 1, 4)
    assert matrix_table(cells_table(found).frame).frame["tea"].tolist() == ["3.50 (1/4)"]


def test_without_judges_a_cell_has_the_recall_of_facts_and_a_null_the_share_that_calls_it_one() -> None:
    null = NULL | {"level": None}
    rows = [{"fact_recall": 0.5}, {"fact_recall": 1.0}, {"outcome": "error"}, null | {"correct_null": True}]
    made = [planted.graded("case_1", number, "kl", 0) | KL | row for number, row in enumerate(rows)]
    without_level = pd.DataFrame(made).drop(columns="level")
    found = joined([prepared(Part("x", without_level))]).grades
    assert found.success.isna().all(), "nobody was to give a level, so nothing failed to reach one"
    (row,) = matrix_table(cells_table(found).frame).frame.to_dict("records")
    assert row["tea"] == "recall 0.75 (2/3)"
    assert row["none (null)"] == "called null 1.00 (1/1)"


def test_blackbox_samples_beside_any_method_are_one_row() -> None:
    study = planted.Study(effects={"kl": 0.0, "pca": 0.0}, organisms=2, budgets=(5,), repeats=3)
    wide = matrix_table(cells_table(planted.collected(study).grades).frame).frame
    assert list(zip(wide.method, wide.access, strict=True)) == [
        ("kl", "method"), ("no report", "blackbox"), ("pca", "method")
    ]  # fmt: skip
    assert list(wide.columns[4:]) == ["organism0", "organism1", "organism2 (null)"]
    assert all(text.endswith("/6)") for text in wide[wide.access == "blackbox"].iloc[0, 4:])


def test_levels_and_failures_of_a_condition_sum_to_all_of_its_samples_on_pairs_that_differ() -> None:
    found = grades({"level": 4}, {"level": 4}, {"outcome": "leaked"}, {}, NULL | {"level": 5})
    spread = spread_table(found).frame.set_index("outcome")
    assert dict(spread.samples) == {"4": 2, "no submission": 1, "not graded": 1}
    assert spread.share.sum() == pytest.approx(1)


def test_failed_attempts_are_paid_for() -> None:
    found = grades({"level": 5}, {"level": 1}, {"outcome": "error", "dollars": 1.0}, {"level": 4}, NULL | {"level": 5})
    (row,) = costs_table(found, pd.DataFrame()).frame.to_dict("records")
    assert (row["samples"], row["detections"], row["unpriced"]) == (5, 2, 0)
    assert (row["dollars"], row["dollars_per_sample"]) == (2.0, 0.4)
    assert row["dollars_per_detection"] == (3 * 0.25 + 1.0) / 2, "null pairs have nothing to detect"
    assert (row["tokens_per_sample"], row["seconds_per_detection"]) == (1110, 4.0)


@pytest.mark.parametrize("rows", [[{"level": 5, "dollars": None}, {"level": 5}], [{"level": 5, "dollars": None}]])
def test_what_has_no_price_is_missing_and_never_zero(rows: list[dict[str, object]]) -> None:
    (row,) = costs_table(grades(*rows), pd.DataFrame()).frame.to_dict("records")
    assert row["unpriced"] == 1
    assert pd.isna([row[name] for name in ("dollars", "dollars_per_sample", "dollars_per_detection")]).all()
    assert row["tokens_per_detection"] == 1110
    (row,) = costs_table(grades({"output_tokens": None, "level": 5}), pd.DataFrame()).frame.to_dict("records")
    assert pd.isna(row["tokens_per_sample"]), "a service that does not count is not free"


def test_without_success_or_grades_there_is_no_price_of_one() -> None:
    (row,) = costs_table(grades({"level": 1}), pd.DataFrame()).frame.to_dict("records")
    assert (row["detections"], pd.isna(row["dollars_per_detection"])) == (0, True)
    (row,) = costs_table(grades({}, drop=("level",)), pd.DataFrame()).frame.to_dict("records")
    assert pd.isna(row["detections"])
    (row,) = costs_table(grades({}, drop=("dollars",)), pd.DataFrame()).frame.to_dict("records")
    assert pd.isna(row["dollars"])


def test_judges_cost_what_the_first_row_of_each_reply_says() -> None:
    rows = []
    for judge, dollars in (("one", 0.5), ("two", 0.25)):
        row = planted.verdict({"sample": "case_1", "repeat": 0}, judge, 4)
        rows += [row | {"dollars": dollars}, row | {"statement": 1, "dollars": None}]
        rows += [row | {"kind": "claim", "dollars": 0.125}]
    for last, expected in ((rows, 1.0), ([*rows, {**rows[0], "judge": "free", "dollars": None}], None)):
        made = planted.frame([planted.graded("case_1", 0, "kl", 0) | KL | {"level": 4}])
        found = joined([prepared(Part("x", made, pd.DataFrame(last)))])
        (row,) = costs_table(found.grades, found.verdicts).frame.to_dict("records")
        assert row["judge_dollars"] == expected or (expected is None and pd.isna(row["judge_dollars"]))
