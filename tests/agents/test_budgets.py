"""Samples by access and budget, and budgets that end in a submission."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage

from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import Case
from diffing.errors import InvalidSetting
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.investigators import evaluated, investigator
from tests.agents.play import SUBMISSION, Echo, Step, calls, model_events, plays, says
from tests.agents.server import Stalls, agent_server


def costs(step: Step, tokens: int) -> Step:
    def costly(messages: Sequence[ChatMessage]) -> ModelOutput:
        output = step(messages)
        output.usage = ModelUsage(input_tokens=tokens - 1, output_tokens=1, total_tokens=tokens)
        return output

    return costly


def test_samples_are_access_by_budget_by_repeat_and_the_script_has_no_budgets(tmp_path: Path) -> None:
    case = Case(Evidence([planted.report()]), planted.TRUTH, Echo())
    agent = Agent("scripted/words", access=["method", "blackbox", "scripted"], interactions=[0, 4], repeats=2)
    grades = evaluate([case], agent, tmp_path).grades
    found = grades.groupby(["access", "interactions"]).size().to_dict()
    assert found == {
        ("method", 0): 2, ("method", 4): 2, ("blackbox", 0): 2, ("blackbox", 4): 2, ("scripted", 0): 2,
    }  # fmt: skip
    assert set(grades.outcome) == {"submitted"}
    recall = grades.groupby("access")["fact_recall"].mean()
    assert (recall["method"], recall["scripted"], recall["blackbox"]) == (1.0, 1.0, 0.0)


def test_the_scripted_baseline_is_played_without_the_model_that_is_evaluated(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, says("never asked"), access="scripted")
    assert (row.model, row.outcome, row.fact_recall) == ("scripted/words", "submitted", 1.0)


def test_a_token_budget_that_runs_short_ends_in_a_submission(tmp_path: Path) -> None:
    step = costs(calls("overview"), 30)
    row, log = plays(tmp_path, step, step, costs(SUBMISSION, 30), turns=20, tokens=100)
    assert (row.outcome, row.forced) == ("submitted", "tokens")
    assert [len(event.tools) for event in model_events(log)] == [4, 4, 4]


def test_a_budget_with_room_forces_nothing(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, costs(calls("overview"), 30), costs(SUBMISSION, 30), turns=20, tokens=1000)
    assert (row.outcome, row.forced) == ("submitted", "")


def test_a_forced_turn_without_submission_is_an_outcome(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, costs(calls("overview"), 30), turns=20, tokens=100)
    assert (row.outcome, row.detail, row.forced) == ("no_submission", "token limit 100.0", "tokens")


def test_a_context_that_is_full_is_an_outcome(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, says("", stop_reason="model_length"))
    assert (row.outcome, row.detail) == ("no_submission", "context window")


def test_a_sample_whose_time_is_over_in_the_middle_of_a_call_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda asked: Stalls() if asked == 1 else None):
        row = evaluated(tmp_path, seconds=1).grades.iloc[0]
    assert (row.outcome, row.detail, row.forced) == ("no_submission", "time limit 1", "")
    assert row.tool_calls > 0, "what was said before is kept"


@pytest.mark.parametrize(
    "changes", [{"access": ["white"]}, {"access": []}, {"interactions": []}, {"interactions": [-1]}]
)
def test_settings_that_make_no_sample_are_refused(changes: dict) -> None:
    with pytest.raises(InvalidSetting, match="access"):
        Agent("scripted/words", **changes)


def test_live_models_are_asked_only_with_interactions_and_by_more_than_the_script() -> None:
    assert not Agent("m").asks_live_models
    assert Agent("m", interactions=[0, 5]).asks_live_models
    assert not Agent("m", access=["scripted"], interactions=[5]).asks_live_models
