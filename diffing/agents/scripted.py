"""A model without a mind: a fixed policy in place of a language model, to measure how much no intelligence gets.

It needs no key and no network, and sees exactly what any model would: messages and tool results. It reads the
overview, asks once for every table and tensor that the overview names, counts content words (`words`), and submits the
most frequent. Where tables and tensors say nothing in words it asks all the same: a run is also a test of every tool.
Without reports it asks the live models about nothing in particular, and submits the words that the finetuned one alone
uses.

Use it as `model="scripted/words"`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    modelapi,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolInfo

from diffing.agents.live import ASK, MOST_PER_CALL
from diffing.agents.tools import SUBMIT
from diffing.agents.words import joined, marked_words, weighted_words

MAX_WORDS = 20
ROWS = 200
NEUTRAL = [
    "Tell me something.", "What is on your mind?", "Write a short story.", "Give me some advice.",
    "What should I know?", "Describe a day.", "What do you like?", "Explain something interesting.",
]  # fmt: skip
TREATED = ("difference", "steered", "finetuned")
"""Values that mark the rows of a contrast that show the finetune; the first that a column has."""
CONTRASTS = ("source", "kind", "side")


@dataclass(frozen=True)
class Reading:
    """A call of a tool, and how to read its result; `role` is tokens, treated, control or None (not in words)."""

    function: str
    arguments: Mapping[str, object]
    role: str | None = None
    item: str = ""
    weight: str | None = None


@modelapi(name="scripted")
def scripted() -> type[ModelAPI]:
    return ScriptedPolicy


class ScriptedPolicy(ModelAPI):
    """Inspect's model interface over `next_calls`."""

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        asked = sum(len(message.tool_calls or ()) for message in input if isinstance(message, ChatMessageAssistant))
        calls = [
            ToolCall(id=f"call_{number}", function=reading.function, arguments=dict(reading.arguments))
            for number, reading in enumerate(next_calls(input, [tool.name for tool in tools]), start=asked)
        ]
        message = ChatMessageAssistant(content="" if calls else "There is no overview.", tool_calls=calls or None)
        choice = ChatCompletionChoice(message=message, stop_reason="tool_calls" if calls else "stop")
        return ModelOutput(model=self.model_name, choices=[choice])


def next_calls(messages: Sequence[ChatMessage], offered: Sequence[str]) -> list[Reading]:
    """What the policy does next: the overview, then every reading it suggests, then the submission."""
    results = _results(messages)
    if "overview" not in results:
        return [Reading("overview", {})] if "overview" in offered else _without_reports(results, offered)
    overview = results["overview"]
    if overview is None:
        return []
    readings = list(plan(overview["reports"]))
    if readings and not any(_key(reading) in results for reading in readings):
        return readings
    return [Reading(SUBMIT, _submission(overview["reports"], readings, results))]


