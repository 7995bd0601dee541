"""A service on this machine that plays scripted investigators, in the protocols of Anthropic and of OpenAI.

Real clients speak to it. It refuses, as the real ones do, what breaks their rules, and keeps what it refused.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from diffing.agents import replies
from tests.agents import anthropic_wire, openai_wire
from tests.agents.caching import PromptCache, written
from tests.agents.script import Acts, Script, Seen, Tokens, pieces
from tests.judge_server import Fails, HangsUp, Sent, failed, quick_clients, serving


@dataclass(frozen=True)
class Sends:
    """This body, whatever was asked."""

    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Breaks:
    """The answer that was due, cut: a stream after so many events, another body after so many characters."""

    after: int
    then: str = ""
    """What is sent next."""
    resets: bool = False
    """The connection is closed before as much was sent as was announced."""


@dataclass(frozen=True)
class Stalls:
    """Nothing, for as long as the test goes on."""


Fault = Acts | Fails | HangsUp | Sends | Breaks | Stalls
Faults = Callable[[int], Fault | None]
"""Given the number of the request, from 0 on."""


@dataclass
class AgentServer:
    script: Script
    faults: Faults
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    """What was answered in full."""
    requests: list[dict] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    used: Tokens = field(default_factory=Tokens)
    """By all answers of which the client was told what they cost."""
    letters: int = 7
    """So many at a time are in an event of a stream."""
    octets: int = 0
    """So many at a time are sent of a body; 0 for all."""
    most_at_once: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    _cache: PromptCache = field(default_factory=PromptCache)
    _paused: list[str] = field(default_factory=list)
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, request: dict, headers: Mapping[str, str], anthropic: bool) -> Sent | None:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            return self._respond(number, request, {name.lower(): value for name, value in headers.items()}, anthropic)
        finally:
            with self._lock:
                self._open -= 1

    def _respond(self, number: int, request: dict, headers: Mapping[str, str], anthropic: bool) -> Sent | None:
        if wrong := self._refusal(request, headers, anthropic):
            self.refused.append(wrong)
            return failed(Fails(400, message=wrong))
        with self._lock:
            planned = self.faults(number)
        if isinstance(planned, Stalls):
            self.ended.wait(60)
        if isinstance(planned, HangsUp | Stalls):
            return None
        if isinstance(planned, Fails):
            return failed(planned)
        if isinstance(planned, Sends):
            return planned.status, planned.body, planned.headers
        wire = anthropic_wire if anthropic else openai_wire
        seen = wire.seen(request)
        try:
            acts = planned if isinstance(planned, Acts) else self.script(seen)
        except Exception as error:  # a mistake of the script must not look like one of the network
            self.refused.append(repr(error))
            return failed(Fails(400, message=repr(error)))
        return self._answer(number, request, anthropic, seen, acts, planned if isinstance(planned, Breaks) else None)

    def _refusal(self, request: dict, headers: Mapping[str, str], anthropic: bool) -> str:
        if not _planned_key(headers):
            return "not the planned key"
        last = request["messages"][-1]
        if last["role"] == "assistant" and anthropic_wire.text_of(last["content"]) not in self._paused:
            return "the last message must not be the assistant's"
        return anthropic_wire.refusal(request, headers) if anthropic else openai_wire.refusal(request)

    def _answer(
        self, number: int, request: dict, anthropic: bool, seen: Seen, acts: Acts, broken: Breaks | None
    ) -> Sent:
        streamed = anthropic and bool(request.get("stream"))
        with self._lock:
            # Who breaks a stream off without a word has told what its input cost.
            told = not broken or (streamed and broken.after and not broken.then and not broken.resets)
            wire = anthropic_wire if anthropic else openai_wire
            used = wire.charged(request, self._cache if told else PromptCache()) + written(acts)
            if told:
                self.used += used if not broken else Tokens(used.uncached, used.written, used.read, output=1)
            if not broken:
                self.seen.append(seen)
            if acts.stop == "pause_turn":
                self._paused.append(acts.text)
        if streamed:
            events = list(anthropic_wire.events(acts, number, used, self.letters))
            return self._sent(events, broken, {"Content-Type": "text/event-stream"})
        body = anthropic_wire.message(acts, number, used) if anthropic else openai_wire.completion(acts, number, used)
        return self._sent(list(json.dumps(body)), broken, {})

    def _sent(self, parts: Sequence[str], broken: Breaks | None, headers: Mapping[str, str]) -> Sent:
        body = "".join(parts) if broken is None else "".join(parts[: broken.after]) + broken.then
        data = body.encode()
        missing = {"Content-Length": str(len(data) + 1), "Connection": "close"} if broken and broken.resets else {}
        return 200, pieces(data, self.octets) if self.octets else [data], {**headers, **missing}


def _planned_key(headers: Mapping[str, str]) -> bool:
    """Clients send it as a key or as a bearer, by version; a real one must never come here."""
    return {headers.get("x-api-key", "planned"), headers.get("authorization", "Bearer planned")} == {
        "planned", "Bearer planned",
    } and bool({"x-api-key", "authorization"} & set(headers))  # fmt: skip


@contextmanager
def agent_server(
    script: Script, monkeypatch: pytest.MonkeyPatch, faults: Faults = lambda number: None
) -> Iterator[AgentServer]:
    """Serves `anthropic/...` and `openai-api/planned/...` to the clients of this process, which never wait."""
    server = AgentServer(script, faults)
    with serving(server.respond) as server.url:
        quick_clients(monkeypatch)
        monkeypatch.setattr(replies, "PAUSES", (0.0,) * len(replies.PAUSES))
        monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)  # would be sent in place of the planned key
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("PLANNED_BASE_URL", f"{server.url}/v1")
        try:
            yield server
        finally:
            server.ended.set()


def once(fault: Fault, number: int = 1) -> Faults:
    """At that request alone."""
    return lambda at: fault if at == number else None


def from_then_on(fault: Fault, number: int = 1) -> Faults:
    return lambda at: fault if at >= number else None
