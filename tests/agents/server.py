"""A service on this machine that plays scripted investigators, in the protocols of Anthropic and of OpenAI.

Real clients speak to it. It refuses, as the real ones do, what breaks their rules, and keeps what it refused.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.judge_server import Fails, HangsUp, Sent, failed, quick_clients, serving


@dataclass(frozen=True)
class Acts:
    """What an investigator does: says something, and calls tools."""

    calls: Sequence[tuple[str, Mapping[str, object]]] = ()
    text: str = ""
    stop: str = ""
    """Of Anthropic's words: refusal, max_tokens, ...; empty for what the calls imply."""


@dataclass(frozen=True)
class Garbled:
    """A body that is cut in the middle, under status 200."""


@dataclass(frozen=True)
class Seen:
    """A request, in no protocol's words."""

    tools: Sequence[str]
    texts: Sequence[str]
    """System, user and tool texts, in order."""
    results: Sequence[str]
    """Those of tools."""
    turn: int
    """Messages of the investigator so far."""


Answer = Acts | Fails | HangsUp | Garbled
Script = Callable[[Seen], Acts]
Fault = Callable[[int], Answer | None]


@dataclass
class AgentServer:
    script: Script
    fault: Fault
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    requests: list[dict] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tokens: int = 0
    """Of all requests that were answered."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: dict, headers: Mapping[str, str], anthropic: bool) -> Answer:
        wrong = (_wrong_for_anthropic if anthropic else _wrong_for_openai)(request, headers)
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            if wrong:
                self.refused.append(wrong)
                return Fails(400)
            if planned := self.fault(number):
                return planned
            seen = (_from_anthropic if anthropic else _from_openai)(request)
            self.seen.append(seen)
            self.tokens += 15
        return self.script(seen)


@contextmanager
def agent_server(
    script: Script, monkeypatch: pytest.MonkeyPatch, fault: Fault = lambda number: None
) -> Iterator[AgentServer]:
    """Serves `anthropic/...` and `openai-api/planned/...` to the clients of this process."""
    server = AgentServer(script, fault)

    def respond(request: dict, headers: Mapping[str, str], anthropic: bool) -> Sent | None:
        answer = server.answer(request, headers, anthropic)
        if isinstance(answer, HangsUp):
            return None
        if isinstance(answer, Fails):
            return failed(answer)
        if isinstance(answer, Garbled):
            return 200, '{"id": "1", "type": "message", "con', {}
        return 200, json.dumps((_as_anthropic if anthropic else _as_openai)(answer, len(server.requests))), {}

    with serving(respond) as server.url:
        quick_clients(monkeypatch)
        monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)  # would be sent in place of the planned key
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("PLANNED_BASE_URL", f"{server.url}/v1")
        yield server


def _blocks(content: object) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])  # type: ignore[call-overload]


def _text(content: object) -> str:
    return "".join(block.get("text", "") for block in _blocks(content))


def _planned_key(headers: Mapping[str, str]) -> bool:
    """Clients send it as a key or as a bearer, by version; a real one must never come here."""
    return {headers.get("x-api-key", "planned"), headers.get("authorization", "Bearer planned")} == {
        "planned", "Bearer planned",
    } and bool({"x-api-key", "authorization"} & set(headers))  # fmt: skip


def _wrong_for_anthropic(request: dict, headers: Mapping[str, str]) -> str:
    """What the real service would refuse; empty if nothing."""
    given = {name.lower(): value for name, value in headers.items()}
    if "anthropic-version" not in given or not _planned_key(given):
        return "no version, or not the planned key"
    if not isinstance(request.get("max_tokens"), int):
        return "no max_tokens"
    for tool in request.get("tools", []):
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["name"]) or tool["input_schema"].get("type") != "object":
            return f"tool {tool['name']}"
    if json.dumps(request).count('"cache_control"') > 4:
        return "more than 4 cache marks"
    messages = request["messages"]
    if not messages or messages[0]["role"] != "user":
        return "the first message is not the user's"
    open_calls: list[str] = []
    for message in messages:
        blocks = _blocks(message["content"])
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            return "empty text"
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        first = [block["type"] for block in blocks[: len(answered)]]
        if answered != open_calls or set(first) - {"tool_result"}:
            return f"calls {open_calls} answered by {answered}"
        open_calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    return "calls without answers" if open_calls else ""


def _wrong_for_openai(request: dict, headers: Mapping[str, str]) -> str:
    if not _planned_key({name.lower(): value for name, value in headers.items()}):
        return "not the planned key"
    open_calls: list[str] = []
    for message in request["messages"]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return "an answer without a call"
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            return f"calls {open_calls} without answers"
        open_calls = [call["id"] for call in message.get("tool_calls") or []]
    return "calls without answers" if open_calls else ""


def _from_anthropic(request: dict) -> Seen:
    blocks = [block for message in request["messages"] for block in _blocks(message["content"])]
    results = [_text(block.get("content")) for block in blocks if block["type"] == "tool_result"]
    users = [_text(message["content"]) for message in request["messages"] if message["role"] == "user"]
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    tools = [tool["name"] for tool in request.get("tools", [])]
    return Seen(tools, [_text(request.get("system")), *users, *results], results, turn)


def _from_openai(request: dict) -> Seen:
    messages = request["messages"]
    texts = [_text(message["content"]) for message in messages if message["role"] != "assistant"]
    results = [_text(message["content"]) for message in messages if message["role"] == "tool"]
    turn = sum(message["role"] == "assistant" for message in messages)
    return Seen([tool["function"]["name"] for tool in request.get("tools", [])], texts, results, turn)


def _as_anthropic(answer: Acts, number: int) -> dict:
    content: list[dict] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [
        {"type": "tool_use", "id": f"toolu_{number}_{n}", "name": name, "input": dict(arguments)}
        for n, (name, arguments) in enumerate(answer.calls)
    ]
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": "planned", "content": content,
        "stop_reason": answer.stop or ("tool_use" if answer.calls else "end_turn"), "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }  # fmt: skip


def _as_openai(answer: Acts, number: int) -> dict:
    calls = [
        {"id": f"call_{number}_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(answer.calls)
    ]
    stop = {"refusal": "content_filter", "max_tokens": "length"}.get(answer.stop)
    message = {"role": "assistant", "content": answer.text or None} | ({"tool_calls": calls} if calls else {})
    return {
        "id": str(number), "object": "chat.completion", "created": 0, "model": "planned",
        "choices": [{"index": 0, "message": message, "finish_reason": stop or ("tool_calls" if calls else "stop")}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip
