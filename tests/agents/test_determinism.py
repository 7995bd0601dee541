"""The same evaluation twice: nothing in it is left to chance."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from diffing.specs import JSON
from tests.agents.investigators import CLAUDE, COMPATIBLE, GENERATION, STREAMED, evaluated, investigator
from tests.agents.server import agent_server

IDS = {"id", "tool_use_id", "tool_call_id", "completed_at", "started_at", "timestamp", "working_start", "uuid"}


def _plain(value: object) -> object:
    """Without what tells one run from another."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name not in IDS}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


@pytest.mark.parametrize(("model", "generation"), [(CLAUDE, STREAMED), (COMPATIBLE, GENERATION)])
def test_two_runs_of_the_same_investigators_are_the_same_but_for_times_and_ids(
    model: str, generation: Mapping[str, JSON], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for name in ("first", "second"):
        with agent_server(investigator, monkeypatch) as server:
            access = ["method", "blackbox", "scripted"]
            evaluation = evaluated(
                tmp_path / name, model, access, {**generation, "max_connections": 1}, repeats=2, interactions=[4]
            )
        log = read_eval_log(str(evaluation.log))
        said = [[_plain(message.model_dump()) for message in sample.messages] for sample in log.samples or []]
        grades = evaluation.grades.drop(columns=["seconds", "working_seconds", "log"])
        ran.append((said, grades.to_json(), [_plain(request) for request in server.requests]))
    assert ran[0] == ran[1]
    assert len(ran[0][0]) == 6
