"""Anthropic's protocol, from the side of the service: what it refuses, reads, charges, and answers."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

from jiter import from_json

from tests.agents.caching import PromptCache
from tests.agents.script import Acts, Called, Seen, Tokens, inputs, pieces

FIELDS = {
    "model", "max_tokens", "messages", "system", "tools", "tool_choice", "stream", "cache_control", "thinking",
    "output_config", "stop_sequences", "metadata", "service_tier",
}  # fmt: skip
BLOCKS = {
    "text": {"text", "citations"}, "thinking": {"thinking", "signature"}, "tool_use": {"id", "name", "input"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}  # fmt: skip
MAX_MARKS = 4


def blocks_of(content: object) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])  # type: ignore[call-overload]


def text_of(content: object) -> str:
    return "".join(block.get("text", "") for block in blocks_of(content))


def signature(thinking: str) -> str:
    """Of this service alone: nobody else can write a thought that it takes for its own."""
    return hashlib.sha256(f"planned {thinking}".encode()).hexdigest()


def refusal(request: Mapping, headers: Mapping[str, str]) -> str:
    """What the real service would refuse; empty if nothing. Names of headers are in small letters."""
    if "anthropic-version" not in headers:
        return "no version"
    if unknown := set(request) - FIELDS:
        return f"{sorted(unknown)}: extra inputs are not permitted"
    if not isinstance(request.get("max_tokens"), int) or request["max_tokens"] < 1:
        return "no max_tokens"
    return _wrong_tools(request) or _wrong_blocks(request) or _wrong_order(request["messages"])


def _wrong_tools(request: Mapping) -> str:
    names = [tool["name"] for tool in request.get("tools", [])]
    for tool in request.get("tools", []):
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["name"]) or tool["input_schema"].get("type") != "object":
            return f"tool {tool['name']}"
    if len(set(names)) < len(names):
        return "tool names must be unique"
    choice = request.get("tool_choice", {"type": "auto"})
    if choice["type"] == "tool" and choice["name"] not in names:
        return f"tool {choice['name']} is not among the tools"
    if choice["type"] in ("any", "tool") and request.get("thinking", {}).get("type") == "enabled":
        return "thinking may not be enabled when tool_choice forces tool use"
    return ""


def _wrong_blocks(request: Mapping) -> str:
    if json.dumps(request).count('"cache_control"') > MAX_MARKS:
        return f"more than {MAX_MARKS} cache marks"
    for message in request["messages"]:
        blocks = blocks_of(message["content"])
        if not blocks:
            return "messages must have non-empty content"
        for block in blocks:
            kind = block["type"]
            marks = set() if kind == "thinking" else {"cache_control"}
            if kind not in BLOCKS or set(block) - BLOCKS[kind] - marks - {"type"}:
                return f"{kind}: extra inputs are not permitted in {sorted(block)}"
            if kind == "text" and not block["text"].strip():
                return "empty text"
            if kind == "thinking" and block["signature"] != signature(block["thinking"]):
                return "invalid signature in thinking block"
    return ""


def _wrong_order(messages: list[dict]) -> str:
    if messages[0]["role"] != "user":
        return "the first message must be the user's"
    open_calls: list[str] = []
    known: set[str] = set()
    for message in messages:
        if message["role"] not in ("user", "assistant"):
            return f"role {message['role']}"
        blocks = blocks_of(message["content"])
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        first = [block["type"] for block in blocks[: len(answered)]]
        if answered != open_calls or set(first) - {"tool_result"}:
            return f"calls {open_calls} answered by {answered}"
        open_calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if known & set(open_calls) or len(set(open_calls)) < len(open_calls):
            return "tool_use ids must be unique"
        known |= set(open_calls)
    return "calls without answers" if open_calls else ""


def seen(request: Mapping) -> Seen:
    blocks = [block for message in request["messages"] for block in blocks_of(message["content"])]
    users = [text_of(message["content"]) for message in request["messages"] if message["role"] == "user"]
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    tools = [tool["name"] for tool in request.get("tools", [])]
    made = {block["id"]: block for block in blocks if block["type"] == "tool_use"}
    calls = []
    for block in blocks:
        if block["type"] == "tool_result":
            call = made[block["tool_use_id"]]
            failed = bool(block.get("is_error"))
            calls.append(Called(call["name"], call["input"], text_of(block.get("content")), failed))
    results = [call.result for call in calls]
    return Seen(tools, [text_of(request.get("system")), *users, *results], results, turn, calls)


def charged(request: Mapping, cache: PromptCache) -> Tokens:
    """The input of a request. A forced tool or another way to think keeps the tools and the system text of the cache,
    and none of its messages."""
    parts: list[tuple[str, Mapping]] = [("tool", tool) for tool in request.get("tools", [])]
    parts += [("system", block) for block in blocks_of(request.get("system"))]
    parts.append(("mode", {name: request.get(name) for name in ("tool_choice", "thinking")}))
    for message in request["messages"]:
        parts += [(message["role"], block) for block in blocks_of(message["content"])]
    marks = [at for at, (_, block) in enumerate(parts) if "cache_control" in block]
    if "cache_control" in request:
        marks.append(max(at for at, (_, block) in enumerate(parts) if block.get("type") != "thinking"))
    return cache.charge([_canonical(kind, block) for kind, block in parts], marks)


def _canonical(kind: str, block: Mapping) -> str:
    return json.dumps([kind, {name: value for name, value in block.items() if name != "cache_control"}], sort_keys=True)


def message(answer: Acts, number: int, used: Tokens) -> dict:
    content: list[dict] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": signature(answer.thinking)})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for n, ((name, _), sent) in enumerate(zip(answer.calls, inputs(answer), strict=True)):
        given = from_json(sent.encode() or b"{}", partial_mode="trailing-strings")  # of a cut input, what there was
        content.append({"type": "tool_use", "id": f"toolu_{number}_{n}", "name": name, "input": given})
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": "planned", "content": content,
        "stop_reason": answer.stop or ("tool_use" if answer.calls else "end_turn"), "stop_sequence": None,
        "usage": _input_usage(used) | _output_usage(used),
    }  # fmt: skip


def _input_usage(used: Tokens) -> dict:
    return {
        "input_tokens": used.uncached,
        "cache_creation_input_tokens": used.written,
        "cache_read_input_tokens": used.read,
    }


def _output_usage(used: Tokens) -> dict:
    details = {"thinking_tokens": used.thinking}
    return {"output_tokens": used.output, "output_tokens_details": details}


def events(answer: Acts, number: int, used: Tokens, letters: int) -> Iterator[str]:
    """The same message as a stream, so many letters at a time: usage of the input at its start, of the output at its
    end. Events that no client knows are among the others, as they will be some day."""
    whole = message(answer, number, used)
    start = whole | {"content": [], "stop_reason": None, "usage": _input_usage(used) | {"output_tokens": 1}}
    yield _event("message_start", message=start)
    yield _event("ping")
    sent = inputs(answer)
    calls = len(whole["content"]) - len(sent)
    for index, block in enumerate(whole["content"]):
        kind = block["type"]
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
        yield _event("content_block_start", index=index, content_block=block | empty[kind])
        for delta in _deltas(block, letters, sent[index - calls] if kind == "tool_use" else ""):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
        yield _event("weather_report", outlook="fine")
    ended = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    yield _event("message_delta", delta=ended, usage=_output_usage(used))
    yield _event("message_stop")


def _deltas(block: Mapping, letters: int, sent: str) -> Iterator[dict]:
    if block["type"] == "text":
        yield from ({"type": "text_delta", "text": piece} for piece in pieces(block["text"], letters))
    elif block["type"] == "thinking":
        yield from ({"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"], letters))
        yield {"type": "signature_delta", "signature": block["signature"]}
    else:
        yield {"type": "input_json_delta", "partial_json": ""}
        yield from ({"type": "input_json_delta", "partial_json": piece} for piece in pieces(sent, letters))


def _event(name: str, **data: object) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=False)}\n\n"


def error_event(kind: str = "overloaded_error") -> str:
    return _event("error", error={"type": kind, "message": "Overloaded" if "over" in kind else "planned"})
