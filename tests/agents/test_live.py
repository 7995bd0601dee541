"""Live models as a tool: what it costs, what it refuses before any work, and how concurrent questions are batched."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.agents import prompts
from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.interactions import MOST_PER_CALL
from diffing.agents.live import Batching, Prompt
from diffing.agents.task import Case
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.play import SUBMISSION, Echo, Step, calls, model_events, plays, says


def asks(**arguments: object) -> Step:
    return calls("ask_model", **arguments)


def last_result(folder: Path, echo: Echo, interactions: int, *steps: Step) -> tuple[Any, int]:
    """The last result (an error as its text) of these steps, and the interactions that were used."""
    seen: list[ChatMessageTool] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        assert isinstance(messages[-1], ChatMessageTool)
        seen.append(messages[-1])
        return SUBMISSION(messages)

    row, _ = plays(folder, *steps, look, live=echo, interactions=interactions, turns=9)
    assert row.outcome == "submitted", row.detail
    return seen[0].error.message if seen[0].error else json.loads(seen[0].text), int(row.interactions_used)


def test_both_models_answer_each_prompt_and_draw_alike(tmp_path: Path) -> None:
    echo = Echo()
    result, used = last_result(tmp_path, echo, 20, asks(prompts=["a", "b"], samples=2, seed=7))
    assert (result["cost"], result["interactions_left"], used) == (8, 12, 8)
    drawn = 1_000_000 + 7  # the first run
    assert result["answers"] == [
        {"prompt": "a", "base": [f"base: a #{n} of {drawn}" for n in (0, 1)],
         "finetuned": [f"finetuned: a #{n} of {drawn}" for n in (0, 1)]},
        {"prompt": "b", "base": [f"base: b #{n} of {drawn}" for n in (2, 3)],
         "finetuned": [f"finetuned: b #{n} of {drawn}" for n in (2, 3)]},
    ]  # fmt: skip
    assert len(echo.batches) == 1


def test_one_model_costs_half_and_is_told_the_whole_conversation(tmp_path: Path) -> None:
    echo = Echo()
    conversation = {"system": "Be brief.", "history": ["Hi", "Hello"], "prefill": "It is", "max_new_tokens": 9}
    result, used = last_result(
        tmp_path, echo, 5, asks(prompts=["a"], models_asked="finetuned", temperature=0, **conversation)
    )
    assert used == 1
    assert list(result["answers"][0]) == ["prompt", "finetuned"]
    messages = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "a"))
    assert echo.batches == [[Prompt(Side.FINETUNED, messages, "It is", 1_000_000, 0, 9, 0.0)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a"], "samples": 3}, "costs 6 interactions"),
        ({"prompts": []}, "at least 1 prompt"),
        ({"prompts": ["a"], "samples": 0}, "1 sample"),
        ({"prompts": ["a"], "samples": -1}, "1 sample"),
        ({"prompts": ["a", " "]}, "empty"),
        ({"prompts": ["a"], "history": ["b"]}, "even number"),
        ({"prompts": ["a"], "max_new_tokens": 513}, "max_new_tokens"),
        ({"prompts": ["a"], "seed": -1}, "seed"),
        ({"prompts": ["a"], "temperature": 3}, "temperature"),
        ({"prompts": ["a"], "models_asked": "third"}, "third"),
        ({}, "prompts"),
        ({"prompts": None}, "prompts|None"),
    ],
)
def test_a_call_that_cannot_be_served_in_full_does_no_work_and_costs_nothing(
    arguments: dict, message: str, tmp_path: Path
) -> None:
    echo = Echo()
    result, used = last_result(tmp_path, echo, 5, asks(**arguments))
    assert isinstance(result, str)
    assert any(part in result for part in message.split("|")), result
    assert (used, echo.batches) == (0, [])


def test_one_call_is_bounded_however_large_the_budget_is(tmp_path: Path) -> None:
    result, used = last_result(tmp_path, Echo(), 1000, asks(prompts=["a"], samples=MOST_PER_CALL))
    assert used == 0
    assert f"one call may cost {MOST_PER_CALL}" in str(result)


def test_calls_of_one_message_cannot_overdraw_together(tmp_path: Path) -> None:
    def twice(messages: Sequence[ChatMessage]) -> ModelOutput:
        output = asks(prompts=["a", "b"])(messages)
        more = asks(prompts=["c", "d"])(messages).message.tool_calls or []
        output.message.tool_calls = [*(output.message.tool_calls or []), *more]
        return output

    echo = Echo()
    row, _ = plays(tmp_path, twice, SUBMISSION, live=echo, interactions=6)
    assert (row.outcome, row.interactions_used, row.tool_errors) == ("submitted", 4, 1)
    assert sum(map(len, echo.batches)) == 4


class Failing(Echo):
    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        raise InvalidSetting("no room")


def test_what_fails_is_not_paid_for(tmp_path: Path) -> None:
    result, used = last_result(tmp_path, Failing(), 5, asks(prompts=["a"]))
    assert (result, used) == ("no room; nothing was generated", 0)


def test_long_answers_are_cut_with_a_note(tmp_path: Path) -> None:
    result, _ = last_result(tmp_path, Echo(), 60, asks(prompts=["a" * 5000], samples=30))
    answer = result["answers"][0]["base"][0]
    assert len(answer) < 600
    assert answer.endswith("characters more]")


def test_repeats_draw_other_texts(tmp_path: Path) -> None:
    echo = Echo()
    case = Case(Evidence([planted.report()]), planted.TRUTH, echo)
    agent = Agent("scripted/words", access=["blackbox"], interactions=[2], repeats=2)
    evaluate([case], agent, tmp_path)
    assert {prompt.seed for batch in echo.batches for prompt in batch} == {1_000_000, 2_000_000}


def test_a_blackbox_agent_sees_no_report_and_submits_when_its_interactions_are_used_up(tmp_path: Path) -> None:
    row, log = plays(tmp_path, asks(prompts=["a"]), SUBMISSION, live=Echo(), access="blackbox", interactions=2, turns=9)
    assert (row.access, row.interactions, row.forced, row.outcome) == ("blackbox", 2, "interactions", "submitted")
    first, second = model_events(log)
    assert [tool.name for tool in first.tools] == ["ask_model", "submit_hypothesis"]
    assert second.input[-1].text == prompts.LAST_TURN
    assert "report" not in "".join(message.text for message in first.input).lower()


def test_a_method_agent_without_interactions_is_offered_no_live_models(tmp_path: Path) -> None:
    row, log = plays(tmp_path, says("Hm."), SUBMISSION, live=Echo(), interactions=0)
    assert "ask_model" not in [tool.name for tool in model_events(log)[0].tools]
    assert row.outcome == "submitted"


def test_a_budget_of_interactions_needs_models(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="no live models"):
        plays(tmp_path, SUBMISSION, interactions=1)


class Gated(Echo):
    """Models whose first batch takes until it is let go; tells whether two batches ever overlapped."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.overlapped = False
        self._busy = threading.Lock()

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        self.overlapped |= not self._busy.acquire(blocking=False)
        assert self.go.wait(20)
        if any(prompt.messages[-1][1] == "bad" for prompt in prompts):
            self._busy.release()
            raise RuntimeError("out of memory")
        texts = super().answers(prompts)
        self._busy.release()
        return texts