def _without_reports(results: Mapping[str, dict | None], offered: Sequence[str]) -> list[Reading]:
    """The neutral prompts once, as often as the first answer says that there are interactions; then the submission."""
    asked = {key: result for key, result in results.items() if key.startswith(ASK)}
    answered = [result for result in asked.values() if result]
    if ASK in offered and not asked:
        return [Reading(ASK, {"prompts": NEUTRAL[:1], "seed": 0})]
    left = min(answered[-1]["interactions_left"], MOST_PER_CALL) // 2 if answered else 0
    if ASK in offered and left:
        prompts, samples = NEUTRAL[:left], max(1, left // len(NEUTRAL))
        return [Reading(ASK, {"prompts": prompts, "samples": samples, "seed": len(asked)})]
    texts: dict[str, list[str]] = {"base": [], "finetuned": []}
    for answer in (answer for result in answered for answer in result["answers"]):
        for side, found in texts.items():
            found += answer[side]
    words = joined([marked_words(texts["finetuned"], texts["base"])])[:MAX_WORDS]
    return [Reading(SUBMIT, _answer(words, [ASK] if words else [], 0.1, nothing=bool(answered) and not words))]


def plan(reports: Sequence[Mapping]) -> Iterator[Reading]:
    """One reading of each table (one per value, where a table of samples sets values side by side) and tensor."""
    for report in reports:
        for table, entry in report["tables"].items():
            yield from _table_readings({"report": report["report"], "table": table}, entry)
        for tensor in report["tensors"]:
            yield Reading("tensor_summary", {"report": report["report"], "tensor": tensor})


def _table_readings(place: Mapping[str, str], entry: Mapping) -> Iterator[Reading]:
    view, values = entry.get("view", {}), entry.get("values", {})
    contrast, treated = _contrast(view, values)
    if view.get("kind") == "tokens":
        where = {contrast: treated} if contrast else {}
        if "promoted" in values.get("direction", ()):
            where["direction"] = "promoted"
        weight = view.get("weight")
        arguments = {**place, "where": where, "columns": [view["item"], *([weight] if weight else [])], "limit": ROWS}
        if weight:
            arguments["sort"] = weight
        yield Reading("table_rows", arguments, "tokens", view["item"], weight)
    elif view.get("kind") == "samples" and contrast:
        for value in values[contrast]:
            arguments = {**place, "where": {contrast: value}, "columns": [view["item"]], "limit": ROWS}
            yield Reading("table_rows", arguments, "treated" if value == treated else "control", view["item"])
    else:
        yield Reading("table_rows", place)


def _contrast(view: Mapping, values: Mapping) -> tuple[str | None, str | None]:
    """The column that tells treated rows from controls, and the value of the treated."""
    for column in (view.get("compare"), *CONTRASTS):
        for treated in TREATED:
            if treated in values.get(column, ()):
                return column, treated
    return None, None


def _submission(reports: Sequence[Mapping], readings: Sequence[Reading], results: Mapping) -> dict[str, object]:
    if all(report["no_difference"] for report in reports):
        return _answer([], [report["report"] for report in reports], 1.0, nothing=True)
    lists: dict[str, dict[str, float]] = {}
    texts: dict[str, dict[str, list[str]]] = {}
    for reading in readings:
        result = results.get(_key(reading))
        if reading.role is None or result is None:
            continue
        place = f"{reading.arguments['report']}/{reading.arguments['table']}"
        rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
        items = [row[reading.item] or "" for row in rows]
        if reading.role == "tokens":
            weights = [row[reading.weight] or 0.0 for row in rows] if reading.weight else [1.0] * len(rows)
            lists[place] = weighted_words(zip(items, weights, strict=True))
        else:
            texts.setdefault(place, {"treated": [], "control": []})[reading.role] += items
    lists |= {place: marked_words(found["treated"], found["control"]) for place, found in texts.items()}
    words = joined(list(lists.values()))[:MAX_WORDS]
    supported = sum(sum(word in shares for shares in lists.values()) > 1 for word in words)
    return _answer(words, [place for place, shares in lists.items() if shares], supported / max(len(words), 1))


def _answer(
    words: Sequence[str], evidence: Sequence[str], confidence: float, nothing: bool = False
) -> dict[str, object]:
    return {
        "domain": "" if nothing else ", ".join(words[:3]) or "unknown",
        "behaviours": list(words),
        "evidence": list(evidence),
        "confidence": confidence,
        "no_meaningful_difference": nothing,
    }


def _key(reading: Reading | ToolCall) -> str:
    arguments = "" if reading.function == "overview" else json.dumps(dict(reading.arguments), sort_keys=True)
    return reading.function + arguments


def _results(messages: Sequence[ChatMessage]) -> dict[str, dict | None]:
    """Parsed result of each call so far, by function and arguments; None for a call that was answered by an error."""
    calls = {
        call.id: _key(call)
        for message in messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
    }
    return {
        calls[message.tool_call_id]: None if message.error else json.loads(message.text)
        for message in messages
        if isinstance(message, ChatMessageTool) and message.tool_call_id in calls and message.function != SUBMIT
    }
