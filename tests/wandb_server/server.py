"""HTTP on a loopback port, in a thread of the test's own process."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

from tests.wandb_server.faults import SLOW_SECONDS, Fault, Faults
from tests.wandb_server.gql import Executor
from tests.wandb_server.mutations import Mutation
from tests.wandb_server.queries import Query
from tests.wandb_server.state import State

Answer = tuple[int, bytes]


class WandbServer:
    """`state` is what clients made; `unknown` are fields nobody answers, `refused` requests that failed.

    `faults` makes requests fail that could be answered. `changes` counts what was asked to be changed, the `uploads`
    of files among it.
    """

    def __init__(self, url: str):
        self.url, self.lock = url, threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets everything; requests that are under way may fail."""
        self.state, self.faults, self.refused = State(), Faults(), list[str]()
        self.executor = Executor(Query(self.state, self.url, None), Mutation(self.state, self.url, None))
        self.changes = self.uploads = 0

    @property
    def unknown(self) -> set[str]:
        return self.executor.unknown

    def graphql(self, body: dict[str, Any]) -> bytes:
        self.changes += body["query"].lstrip().startswith("mutation")
        answer = self.executor.execute(body["query"], body.get("variables") or {})
        self.refused += [each["message"] for each in answer.get("errors", [])]
        return json.dumps(answer).encode()

    def file_stream(self, run: str, body: dict[str, Any]) -> bytes:
        """What a running client sends every few seconds: new history rows, the summary, how it ended."""
        self.changes += 1
        found = self.state.runs[run]
        for name, chunk in (body.get("files") or {}).items():
            lines, offset = chunk.get("content") or [], chunk.get("offset") or 0
            if name == "wandb-history.jsonl":
                found.history[offset : offset + len(lines)] = lines
            elif name == "wandb-summary.json":
                found.summary = json.loads(lines[-1])
        if body.get("complete"):
            found.state = "finished" if body.get("exitcode") == 0 else "failed"
        return json.dumps({"exitcode": None, "limits": {}}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wandb: ClassVar[WandbServer]

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_PUT(self) -> None:
        self._serve(self._put)

    def do_POST(self) -> None:
        self._serve(self._post)

    def _serve(self, handle: Callable[[bytes], Answer]) -> None:
        """What `handle` makes of the body, unless a fault comes between."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.wandb.faults.draw(self.command, self.path)
        if fault in (Fault.TOO_MANY, Fault.FAILED):
            return self._answer(int(fault.value))
        status, answer = handle(body)
        if fault is Fault.DROPPED:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault is Fault.SLOW:
            time.sleep(SLOW_SECONDS)
        if fault is Fault.DAMAGED:
            answer = bytes([answer[0] ^ 1]) + answer[1:]
        self._answer(status, answer)

    def _get(self, body: bytes) -> Answer:
        state = self.wandb.state
        form, _, name = unquote(self.path).lstrip("/").partition("/")
        try:
            if form == "manifest":
                return 200, state.artifacts[name].manifest
            if form == "body":
                return 200, state.bodies[name.replace("_", "/")]
            if form == "file":
                run, path = name.split("/", 1)
                return 200, state.runs[run].files[path]
        except KeyError:
            pass  # not here either
        return 404, b""

    def _put(self, body: bytes) -> Answer:
        with self.wandb.lock:
            try:
                self.wandb.changes, self.wandb.uploads = self.wandb.changes + 1, self.wandb.uploads + 1
                self.wandb.state.receive(self.path.rpartition("/")[2], body)
            except ValueError as error:
                self.wandb.refused.append(str(error))
                return 400, str(error).encode()
        return 200, b""

    def _post(self, raw: bytes) -> Answer:
        parts = self.path.strip("/").split("/")
        if parts != ["graphql"] and parts[-1] != "file_stream":
            return 404, b""
        if not self.headers.get("Authorization"):
            return 401, b'{"error": "no API key"}'
        body = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        with self.wandb.lock:
            try:
                graphql = parts == ["graphql"]
                return 200, self.wandb.graphql(body) if graphql else self.wandb.file_stream(parts[-2], body)
            except (AttributeError, KeyError, TypeError) as error:  # a gap here; on a 5xx the client retries
                self.wandb.refused.append(repr(error))
                return 400, repr(error).encode()

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the tests look at the state."""


@contextmanager
def running_server() -> Iterator[WandbServer]:
    """A fresh server on a free loopback port, until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.daemon_threads = True
        server = WandbServer(f"http://127.0.0.1:{http.server_port}")
        http.RequestHandlerClass = type("Handler", (_Handler,), {"wandb": server})
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()
