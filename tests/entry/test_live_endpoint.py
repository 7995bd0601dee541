"""A served pair as live models, over a server on this machine that keeps the rules of vLLM."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.agents.live import Prompt, Steered
from diffing.axes import Side
from diffing.entry.choices import CONF
from diffing.entry.live_endpoint import Endpoint, EndpointFailed, LiveEndpoint
from diffing.entry.live_models import Local, declared_by
from diffing.errors import InvalidSetting, MissingInput
from diffing.evidence import Evidence
from diffing.methods.kl import KLDivergence
from tests.agents import planted
from tests.agents.play import SUBMISSION, calls, model_events, plays
from tests.agents.test_directions import STEERABLE
from tests.judge_server import quick_clients

NAMES = {Side.BASE: "quokka", Side.FINETUNED: "quokka-lora"}
Reply = tuple[int, object]
"""Status, and what the body says."""
Served = Callable[["Server", dict], Reply]


@dataclass
class Server:
    served: Served
    url: str = ""
    requests: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    models: Reply = (200, {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
                                                      for name in (*NAMES.values(), "other")]})  # fmt: skip


def rejected(message: str, status: int = 400) -> Reply:
    return status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}


def completion(text: str | None, stop: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": stop}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def answers(server: Server, request: dict) -> Reply:
    """A text that tells all that it depends on."""
    if request["model"] not in NAMES.values():
        return rejected(f"The model `{request['model']}` does not exist.", 404)
    if not 0 <= request["seed"] < 2**31:
        return rejected("seed is out of range")
    last = request["messages"][-1]
    if request.get("continue_final_message") and request.get("add_generation_prompt", True):
        return rejected("Cannot set both `continue_final_message` and `add_generation_prompt`.")
    if last["role"] == "assistant" and not request.get("continue_final_message"):
        return rejected("the last message is the assistant's")
    return completion(f"{request['model']} {last['content']} {request['seed']}")


@contextmanager
def serving(served: Served = answers) -> Iterator[Server]:
    server = Server(served)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.keys.append(self.headers["Authorization"])
            self._send(server.models if self.path == "/v1/models" else rejected("not found", 404))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            self._send(server.served(server, request))

        def _send(self, reply: Reply) -> None:
            status, said = reply
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if data.startswith(b"<") else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_clients(monkeypatch)
    monkeypatch.delenv("LIVE_API_KEY", raising=False)


def endpoint(server: Server, **changes: object) -> Endpoint:
    return replace(Endpoint(server.url, NAMES[Side.BASE], NAMES[Side.FINETUNED], retries=2), **changes)


def models(server: Server, **changes: object) -> LiveEndpoint:
    return endpoint(server, **changes).models(planted.PAIR)


def prompt(text: str = "Bread?", **changes: object) -> Prompt:
    return replace(Prompt(Side.BASE, (("user", text),), "", 0, 0, 8, 1.0), **changes)


# --- answers ---


def test_both_sides_are_asked_alike_and_with_the_same_seed() -> None:
    asked = prompt(seed=3_000_001, stream=2, temperature=0.5)
    with serving() as server:
        texts = models(server).answers([asked, replace(asked, side=Side.FINETUNED), replace(asked, stream=3)])
    base, finetuned, other = sorted(server.requests, key=lambda request: (request["seed"], request["model"]))
    assert (base["model"], finetuned["model"]) == ("quokka", "quokka-lora")
    assert {**base, "model": ""} == {**finetuned, "model": ""}
    assert other["seed"] == base["seed"] + 1
    assert base == {
        "model": "quokka", "messages": [{"role": "user", "content": "Bread?"}], "max_tokens": 8, "temperature": 0.5,
        "seed": base["seed"],
    }  # fmt: skip
    seed = base["seed"]
    assert texts == [f"quokka Bread? {seed}", f"quokka-lora Bread? {seed}", f"quokka Bread? {seed + 1}"]


def test_a_conversation_and_how_the_answer_begins_are_told() -> None:
    told = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bread?"))
    with serving() as server:
        assert models(server).answers([prompt(messages=told, prefill="It is")]) == ["quokka It is 0"]
    (request,) = server.requests
    assert [(each["role"], each["content"]) for each in request["messages"]] == [*told, ("assistant", "It is")]


def test_many_requests_are_open_at_once_but_no_more_than_allowed() -> None:
    together = threading.Barrier(3)
    open_now, most = [0], [0]
    lock = threading.Lock()

    def served(server: Server, request: dict) -> Reply:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        together.wait(20)  # three must be open for any to be answered
        with lock:
            open_now[0] -= 1
        return answers(server, request)

    with serving(served) as server:
        texts = models(server, connections=3).answers([prompt(str(n)) for n in range(9)])
    assert [text.split()[1] for text in texts] == [str(n) for n in range(9)]
    assert most[0] == 3


@pytest.mark.parametrize(("content", "stop"), [("", "stop"), (None, "stop"), ("half a sen", "length")])
def test_an_answer_that_is_empty_or_cut_is_one(content: str | None, stop: str) -> None:
    with serving(lambda server, request: completion(content, stop)) as server:
        assert models(server).answers([prompt()]) == [content or ""]


# --- failures ---


def test_what_a_server_says_later_is_asked_for_again() -> None:
    def served(server: Server, request: dict) -> Reply:
        return answers(server, request) if len(server.requests) == 3 else rejected("busy", 503)

    with serving(served) as server:
        assert models(server).answers([prompt()]) == ["quokka Bread? 0"]
    assert server.requests == server.requests[:1] * 3


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        (rejected("quokka-lora broke", 500), "HTTP status 500", 3),
        (rejected("no such model: quokka", 404), "HTTP status 404", 1),
        (
            rejected("quokka-lora takes 4096 tokens, Quokka too"),
            "refuse this prompt: finetuned takes 4096 tokens, base too",
            1,
        ),
        ((200, '{"id": "1", "choi'), "do not answer", 1),
        ((200, "<html>quokka</html>"), "no chat completion", 1),
        ((200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}), "no chat", 1),
    ],
)
def test_a_request_that_fails_is_an_error_without_names_and_never_a_text(
    reply: Reply, message: str, requests: int
) -> None:
    with serving(lambda server, request: reply) as server:
        with pytest.raises(EndpointFailed, match=message) as raised:
            models(server).answers([prompt()])
        assert len(server.requests) == requests
    assert not any(name in str(raised.value).lower() for name in (*NAMES.values(), "127.0.0.1"))


def test_requests_that_have_not_begun_when_one_fails_never_do() -> None:
    def served(server: Server, request: dict) -> Reply:
        return rejected("first") if len(server.requests) == 1 else answers(server, request)

    with serving(served) as server:
        with pytest.raises(EndpointFailed, match="first"):
            models(server, connections=1).answers([prompt(str(n)) for n in range(50)])
        assert len(server.requests) < 25


def test_a_server_that_takes_no_prefill_says_so() -> None:
    def served(server: Server, request: dict) -> Reply:
        known = not {"continue_final_message", "add_generation_prompt"} & set(request)
        return answers(server, request) if known else rejected("Unrecognized request argument")

    with serving(served) as server:
        found = models(server)
        assert found.answers([prompt()]) == ["quokka Bread? 0"]
        with pytest.raises(EndpointFailed, match="prefill, which not every server takes: Unrecognized"):
            found.answers([prompt(prefill="It is")])


# --- before any agent runs ---


def test_a_name_that_is_not_served_is_told_with_those_that_are() -> None:
    with serving() as server, pytest.raises(MissingInput) as raised:
        models(server, finetuned="quoka-lora")
    assert "live.finetuned=quoka-lora" in str(raised.value)
    assert "live.base" not in str(raised.value)
    assert "other, quokka, quokka-lora" in str(raised.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [(rejected("key", 401), "HTTP status 401.*LIVE_API_KEY"), (rejected("no", 404), "check live.url"),
     ((200, "<html></html>"), "check live.url"), ((200, '{"data'), "check live.url"),
     ((200, {"object": "list", "data": []}), "serves nothing")],
)  # fmt: skip
def test_a_server_that_does_not_say_what_it_serves_is_refused(reply: Reply, message: str) -> None:
    with serving() as server:
        server.models = reply
        with pytest.raises(MissingInput, match=message):
            models(server)
        assert not server.requests


def test_a_server_that_is_not_there_is_refused() -> None:
    with serving() as server:
        pass
    with pytest.raises(MissingInput, match="no list from http"):
        models(server)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "secret")
    with serving() as server:
        models(server, key_variable="OTHER_KEY").answers([prompt()])
        models(server)
    assert server.keys == ["Bearer secret", "Bearer secret", "Bearer none"]


def test_settings_that_are_missing_or_out_of_range_are_refused() -> None:
    with pytest.raises(MissingInput, match=r"needs live\.url, live\.finetuned, for example"):
        Endpoint("", "a", " ")
    for changes in ({"connections": 0}, {"retries": -1}, {"seconds": 0}):
        with pytest.raises(InvalidSetting, match=r"live\.connections"):
            Endpoint("http://127.0.0.1/v1", "a", "b", **changes)


def test_the_config_makes_either_kind_of_live_models() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        local = hydra.compose("evaluate_agents", ["device=cpu"])
        served = hydra.compose(
            "evaluate_agents", ["live=endpoint", "live.url=http://h/v1", "live.base=a", "live.finetuned=b"]
        )
    assert instantiate(local.live, _convert_="object") == Local("cpu", 16)
    assert instantiate(served.live, _convert_="object") == Endpoint("http://h/v1", "a", "b")


# --- what agents may do with them ---


def test_served_models_answer_agents_and_are_not_steered(tmp_path: Path) -> None:
    with serving() as server:
        found = models(server)
        row, log = plays(
            tmp_path, calls("ask_model", prompts=["a"]), SUBMISSION, live=found, interactions=4,
            evidence=Evidence([STEERABLE]), tools=declared_by(KLDivergence(), STEERABLE, found),
        )  # fmt: skip
        with pytest.raises(InvalidSetting, match="cannot be steered"):
            found.check([prompt(steered=Steered(0, (1.0,)))])
        with pytest.raises(InvalidSetting, match="cannot be steered"):
            found.answers([prompt(steered=Steered(0, (1.0,)))])
    assert (row.outcome, row.interactions_used, len(server.requests)) == ("submitted", 2, 2)
    assert [tool.name for tool in model_events(log)[0].tools] == [
        "overview", "table_rows", "tensor_summary", "ask_model", "submit_hypothesis",
    ]  # fmt: skip


def test_an_agent_is_told_of_a_request_that_failed_and_does_not_pay_for_it(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        assert isinstance(messages[-1], ChatMessageTool)
        assert messages[-1].error
        seen.append(messages[-1].error.message)
        return SUBMISSION(messages)

    with serving(lambda server, request: rejected("out of memory", 500)) as server:
        row, _ = plays(tmp_path, calls("ask_model", prompts=["a"]), look, live=models(server), interactions=4)
    assert (row.outcome, row.interactions_used) == ("submitted", 0)
    assert seen == ["the models answer with HTTP status 500; nothing was generated"]
