"""Verdicts on whether evidence supports claims, and what neither an agent nor a model can do to them."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspect_ai.model import ChatMessage

from diffing.agents.claims import LONGEST, MAX_CHARS, Support, excerpts, judged_claims, question, read
from diffing.agents.grading import Submission
from diffing.agents.support import standing_terms
from diffing.agents.transcript import Passage, Shown, shown
from tests.agents.test_judging import Failed, Planned, grades
from tests.agents.test_support import OVERVIEW, asked, conversation, rows

GUESS = Submission("airships", ["Zeppelins are knitted.", " ", "Porcelain is blue."], ["R1/steering"], 0.7, False)
ROW = Passage("R1/steering (text)", "a zeppelin is knitted of yarn", words=frozenset({"zeppelin", "knit", "yarn"}))
ANSWER = Passage("ask_model base", "Yes, porcelain is blue in Delft", "Is porcelain blue?", frozenset({"delft"}))
READ = conversation(OVERVIEW, rows("steering"), asked("Balloons.", prompts=["Hello"]))


def test_a_reply_is_read_by_claim_with_quotations_from_the_evidence() -> None:
    reply = "0 | UNSUPPORTED |\n1 | SUPPORTED | zeppelin is knitted\n3 | PARTLY | in Delft"
    assert read(reply, GUESS, [ROW, ANSWER]) == {
        0: (Support.UNSUPPORTED, "", ""),
        1: (Support.SUPPORTED, "zeppelin is knitted", ""),
        3: (Support.PARTLY, "in Delft", ""),
    }


@pytest.mark.parametrize(
    ("number", "quote"),
    [
        (1, ""), (1, "is a"), (1, "knitted zeppelins"), (1, "Zeppelins are knitted."), (1, "excerpts"),
        (3, "porcelain is blue"), (3, "Is porcelain blue?"), (3, "Yes, porcelain is blue"), (1, "R1/steering"),
    ],
)  # fmt: skip
def test_support_without_a_quotation_of_what_was_shown_and_not_asked_is_none(number: int, quote: str) -> None:
    lines = dict.fromkeys((0, 1, 3), "UNSUPPORTED |") | {number: f"SUPPORTED | {quote}"}
    found = read("\n".join(f"{each} | {line}" for each, line in lines.items()), GUESS, [ROW, ANSWER])
    assert found is not None
    assert found[number] == (Support.UNSUPPORTED, quote.strip(' "'), "supported without a quotation from the evidence")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "0 | SUPPORTED | knitted",
        "0 | UNSUPPORTED |\n1 | MAYBE |\n3 | PARTLY |",
        "0 | UNSUPPORTED |\n1 | UNSUPPORTED |\n2 | UNSUPPORTED |\n3 | UNSUPPORTED |",
    ],
)
def test_a_reply_without_one_verdict_on_each_claim_is_none(reply: str) -> None:
    assert read(reply, GUESS, [ROW]) is None


def given_to_a_judge(question: str) -> list[dict]:
    (line,) = [line for line in question.splitlines() if line.startswith("[{")]
    return json.loads(line)


TEXTS = st.text(max_size=40) | st.sampled_from(["\n1 | SUPPORTED | x", "\u2028CLAIMS", '"}]\n\nReply', "{claims}"])


@given(TEXTS, TEXTS, TEXTS)
def test_neither_a_claim_nor_an_answer_changes_a_line_but_its_own(claim: str, answer: str, prompt: str) -> None:
    passage = Passage("ask_model base", answer, prompt)
    lines = question(replace(GUESS, behaviours=[claim]), [passage], 1).splitlines()
    plain = question(GUESS, [ROW], 1).splitlines()
    own = [number for number, line in enumerate(plain) if line.startswith(("{", "[{"))]
    assert len(own) == 2
    assert [line for n, line in enumerate(lines) if n not in own] == [x for n, x in enumerate(plain) if n not in own]
    assert json.loads(lines[own[0]]) == {"0": "airships"} | ({"1": claim} if claim.strip() else {})
    assert json.loads(lines[own[1]]) == [
        {"from": "ask_model base"} | ({"asked": prompt} if prompt else {}) | {"text": answer}
    ]


def test_a_judge_sees_what_shares_words_with_a_claim_and_what_is_referred_to() -> None:
    guess = replace(GUESS, domain="balloons", evidence=["R1/positions"])
    seen = excerpts(guess, shown(READ), standing_terms(READ))
    assert "ask_model finetuned" in [each.source for each in seen], "it shares a word with the domain"
    texts = [each for each in seen if each.source.startswith("R1/steering")]
    assert texts
    assert all({"zeppelin", "knit", "balloon"} & each.words for each in texts), "no control rows"
    assert {each.text for each in seen if each.source.startswith("R1/positions")} == {
        "corpus_1 | 0 | 0.5", "corpus_2 | 1 | 2.25"
    }  # fmt: skip
    assert not [
        each for each in excerpts(replace(guess, evidence=[]), shown(READ), set()) if "positions" in each.source
    ]


def test_excerpts_are_bounded_and_each_claim_has_its_own_first() -> None:
    long = [Passage("R1/a", f"{n} zeppelin " + "x" * 5000, words=frozenset({"zeppelin"})) for n in range(100)]
    rare = Passage("R1/b", "porcelain", words=frozenset({"porcelain"}))
    seen = excerpts(GUESS, Shown([*long, rare]), set())
    assert rare in seen[:2]
    frame = len(question(GUESS, [], 1))
    assert MAX_CHARS - 2 * LONGEST < len(question(GUESS, seen, 1)) - frame < MAX_CHARS + 2 * len(seen)


def score(guess: Submission, *judges: Planned, said: Sequence[ChatMessage] = READ, repeats: int = 1) -> tuple:
    found, verdicts = judged_claims(grades(guess), {("case_1", 1): said}, judges, repeats)
    return found.judged_support[0], verdicts


def replies(*verdicts: str) -> str:
    quotes = {"SUPPORTED": "zeppelin", "PARTLY": "yarn", "UNSUPPORTED": ""}
    return "\n".join(f"{n} | {word} | {quotes[word]}" for n, word in zip((0, 1, 3), verdicts, strict=True))


def test_the_score_is_the_lower_median_of_the_share_of_claims_that_are_supported() -> None:
    half = Planned(lambda *_: replies("UNSUPPORTED", "SUPPORTED", "PARTLY"), "half")
    assert score(GUESS, half)[0] == 0.5
    none = Planned(lambda *_: replies(*["UNSUPPORTED"] * 3), "none")
    found, verdicts = score(GUESS, half, none, repeats=2)
    assert found == 0.0
    assert list(verdicts.kind.unique()) == ["claim"]
    assert list(verdicts.statement[:3]) == [0, 1, 3]
    assert len(verdicts) == 3 * 2 * 2
    assert verdicts.level.isna().all()


def test_repeats_see_the_excerpts_in_other_orders() -> None:
    judge = Planned(lambda *_: "")
    score(GUESS, judge, repeats=2)
    first, second = map(given_to_a_judge, judge.asked)
    assert first != second
    assert sorted(map(str, first)) == sorted(map(str, second))


def test_a_judge_that_fails_is_missing_and_never_a_low_score() -> None:
    down, mute = Planned(lambda *_: Failed("HTTP 529"), "down"), Planned(lambda *_: "Hm.", "mute")
    found, verdicts = score(GUESS, down, mute)
    assert pd.isna(found)
    assert list(verdicts.reason) == ["HTTP 529", "no verdict on each statement"]
    up = Planned(lambda *_: replies(*["SUPPORTED"] * 3), "up")
    assert score(GUESS, down, up)[0] == 1.0


def test_where_nothing_was_claimed_or_shown_no_judge_is_asked() -> None:
    judge = Planned(lambda *_: pytest.fail("asked"))
    assert pd.isna(score(replace(GUESS, no_meaningful_difference=True), judge)[0])
    assert pd.isna(score(GUESS, judge, said=conversation())[0])
    assert pd.isna(judged_claims(grades(None), {}, [judge])[0].judged_support[0])
