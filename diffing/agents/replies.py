"""One whole reply of a model, or an error that says why there is none.

Clients ask again where a request fails in transit or by its status. What comes under status 200 and is no reply, as
proxies and overloaded services send it, they take for one: they stumble over it, or hand on half of a message as if it
were whole. That is asked for again here; a request is repeated as it was, so that no conversation has a turn twice.
"""

from collections.abc import Awaitable, Callable

import anyio
from inspect_ai.event import ModelEvent
from inspect_ai.log import transcript
from inspect_ai.model import ModelOutput

# There is no public name for the error that a refused request raises.
from inspect_ai.model._model import ModelGenerateError
from inspect_ai.util import store_as
from tenacity import RetryError

from diffing.agents.progress import Progress
from diffing.errors import DiffingError

PAUSES: tuple[float, ...] = (2.0, 10.0, 30.0)
"""Seconds before each further attempt."""
STUMBLES = (ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What clients raise while they read a body that is not the reply which they take it for."""
CUT = "the message ended at its limit of tokens inside of this call, which was not made; make it again, and shorter"


class NoReply(DiffingError):
    """A service that cannot be reached, refuses a request, or answers with what is no reply."""


async def whole_reply(ask: Callable[[], Awaitable[ModelOutput]]) -> ModelOutput:
    """What `ask` gets from a model, asked again a few times if it is no whole reply; Progress counts these. Raises
    NoReply. A call of a tool that the end of the message cut is marked as one that cannot be read."""
    for pause in (*PAUSES, None):
        try:
            output = await ask()
            found = _problem(output)
            if not found:
                return output
        except STUMBLES as error:
            found = f"{type(error).__name__}: {error}"
        except ModelGenerateError as error:
            raise NoReply(error.provider_message or str(error)) from error
        except RetryError as error:
            last = error.last_attempt.exception()
            raise NoReply(f"{error.last_attempt.attempt_number} attempts, {type(last).__name__}: {last}") from error
        if pause is not None:
            store_as(Progress).asked_again += 1
            await anyio.sleep(pause)
    raise NoReply(f"{len(PAUSES) + 1} answers that are no whole reply; the last: {found}")


def _problem(output: ModelOutput) -> str:
    """Why an output is no whole reply; empty if it is one. Gives it a reason to stop that Inspect does not know."""
    if not output.choices:
        return "no message"
    choice = output.choices[0]
    if choice.stop_reason == "unknown":
        word = _own_reason()
        if word is None:
            return "a message without an end"
        if word == "model_context_window_exceeded":
            choice.stop_reason = "model_length"
    if choice.stop_reason == "max_tokens" and choice.message.tool_calls:
        choice.message.tool_calls[-1].parse_error = CUT
    return ""


def _own_reason() -> object:
    """Why the last reply ended, in the service's own word; None if it does not say."""
    calls = [event.call for event in transcript().events if isinstance(event, ModelEvent)]
    response = calls[-1].response if calls and calls[-1] else None
    reply = response if isinstance(response, dict) else {}
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else reply
    return first.get("stop_reason") or first.get("finish_reason") if isinstance(first, dict) else None
