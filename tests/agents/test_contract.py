"""Every tool of every method, called with what the overview that was sent says: what is shown can be asked for."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hydra.utils import instantiate
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageTool,
    ModelAPI,
    ModelOutput,
    modelapi,
)
from inspect_ai.tool import ToolCall

from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import Case
from diffing.agents.tools import SUBMIT
from diffing.entry.choices import options
from diffing.entry.live_models import LivePair
from diffing.evidence import Evidence
from diffing.methods.base import HasLiveTools
from diffing.models.pair import ModelPair
from tests.agents import planted
from tests.agents.every_method import SMALL, report_of
from tests.agents.play import said_to_the_model, sample_of
from tests.entry.preparing import composed

Calls = Iterator[Mapping[str, object]]
PROMPTS = {"prompts": ["Bread?"], "max_new_tokens": 2}


def tables(reports: list[dict]) -> Calls:
    for report in reports:
        for name, table in report["tables"].items():
            place = {"report": report["report"], "table": name}
            yield place
            yield {**place, "columns": list(table["columns"]), "limit": 1, "offset": max(table["rows"] - 1, 0)}
            for column in table["columns"]:
                yield {**place, "sort": column, "descending": False, "limit": 3}
            for column, values in table["values"].items():
                yield {**place, "where": {column: values[0]}}
                yield {**place, "where": {column: values}}
        for finding in report["findings"]:
            if finding.get("table"):
                yield {"report": report["report"], "table": finding["table"], "limit": 200}


def tensors(reports: list[dict]) -> Calls:
    for report in reports:
        for name, tensor in report["tensors"].items():
            yield {"report": report["report"], "tensor": name}
            yield {"report": report["report"], "tensor": name, "offset": math.prod(tensor["shape"][:-1]) - 1}


def directions(reports: list[dict]) -> Calls:
    """By number and by name, of one tensor: each costs."""
    for report in reports:
        having = [name for name, tensor in report["tensors"].items() if tensor.get("directions")]
        for name in having[:1]:
            place = {"report": report["report"], "tensor": name}
            yield {**place, "row": 1 if len(report["tensors"][name]["directions"]["names"]) > 1 else 0}
            yield {**place, "row": report["tensors"][name]["directions"]["names"][-1]}


ARGUMENTS: Mapping[str, Callable[[list[dict]], Calls]] = {
    "overview": lambda reports: iter([{}]),
    "table_rows": tables,
    "tensor_summary": tensors,
    "ask_model": lambda reports: iter([PROMPTS]),
    "ask_steered": lambda reports: ({**PROMPTS, **each, "strength": 0.5} for each in directions(reports)),
    "read_direction": directions,
    "kl_on_text": lambda reports: iter([{"texts": ["Boats drift on the quiet river."]}]),
    "difference_on_text": lambda reports: iter([{"texts": ["Boats drift on the quiet river at night."]}]),
}
"""A tool that is not listed fails: give it arguments here."""


@modelapi(name="thorough")
class Thorough(ModelAPI):
    """Reads the overview, calls everything that is offered with everything that it names, and submits."""

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        results = [message for message in input if isinstance(message, ChatMessageTool)]
        submission = {"domain": "x", "behaviours": [], "evidence": [], "confidence": 0.5}
        calls: list[tuple[str, Mapping[str, object]]]
        if not results:
            calls = [("overview", {})]
        elif len(results) == 1:
            reports = json.loads(results[0].text)["reports"]
            calls = [
                (tool.name, each) for tool in tools if tool.name != SUBMIT for each in ARGUMENTS[tool.name](reports)
            ]
        else:
            calls = [(SUBMIT, submission)]
        made = [
            ToolCall(id=f"{len(input)}_{number}", function=name, arguments=dict(arguments))
            for number, (name, arguments) in enumerate(calls)
        ]
        message = ChatMessageAssistant(content="", tool_calls=made)
        return ModelOutput(choices=[ChatCompletionChoice(message=message, stop_reason="tool_calls")])


@pytest.mark.parametrize("name", options("diffing/method"))
def test_what_the_overview_names_can_be_asked_for(name: str, published: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, overrides = published
    report = report_of(name, folder)
    pair, evidence = ModelPair(report.pair, "cpu"), Evidence([report])
    settings = [f"diffing/method={name}", *(f"diffing.method.{each}" for each in SMALL[name])]
    method = instantiate(composed([*overrides, *settings], command="analyze").diffing.method, _convert_="object")
    declared = method.live_tools(report, pair) if isinstance(method, HasLiveTools) else ()
    case = Case(evidence, planted.TRUTH, LivePair(pair), tools=declared)
    evaluation = evaluate([case], Agent("thorough/x", turns=4, interactions=[64]), tmp_path)
    log = read_eval_log(str(evaluation.log))
    row, messages = evaluation.grades.iloc[0], sample_of(log).messages
    results = [message for message in messages if isinstance(message, ChatMessageTool)]
    assert [message.error.message for message in results if message.error] == []
    assert row.outcome == "submitted"
    assert {message.function for message in results} == {
        "overview",
        "table_rows",
        "ask_model",
        SUBMIT,
        *(["tensor_summary"] if report.tensors else []),
        *(["ask_steered", "read_direction"] if any(item.directions for item in report.tensors.values()) else []),
        *(each.name for each in declared),
    }
    for message in results:
        if message.function == "table_rows" and "where" in (answer := json.loads(message.text)).get("notice", ""):
            pytest.fail(f"a value that the overview lists finds no row: {answer}")
    said = said_to_the_model(log).lower()
    for secret in evidence.secrets:
        assert secret.text.lower() not in said, secret.kind


def test_every_method_has_small_settings() -> None:
    assert set(SMALL) == set(options("diffing/method"))
