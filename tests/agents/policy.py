"""The scripted policy, played by a service: what `scripted/words` does in the process, over Anthropic's protocol."""

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool
from inspect_ai.tool import ToolCall, ToolCallError

from diffing.agents.scripted import next_calls
from tests.agents.script import Acts, Seen


def policy(seen: Seen) -> Acts:
    messages: list[ChatMessage] = []
    for number, call in enumerate(seen.calls):
        name = f"call_{number}"
        made = ToolCall(id=name, function=call.tool, arguments=dict(call.arguments))
        error = ToolCallError("unknown", call.result) if call.failed else None
        messages += [
            ChatMessageAssistant(content="", tool_calls=[made]),
            ChatMessageTool(content=call.result, tool_call_id=name, function=call.tool, error=error),
        ]
    readings = next_calls(messages, seen.tools)
    return Acts([(reading.function, reading.arguments) for reading in readings], "Next.")
