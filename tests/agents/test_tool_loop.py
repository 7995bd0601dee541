"""Calls of tools over real protocols: every call gets its answer, in order, whatever it asked for."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from inspect_ai.tool import Tool, tool

from diffing.agents import task
from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import Case
from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.investigators import CLAUDE, GENERATION, MODELS, evaluated, submits
from tests.agents.script import Acts, steps
from tests.agents.server import AgentServer, agent_server

ROWS: dict[str, object] = {"report": "R1", "table": "logit_lens", "columns": ["token"], "limit": 3}
DONE = submits("airships", "knitting")
GOOD: dict[str, object] = dict(DONE.calls[0][1])


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def played(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, *acts: Acts, **more: object
) -> tuple[pd.Series, AgentServer]:
    with agent_server(steps(*acts), monkeypatch) as server:
        row = evaluated(folder, model, **more).grades.iloc[0]  # type: ignore[arg-type]
    assert server.refused == []
    return row, server


def test_one_call_is_answered_and_its_text_is_kept(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, server = played(tmp_path, monkeypatch, model, Acts([("overview", {})], "Let me look."), DONE)
    assert json.loads(server.seen[1].results[0])["reports"]
    assert "Let me look." in json.dumps(server.requests[1])
    assert (row.outcome, row.tool_calls, row.tool_errors) == ("submitted", 2, 0)


def test_calls_side_by_side_are_answered_together_and_in_order(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [("table_rows", ROWS | {"offset": offset}) for offset in (7, 0, 3)]
    calls.insert(1, ("tensor_summary", {"report": "R1", "tensor": "mean_difference"}))
    _, server = played(tmp_path, monkeypatch, model, Acts(calls), DONE)
    results = [json.loads(text) for text in server.seen[1].results]
    assert [result.get("offset") for result in results] == [7, 0, 0, 3]
    assert results[1]["tensor"] == "mean_difference"
    assert len(server.requests) == 2, "in one message"


def test_the_same_call_twice_is_two_calls(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, server = played(tmp_path, monkeypatch, model, Acts([("table_rows", ROWS)] * 2), DONE)
    first, second = server.seen[1].results
    assert first == second
    assert row.tool_calls == 3


def test_who_only_talks_is_reminded_and_may_go_on(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, server = played(tmp_path, monkeypatch, model, Acts(text="I wonder."), Acts(), DONE)
    assert [seen.texts[-1].startswith("Go on") for seen in server.seen] == [False, True, True]
    assert row.outcome == "submitted"


def test_a_submission_beside_other_calls_ends_the_sample(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = Acts([("overview", {}), (SUBMIT, GOOD), ("no_such_tool", {})], "All at once.")
    row, server = played(tmp_path, monkeypatch, model, acts)
    assert (row.outcome, row.domain, row.tool_calls, row.tool_errors) == ("submitted", "airships", 3, 1)
    assert len(server.requests) == 1


def test_of_two_submissions_in_one_message_the_last_counts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = played(tmp_path, monkeypatch, model, Acts([(SUBMIT, GOOD), (SUBMIT, GOOD | {"domain": "balloons"})]))
    assert (row.outcome, row.domain) == ("submitted", "balloons")


WRONG: dict[str, tuple[str, Mapping[str, object], str]] = {
    "unknown tool": ("read_file", {"path": "/etc/passwd"}, "read_file not found"),
    "nothing of what is needed": ("table_rows", {}, "report"),
    "unknown argument": ("table_rows", ROWS | {"layer": 3}, "layer"),
    "wrong type": ("table_rows", ROWS | {"limit": "many"}, "'many' is not of type 'integer'"),
    "null": ("table_rows", ROWS | {"report": None}, "not of type 'string'"),
    "text for a list": ("table_rows", ROWS | {"columns": "token"}, "'token' is not valid"),
    "list for a text": ("table_rows", ROWS | {"table": ["logit_lens"]}, "not of type 'string'"),
    "unknown report": ("table_rows", ROWS | {"report": "R9"}, "R1"),
    "text for behaviours": (SUBMIT, GOOD | {"behaviours": "knitting"}, "not of type 'array'"),
    "no number": (SUBMIT, GOOD | {"confidence": "high"}, "not of type 'number'"),
    "out of range": (SUBMIT, GOOD | {"confidence": 80}, "from 0 to 1"),
    "part of a submission": (SUBMIT, {"domain": "airships"}, "behaviours"),
}


def test_a_wrong_call_is_answered_with_what_is_wrong_and_spoils_nothing_else(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [(name, given) for name, given, _ in WRONG.values()]
    row, server = played(tmp_path, monkeypatch, model, Acts([*calls, ("overview", {})]), DONE)
    results = server.seen[1].results
    for name, (_, _, said), result in zip(WRONG, WRONG.values(), results[:-1], strict=True):
        assert said in result, name
        assert "Submitted" not in result, name
    assert json.loads(results[-1])["reports"]
    assert (row.outcome, row.domain, row.tool_errors) == ("submitted", "airships", len(WRONG))


def test_a_tool_that_breaks_is_an_error_of_the_sample_with_its_cause(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a mistake of ours, which no agent can mend."""

    @tool
    def broken() -> Tool:
        async def execute() -> str:
            """Break."""
            raise ZeroDivisionError("by nought")

        return execute

    given = task.evidence_tools
    monkeypatch.setattr(task, "evidence_tools", lambda evidence: [*given(evidence), broken()])
    row, server = played(tmp_path, monkeypatch, model, Acts([("overview", {}), ("broken", {})]), DONE)
    assert row.outcome == "error"
    assert "by nought" in row.detail
    assert pd.isna(row.fact_recall)
    assert len(server.requests) == 1


def test_a_result_that_is_too_long_is_cut_and_says_so(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = planted.report()
    table = plain.tables["steering"]
    long = pd.concat([table.frame.assign(text=table.frame["text"] + " and on" * 200)] * 8, ignore_index=True)
    report = replace(plain, tables={**plain.tables, "steering": replace(table, frame=long)})
    acts = Acts([("table_rows", {"report": "R1", "table": "steering", "limit": 200})])
    with agent_server(steps(acts, DONE), monkeypatch) as server:
        agent = Agent(model, turns=4, generation=GENERATION)
        evaluate([Case(Evidence([report]), planted.TRUTH)], agent, tmp_path)
    (result,) = server.seen[1].results
    assert 20_000 < len(result) <= 30_000
    read = json.loads(result)
    assert read["total"] == len(long)
    assert 0 < len(read["rows"]) < 200
    assert f"{len(read['rows'])} of {len(long)} rows" in read["notice"]


def test_every_schema_passes_the_service_and_describes_what_it_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server = played(tmp_path, monkeypatch, CLAUDE, DONE, interactions=[4])
    offered = {tool["name"]: tool for tool in server.requests[0]["tools"]}
    assert {"overview", "table_rows", "tensor_summary", "ask_model", SUBMIT} <= set(offered)
    for name, described in offered.items():
        assert described["description"], name
        assert all(each.get("description") for each in described["input_schema"]["properties"].values()), name
