"""What counts samples counts all of them."""

import math
from typing import Any

import pandas as pd
import pytest

from diffing.agents.summary import cost_in_words, summary

EMPTY = {"fact_recall": None, "domain_recall": None, "correct_null": None, "false_null": None, "level": None}


def row(outcome: str, access: str = "method", interactions: int = 0, **scores: float) -> dict[str, object]:
    return {"outcome": outcome, "access": access, "interactions": interactions, **EMPTY, **scores}


def test_failures_stay_in_the_denominator_of_success_and_out_of_the_means() -> None:
    grades = [row("submitted", level=5, fact_recall=0.5), row("refused"), row("error"), row("submitted", level=2)]
    (found,) = summary(pd.DataFrame(grades)).to_dict("records")
    assert (found["samples"], found["submitted"], found["success"]) == (4, 2, 0.25)
    assert (found["level"], found["fact_recall"]) == (3.5, 0.5)
    assert found["outcomes"] == "2 submitted, 1 refused, 1 error"
    assert math.isnan(found["correct_null"])


def test_each_access_and_budget_is_a_row_in_the_order_of_the_samples() -> None:
    grades = [row("submitted"), row("submitted", interactions=5), row("leaked", "blackbox", 5), row("submitted")]
    found = summary(pd.DataFrame(grades))
    assert list(zip(found.access, found.interactions, found.samples, strict=True)) == [
        ("method", 0, 2), ("method", 5, 1), ("blackbox", 5, 1),
    ]  # fmt: skip


def test_without_levels_there_is_no_success_to_report() -> None:
    found = summary(pd.DataFrame([row("submitted", fact_recall=1.0)]).drop(columns="level"))
    assert "success" not in found
    assert found.fact_recall[0] == pytest.approx(1.0)


def test_costs_are_sums_and_one_that_is_unknown_makes_the_sum_unknown() -> None:
    known: dict[str, Any] = {
        "dollars": 0.5, "input_tokens": 10, "cache_write_tokens": 20, "cache_read_tokens": 70, "output_tokens": 5,
    }  # fmt: skip
    rows = [
        row("submitted", **known, seconds=1.0),
        row("error", **(known | {"cache_read_tokens": 170}), seconds=3.0),
        row("submitted", "blackbox", **(known | {"dollars": math.nan}), seconds=2.0),
        row("not_run", "scripted", **dict.fromkeys(known, 0), seconds=0.0),
    ]
    method, blackbox, scripted = (each for _, each in summary(pd.DataFrame(rows)).iterrows())
    assert method[["dollars", "all_input_tokens", "output_tokens", "seconds"]].tolist() == [1.0, 300.0, 10.0, 2.0]
    assert method.cache_hits == pytest.approx(240 / 300)
    assert cost_in_words(method) == "$1.0000, 300 tokens in (80% from the cache), 10 out, 2.0 s a sample"
    assert math.isnan(blackbox.dollars)
    assert cost_in_words(blackbox).startswith("no known price, 100 tokens in (70% ")
    assert math.isnan(scripted.cache_hits)
    assert cost_in_words(scripted) == "$0.0000, 0 tokens in, 0 out, 0.0 s a sample"
