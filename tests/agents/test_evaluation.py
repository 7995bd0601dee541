"""Whole runs under Inspect, offline: the scripted policy, and models that end in every other way."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import inspect_ai
import pandas as pd
import pytest
from hydra.utils import instantiate
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ChatMessage, ChatMessageTool, GenerateConfig, ModelOutput, ModelUsage
from inspect_ai.tool import ToolFunction
from omegaconf import OmegaConf

from diffing.agents import prompts
from diffing.agents.evaluation import Agent, EvaluationFailed, evaluate, grades_of
from diffing.agents.scripted import plan
from diffing.agents.task import LABELS, Case
from diffing.agents.tools import SUBMIT
from diffing.errors import InvalidSetting, MissingInput
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.play import (
    SCRIPTED,
    SUBMISSION,
    Step,
    calls,
    fails,
    model_events,
    plays,
    run,
    said_to_the_model,
    sample_of,
    says,
)  # fmt: skip


def test_the_scripted_policy_finds_a_planted_topic(tmp_path: Path) -> None:
    row = run(tmp_path, planted.report()).grades.iloc[0]
    assert row.outcome == "submitted"
    assert set(row.behaviours) >= set(planted.TOPIC)
    assert set(row.behaviours[: len(planted.TOPIC)]) == set(planted.TOPIC)
    assert (row.fact_recall, row.domain_recall, row.false_null) == (1.0, 1.0, 0.0)
    assert pd.isna(row.correct_null)
    assert len(row.found) == 2
    assert row.evidence == ["R1/logit_lens", "R1/steering"]
    assert row.tool_errors == 0
    assert row.tool_calls == 1 + (1 + 3 + 1 + 1) + 1, "overview; lens, samples by kind, positions, tensor; submission"


def test_the_scripted_policy_reads_what_is_due_to_the_finetune() -> None:
    overview = json.loads(Evidence([planted.report()]).overview())
    readings = list(plan(overview["reports"]))
    asked = [(reading.arguments.get("table"), reading.arguments.get("where"), reading.role) for reading in readings]
    assert asked == [
        ("logit_lens", {"source": "difference", "direction": "promoted"}, "tokens"),
        ("steering", {"kind": "random"}, "control"),
        ("steering", {"kind": "steered"}, "treated"),
        ("steering", {"kind": "unsteered"}, "control"),
        ("positions", None, None),
        (None, None, None),
    ]


def test_the_scripted_policy_finds_nothing_in_noise(tmp_path: Path) -> None:
    row = run(tmp_path, planted.report(topic=planted.PLAIN[:5])).grades.iloc[0]
    assert (row.outcome, row.fact_recall, row.domain_recall) == ("submitted", 0.0, 0.0)


def test_the_scripted_policy_says_so_if_reports_find_no_difference(tmp_path: Path) -> None:
    null, planted_null = planted.report(no_difference=True), Evidence([planted.report(no_difference=True)])
    cases = [Case(Evidence([null]), planted.NULL_TRUTH), Case(planted_null, planted.TRUTH)]
    grades = evaluate(cases, SCRIPTED, tmp_path).grades
    assert list(grades["sample"]) == ["case_1", "case_2"]
    assert list(grades.no_meaningful_difference) == [True, True]
    assert grades.correct_null[0] == 1.0
    assert pd.isna(grades.fact_recall[0])
    assert (grades.fact_recall[1], grades.false_null[1]) == (0.0, 1.0)


def test_a_finetune_called_different_is_no_correct_null(tmp_path: Path) -> None:
    row = run(tmp_path, planted.report(), planted.NULL_TRUTH).grades.iloc[0]
    assert row.correct_null == 0.0
    assert pd.isna(row.fact_recall)


def test_no_name_of_the_pair_is_in_the_transcript_of_a_run(tmp_path: Path) -> None:
    case = Case(Evidence([planted.report()]), planted.TRUTH, labels=planted.LABELS)
    log = read_eval_log(str(evaluate([case], SCRIPTED, tmp_path).log))
    transcript = said_to_the_model(log)
    assert "zeppelin" in transcript, "evidence is there"
    for name in ("quokka", "OutbackLab", "zeppelin_knitting", "zeppelin knitting", "hidden-lab", "step_900", "fineweb"):
        assert name.lower() not in transcript.lower(), name
    for name in ("tulu", "mix_1_to_3", "Zeppelins are knitted", "Airships"):
        assert name.lower() not in transcript.lower(), name
    assert sample_of(log).metadata == {**planted.LABELS, "access": "method", "interactions": 0}


def test_labels_are_the_first_columns_of_the_grades_whichever_are_known(tmp_path: Path) -> None:
    evidence = Evidence([planted.report()])
    cases = [Case(evidence, planted.TRUTH, labels=planted.LABELS), Case(evidence, planted.TRUTH)]
    grades = evaluate(cases, SCRIPTED, tmp_path).grades
    assert list(grades.columns)[: len(LABELS)] == list(LABELS)
    assert grades.iloc[0][list(LABELS)].to_dict() == planted.LABELS
    assert grades.iloc[1][list(LABELS)].isna().all()
    with pytest.raises(InvalidSetting, match="organism_type"):
        Case(evidence, planted.TRUTH, labels={"organisms": "x"})


def test_repeats_are_rows_and_a_stored_log_gives_the_same_grades(tmp_path: Path) -> None:
    agent = Agent(model="scripted/words", repeats=2)
    evaluation = run(tmp_path, planted.report(), agent=agent)
    assert list(evaluation.grades.repeat) == [1, 2]
    assert evaluation.log.parent == tmp_path
    pd.testing.assert_frame_equal(grades_of(read_eval_log(str(evaluation.log))), evaluation.grades)


def test_tool_errors_reach_the_model_as_errors_and_the_run_goes_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        answer = messages[-1]
        assert isinstance(answer, ChatMessageTool)
        assert answer.error
        seen.append(answer.error.message)
        return SUBMISSION(messages)

    row, _ = plays(tmp_path, calls("table_rows", report="R1", table="zeppelin_knitting"), look)
    assert "known, nearest first: " in seen[0]
    assert "steering" in seen[0]
    assert "knitting" not in seen[0]
    assert (row.outcome, row.tool_errors) == ("submitted", 1)


@pytest.mark.parametrize(
    "step", [says("I wonder."), calls("no_such_tool"), calls(SUBMIT, domain="x"), calls("overview")]
)
def test_a_run_without_submission_is_an_outcome_and_no_score(tmp_path: Path, step: Step) -> None:
    row, log = plays(tmp_path, step, turns=3)
    assert (row.outcome, row.detail) == ("no_submission", "3 turns")
    assert pd.isna(row.fact_recall)
    assert pd.isna(row.false_null)
    assert row.forced == "turns"
    assert row.domain is None
    assert sum(message.role == "assistant" for message in sample_of(log).messages) == 3 + 1, "asked once more"


def test_a_run_that_hits_a_limit_says_which(tmp_path: Path) -> None:
    def costly(messages: Sequence[ChatMessage]) -> ModelOutput:
        output = calls("overview")(messages)
        output.usage = ModelUsage(input_tokens=60, output_tokens=5, total_tokens=65)
        return output

    row, _ = plays(tmp_path, costly, tokens=100)
    assert row.outcome == "no_submission"
    assert "token limit" in row.detail
    assert pd.isna(row.fact_recall)
    assert (row.input_tokens, row.output_tokens) == (120, 10)


def test_the_last_turn_may_only_submit_and_offers_what_all_turns_did(tmp_path: Path) -> None:
    row, log = plays(tmp_path, calls("overview"), calls("overview"), SUBMISSION, turns=3)
    assert (row.outcome, row.forced) == ("submitted", "turns")
    offered = [[tool.name for tool in event.tools] for event in model_events(log)]
    assert SUBMIT in offered[0]
    assert offered == [offered[0]] * 3


def test_who_does_not_submit_in_the_last_turn_gets_nothing_and_is_asked_once_more(tmp_path: Path) -> None:
    both = ModelOutput.for_tool_call("play", "overview", {})
    assert both.message.tool_calls
    both.message.tool_calls *= 2
    row, log = plays(tmp_path, calls("overview"), lambda _: both, SUBMISSION, turns=2)
    assert (row.outcome, row.forced) == ("submitted", "turns")
    events = model_events(log)
    assert [len(event.tools) for event in events] == [4, 4, 1]
    assert [event.tool_choice for event in events] == ["auto", "auto", ToolFunction(SUBMIT)]
    results = [message for message in sample_of(log).messages if isinstance(message, ChatMessageTool)]
    assert [result.error is not None for result in results] == [False, True, True, False]
    assert [message.text for message in events[1].input[-1:]] == [prompts.LAST_TURN]
    assert [message.text for message in events[2].input[-1:]] == [prompts.LAST_TURN]


def test_a_refusal_is_an_outcome(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, says("", stop_reason="content_filter"))
    assert row.outcome == "refused"
    assert pd.isna(row.fact_recall)


def test_a_model_that_fails_is_a_row_and_other_samples_go_on(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, fails("the server is gone"))
    assert row.outcome == "error"
    assert "the server is gone" in row.detail


def test_a_model_that_cannot_be_used_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    for model in ("anthropic/claude-sonnet-4-5", "nobody/nothing"):
        with pytest.raises(MissingInput, match="agent=scripted"):
            run(tmp_path, planted.report(), agent=Agent(model=model))


def test_a_run_that_lost_samples_is_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = inspect_ai.eval

    def interrupted(*arguments, **options) -> list[EvalLog]:
        return [
            log.model_copy(update={"samples": [], "status": "cancelled"}) for log in complete(*arguments, **options)
        ]

    monkeypatch.setattr(inspect_ai, "eval", interrupted)
    with pytest.raises(EvaluationFailed, match=r"0 of 1 samples ended \(cancelled\)"):
        run(tmp_path, planted.report())


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="turns"):
        Agent(model="scripted/words", turns=1)
    with pytest.raises(InvalidSetting, match="case"):
        evaluate([], SCRIPTED, tmp_path)


ALONE = """
import logging, os, sys
from pathlib import Path
from diffing.agents.evaluation import Agent, evaluate
logging.basicConfig(level="INFO")
before = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers)
heavy = [name for name in ("torch", "transformers", "peft", "wandb") if name in sys.modules]
from diffing.agents.task import Case
from diffing.evidence import Evidence
from tests.agents import planted
evaluate([Case(Evidence([planted.report()]), planted.TRUTH)], Agent("scripted/words"), Path(sys.argv[1]))
after = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers)
print(heavy, [first == second for first, second in zip(before, after)])
"""


def test_a_run_loads_no_model_library_and_leaves_home_environment_and_root_logger_alone(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    home, work, logs = (tmp_path / name for name in ("home", "work", "logs"))
    home.mkdir()
    work.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "INSPECT_"))}
    outside |= {"HOME": str(home), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", ALONE, str(logs)]
    done = subprocess.run(command, cwd=work, env=outside, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [True, True, True]"
    assert [*home.rglob("*"), *work.rglob("*")] == []
    assert len(list(logs.glob("*.eval"))) == 1


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "conf" / "agent").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_agent_config_makes_an_agent(path: Path) -> None:
    agent = instantiate(OmegaConf.load(path))
    assert isinstance(agent, Agent)
    assert agent.generation == dict(agent.generation)
    assert set(agent.generation) <= set(GenerateConfig.model_fields)
