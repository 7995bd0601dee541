"""Many samples at once: none disturbs another, and the service never gets more requests at a time than it may."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from diffing.agents.replies import PAUSES
from diffing.specs import JSON
from tests.agents.anthropic_wire import error_event
from tests.agents.investigators import (
    CLAUDE,
    COMPATIBLE,
    GENERATION,
    MODELS,
    STREAMED,
    by_name,
    evaluated,
    investigator,
    submits,
    tokens,
)  # fmt: skip
from tests.agents.script import Acts, Seen
from tests.agents.server import Breaks, Fault, Sends, agent_server
from tests.judge_server import Fails, HangsUp

WHOLE: tuple[Fault, ...] = (Fails(529), HangsUp(), Fails(429), Breaks(60), Sends(""))
IN_PARTS: tuple[Fault, ...] = (Fails(529), Breaks(5, error_event()), Breaks(9, resets=True), Breaks(7), HangsUp())


@pytest.mark.parametrize(
    ("model", "generation", "kinds", "samples"),
    [(CLAUDE, GENERATION, WHOLE, 64), (COMPATIBLE, GENERATION, WHOLE, 24), (CLAUDE, STREAMED, IN_PARTS, 24)],
    ids=["anthropic", "openai", "streamed"],
)
def test_concurrent_samples_finish_while_a_third_of_the_calls_fail(
    model: str,
    generation: Mapping[str, JSON],
    kinds: tuple[Fault, ...],
    samples: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_replies: Counter[str] = Counter()

    def faults(number: int) -> Fault | None:
        kind, asked = kinds[number // 3 % len(kinds)], json.dumps(server.requests[number])
        if number % 3 or no_replies[asked] == len(PAUSES):
            return None
        no_replies[asked] += not isinstance(kind, Fails | HangsUp)
        return kind

    with agent_server(investigator, monkeypatch, faults) as server:
        grades = evaluated(tmp_path, model, generation=generation, repeats=samples).grades
    assert list(grades.outcome) == ["submitted"] * samples, set(grades.detail)
    assert list(grades.fact_recall) == [1.0] * samples
    assert len(server.seen) == 3 * samples
    assert server.refused == []
    assert tokens(grades) == by_name(server.used)


@pytest.mark.parametrize("model", MODELS)
def test_budgets_and_submissions_of_samples_are_their_own(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample asks for another number of texts, and says how many it got."""
    lock, asked = threading.Lock(), iter(range(1, 100))

    def script(seen: Seen) -> Acts:
        if seen.turn == 0:
            with lock:
                return Acts([("ask_model", {"prompts": ["Hi"], "samples": next(asked)})])
        answered = json.loads(seen.results[0])["answers"][0]
        return submits("airships", f"got {len(answered['base'])}")

    with agent_server(script, monkeypatch) as server:
        grades = evaluated(tmp_path, model, ["blackbox"], repeats=16, interactions=[32]).grades
    assert server.refused == []
    assert set(grades.outcome) == {"submitted"}
    assert sorted(grades.interactions_used) == [2 * number for number in range(1, 17)]
    assert [f"got {used // 2}" for used in grades.interactions_used] == [said[0] for said in grades.behaviours]


@pytest.mark.parametrize("model", MODELS)
def test_the_service_never_gets_more_requests_at_once_than_it_may(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, together, first = 4, threading.Barrier(4), threading.Event()

    def script(seen: Seen) -> Acts:
        if seen.turn == 0 and not first.is_set():
            together.wait(20)  # until as many are there as may be,
            first.wait(0.5)  # and one too many could have come
            first.set()
        return investigator(seen)

    with agent_server(script, monkeypatch) as server:
        grades = evaluated(tmp_path, model, generation=GENERATION | {"max_connections": most}, repeats=4 * most).grades
    assert set(grades.outcome) == {"submitted"}
    assert server.most_at_once == most


@pytest.mark.parametrize("model", MODELS)
def test_a_sample_that_fails_takes_no_other_with_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda at: Fails(400) if at == 5 else None) as server:
        grades = evaluated(tmp_path, model, repeats=8).grades
    assert sorted(grades.outcome) == ["error"] + ["submitted"] * 7
    assert grades.fact_recall.count() == 7
    assert tokens(grades) == by_name(server.used)
