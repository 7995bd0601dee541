"""Real clients against a service that plays investigators, fails as services do, and refuses malformed requests."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import Case
from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.play import Echo
from tests.agents.server import Acts, AgentServer, Answer, Garbled, Script, Seen, agent_server
from tests.judge_server import Fails, HangsUp

MODELS = ("anthropic/claude-planned", "openai-api/planned/model")
GENERATION = {"max_tokens": 1000, "max_retries": 6}


def submits(domain: str, *behaviours: str) -> Acts:
    given = {"domain": domain, "behaviours": list(behaviours), "evidence": ["R1/logit_lens"], "confidence": 0.8}
    return Acts([(SUBMIT, given)], "I am done.")


def investigator(seen: Seen) -> Acts:
    """Looks at what the overview names first, and submits the tokens that it read there; guesses without reports."""
    if "overview" not in seen.tools and seen.turn == 0 and "ask_model" in seen.tools:
        return Acts([("ask_model", {"prompts": ["Hi", "Ho"]}), ("ask_model", {"prompts": ["Hm"], "samples": 9})])
    if "overview" not in seen.tools:
        return submits("something", "nothing in particular")
    if seen.turn == 0:
        return Acts([("overview", {}), ("no_such_tool", {})], "Let me look.")
    if seen.turn == 1:
        table = next(iter(json.loads(seen.results[0])["reports"][0]["tables"]))
        where = {"source": "difference", "direction": "promoted"}
        arguments = {"report": "R1", "table": table, "where": where, "columns": ["token"]}
        return Acts([("table_rows", arguments), ("tensor_summary", {"report": "R1", "tensor": "mean_difference"})])
    words = sorted({row[0].strip() for row in json.loads(seen.results[2])["rows"]})
    return submits("airships", *words)


def run(
    server: AgentServer, folder: Path, model: str, access: Sequence[str] = ("method",), repeats: int = 1, **more: object
) -> pd.DataFrame:
    case = Case(Evidence([planted.report()]), planted.TRUTH, Echo())
    agent = Agent(model, turns=8, repeats=repeats, access=access, generation=GENERATION, **more)  # type: ignore[arg-type]
    return evaluate([case], agent, folder).grades


@pytest.mark.parametrize("model", MODELS)
def test_who_follows_the_evidence_finds_the_facts_and_who_has_none_does_not(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch) as server:
        grades = run(server, tmp_path, model, ["method", "blackbox", "scripted"], interactions=[4])
    assert server.refused == []
    assert list(grades.outcome) == ["submitted"] * 3
    assert list(grades.fact_recall) == [1.0, 0.0, 1.0]
    assert list(grades.tool_errors) == [1, 1, 0]
    assert list(grades.interactions_used) == [0, 4, 0]
    assert grades.input_tokens.sum() + grades.output_tokens.sum() == server.tokens
    sent = json.dumps(server.requests).lower()
    assert "zeppelin" in sent
    for secret in Evidence([planted.report()]).secrets:
        assert secret.text.lower() not in sent, secret.kind


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "fault",
    [Fails(429), Fails(429, None), Fails(500), Fails(503), Fails(529), HangsUp()],
    ids=["429 with retry-after", "429", "500", "503", "529", "connection closed"],
)
def test_a_passing_failure_repeats_one_request_and_nothing_else(
    model: str, fault: Fails | HangsUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda number: fault if number == 1 else None) as server:
        row = run(server, tmp_path, model).iloc[0]
    assert (row.outcome, row.fact_recall) == ("submitted", 1.0)
    assert [seen.turn for seen in server.seen] == [0, 1, 2]
    assert len(server.requests) == 4
    assert row.input_tokens + row.output_tokens == server.tokens, "not charged twice"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", [Fails(400), Fails(401), Fails(404), Garbled()], ids=["400", "401", "404", "cut"])
def test_a_lasting_failure_is_a_row_with_its_cause(
    model: str, fault: Fails | Garbled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda number: fault if number >= 1 else None) as server:
        row = run(server, tmp_path, model).iloc[0]
    assert row.outcome == "error"
    assert row.detail
    assert pd.isna(row.fact_recall)
    assert [seen.turn for seen in server.seen] == [0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("script", "outcome", "detail"),
    [
        (lambda seen: Acts(text="I would rather not.", stop="refusal"), "refused", ""),
        (lambda seen: Acts(text="Hm.", stop="max_tokens"), "no_submission", "8 turns"),
        (lambda seen: submits("late", "x") if seen.tools == [SUBMIT] else Acts(text="Hm."), "submitted", ""),
    ],
    ids=["refusal", "cut off", "forced"],
)
def test_ways_to_end(
    model: str, script: Script, outcome: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(script, monkeypatch) as server:
        row = run(server, tmp_path, model).iloc[0]
    assert server.refused == []
    assert (row.outcome, row.detail) == (outcome, detail)
    assert row.forced == ("" if outcome == "refused" else "turns")


def test_concurrent_samples_finish_while_a_third_of_the_calls_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (Fails(529), HangsUp(), Fails(429))

    def faults(number: int) -> Answer | None:
        return None if number % 3 else kinds[number // 3 % 3]

    with agent_server(investigator, monkeypatch, faults) as server:
        grades = run(server, tmp_path, MODELS[0], repeats=64)
    assert list(grades.outcome) == ["submitted"] * 64
    assert list(grades.fact_recall) == [1.0] * 64
    assert len(server.seen) == 3 * 64
    assert server.refused == []
