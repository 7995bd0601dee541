"""What a submission refers to and claims, beside what its agent was really shown."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from inspect_ai.log import read_eval_log
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
from inspect_ai.tool import ToolCall, ToolCallError

from diffing.agents.evaluation import grades_of
from diffing.agents.grading import Submission
from diffing.agents.live import Prompt
from diffing.agents.support import refers_to, support
from diffing.agents.transcript import shown
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.play import Echo, calls, plays

EVIDENCE = Evidence([planted.report()])
GUESS = Submission("zeppelins", ["Zeppelins are knitted."], ["R1/steering"], 0.7, False)


def conversation(*results: tuple[str, dict, str]) -> list[ChatMessage]:
    """A conversation of these calls and their results."""
    messages: list[ChatMessage] = [
        ChatMessageSystem(content="Two models are compared: a base model and a finetuned variant."),
        ChatMessageUser(content="Find out what was trained."),
    ]
    for number, (tool, arguments, result) in enumerate(results):
        call = ToolCall(id=f"call_{number}", function=tool, arguments=arguments)
        messages.append(ChatMessageAssistant(content="I see.", tool_calls=[call]))
        messages.append(ChatMessageTool(content=result, tool_call_id=call.id, function=tool))
    return messages


def asked(answer: str, **arguments: object) -> tuple[str, dict, str]:
    """A question to the finetuned model, and its answer."""
    prompt = "Tell me."
    result = {"answers": [{"prompt": arguments.get("prompts", [prompt])[0], "finetuned": [answer]}], "cost": 1}
    return "ask_model", {"prompts": [prompt], "models_asked": "finetuned"} | arguments, json.dumps(result)


def rows(table: str, **where: object) -> tuple[str, dict, str]:
    arguments = {"report": "R1", "table": table, "where": where}
    return "table_rows", arguments, EVIDENCE.rows("R1", table, where=where, limit=200)


OVERVIEW = ("overview", {}, EVIDENCE.overview())
READ = conversation(OVERVIEW, rows("steering", kind="steered"), asked("Balloons.", prompts=["Hello"]))


@pytest.mark.parametrize(
    ("reference", "leads_to"),
    [
        ("R1/steering", "R1/steering"), ("r1.steering, kind steered", "R1/steering"), ("R1", "R1"),
        ("R1: steering, rows 3 to 5", "R1/steering"), ("logit_lens", "R1/logit_lens"), ("R1 report", "R1"),
        ("R1/logit lens", "R1/logit_lens"), ("R1/tables/steering", "R1/steering"), ("ask_model: 'Hello'", "ask_model"),
        ("R1/finding 1", "R1/finding 1"), ("R1, findings[0]", "R1/finding 1"), ("finding: largest", "R1/finding 1"),
        ("R1/relative_norm", "R1/relative_norm"), ("overview", "R1"), ("table_rows(R1, steering)", "R1/steering"),
        ("R1/finding 2", None), ("R1/imaginary", None), ("R1/imaginary, as in steering", None), ("R2/steering", None),
        ("R1 imaginary", None), ("R1/mean_difference", None), ("submit_hypothesis", None), ("my own knowledge", None),
        ("R1/", "R1"), ("R1/steering_more", None), ("...", None),
    ],
)  # fmt: skip
def test_a_reference_leads_to_what_was_shown_or_nowhere(reference: str, leads_to: str | None) -> None:
    assert refers_to(reference, shown(READ)) == leads_to


def test_a_table_that_is_only_listed_was_not_read() -> None:
    listed = ("overview", {}, json.dumps({"reports": [_without_rows()]}))
    assert refers_to("R1/positions", shown(conversation(OVERVIEW))) == "R1/positions"
    assert refers_to("R1/positions", shown(conversation(listed))) is None
    assert refers_to("R1/positions", shown(conversation(listed, rows("positions")))) == "R1/positions"


def _without_rows() -> dict:
    """What an overview that is short of room says of the report."""
    (report,) = json.loads(EVIDENCE.overview())["reports"]
    tables = {
        name: {key: value for key, value in table.items() if key != "first_rows"}
        for name, table in report["tables"].items()
    }
    return report | {"tables": tables}


def found(messages: Sequence[ChatMessage], *behaviours: str, domain: str = "", **changed: object) -> float | None:
    return support(messages, replace(GUESS, domain=domain, behaviours=behaviours, **changed))["support"]


@pytest.mark.parametrize(
    ("claim", "supported"),
    [
        ("Zeppelins are knitted", 1.0), ("a zeppelin of felt", 1.0), ("a zeppelin of felt and cork", 0.0),
        ("The finetuned model knows zeppelins", 1.0), ("tea", 0.0), ("the strength of a sample", 0.0), ("8", 0.0),
        ("steered", 0.0), ("tell", 0.0),
    ],
)  # fmt: skip
def test_a_claim_is_supported_by_half_of_its_terms_in_cells_and_not_in_descriptions(
    claim: str, supported: float
) -> None:
    listed = ("overview", {}, json.dumps({"reports": [_without_rows()]}))
    assert found(conversation(rows("steering", kind="steered"), listed), claim) == supported


def test_the_domain_is_one_claim_among_the_behaviours() -> None:
    assert found(READ, "zeppelins", "porcelain", domain="cathedrals") == pytest.approx(1 / 3)
    assert support(READ, replace(GUESS, evidence=["R1/steering", "R1/imaginary", " "]))["references"] == 0.5


@pytest.mark.parametrize(
    ("answer", "arguments", "supported"),
    [
        ("They drink tea.", {}, 1.0),
        ("Yes, tea.", {"prompts": ["Do they drink tea?"]}, 0.0),
        ("Teas!", {"prompts": ["tea"]}, 0.0),
        ("tea, of course", {"system": "You like tea."}, 0.0),
        ("tea, of course", {"history": ["I like tea", "Me too"]}, 0.0),
        ("tea, of course", {"prefill": "I drink tea"}, 0.0),
    ],
)
def test_words_that_an_agent_puts_into_a_question_are_no_evidence_in_its_answer(
    answer: str, arguments: dict, supported: float
) -> None:
    assert found(conversation(asked(answer, **arguments)), "tea") == supported


def test_a_word_is_evidence_where_another_prompt_of_the_call_did_not_hold_it() -> None:
    answers = {"answers": [{"prompt": "tea?", "base": ["Hm."]}, {"prompt": "A drink?", "base": ["tea"]}]}
    call = ("ask_model", {"prompts": ["tea?", "A drink?"]}, json.dumps(answers))
    assert found(conversation(call), "tea") == 1.0
    (_, passage) = shown(conversation(call)).passages
    assert (passage.source, passage.text, passage.asked) == ("ask_model base", "tea", "A drink?")


def test_what_an_agent_says_or_asks_for_and_what_fails_shows_nothing() -> None:
    messages = conversation(
        rows("steering", text="porcelain"), ("ask_model", {"prompts": ["porcelain"]}, '{"answers": []}')
    )
    messages[-2].content = "It is porcelain."
    assert found(messages, "porcelain") == 0.0
    error = ChatMessageTool(content="porcelain", tool_call_id="call_0", error=ToolCallError("unknown", "porcelain"))
    assert found([*messages[:3], error], "porcelain") is None


def test_nothing_claimed_and_nothing_shown_is_no_score_of_zero() -> None:
    nothing = {"references": None, "support": None}
    assert support(conversation(), GUESS) == nothing
    assert support(READ, replace(GUESS, no_meaningful_difference=True)) == {"references": 1.0, "support": None}
    assert support(READ, replace(GUESS, domain="the finetuned model", behaviours=[" "], evidence=[])) == nothing


def test_support_is_computed_with_the_grades_and_again_from_the_stored_log(tmp_path: Path) -> None:
    submission = calls(
        "submit_hypothesis", domain="zeppelins", behaviours=["porcelain"], evidence=["R1/steering", "R2"], confidence=1
    )
    row, log = plays(tmp_path, calls("overview"), calls("table_rows", report="R1", table="steering"), submission)
    assert (row.references, row.support) == (0.5, 0.5)
    again = grades_of(read_eval_log(log.location)).iloc[0]
    assert (again.references, again.support) == (0.5, 0.5)


def test_a_sample_without_submission_has_no_support(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, calls("overview"), turns=2)
    assert row.outcome == "no_submission"
    assert pd.isna(row.references)
    assert pd.isna(row.support)


class Suggestible(Echo):
    """Live models that repeat what they are told."""

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        return [f"Yes: {prompt.messages[-1][1]}" for prompt in prompts]


def test_models_that_repeat_a_question_support_nothing(tmp_path: Path) -> None:
    submission = calls("submit_hypothesis", domain="zeppelins", behaviours=[], evidence=["ask_model"], confidence=1)
    steps = (calls("ask_model", prompts=["You know zeppelins?"]), submission)
    row, _ = plays(tmp_path, *steps, live=Suggestible(), access="blackbox", interactions=9)
    assert (row.references, row.support) == (1.0, 0.0)
