"""A server that speaks OpenAI's protocol, as the live models that agents ask.

It serves both sides under two names, as vLLM and SGLang do for a base and a LoRA adapter. Their residual streams cannot
be reached from outside, so that nothing is steered here. What the server says of itself is not for agents: its names
are replaced in the errors they read, and of most errors only the status is told.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from diffing.agents.live import Prompt
from diffing.axes import Side
from diffing.entry.live_models import STREAMS
from diffing.errors import DiffingError, InvalidSetting, MissingInput
from diffing.specs import PairSpec

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""What makes vLLM and SGLang go on with the last message instead of answering it."""
SEEDS = 2**31
"""Servers take no larger ones."""


class EndpointFailed(DiffingError):
    """A request that came to nothing after all retries."""


@dataclass(frozen=True)
class Endpoint:
    """Live models behind a server."""

    url: str
    """Up to and with `/v1`."""
    base: str
    """Name under which the base is served."""
    finetuned: str
    key_variable: str = "LIVE_API_KEY"
    """Environment variable that holds the server's key; servers that want none are sent a made-up one."""
    connections: int = 16
    """Requests at once; the server puts them into one batch."""
    retries: int = 4
    """Further attempts after rate limits, server errors and dropped connections, with growing pauses."""
    seconds: float | int = 600
    """Time that an answer may take."""

    def __post_init__(self) -> None:
        if missing := [name for name in ("url", "base", "finetuned") if not getattr(self, name).strip()]:
            raise MissingInput(
                f"live=endpoint needs {', '.join(f'live.{name}' for name in missing)}, for example "
                "live.url=http://localhost:8000/v1 live.base=... live.finetuned=..., by the names that it serves"
            )
        if self.connections < 1 or self.retries < 0 or self.seconds <= 0:
            raise InvalidSetting(
                f"live.connections={self.connections}, live.retries={self.retries}, live.seconds={self.seconds}; "
                "expected 1 or more, 0 or more, and more than 0"
            )

    def models(self, pair: PairSpec) -> "LiveEndpoint":
        """Raises MissingInput unless the server answers and has both names."""
        models = LiveEndpoint(self)
        models.check_served()
        return models


class LiveEndpoint:
    """Implements `diffing.agents.live.LiveModels`. Both sides get the same seed; whether that makes a text repeatable,
    and independent of the batch it was made in, is the server's doing."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._names: Mapping[Side, str] = {Side.BASE: endpoint.base, Side.FINETUNED: endpoint.finetuned}

    def check_served(self) -> None:
        """Raises MissingInput unless the server answers and has both names."""
        url = self._endpoint.url
        try:
            listed = self._client.models.with_raw_response.list().http_response.json()
            served = sorted(str(model["id"]) for model in listed["data"])
        except openai.APIStatusError as error:
            raise MissingInput(
                f"{url}/models answers with HTTP status {error.status_code}, not with the models that are served; "
                f"check live.url, and the key in {self._endpoint.key_variable}"
            ) from error
        except (openai.OpenAIError, ValueError, TypeError, KeyError) as error:
            raise MissingInput(
                f"no list from {url}/models ({error}); check live.url, and that a server runs"
            ) from error
        if missing := [f"live.{side}={name}" for side, name in self._names.items() if name not in served]:
            raise MissingInput(
                f"{url} does not serve {' or '.join(missing)}; it serves {', '.join(served) or 'nothing'}"
            )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """How long a prompt may be is known to the server alone."""
        if any(prompt.steered for prompt in prompts):
            raise InvalidSetting("models behind an endpoint cannot be steered")

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Raises EndpointFailed for the first request that fails; those that have not begun then never do."""
        self.check(prompts)
        with ThreadPoolExecutor(self._endpoint.connections, "live-endpoint") as pool:
            return list(pool.map(self._answer, prompts))

    @cached_property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self._endpoint.url,
            api_key=os.environ.get(self._endpoint.key_variable) or "none",
            max_retries=self._endpoint.retries,
            timeout=self._endpoint.seconds,
        )

    def _answer(self, prompt: Prompt) -> str:
        """What the model said, whether it came to an end or was cut."""
        try:
            found = self._client.chat.completions.create(
                model=self._names[prompt.side],
                messages=_messages(prompt),
                max_tokens=prompt.max_new_tokens,
                temperature=prompt.temperature,
                seed=(prompt.seed * STREAMS + prompt.stream) % SEEDS,
                extra_body=CONTINUE if prompt.prefill else None,
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise EndpointFailed(self._refused(prompt, error)) from error
        except openai.APIStatusError as error:
            raise EndpointFailed(f"the models answer with HTTP status {error.status_code}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise EndpointFailed(f"the models do not answer ({type(error).__name__})") from error
        if not isinstance(found, ChatCompletion) or not found.choices:
            raise EndpointFailed("the models answer with something that is no chat completion")
        return found.choices[0].message.content or ""

    def _refused(self, prompt: Prompt, error: openai.APIStatusError) -> str:
        """In the server's words, which say what was wrong with the prompt, without names."""
        body = error.body.get("message") if isinstance(error.body, Mapping) else None
        said = str(body or f"HTTP status {error.status_code}")
        for side, name in sorted(self._names.items(), key=lambda each: -len(each[1])):
            said = re.sub(re.escape(name), str(side), said, flags=re.IGNORECASE)
        if prompt.prefill:
            return f"the models refuse this prompt with a prefill, which not every server takes: {said}"
        return f"the models refuse this prompt: {said}"


def _messages(prompt: Prompt) -> list[ChatCompletionMessageParam]:
    told: list[tuple[str, str]] = [*prompt.messages, *([("assistant", prompt.prefill)] if prompt.prefill else [])]
    return [{"role": role, "content": text} for role, text in told]  # type: ignore[misc]
