"""Real clients against a service that plays investigators and refuses malformed requests."""

import json
import socket
from pathlib import Path

import pandas as pd
import pytest

from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.investigators import CLAUDE, GENERATION, MODELS, STREAMED, evaluated, investigator, submits
from tests.agents.script import Acts, Script
from tests.agents.server import agent_server


@pytest.mark.parametrize("model", MODELS)
def test_who_follows_the_evidence_finds_the_facts_and_who_has_none_does_not(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch) as server:
        grades = evaluated(tmp_path, model, ["method", "blackbox", "scripted"], interactions=[4]).grades
    assert server.refused == []
    assert list(grades.outcome) == ["submitted"] * 3
    assert list(grades.fact_recall) == [1.0, 0.0, 1.0]
    assert list(grades.tool_errors) == [1, 1, 0]
    assert list(grades.interactions_used) == [0, 4, 0]
    sent = json.dumps(server.requests).lower()
    assert "zeppelin" in sent
    for secret in Evidence([planted.report()]).secrets:
        assert secret.text.lower() not in sent, secret.kind


CUT = {"domain": "airships", "confidence": 0.5, "evidence": [], "behaviours": ["zeppelins", "are", "knitted", "yarn"]}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("script", "outcome", "detail", "forced"),
    [
        (lambda seen: Acts(text="I would rather not.", stop="refusal"), "refused", "", ""),
        (lambda seen: Acts(text="Hm.", stop="max_tokens"), "no_submission", "8 turns", "turns"),
        (lambda seen: Acts(), "no_submission", "8 turns", "turns"),
        (lambda seen: Acts([(SUBMIT, CUT)], stop="max_tokens"), "no_submission", "8 turns", "turns"),
        (lambda seen: submits("late", "x") if seen.tools == [SUBMIT] else Acts(text="Hm."), "submitted", "", "turns"),
    ],
    ids=["refusal", "cut off", "says nothing", "cut submission", "forced"],
)
def test_ways_to_end(
    model: str, script: Script, outcome: str, detail: str, forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(script, monkeypatch) as server:
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert server.refused == []
    assert (row.outcome, row.detail, row.forced) == (outcome, detail, forced)


@pytest.mark.parametrize(("model", "generation"), [*((each, GENERATION) for each in MODELS), (CLAUDE, STREAMED)])
def test_a_call_that_the_limit_of_tokens_cut_is_not_made_and_made_again_when_whole(
    model: str, generation: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough came of the submission to pass for one; and the call before it is whole."""
    given = {name: CUT[name] for name in ("domain", "confidence", "evidence", "behaviours")}
    acts = (Acts([("overview", {}), (SUBMIT, given)], stop="max_tokens"), submits("whole", "x"))
    with agent_server(lambda seen: acts[seen.turn], monkeypatch) as server:
        row = evaluated(tmp_path, model, generation=generation).grades.iloc[0]
    assert server.refused == []
    assert (row.outcome, row.domain, row.tool_errors) == ("submitted", "whole", 1)
    assert json.loads(server.seen[1].results[0])["reports"]
    assert "which was not made" in server.seen[1].results[1]


@pytest.mark.parametrize("generation", [GENERATION, STREAMED], ids=["whole", "streamed"])
def test_a_context_window_that_ends_inside_of_a_submission_is_no_submission(
    generation: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = Acts([(SUBMIT, CUT)], stop="model_context_window_exceeded")
    with agent_server(lambda seen: acts, monkeypatch) as server:
        row = evaluated(tmp_path, CLAUDE, generation=generation).grades.iloc[0]
    assert (row.outcome, row.detail, len(server.requests)) == ("no_submission", "context window", 1)
    assert pd.isna(row.fact_recall)


@pytest.mark.parametrize("generation", [GENERATION, STREAMED], ids=["whole", "streamed"])
def test_a_message_that_the_service_interrupts_goes_on_and_is_one_turn(
    generation: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = (Acts(text="Let me see ...", stop="pause_turn"), submits("airships", "x"))
    with agent_server(lambda seen: acts[seen.turn], monkeypatch) as server:
        row = evaluated(tmp_path, CLAUDE, generation=generation, turns=2).grades.iloc[0]
    assert server.refused == []
    assert (row.outcome, row.forced, len(server.requests)) == ("submitted", "", 2)


def test_no_test_with_a_planned_service_reaches_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        agent_server(lambda seen: Acts(), monkeypatch),
        pytest.raises(pytest.fail.Exception, match=r"may not connect to 192\.0\.2\.1"),
    ):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
