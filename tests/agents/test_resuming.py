"""Evaluations that were killed, stopped or torn go on without paying twice."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from diffing.agents import prompts
from diffing.agents.evaluation import Agent, Evaluation, evaluate, evaluating
from diffing.agents.resuming import AlreadyRunning, claimed, settings_of
from diffing.agents.task import Case, Plan, plans
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.investigators import CLAUDE, GENERATION, investigator
from tests.agents.play import Echo
from tests.agents.script import Acts, Seen
from tests.agents.server import agent_server
from tests.judge_server import Fails

REPEATS, CALLS = 4, 3
"""Samples, and what the investigator needs for one."""
ONE_BY_ONE = {**GENERATION, "max_connections": 1}
CHILD = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background has them ignore it
from tests.agents.test_resuming import investigated
print(investigated(Path(sys.argv[1])).log)
"""


LONGEST = 120
"""Seconds after which a process that was told to end is not ending."""
TAKEN = ("seconds", "working_seconds", "log")
"""Columns of grades that differ from run to run."""


CASE = Case(Evidence([planted.report()]), planted.TRUTH, Echo())


def investigated(folder: Path, retry_errors: bool = False, **more: object) -> Evaluation:
    settings = {"turns": 8, "repeats": REPEATS, "generation": ONE_BY_ONE, **more}
    agent = Agent(CLAUDE, **settings)  # type: ignore[arg-type]
    return evaluate([CASE], agent, folder, retry_errors=retry_errors)


def child(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment)


