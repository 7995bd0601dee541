"""Judges: real clients against a service on this machine that answers, refuses and fails as planned."""

import json
import logging
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.errors import InvalidSetting, MissingInput
from diffing.lenses.judge import Judge, LLMJudge, Reply, Unanswered, ask_twice, last_verdict, quoted
from tests.judge_server import Fails, HangsUp, Says, judge_server, quick_clients

NAME = "openai-api/planned/judge"


@pytest.fixture(autouse=True)
def planned_service(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_clients(monkeypatch)


def ask(plan: Callable, questions: list[str], monkeypatch: pytest.MonkeyPatch, **settings) -> tuple[list, object]:
    with judge_server(plan) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        return LLMJudge(**({"name": NAME, "retries": 0} | settings)).ask(questions), server


@pytest.mark.parametrize("name", [NAME, "anthropic/claude-sonnet-4-0"])
def test_replies_come_in_the_order_of_the_questions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(question: str, before: int) -> Says:
        return Says(question.upper(), seconds=0.1 if question == "a" else 0.0)

    replies, server = ask(plan, ["a", "b", "c"], monkeypatch, name=name)
    assert replies == ["A", "B", "C"]
    assert [request["max_tokens"] for request in server.requests] == [2000] * 3
    if name == NAME:  # Anthropic's interface takes none
        assert [request["temperature"] for request in server.requests] == [0.0] * 3


def test_a_judge_can_be_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with judge_server(lambda question, before: Says(f"{question} {before}", seconds=0.02)) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        judge = LLMJudge(NAME, connections=2)
        rounds = [judge.ask([f"{number}" for number in range(6)]) for _ in range(3)]
    assert rounds == [[f"{number} {before}" for number in range(6)] for before in range(3)]


@pytest.mark.parametrize("stop", ["stop", "length", "content_filter"])
@pytest.mark.parametrize("name", [NAME, "anthropic/claude-sonnet-4-0"])
def test_a_reply_says_what_it_took_whatever_it_is_worth(stop: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (reply,), _ = ask(lambda *_: Says("Yes.", stop, seconds=0.05), ["a"], monkeypatch, name=name)
    assert isinstance(reply, Reply if stop == "stop" else Unanswered)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (1, 1)
    assert reply.seconds is not None
    assert reply.seconds >= 0.05


def test_no_more_questions_are_open_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, server = ask(lambda *_: Says("x", seconds=0.03), [str(n) for n in range(12)], monkeypatch, connections=3)
    assert server.most_at_once == 3


@pytest.mark.parametrize("trouble", [Fails(429), Fails(500), Fails(529), HangsUp()])
def test_trouble_that_passes_is_outlived(trouble: Fails | HangsUp, monkeypatch: pytest.MonkeyPatch) -> None:
    replies, server = ask(lambda _, before: trouble if before < 2 else Says("yes"), ["a"], monkeypatch)
    assert replies == ["yes"]
    assert len(server.asked) == 3


def test_a_longer_outage_takes_further_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(_: str, before: int) -> Fails | Says:
        return Fails(503) if before < 4 else Says("yes")

    assert ask(plan, ["a"], monkeypatch)[0] == [Unanswered("failed (HTTP 503)")]
    assert ask(plan, ["a"], monkeypatch, retries=1)[0] == ["yes"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Fails(429), "failed (HTTP 429)"),
        (Fails(500), "failed (HTTP 500)"),
        (HangsUp(), "failed (APIConnectionError)"),
        (Fails(422), "failed (HTTP 422)"),
        (Says("I cannot", stop="content_filter"), "refused"),
        (Says("VERDICT: 1", stop="length"), "cut off"),
        (Says("  \n"), "empty"),
    ],
)
@pytest.mark.parametrize("name", [NAME, "anthropic/claude-sonnet-4-0"])
def test_what_is_not_answered_says_why_and_loses_nothing_else(
    reply: Says | Fails | HangsUp, reason: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the questions are not answered."""
    questions = [f"question {number}" for number in range(6)]

    def plan(question: str, before: int) -> Says | Fails | HangsUp:
        return reply if int(question[-1]) % 2 else Says(question[-1])

    replies, _ = ask(plan, questions, monkeypatch, name=name)
    assert replies == ["0", Unanswered(reason), "2", Unanswered(reason), "4", Unanswered(reason)]


def test_every_question_is_told_of_once_answered_or_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    with judge_server(lambda question, _: Fails(400) if question == "b" else Says("x")) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        with caplog.at_level(logging.WARNING, "diffing.lenses.judge"):
            LLMJudge(NAME, retries=0).ask(["a", "b", "c"], on_answer=told.append)
    assert sum(told) == 3
    assert "1 of 3 questions unanswered: 1 failed (HTTP 400)" in caplog.text


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_service_that_answers_nobody_is_an_error_and_is_asked_once(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingInput, match="judge=null"):
        ask(lambda *_: Fails(status), ["a", "b"], monkeypatch, retries=3)
    replies, server = ask(lambda question, _: Fails(status) if question == "a" else Says("x"), ["a", "b"], monkeypatch)
    assert isinstance(replies[0], Unanswered)
    assert (replies[1], len(server.asked)) == ("x", 2)


def test_a_judge_without_a_key_or_a_provider_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    for name in ("anthropic/claude-sonnet-4-0", "nobody/knows", "nameless"):
        with pytest.raises(MissingInput, match=name):
            LLMJudge(name).ask(["a"])
    assert LLMJudge("nobody/knows").ask([]) == []
    with pytest.raises(InvalidSetting, match="connections"):
        LLMJudge(NAME, connections=0)


def test_replies_can_be_kept_and_are_then_not_asked_for_again(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    with judge_server(lambda _, before: Says(str(before))) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        kept = [LLMJudge(NAME, cache=True).ask(["a"]) for _ in range(2)]
        fresh = LLMJudge(NAME).ask(["a"])
    assert (kept, fresh) == ([["0"], ["0"]], ["1"])


def test_no_thread_or_connection_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    ask(lambda *_: Says("x"), ["a"] * 3, monkeypatch)
    assert threading.active_count() <= before


class Planned:
    """A judge in this process: replies by question and round."""

    name = "planned"

    def __init__(self, *rounds: dict[str, str | Unanswered]):
        self.rounds, self.asked = rounds, []

    def ask(self, questions, max_tokens=2000, on_answer=lambda answers: None) -> list[str | Unanswered]:
        self.asked.append(list(questions))
        return [self.rounds[len(self.asked) - 1][question[0]] for question in questions]


def test_only_what_cannot_be_read_is_asked_once_more() -> None:
    judge = Planned({"a": "1", "b": "?", "c": Unanswered("refused"), "d": "?"}, {"b": "2", "d": "?"})
    assert isinstance(judge, Judge)
    found = ask_twice(judge, list("abcd"), lambda _, reply: int(reply) if reply.isdigit() else None, " again")
    assert found == [1, 2, Unanswered("refused"), Unanswered("no verdict")]
    assert judge.asked == [["a", "b", "c", "d"], ["b again", "d again"]]


def test_a_verdict_of_zero_is_a_verdict() -> None:
    assert ask_twice(Planned({"a": "0"}), ["a"], lambda _, reply: int(reply), "") == [0]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("VERDICT: 1\nno, wait\nVERDICT: 2", "2"),
        ("so\n**Verdict:** `[1, 2]`.", "[1, 2]"),
        ('> VERDICT : {"a": 1}\n\nThank you.', '{"a": 1}'),
        ("the VERDICT: 1 of old", None),
        ("nothing", None),
    ],
)
def test_the_last_line_with_a_verdict_counts(reply: str, verdict: str | None) -> None:
    assert last_verdict(reply) == verdict


@given(st.text())
def test_a_quoted_text_stays_on_its_line_and_can_be_read_back(text: str) -> None:
    shown = quoted(text)
    assert json.loads(shown) == text
    assert len(shown.splitlines()) == 1
    assert shown.isprintable()
