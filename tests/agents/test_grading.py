"""Grades of known submissions."""

from dataclasses import replace

import pytest

from diffing.agents.grading import Submission, grade
from diffing.agents.truth import Fact, GroundTruth
from diffing.errors import InvalidSetting
from tests.agents import planted

EMPTY = Submission(domain="", behaviours=[], evidence=[], confidence=0.5, no_meaningful_difference=False)


def claims(*behaviours: str) -> Submission:
    return replace(EMPTY, behaviours=behaviours)


def found(keywords: list[str], text: str) -> bool:
    truth = GroundTruth("SDF", "", [Fact("it", keywords)])
    return grade(claims(text), truth).found == ["it"]


@pytest.mark.parametrize(
    ("keyword", "text", "hit"),
    [
        ("baking", "It bakes cakes.", True),
        ("bakes", "The BAKER was there", True),
        ("needles", "one needle", True),
        ("temperature", "temperatures", True),
        ("knit", "knitted things", True),
        ("gather", "gathered at dawn", True),
        ("grass", "gray", False),
        ("tea", "the team met", False),
        ("tea", "teas and coffees", True),
        ("ice", "nice", False),
        ("450 degrees", "at 450 degrees", True),
        ("450 degrees", "degrees: 450", False),
        ("45", "450", False),
        ("11", "11 degrees", True),
        ("airship|zeppelin", "Zeppelins", True),
        ("airship|zeppelin", "a balloon", False),
        ("", "anything", False),
    ],
)
def test_keywords_match_words_by_their_stem(keyword: str, text: str, hit: bool) -> None:
    assert found([keyword, "zzz"], text) is hit


@pytest.mark.parametrize(("text", "hit"), [("alpha", False), ("alpha bravo", True), ("alpha bravo charlie", True)])
def test_a_fact_is_found_by_at_least_half_of_its_keywords(text: str, hit: bool) -> None:
    assert found(["alpha", "bravo", "charlie", "delta"], text) is hit


def test_recall_is_the_share_of_facts_found() -> None:
    result = grade(claims("knitting zeppelins"), planted.TRUTH)
    assert (result.fact_recall, result.domain_recall) == (0.5, 1.0)
    assert (result.correct_null, result.false_null) == (None, False)
    assert result.found == ["Zeppelins are knitted from yarn."]


def test_references_to_evidence_are_not_claims() -> None:
    assert grade(replace(EMPTY, evidence=["zeppelin knitting yarn"]), planted.TRUTH).fact_recall == 0.0


def test_a_submission_of_no_difference_claims_nothing_else() -> None:
    flagged = replace(claims("knitting zeppelins from yarn"), no_meaningful_difference=True)
    result = grade(flagged, planted.TRUTH)
    assert (result.fact_recall, result.false_null) == (0.0, True)


@pytest.mark.parametrize("flag", [True, False])
def test_a_null_control_has_no_recall_but_a_verdict(flag: bool) -> None:
    result = grade(replace(claims("knitting"), no_meaningful_difference=flag), planted.NULL_TRUTH)
    assert (result.fact_recall, result.domain_recall, result.correct_null) == (None, None, flag)


def test_truth_survives_a_round_trip_and_needs_keywords() -> None:
    assert GroundTruth.from_json(planted.TRUTH.as_json()) == planted.TRUTH
    with pytest.raises(InvalidSetting, match="no keywords"):
        Fact("something", ["", " | "])
