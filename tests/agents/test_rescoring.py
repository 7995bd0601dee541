"""A stored evaluation is graded anew from its artifact alone, by judges over HTTP."""

import json
from pathlib import Path

import pandas as pd
import pytest

from diffing.agents.evaluation import Agent, Evaluation, evaluate
from diffing.agents.task import Case
from diffing.evidence import Evidence
from diffing.lenses.judge import LLMJudge
from evaluate_agents import publish, stored, with_levels
from tests.agents import planted
from tests.agents.server import Acts, Seen, agent_server
from tests.judge_server import Fails
from trackers import ArtifactRef, Kind, LocalTracker

AGENT = Agent("scripted/words", access=["method", "blackbox"])
JUDGES = [LLMJudge("anthropic/claude-strict"), LLMJudge("openai-api/planned/lenient")]


def judge(seen: Seen) -> Acts:
    """Grants each statement one word of the guess that its own words begin with, copied; and each claim that is one
    word, if an excerpt holds it."""
    text = seen.texts[-1]
    if "CLAIMS" in text:
        said, given = (json.loads(line) for line in text.splitlines() if line.startswith(('{"0"', "[{")))
        shown = " ".join(each["text"] for each in given).lower()
        found = [
            f"{n} | SUPPORTED | {claim}" if claim in shown else f"{n} | UNSUPPORTED |" for n, claim in said.items()
        ]
        return Acts(text="\n".join(found))
    (guess,) = [json.loads(line) for line in text.splitlines() if line.startswith('{"domain"')]
    lines = []
    for line in text.split("TRUTH\n")[1].split("\n\n")[0].splitlines():
        number, _, statement = line.partition(" | ")
        found = [word for word in guess["behaviours"] if word[:5] in statement.lower()]
        lines.append(f"{number} | {'STATED' if found else 'ABSENT'} | {found[0] if found else ''}")
    return Acts(text="\n".join(lines))


@pytest.fixture
def tracker(tmp_path: Path) -> LocalTracker:
    return LocalTracker(tmp_path / "store", "study", "evaluate_agents", {})


def published(tracker: LocalTracker, folder: Path) -> tuple[ArtifactRef, Evaluation]:
    result = evaluate([Case(Evidence([planted.report()]), planted.TRUTH)], AGENT, folder / "inspect")
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text("{}", "utf-8")
    report = tracker.publish(folder / "report", "report-x", Kind.REPORT, {}, uses=[])
    return publish(result, "evaluation-x", AGENT, report, tracker), result


def test_levels_are_given_later_without_agent_and_models(
    tracker: LocalTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracker:
        first, result = published(tracker, tmp_path)
        result.log.unlink()
        _, folder = tracker.fetch(str(first), Kind.EVALUATION)
        with agent_server(judge, monkeypatch) as server:
            graded = with_levels(stored(folder), planted.TRUTH, JUDGES, repeats=2)
        assert server.refused == []
        assert [seen.tools for seen in server.seen] == [[]] * 12, (
            "two samples (one saw a report), two judges, two repeats"
        )
        again = publish(graded, "evaluation-x", AGENT, first, tracker)
        _, folder = tracker.fetch(str(again), Kind.EVALUATION)
    grades, verdicts = (pd.read_parquet(folder / f"{name}.parquet") for name in ("grades", "verdicts"))
    assert again.version == first.version + 1
    assert list(grades.access) == ["method", "blackbox"]
    assert grades.level[0] >= 4
    assert grades.level[1] == 1
    assert grades.report.nunique() == 1
    assert grades.report[0].startswith("study/report-x"), "the report that was read, not the evaluation"
    assert set(verdicts.judge) == {judge.name for judge in JUDGES}
    assert dict(verdicts.kind.value_counts()) == {"fact": 3 * 8, "claim": len(grades.behaviours[0]) * 4 + 4}
    assert 0.5 < grades.judged_support[0] < 1, "its words were shown, but not its domain in these words"
    assert pd.isna(grades.judged_support[1])
    assert grades.support[0] == 1.0
    assert stored(folder).grades.drop(columns="report").equals(result.grades)
    used = {"input": "uncached", "cache_write": "written", "cache_read": "read", "output": "output"}
    for column, part in used.items():
        assert verdicts[f"{column}_tokens"].sum() == getattr(server.used, part), column
    assert verdicts.output_tokens.notna().sum() == len(server.seen), "each reply is counted once"
    assert (verdicts.seconds.dropna() > 0).all()
    assert verdicts.dollars.isna().all(), "models without a price"


def test_a_judge_that_cannot_be_reached_leaves_the_level_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate([Case(Evidence([planted.report()]), planted.TRUTH)], Agent("scripted/words"), tmp_path)
    with agent_server(judge, monkeypatch, lambda number: Fails(400)):
        graded = with_levels(result, planted.TRUTH, JUDGES[:1], repeats=1)
    assert graded.grades.level.isna().all()
    assert graded.grades.judged_support.isna().all()
    assert graded.verdicts is not None
    assert list(graded.verdicts.reason) == ["failed (HTTP 400)"] * 2
    assert list(graded.verdicts.kind) == ["fact", "claim"]
    assert graded.verdicts.output_tokens.isna().all()


def test_a_null_control_has_a_level_without_any_judge(tmp_path: Path) -> None:
    case = Case(Evidence([planted.report(no_difference=True)]), planted.NULL_TRUTH)
    graded = with_levels(evaluate([case], Agent("scripted/words"), tmp_path), planted.NULL_TRUTH, [], repeats=1)
    assert list(graded.grades.level) == [5]
