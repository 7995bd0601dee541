"""What a conversation holds: what the agent wrote itself, and what tools showed it. A stored sample is enough.

What a tool shows is cells of tables, claims of findings and answers of models: descriptions that come with them say how
to read them and nothing of the pair. What an agent put into a question is no answer to it: a repetition of it is not
shown, and its words count for nothing in what was answered.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool
from inspect_ai.tool import ToolCall

from diffing.agents.stems import same, stems
from diffing.agents.tools import SUBMIT


@dataclass(frozen=True)
class Passage:
    """One thing that a tool showed: a row, a finding, an answer."""

    source: str
    """`R1/steering`, `R1/finding 2`, `ask_model finetuned`."""
    text: str
    asked: str = ""
    """What the agent wrote to get it; empty for what stands in a report."""
    words: frozenset[str] = frozenset()
    """Stems of the words in it, without those that were asked. Of a row of a table that says which of its columns is
    the text, these are that column's alone: the others are labels and prompts of the method."""


@dataclass
class Shown:
    """Everything that tools showed in one conversation."""

    passages: list[Passage] = field(default_factory=list)
    items: dict[str, bool] = field(default_factory=dict)
    """Tables, tensors, scalars and findings that reports were said to have (`R1/steering`), and whether any of it was
    shown."""
    reports: set[str] = field(default_factory=set)
    tools: set[str] = field(default_factory=set)
    """Those that showed anything, the readers of reports apart."""
    texts: dict[str, str] = field(default_factory=dict)
    """By table, the column that is the text, where there is one."""

    def table(self, place: str, columns: Iterable[str], rows: Sequence[Sequence[object]]) -> None:
        self.items[place] = True
        names = list(columns)
        source = f"{place} ({', '.join(names)})"
        for row in rows:
            text = " | ".join(cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in row)
            told = [cell for name, cell in zip(names, row, strict=True) if self.texts.get(place, name) == name]
            told += ["".join(_strings(cell)) for cell in told if isinstance(cell, list)]  # a text as its tokens
            self.passages.append(Passage(source, text, words=frozenset(stems("\n".join(_strings(told))))))

    @property
    def empty(self) -> bool:
        return not (self.passages or self.items or self.tools)


def own_words(message: ChatMessageAssistant) -> str:
    """All that a message of the agent says: text, reasoning, names of tools and their arguments."""
    parts = [message.text, *(getattr(part, "reasoning", "") for part in message.content if not isinstance(part, str))]
    for call in message.tool_calls or ():
        parts += [call.function, call.parse_error or "", *_strings(call.arguments, keys=True)]
    return "\n".join(parts)


def shown(messages: Sequence[ChatMessage]) -> Shown:
    """What the tools of a conversation showed; errors show nothing, nor does the submission."""
    calls = {
        call.id: call
        for message in messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
    }
    found = Shown()
    results = [
        (calls[message.tool_call_id], message.text)
        for message in messages
        if isinstance(message, ChatMessageTool) and not message.error and message.tool_call_id in calls
    ]
    results.sort(key=lambda result: result[0].function != "overview")  # it comes first: it says how to read the others
    for call, text in results:
        _read(found, call, text)
    found.passages = list(dict.fromkeys(found.passages))
    return found


def _read(found: Shown, call: ToolCall, text: str) -> None:
    if call.function == SUBMIT:
        return
    try:
        result = json.loads(text)
    except ValueError:
        result = text
    if call.function == "overview":
        for report in result["reports"]:
            _read_report(found, report)
    elif call.function == "table_rows":
        found.reports.add(result["report"])
        found.table(f"{result['report']}/{result['table']}", result["columns"], result["rows"])
    elif call.function == "tensor_summary":
        found.reports.add(result["report"])
        found.items[f"{result['report']}/{result['tensor']}"] = True
    else:
        found.tools.add(call.function)
        found.passages += _answers(call, result)


def _read_report(found: Shown, report: Mapping) -> None:
    name = report["report"]
    found.reports.add(name)
    for number, finding in enumerate(report["findings"], start=1):
        place, claim = f"{name}/finding {number}", finding["claim"]
        found.items[place] = True
        found.passages.append(Passage(place, claim, words=frozenset(stems(claim))))
    for table, entry in report["tables"].items():
        place = f"{name}/{table}"
        found.items.setdefault(place, False)
        if item := entry.get("view", {}).get("item"):
            found.texts[place] = item
        if entry.get("first_rows"):
            found.table(place, entry["columns"], entry["first_rows"])
    for scalar, entry in report["scalars"].items():
        found.items[f"{name}/{scalar}"] = True
        found.passages.append(Passage(f"{name}/{scalar}", f"{entry['value']}: {entry['about']}"))
    for tensor in report["tensors"]:
        found.items.setdefault(f"{name}/{tensor}", False)


def _answers(call: ToolCall, result: object) -> Iterator[Passage]:
    own = list(dict.fromkeys(_strings(call.arguments)))
    repeated = set(own) & set(_strings(result))
    return _leaves(result, call.function, call.function, own, [text for text in own if text not in repeated])


def _leaves(value: object, tool: str, source: str, own: Sequence[str], asked: Sequence[str]) -> Iterator[Passage]:
    """Texts in a result that do not repeat the call, each with what was asked beside it and for all."""
    if isinstance(value, str) and value not in own:
        put = stems("\n".join(asked))
        words = {each for each in stems(value) if not any(same(each, word) or same(word, each) for word in put)}
        yield Passage(source, value, "\n".join(asked), frozenset(words))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, tool, source, own, asked)
    elif isinstance(value, dict):
        beside = [item for item in value.values() if isinstance(item, str) and item in own]
        for key, item in value.items():
            yield from _leaves(item, tool, f"{tool} {key}", own, [*asked, *beside])


def _strings(value: object, keys: bool = False) -> Iterator[str]:
    """All texts in a JSON value, names of its fields too if `keys`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from [key] if keys else []
            yield from _strings(item, keys)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, keys)
