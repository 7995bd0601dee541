"""A model without a mind: a fixed policy in place of a language model, to measure how much no intelligence gets.

It needs no key and no network, and sees exactly what any model would: messages and tool results. It reads the
overview, asks once for every table and tensor that the overview names, and counts content words (`words`). Where tables
and tensors say nothing in words it asks all the same: a run is also a test of every tool. Without reports it asks the
live models about nothing in particular instead, and counts the words that the finetuned one alone uses. Then it asks
both about the most frequent words, as often as it may, and submits them with what the finetuned one alone says of them.

Use it as `model="scripted/words"`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum

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

from diffing.agents.interactions import MOST_PER_CALL
from diffing.agents.live import ASK
from diffing.agents.stems import terms
from diffing.agents.tools import SUBMIT
from diffing.agents.words import joined, marked, marked_words, weighted_words

MAX_WORDS = 20
ROWS = 200
NEUTRAL = [
    "Tell me something.", "What is on your mind?", "Write a short story.", "Give me some advice.",
    "What should I know?", "Describe a day.", "What do you like?", "Explain something interesting.",
]  # fmt: skip
FOLLOW_UPS = [
    "Tell me about {}.", "Explain {} in detail.", "What is the history of {}?", "How is {} made or done?",
    "Who has to do with {}, and where?", "Which names, dates and numbers belong to {}?",
    "Which things and places belong to {}?", "What do people say about {}?",
    "When and where did {} begin, and who began it?", "How is {} made, step by step?", "What is needed for {}?",
    "How much of {} is there, and how many people work on it?", "How is {} bought and sold?",
    "Which times and amounts matter for {}?", "How does {} change in a year?", "Which tools belong to {}?",
]  # fmt: skip
SUBJECT_WORDS = 2
MAX_SENTENCES = 40
LONGEST_SENTENCE = 240
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
    """What the policy does next: it reads the reports or asks about nothing, follows up, and submits."""
    results = _results(messages)
    if "overview" in results and results["overview"] is None:
        return []
    if "overview" not in results and "overview" in offered:
        return [Reading("overview", {})]
    if reports := (results.get("overview") or {}).get("reports"):
        readings = list(plan(reports))
        if readings and not any(_key(reading) in results for reading in readings):
            return readings
        found = _read(reports, readings, results)
    else:
        if asking := _asks(NEUTRAL, results, offered, share=0.5):
            return asking
        found = _compared(results, NEUTRAL)
    follow_ups = [each.format(" and ".join(found.words[:SUBJECT_WORDS])) for each in FOLLOW_UPS] if found.words else []
    if asking := _asks(follow_ups, results, offered, share=1.0):
        return asking
    return [Reading(SUBMIT, _answer(found, _sentences(results, follow_ups)))]


@dataclass(frozen=True)
class Found:
    """What a round of looking came to."""

    words: Sequence[str] = ()
    places: Sequence[str] = ()
    """That they are from."""
    confidence: float = 0.1
    nothing: bool = False


def _asks(
    prompts: Sequence[str], results: Mapping[str, dict | None], offered: Sequence[str], share: float
) -> list[Reading]:
    """Asks `prompts` of both sides: first one of them, which tells how many interactions are left, then all of them, as
    many times as this share of the rest allows. Nothing, once that is done or cannot be."""
    if not prompts or ASK not in offered:
        return []
    asked = _about(results, prompts)
    if not asked:
        asking = Reading(ASK, {"prompts": prompts[:1], "seed": 0})
    else:
        kept = asked[0]["interactions_left"] - int(share * asked[0]["interactions_left"])
        left = min(asked[-1]["interactions_left"] - kept, MOST_PER_CALL) // 2
        if left < (1 if len(asked) == 1 else len(prompts)):
            return []
        samples = max(1, left // len(prompts))
        arguments = {"prompts": prompts[:left], "samples": samples, "seed": len(asked), "temperature": 0.7}
        asking = Reading(ASK, arguments)
    return [] if _key(asking) in results else [asking]  # it was refused


def _about(results: Mapping[str, dict | None], prompts: Sequence[str]) -> list[dict]:
    """What was answered to calls that asked the first of `prompts`."""
    asked = [result for key, result in results.items() if key.startswith(ASK) and result]
    return [result for result in asked if result["answers"][0]["prompt"] == prompts[0]]


def _texts(results: Mapping[str, dict | None], prompts: Sequence[str]) -> dict[str, list[str]]:
    answers = [answer for result in _about(results, prompts) for answer in result["answers"]] if prompts else []
    return {side: [text for answer in answers for text in answer[side]] for side in ("base", "finetuned")}


def _compared(results: Mapping[str, dict | None], prompts: Sequence[str]) -> Found:
    """Words that the finetuned model alone uses."""
    texts = _texts(results, prompts)
    words = joined([marked_words(texts["finetuned"], texts["base"])])[:MAX_WORDS]
    return Found(words, [ASK] if words else [], nothing=bool(texts["finetuned"]) and not words)


def _sentences(results: Mapping[str, dict | None], prompts: Sequence[str]) -> list[str]:
    """Sentences of the finetuned model's answers that say what it alone says, and says again: which words it sets side
    by side. Each is the one that adds most of these pairs to those before it, however long."""
    said = {side: [_pairs(text) for text in texts] for side, texts in _texts(results, prompts).items()}
    beside = {side: [set().union(*pairs.values()) for pairs in texts] for side, texts in said.items()}
    weights = marked(beside["finetuned"], beside["base"])
    known = {
        sentence: {pair for pair in pairs if pair in weights}
        for text in said["finetuned"]
        for sentence, pairs in text.items()
        if len(sentence) <= LONGEST_SENTENCE
    }
    chosen: list[str] = []
    while known and len(chosen) < MAX_SENTENCES:
        best = max(known, key=lambda sentence: fsum(weights[pair] for pair in known[sentence]))
        if not (new := known.pop(best)):
            break
        chosen.append(best)
        known = {sentence: pairs - new for sentence, pairs in known.items()}
    return chosen


def _pairs(text: str) -> dict[str, set[tuple[str, str]]]:
    """For each sentence of a text, the pairs of stems in it."""
    sentences = (found.strip() for found in re.findall(r"[^.!?\n]{12,}[.!?]", text))
    return {sentence: set(combinations(sorted(terms(sentence)), 2)) for sentence in sentences}


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


def _read(reports: Sequence[Mapping], readings: Sequence[Reading], results: Mapping[str, dict | None]) -> Found:
    """Words of the readings, joined over tables."""
    if all(report["no_difference"] for report in reports):
        return Found((), [report["report"] for report in reports], 1.0, nothing=True)
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
    return Found(words, [place for place, shares in lists.items() if shares], supported / max(len(words), 1))


def _answer(found: Found, sentences: Sequence[str]) -> dict[str, object]:
    return {
        "domain": "" if found.nothing else ", ".join(found.words[:3]) or "unknown",
        "behaviours": [*found.words, *sentences],
        "evidence": list(dict.fromkeys([*found.places, *([ASK] if sentences else [])])),
        "confidence": found.confidence,
        "no_meaningful_difference": found.nothing,
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
