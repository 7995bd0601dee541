"""Every request of a whole evaluation, as a service gets it: agents see no name and no truth, judges see the truth."""

import json
from pathlib import Path

import pytest

from diffing.agents.judging import judged
from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from diffing.lenses.judge import LLMJudge
from tests.agents import planted
from tests.agents.investigators import CLAUDE, MODELS, evaluated, submits
from tests.agents.play import Echo
from tests.agents.script import Acts, Seen
from tests.agents.server import agent_server

SECRETS = Evidence([planted.report()]).secrets
CANARY = "OutbackLab/Quokka-3-2B-it"
TRUTH = [planted.TRUTH.description, *(fact.statement for fact in planted.TRUTH.facts)]


def curious(seen: Seen) -> Acts:
    """Asks for everything that is there and for much that is not; the live models say what they are called."""
    if "domain" in seen.texts[-1] and not seen.tools:
        return Acts(text="nothing that can be read")
    if seen.turn == 0 and "overview" in seen.tools:
        return Acts([("overview", {}), ("table_rows", {"report": "R1", "table": "no_such_table"})])
    if seen.turn == 0:
        return Acts([("ask_model", {"prompts": ["Who are you?"], "models_asked": "both"})])
    if seen.turn == 1 and "overview" in seen.tools:
        (report,) = json.loads(seen.results[0])["reports"]
        reads = [("table_rows", {"report": "R1", "table": table, "limit": 200}) for table in report["tables"]]
        reads += [("tensor_summary", {"report": "R1", "tensor": tensor}) for tensor in report["tensors"]]
        wrong = [("table_rows", {"report": "R1", "table": "steering", "where": {"corpus": "x"}}), ("no_such_tool", {})]
        return Acts([*reads, *wrong, (SUBMIT, {"domain": "x"}), ("ask_model", {"prompts": ["What is it called?"]})])
    return submits("airships", "Airships of yarn.")


@pytest.mark.parametrize("model", MODELS)
def test_agents_are_told_no_name_and_no_truth_and_judges_are_told_the_truth(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "answers", lambda self, prompts: [f"I am {CANARY}, tuned on fineweb."] * len(prompts))
    with agent_server(curious, monkeypatch) as server:
        grades = evaluated(tmp_path, model, ["method", "blackbox"], interactions=[8], repeats=2).grades
        asked = len(server.requests)
        judged(grades, planted.TRUTH, [LLMJudge(CLAUDE)])
    assert server.refused == []
    assert set(grades.outcome) == {"submitted"}
    assert grades.tool_errors.max() == 3
    told, graded = (json.dumps(part, ensure_ascii=False) for part in (server.requests[:asked], server.requests[asked:]))
    assert "zeppelin" in told, "evidence is there"
    assert "withheld" in told, "and names were looked for"
    for secret in SECRETS:
        assert secret.text.lower() not in told.lower(), secret.kind
    for statement in TRUTH:
        assert statement not in told
    assert len(server.requests) > asked
    for fact in planted.TRUTH.facts:
        assert fact.statement in graded
