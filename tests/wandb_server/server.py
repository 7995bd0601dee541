"""HTTP on a loopback port, in a thread of the test's own process."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

from tests.wandb_server.gql import Executor
from tests.wandb_server.mutations import Mutation
from tests.wandb_server.queries import Query
from tests.wandb_server.state import State


class WandbServer:
    """`state` is what clients made; `unknown` are fields nobody answers, `refused` requests that failed."""

    def __init__(self, url: str):
        self.url, self.state, self.lock = url, State(), threading.Lock()
        self.executor = Executor(Query(self.state, url, None), Mutation(self.state, url, None))
        self.refused: list[str] = []

    @property
    def unknown(self) -> set[str]:
        return self.executor.unknown

    def graphql(self, body: dict[str, Any]) -> bytes:
        answer = self.executor.execute(body["query"], body.get("variables") or {})
        self.refused += [each["message"] for each in answer.get("errors", [])]
        return json.dumps(answer).encode()

    def file_stream(self, run: str, body: dict[str, Any]) -> bytes:
        """What a running client sends every few seconds: new history rows, the summary, how it ended."""
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
        form, _, name = unquote(self.path).lstrip("/").partition("/")
        if form == "manifest":
            self._answer(200, self.wandb.state.artifacts[name].manifest)
        elif form == "body":
            self._answer(200, self.wandb.state.bodies[name.replace("_", "/")])
        else:
            self._answer(404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.wandb.lock:
            try:
                self.wandb.state.receive(self.path.rpartition("/")[2], body)
            except ValueError as error:
                self.wandb.refused.append(str(error))
                return self._answer(400, str(error).encode())
        self._answer(200)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        served = parts == ["graphql"] or parts[-1] == "file_stream"
        if not served:
            return self._answer(404)
        if not self.headers.get("Authorization"):
            return self._answer(401, b'{"error": "no API key"}')
        body = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        with self.wandb.lock:
            try:
                graphql = parts == ["graphql"]
                answer = self.wandb.graphql(body) if graphql else self.wandb.file_stream(parts[-2], body)
            except (
                AttributeError,
                KeyError,
                TypeError,
            ) as error:  # a gap in this server; on a 5xx the client retries
                self.wandb.refused.append(repr(error))
                return self._answer(400, repr(error).encode())
        self._answer(200, answer)

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
