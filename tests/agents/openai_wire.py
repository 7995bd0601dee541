"""OpenAI's protocol of chat completions, from the side of the service."""

import json
from collections.abc import Mapping

from tests.agents.anthropic_wire import text_of
from tests.agents.caching import PromptCache
from tests.agents.script import Acts, Seen, Tokens, inputs

FIELDS = {
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "seed", "stop", "n", "reasoning_effort", "stream", "stream_options", "logprobs",
}  # fmt: skip


def refusal(request: Mapping) -> str:
    if unknown := set(request) - FIELDS:
        return f"unrecognized request arguments {sorted(unknown)}"
    names = [tool["function"]["name"] for tool in request.get("tools", [])]
    choice = request.get("tool_choice", "auto")
    if isinstance(choice, Mapping) and choice["function"]["name"] not in names:
        return f"tool {choice['function']['name']} is not among the tools"
    open_calls: list[str] = []
    for message in request["messages"]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return "an answer without a call"
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            return f"calls {open_calls} without answers"
        if message.get("content") is None and not message.get("tool_calls"):
            return "content must not be null"
        open_calls = [call["id"] for call in message.get("tool_calls") or []]
        if not all(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls") or []):
            return "arguments must be a string"
    return "calls without answers" if open_calls else ""


def seen(request: Mapping) -> Seen:
    messages = request["messages"]
    texts = [text_of(message["content"]) for message in messages if message["role"] != "assistant"]
    results = [text_of(message["content"]) for message in messages if message["role"] == "tool"]
    turn = sum(message["role"] == "assistant" for message in messages)
    return Seen([tool["function"]["name"] for tool in request.get("tools", [])], texts, results, turn)


def charged(request: Mapping, cache: PromptCache) -> Tokens:
    """The input of a request; each message ends a prefix that is kept, and keeping it costs nothing."""
    blocks = [json.dumps(part, sort_keys=True) for part in (request.get("tools", []), *request["messages"])]
    used = cache.charge(blocks, range(len(blocks)))
    return Tokens(uncached=used.uncached + used.written, read=used.read)


def completion(answer: Acts, number: int, used: Tokens) -> dict:
    calls = [
        {"id": f"call_{number}_{n}", "type": "function", "function": {"name": name, "arguments": sent or "{}"}}
        for n, ((name, _), sent) in enumerate(zip(answer.calls, inputs(answer), strict=True))
    ]
    stop = {"refusal": "content_filter", "max_tokens": "length"}.get(answer.stop)
    message = {"role": "assistant", "content": answer.text or None} | ({"tool_calls": calls} if calls else {})
    return {
        "id": str(number), "object": "chat.completion", "created": 0, "model": "planned",
        "choices": [{"index": 0, "message": message, "finish_reason": stop or ("tool_calls" if calls else "stop")}],
        "usage": {
            "prompt_tokens": used.input, "completion_tokens": used.output, "total_tokens": used.total,
            "prompt_tokens_details": {"cached_tokens": used.read},
            "completion_tokens_details": {"reasoning_tokens": used.thinking},
        },
    }  # fmt: skip
