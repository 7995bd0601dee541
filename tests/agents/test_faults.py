"""Services that fail: what passes is asked for again, what lasts is an outcome with its cause, and nobody else suffers.

Some failures clients repeat themselves; others they take for an answer, and those `diffing.agents.replies` repeats.
"""

import email.utils
import json
import time
from pathlib import Path

import anthropic
import openai
import pandas as pd
import pytest
from inspect_ai.log import read_eval_log

from diffing.agents.replies import PAUSES
from tests.agents.investigators import CLAUDE, COMPATIBLE, GENERATION, MODELS, evaluated, investigator, submits
from tests.agents.play import said_to_the_model, sample_of
from tests.agents.script import Acts, steps
from tests.agents.server import Breaks, Fault, Sends, Stalls, agent_server, from_then_on, once
from tests.judge_server import Fails, HangsUp

OVERLOADED = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
BUSY = json.dumps({"error": {"type": "server_error", "message": "busy", "code": 503}})
NO_CHOICE = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
QUOTA = Fails(429, None, "You exceeded your current quota: insufficient_quota")

BY_CLIENTS: dict[str, Fault] = {
    "429 with retry-after": Fails(429), "429": Fails(429, None), "500": Fails(500), "502": Fails(502),
    "503": Fails(503), "504": Fails(504), "529": Fails(529), "overloaded under 500": Sends(OVERLOADED, 500),
    "408": Fails(408), "closed before headers": HangsUp(), "reset in the body": Breaks(60, resets=True),
    "shall not, but may, be repeated": Fails(529, None, headers={"x-should-retry": "false"}),
    "shall be repeated": Fails(400, None, headers={"x-should-retry": "true"}),
}  # fmt: skip
BY_US: dict[str, Fault] = {
    "cut body": Breaks(60), "empty body": Sends(""), "page": Sends("<html>Bad gateway</html>"),
    "overloaded under 200": Sends(OVERLOADED), "busy under 200": Sends(BUSY),
    "no choice": Sends(json.dumps(NO_CHOICE)), "no choices": Sends(json.dumps(NO_CHOICE | {"choices": None})),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_a_passing_failure_repeats_one_request_and_nothing_else(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn of one conversation begins with another failure."""
    faults = [*BY_CLIENTS.values(), *BY_US.values()]
    names = [*BY_CLIENTS, *BY_US]
    looks = [Acts([("overview", {})], f"Turn {turn}.") for turn in range(len(faults) - 1)]
    script = steps(*looks, submits("airships", "zeppelin", "yarn"))
    with agent_server(script, monkeypatch, lambda at: None if at % 2 else faults[at // 2]) as server:
        row = evaluated(tmp_path, model, turns=len(faults) + 1).grades.iloc[0]
    assert (row.outcome, row.detail) == ("submitted", ""), names[(len(server.requests) - 1) // 2]
    assert [seen.turn for seen in server.seen] == [*range(len(faults))]
    for name, failed, repeated in zip(names, server.requests[::2], server.requests[1::2], strict=True):
        assert failed == repeated, name
    assert row.messages == 2 + 2 * len(faults), "the conversation has no turn twice"
    assert row.retries == len(faults) - 1, "of a 400 that it repeats a client says nothing"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_request_is_not_repeated_and_the_row_has_the_cause(
    model: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(Fails(status, message="because"))) as server:
        evaluation = evaluated(tmp_path, model)
    row = evaluation.grades.iloc[0]
    assert (row.outcome, len(server.requests)) == ("error", 2)
    assert str(status) in row.detail
    assert "because" in row.detail
    assert len(row.detail) < 300, "the cause, without the request"
    assert pd.isna(row.fact_recall)
    assert '"reports"' in said_to_the_model(read_eval_log(str(evaluation.log))).replace("\\", ""), "what was said stays"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["529", "closed before headers", "429"])
def test_a_failure_that_lasts_longer_than_the_patience_is_an_error_with_its_cause(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(BY_CLIENTS[name])) as server:
        evaluation = evaluated(tmp_path, model)
    row = evaluation.grades.iloc[0]
    assert row.outcome == "error"
    assert {"529": "529", "429": "429", "closed before headers": "Connection error"}[name] in row.detail
    assert " at 0x" not in row.detail
    assert [seen.turn for seen in server.seen] == [0]
    assert len(sample_of(read_eval_log(str(evaluation.log))).messages) == 5, "and the transcript is kept"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["cut body", "overloaded under 200"])
def test_what_is_no_reply_is_asked_for_again_a_few_times_only(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(BY_US[name])) as server:
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert row.outcome == "error"
    assert row.retries == len(PAUSES)
    assert f"{len(PAUSES) + 1} answers that are no whole reply" in row.detail
    assert len(server.requests) == 1 + 1 + len(PAUSES)


@pytest.mark.parametrize("model", MODELS)
def test_money_that_is_spent_ends_the_sample_also_where_nobody_set_a_patience(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(QUOTA)) as server:
        row = evaluated(tmp_path, model, generation={"max_tokens": 1000}, seconds=30).grades.iloc[0]
    assert row.outcome == "error"
    assert "insufficient_quota" in row.detail
    assert len(server.requests) < 40


@pytest.mark.parametrize(("model", "outcome"), [(CLAUDE, "no_submission"), (COMPATIBLE, "error")])
def test_a_request_that_is_too_large_is_not_repeated(
    model: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(Fails(413))) as server:
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert (row.outcome, len(server.requests)) == (outcome, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [(CLAUDE, "prompt is too long: 250000 tokens > 200000 maximum"), (COMPATIBLE, "the input length is too long")],
)
def test_a_conversation_that_has_outgrown_the_context_is_an_outcome(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(Fails(400, message=message))) as server:
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert (row.outcome, row.detail, len(server.requests)) == ("no_submission", "context window", 2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "7"}, 7.0, 7.0),
        ({"Retry-After-Ms": "1500"}, 1.5, 1.5),
        ({"Retry-After": "date"}, 20.0, 30.0),
    ],
    ids=["seconds", "milliseconds", "date"],
)
def test_clients_come_back_when_they_are_told_to(
    model: str, headers: dict, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if headers.get("Retry-After") == "date":
        headers = {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}
    waits = []
    client = anthropic if model == CLAUDE else openai
    base = client._base_client.BaseClient
    calculated = base._calculate_retry_timeout

    def noted(*arguments, **named) -> float:
        waits.append(calculated(*arguments, **named))
        return 0.0

    monkeypatch.setattr(base, "_calculate_retry_timeout", noted)
    with agent_server(investigator, monkeypatch, once(Fails(429, None, headers=headers))):
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert row.outcome == "submitted"
    assert [least <= wait <= most for wait in waits] == [True], waits


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_that_does_not_come_is_asked_for_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, once(Stalls())) as server:
        row = evaluated(tmp_path, model, generation=GENERATION | {"attempt_timeout": 1}).grades.iloc[0]
    assert (row.outcome, len(server.requests)) == ("submitted", 4)
