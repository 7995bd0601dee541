"""Tools that methods declare: what agents read of them, what they cost, and that nothing leaks through them."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.agents.declared import TAKEN
from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.interactions import MAX_CHARS
from diffing.agents.task import Case
from diffing.blinding import Leak
from diffing.errors import InvalidSetting
from diffing.evidence import Evidence
from diffing.live_tools import LiveTool
from diffing.specs import JSON
from tests.agents import planted
from tests.agents.play import PLAYS, SUBMISSION, Echo, Step, calls, model_events, plays, said_to_the_model, says
from tests.agents.test_directions import STEERABLE, Pliable


def count_words(texts: list[str], least: int = 1) -> JSON:
    """Count the words of texts. Costs one interaction per text.

    Args:
        texts: Texts of yours.
        least: Letters that a word must have.
    """
    return {text: sum(len(word) >= least for word in text.split()) for text in texts}


def cost(texts: Sequence[str], least: int) -> int:
    if least < 1:
        raise InvalidSetting("least of OutbackLab/Quokka-3-2B-it must be 1 or more")
    return len(texts)


COUNT = LiveTool("count_words", count_words, cost)


def saying(answer: Callable[[], JSON], price: int = 1) -> LiveTool:
    def say() -> JSON:
        """Say something."""
        return answer()

    return LiveTool("say", say, lambda: price)


def last_result(folder: Path, declared: LiveTool, interactions: int = 5, **arguments: object) -> tuple[Any, int, str]:
    """The result of a call (an error as its text), the interactions that were used, and all that the agent read."""
    seen: list[ChatMessageTool] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        assert isinstance(messages[-1], ChatMessageTool)
        seen.append(messages[-1])
        return SUBMISSION(messages)

    row, log = plays(
        folder, calls(declared.name, **arguments), look, live=Echo(), interactions=interactions, tools=[declared]
    )
    assert row.outcome == "submitted", row.detail
    result = seen[0].error.message if seen[0].error else json.loads(seen[0].text)
    return result, int(row.interactions_used), said_to_the_model(log)


def test_a_declared_tool_does_its_work_for_what_it_costs(tmp_path: Path) -> None:
    result, used, _ = last_result(tmp_path, COUNT, texts=["a bb", "cc dd"], least=2)
    assert result == {"result": {"a bb": 1, "cc dd": 2}, "cost": 2, "interactions_left": 3}
    assert used == 2


def test_arguments_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    result, _, _ = last_result(tmp_path, COUNT, texts=["a bb"])
    assert result["result"] == {"a bb": 2}


def test_agents_read_its_docstring_and_annotations(tmp_path: Path) -> None:
    _, log = plays(tmp_path, says("Hm."), SUBMISSION, live=Echo(), interactions=5, tools=[COUNT])
    (read,) = [tool for tool in model_events(log)[0].tools if tool.name == "count_words"]
    assert read.description == "Count the words of texts. Costs one interaction per text."
    texts, least = read.parameters.properties["texts"], read.parameters.properties["least"]
    assert (texts.type, texts.items.type if texts.items else None) == ("array", "string")
    assert (texts.description, least.type) == ("Texts of yours.", "integer")
    assert read.parameters.required == ["texts"]


@pytest.mark.parametrize(("access", "interactions", "offered"), [("method", 5, True), ("method", 0, False),
                                                                ("blackbox", 5, False)])  # fmt: skip
def test_who_is_offered_it(access: str, interactions: int, offered: bool, tmp_path: Path) -> None:
    _, log = plays(
        tmp_path, says("Hm."), SUBMISSION, live=Echo(), access=access, interactions=interactions, tools=[COUNT]
    )
    assert ("count_words" in [tool.name for tool in model_events(log)[0].tools]) is offered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a"] * 6}, "costs 6 interactions (as the tool says), but 5 of 5 are left"),
        ({"texts": ["a"], "least": 0}, "must be 1 or more"),
        ({"texts": "abc"}, "texts|list|array"),
        ({}, "texts"),
        ({"texts": ["a"], "most": 2}, "most|ValidationError"),
    ],
)
def test_a_call_that_cannot_be_served_costs_nothing(arguments: dict, message: str, tmp_path: Path) -> None:
    result, used, said = last_result(tmp_path, COUNT, **arguments)
    assert isinstance(result, str)
    assert any(part in result for part in message.split("|")), result
    assert used == 0
    assert "quokka" not in said.lower()


def test_an_error_that_holds_a_path_is_told_without_names_and_is_not_paid_for(tmp_path: Path) -> None:
    def fail() -> JSON:
        raise InvalidSetting("/results/OutbackLab/Quokka-3-2B-it/v.safetensors has 3 rows")

    result, used, said = last_result(tmp_path, saying(fail))
    assert (result, used) == ("/results/withheld/v.safetensors has 3 rows; nothing was read", 0)
    assert "quokka" not in said.lower()


def test_names_in_a_result_are_withheld_wherever_they_are(tmp_path: Path) -> None:
    name = "Quokka-3-2B-it"
    told = {name: [{"in": (f"I am\n{name}", 1)}, np.array([name, "b"])], "nothing": float("nan"), "one": np.int64(1)}
    result, _, said = last_result(tmp_path, saying(lambda: told))
    assert result["result"] == {
        "withheld": [{"in": ["I am\nwithheld", 1]}, ["withheld", "b"]], "nothing": None, "one": 1,
    }  # fmt: skip
    assert name.lower() not in said.lower()


def test_a_long_result_is_cut_with_a_note(tmp_path: Path) -> None:
    result, _, _ = last_result(tmp_path, saying(lambda: ["word"] * MAX_CHARS))
    assert len(result["result"]) < MAX_CHARS + 100
    assert result["result"].endswith("characters more]")


def test_a_cut_makes_no_name(tmp_path: Path) -> None:
    text = "x " * (MAX_CHARS // 2 - 10)
    text += "y" * (MAX_CHARS - len(text) - len("Quokka-3-2B-it") - 2) + " "  # as JSON it has a quotation mark before it
    result, _, _ = last_result(tmp_path, saying(lambda: f"{text}Quokka-3-2B-items"))
    assert result["result"].endswith("y withheld [... 4 characters more]")


def test_no_run_starts_with_a_name_in_what_a_tool_says_of_itself(tmp_path: Path) -> None:
    def look(text: str) -> JSON:
        """Look something up.

        Args:
            text: About OutbackLab/Quokka-3-2B-it.
        """
        return text

    told = LiveTool("look", look, lambda text: 1)
    with pytest.raises(Leak, match="'model'"):
        plays(tmp_path, SUBMISSION, live=Echo(), interactions=5, tools=[told])
    assert not list(tmp_path.glob("**/*.eval"))


def test_tools_have_names_of_their_own_and_something_to_read(tmp_path: Path) -> None:
    _, log = plays(tmp_path, says("Hm."), SUBMISSION, live=Pliable(), interactions=5, evidence=Evidence([STEERABLE]))
    assert {tool.name for tool in model_events(log)[0].tools} == TAKEN, "these are the names that are taken"
    evidence = Evidence([planted.report()])
    for taken in ([LiveTool("overview", count_words, cost)], [COUNT, COUNT]):
        with pytest.raises(InvalidSetting, match="are taken"):
            Case(evidence, planted.TRUTH, Echo(), taken)
    with pytest.raises(InvalidSetting, match="snake_case"):
        LiveTool("Count words", count_words, cost)
    with pytest.raises(InvalidSetting, match="docstring"):
        LiveTool("count", lambda: 1, cost)


def test_models_do_one_thing_at_a_time(tmp_path: Path) -> None:
    busy, overlapped = threading.Lock(), []
    waited = threading.Event()

    def working(result: Any) -> Any:
        if not busy.acquire(blocking=False):
            overlapped.append(result)
        waited.wait(0.02)  # somebody else would come in
        busy.release()
        return result

    class Working(Echo):
        def answers(self, prompts: Sequence) -> list[str]:
            return working(super().answers(prompts))

    def both(messages: Sequence[ChatMessage]) -> ModelOutput:
        output = calls("say")(messages)
        more = calls("ask_model", prompts=["a"])(messages).message.tool_calls or []
        output.message.tool_calls = [*(output.message.tool_calls or []), *more]
        return output

    steps: list[Step] = [both, both, SUBMISSION]
    PLAYS["one_at_a_time"] = steps
    case = Case(Evidence([planted.report()]), planted.TRUTH, Working(), [saying(lambda: working("said"))])
    grades = evaluate([case], Agent("play/one_at_a_time", interactions=[6], repeats=6), tmp_path).grades
    assert list(grades.interactions_used) == [6] * 6
    assert not overlapped
