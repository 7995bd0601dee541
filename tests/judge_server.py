"""A service that judges ask, on this machine: the protocols of OpenAI and of Anthropic, with answers as planned.

Real clients speak to it, with their own ideas of what to try again.
"""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def quick_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that reach the planned service only, and try again without a pause."""
    import anthropic._base_client
    import inspect_ai.model._retry
    import openai._base_client
    from tenacity import wait_none

    for client in (openai._base_client, anthropic._base_client):
        monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr(inspect_ai.model._retry, "wait_exponential_jitter", lambda **_: wait_none())
    for service in ("PLANNED", "ANTHROPIC"):
        monkeypatch.setenv(f"{service}_API_KEY", "planned")
    stay_here(monkeypatch)


def stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to another machine fails the test."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: tuple) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test may not connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


@dataclass(frozen=True)
class Says:
    """A reply; `stop` in OpenAI's words: stop, length or content_filter."""

    text: str
    stop: str = "stop"
    seconds: float = 0.0
    """It takes so long."""


@dataclass(frozen=True)
class Fails:
    """An HTTP error; the headers say when to come back."""

    status: int
    retry_after: float | str | None = 0
    message: str = "planned"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HangsUp:
    """The connection is closed without a word."""


Reply = Says | Fails | HangsUp
Plan = Callable[[str, int], Reply]
"""Given the question and how often it was asked before."""


@dataclass
class JudgeServer:
    url: str
    plan: Plan
    asked: list[str] = field(default_factory=list)
    """Every question, in the order of their coming."""
    requests: list[dict] = field(default_factory=list)
    most_at_once: int = 0
    _times: Counter = field(default_factory=Counter)
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, request: dict) -> Reply:
        content = request["messages"][-1]["content"]
        question = content if isinstance(content, str) else "".join(part["text"] for part in content)
        with self._lock:
            before = self._times[question]
            self._times[question] += 1
            self.asked.append(question)
            self.requests.append(request)
        return self.plan(question, before)

    def opened(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.most_at_once = max(self.most_at_once, self._open)


Sent = tuple[int, str | Sequence[bytes], Mapping[str, str]]
"""Status, body and headers of a response; a body in pieces is sent piece by piece."""


@contextmanager
def serving(respond: Callable[[dict, Mapping[str, str], bool], Sent | None]) -> Iterator[str]:
    """Serves below the URL that it gives: /chat/completions as OpenAI does, /v1/messages as Anthropic does.

    `respond` gets the request, its headers and whether it is Anthropic's; None closes the connection without a word.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent = respond(request, dict(self.headers.items()), self.path.split("?")[0].endswith("/messages"))
            if sent is None:
                self.close_connection = True
                return
            status, body, headers = sent
            parts = [body.encode()] if isinstance(body, str) else body
            self.send_response(status)
            sizes = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, parts)))}
            for name, value in {**sizes, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def failed(reply: Fails) -> Sent:
    """The error in words that both protocols' clients read."""
    error = {"message": reply.message, "type": "planned", "code": None, "param": None}
    later = {} if reply.retry_after is None else {"Retry-After": str(reply.retry_after)}
    return reply.status, json.dumps({"type": "error", "error": error}), {**later, **reply.headers}


@contextmanager
def judge_server(plan: Plan) -> Iterator[JudgeServer]:
    """Answers questions as planned."""

    def respond(request: dict, headers: Mapping[str, str], anthropic: bool) -> Sent | None:
        server.opened(1)
        try:
            reply = server.reply(request)
            if isinstance(reply, HangsUp):
                return None
            if isinstance(reply, Fails):
                return failed(reply)
            time.sleep(reply.seconds)
            return 200, json.dumps((_as_anthropic if anthropic else _as_openai)(reply)), {}
        finally:
            server.opened(-1)

    server = JudgeServer("", plan)
    with serving(respond) as server.url:
        yield server


def _as_openai(reply: Says) -> dict:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.stop}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _as_anthropic(reply: Says) -> dict:
    stop = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[reply.stop]
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "judge",
        "content": [{"type": "text", "text": reply.text}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