def prompt(text: str) -> Prompt:
    return Prompt(Side.BASE, (("user", text),), "", 0, 0, 4, 1.0)


def asked_together(models: Gated, *texts: str) -> dict[str, list[str] | str]:
    """What concurrent questions get: the first is being answered when the others come."""
    found: dict[str, list[str] | str] = {}

    async def ask(queue: Batching, text: str) -> None:
        try:
            found[text] = await queue.answers([prompt(text)])
        except RuntimeError as error:
            found[text] = str(error)

    async def main() -> None:
        queue = Batching(models)
        async with anyio.create_task_group() as tasks:
            for text in texts:
                tasks.start_soon(ask, queue, text)
                await anyio.wait_all_tasks_blocked()
            models.go.set()

    anyio.run(main)
    return found


def test_questions_that_come_while_models_are_busy_share_the_next_batch() -> None:
    models = Gated()
    found = asked_together(models, "a", "b", "c", "d")
    assert [[each.messages[0][1] for each in batch] for batch in models.batches] == [["a"], ["b", "c", "d"]]
    assert found == {text: [f"base: {text} #0 of 0"] for text in "abcd"}
    assert not models.overlapped


def test_a_batch_that_fails_loses_only_who_brought_it() -> None:
    found = asked_together(Gated(), "bad", "b", "c")
    assert found == {"bad": "out of memory", "b": ["base: b #0 of 0"], "c": ["base: c #0 of 0"]}


def test_many_samples_share_one_queue(tmp_path: Path) -> None:
    class Counting(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.go.set()

    models = Counting()
    case = Case(Evidence([planted.report()]), planted.TRUTH, models)
    agent = Agent("scripted/words", access=["blackbox"], interactions=[6], repeats=12)
    grades = evaluate([case], agent, tmp_path).grades
    assert list(grades.outcome) == ["submitted"] * 12
    assert list(grades.interactions_used) == [6] * 12
    assert not models.overlapped