def cut_off(folder: Path, number: int, by: signal.Signals) -> int:
    """Runs the evaluation in a process that gets the signal when it asks for the turn with this number, and no answer.
    Returns how many turns it had asked for."""
    children: list[subprocess.Popen] = []
    ready = threading.Event()

    def cuts(asked: int) -> None:
        if asked == number:
            ready.wait()
            children[0].send_signal(by)
            children[0].wait(LONGEST)

    with pytest.MonkeyPatch.context() as patch, agent_server(investigator, patch, cuts) as server:
        children.append(child(folder))
        ready.set()
        assert children[0].wait(LONGEST) != 0
    return len(server.requests)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a process that was killed in the second turn of its third sample."""
    folder = tmp_path_factory.mktemp("killed")
    assert cut_off(folder, 2 * CALLS + 1, signal.SIGKILL) == 2 * CALLS + 2
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "logs"))


def calls(folder: Path, retry_errors: bool = False, **more: object) -> tuple[int, pd.DataFrame]:
    """How many turns an evaluation asks for, and its grades."""
    with pytest.MonkeyPatch.context() as patch, agent_server(investigator, patch) as server:
        grades = investigated(folder, retry_errors, **more).grades
    assert list(grades.repeat) == list(range(1, len(grades) + 1))
    return len(server.requests), grades


def test_a_killed_evaluation_goes_on_and_pays_for_no_finished_sample_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        asked, grades = calls(folder)
    assert asked == CALLS * (REPEATS - 2)
    assert "2 of 4 samples have ended" in caplog.text
    assert list(grades.outcome) == ["submitted"] * REPEATS
    assert len(list(folder.glob("*.eval"))) == 1, "the log that was cut off has nothing more"


def test_what_went_on_has_the_grades_of_what_was_never_cut_off(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, resumed = calls(folder)
    _, whole = calls(tmp_path / "other")
    cached = [name for name in whole if name.startswith("cache_")] + ["input_tokens"]
    assert resumed.seconds.notna().all()
    pd.testing.assert_frame_equal(
        resumed.drop(columns=[*TAKEN, *cached]), whole.drop(columns=[*TAKEN, *cached]), check_like=True
    )


def test_who_is_killed_again_goes_on_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cut_off(folder, CALLS + 1, signal.SIGKILL) == CALLS + 2
    asked, grades = calls(folder)
    assert asked == CALLS
    assert list(grades.outcome) == ["submitted"] * REPEATS
    assert len(list(folder.glob("*.eval"))) == 1


def test_what_a_person_stopped_goes_on_and_what_was_under_way_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cut_off(tmp_path, CALLS + 1, signal.SIGINT) == CALLS + 2
    asked, grades = calls(tmp_path)
    assert asked == CALLS * (REPEATS - 1)
    assert list(grades.outcome) == ["submitted"] * REPEATS


def test_a_finished_evaluation_is_followed_by_a_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls(folder)
    asked, _ = calls(folder)
    assert asked == CALLS * REPEATS
    assert len(list(folder.glob("*.eval"))) == 2


def test_an_evaluation_is_finished_only_when_whoever_wanted_it_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(CLAUDE, turns=8, repeats=REPEATS, generation=ONE_BY_ONE)
    with agent_server(investigator, monkeypatch) as server:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), evaluating([CASE], agent, folder) as found:
                assert len(found.grades) / 0
        assert len(server.requests) == CALLS * (REPEATS - 2)
        with evaluating([CASE], agent, folder):
            pass
        assert len(server.requests) == CALLS * (REPEATS - 2)
        evaluate([CASE], agent, folder)
    assert len(server.requests) == CALLS * (REPEATS - 2) + CALLS * REPEATS


def test_other_settings_start_anew_and_leave_what_was_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = calls(folder, turns=9)
    assert asked == CALLS * REPEATS
    asked, _ = calls(folder)
    assert asked == CALLS * (REPEATS - 2)


def plan(**changes: object) -> Plan:
    fields = {"evidence": Evidence([planted.report()]), "truth": planted.TRUTH, **changes}
    return plans([Case(**fields)], ["method"], [0])[0]  # type: ignore[arg-type]


AGENT = Agent(CLAUDE, generation=GENERATION)
CHANGED = {
    "report": plan(evidence=Evidence([planted.report(seed=1)])),
    "truth": plan(truth=planted.NULL_TRUTH),
    "labels": plan(labels={"organism": "another"}),
    "version": plan(source={"report": "report-x:v2"}),
    "access": plans([plan().case], ["blackbox"], [0])[0],
}


@pytest.mark.parametrize("name", CHANGED)
def test_every_change_of_a_case_is_another_evaluation(name: str) -> None:
    assert settings_of([plan()], AGENT) == settings_of([plan()], AGENT)
    assert settings_of([CHANGED[name]], AGENT) != settings_of([plan()], AGENT)
    assert settings_of([plan(), plan()], AGENT) != settings_of([plan()], AGENT)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "anthropic/claude-other"}, {"turns": 9}, {"tokens": 9}, {"seconds": 9}, {"repeats": 9},
        {"generation": {**GENERATION, "temperature": 0.5}}, {"generation": {"max_tokens": 9}},
        {"prices": {"input": 1.0, "output": 1.0, "cache_write": 1.0, "cache_read": 1.0}},
    ],
)  # fmt: skip
def test_every_change_of_an_agent_is_another_evaluation(change: dict) -> None:
    assert settings_of([plan()], replace(AGENT, **change)) != settings_of([plan()], AGENT)


@pytest.mark.parametrize("name", ["END", "TASK", "CONTINUE", "LAST_TURN"])
def test_every_change_of_what_agents_are_told_is_another_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of([plan()], AGENT)
    monkeypatch.setattr(prompts, name, getattr(prompts, name) + " Please.")
    assert settings_of([plan()], AGENT) != before


def test_how_requests_are_sent_and_what_all_may_cost_is_no_other_evaluation() -> None:
    priced = Agent("anthropic/claude-opus-4-8", generation=GENERATION, dollars=1.0)
    sent = replace(priced, max_dollars=9.0, generation={**GENERATION, "max_connections": 3, "max_retries": 9})
    assert settings_of([plan()], sent) == settings_of([plan()], priced)
    assert settings_of([plan()], replace(priced, dollars=2.0)) != settings_of([plan()], priced)


@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_a_torn_log_is_left_and_its_samples_run_again(
    kept: float, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (log,) = folder.glob("*.eval")
    os.truncate(log, int(log.stat().st_size * kept))
    asked, grades = calls(folder)
    assert asked == CALLS * REPEATS
    assert "cannot be read" in caplog.text
    assert log.exists()
    assert list(grades.outcome) == ["submitted"] * REPEATS


def test_a_torn_note_of_what_calls_cost_is_dropped(tmp_path: Path) -> None:
    with suppress(KeyError), claimed(tmp_path, "a") as first:
        first.paid(0.25)
        first.paid(0.5)
        raise KeyError
    with first.path.open("a", encoding="utf-8") as file:
        file.write("0.12")
    with suppress(KeyError), claimed(tmp_path, "a") as second:
        assert (second.number, second.spent) == (first.number, 0.75)
        second.paid(1.0)
        raise KeyError
    with claimed(tmp_path, "a") as third:
        assert third.spent == 1.75
    assert not third.path.exists()
    third.path.write_text(first.number[:9], "utf-8")
    with claimed(tmp_path, "a") as fourth:
        assert fourth.spent == 0.0
        assert len(fourth.number) == 32


def test_errors_are_outcomes_that_stay_unless_they_are_to_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda asked: Fails(400) if asked == CALLS + 1 else None) as server:
        failed = investigated(tmp_path).grades
    assert len(server.requests) == CALLS * REPEATS - 1
    assert sorted(failed.outcome) == ["error", "submitted", "submitted", "submitted"]
    asked, grades = calls(tmp_path, retry_errors=True)
    assert asked == CALLS
    assert list(grades.outcome) == ["submitted"] * REPEATS
    asked, again = calls(tmp_path, retry_errors=True)
    assert asked == 0
    pd.testing.assert_frame_equal(again.drop(columns="log"), grades.drop(columns="log"))
    asked, _ = calls(tmp_path)
    assert asked == CALLS * REPEATS


def test_an_error_of_what_was_cut_off_stays_an_error_with_its_cause_unless_it_is_to_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(CLAUDE, turns=8, repeats=2, generation=ONE_BY_ONE)
    with agent_server(investigator, monkeypatch, lambda asked: Fails(400) if asked == 0 else None) as server:
        with suppress(KeyError), evaluating([CASE], agent, tmp_path) as failed:
            raise KeyError
        kept = evaluate([CASE], agent, tmp_path).grades
        assert len(server.requests) == 1 + CALLS
        assert list(kept.outcome) == ["error", "submitted"]
        pd.testing.assert_frame_equal(kept.drop(columns="log"), failed.grades.drop(columns="log"))
        again = evaluate([CASE], agent, tmp_path, retry_errors=True).grades
    assert len(server.requests) == 1 + 2 * CALLS
    assert list(again.outcome) == ["submitted"] * 2


def test_the_same_evaluation_in_another_process_is_refused_before_any_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place,) = (folder / "inspect_state" / "unfinished").iterdir()
    with agent_server(investigator, monkeypatch) as server:
        with claimed(place.parent, place.stem), pytest.raises(AlreadyRunning, match="wait"):
            investigated(folder)
        assert server.requests == []


def test_without_locks_an_evaluation_goes_on_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with claimed(tmp_path, "a") as place:
        place.paid(0.5)
    assert not place.path.exists()


def test_two_processes_write_other_evaluations_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Event(), threading.Event()

    def holds(seen: Seen) -> Acts:
        """Answers whoever asks first when all others have been answered."""
        if not begun.is_set():
            begun.set()
            done.wait()
        return investigator(seen)

    with agent_server(holds, monkeypatch) as server:
        other = child(tmp_path)
        while not begun.wait(1):
            assert other.poll() is None, "it ended before it asked for anything"
        try:
            grades = investigated(tmp_path, turns=9).grades
        finally:
            done.set()
            assert other.wait() == 0
    assert list(grades.outcome) == ["submitted"] * REPEATS
    assert len(server.requests) == 2 * CALLS * REPEATS
    assert len(list(tmp_path.glob("*.eval"))) == 2
    assert list((tmp_path / "inspect_state" / "unfinished").iterdir()) == []
