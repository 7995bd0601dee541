"""What samples cost, to the token and the dollar, and caps that hold before a call is made."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pandas as pd
import pytest
from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage, get_model_info

from diffing.agents import prompts
from diffing.agents.evaluation import Agent, Evaluation, evaluate, evaluating
from diffing.agents.prices import PRICES, Price, dollars, price_of
from diffing.agents.spending import Meter, Purse, Tariff
from diffing.agents.summary import cost_in_words, summary
from diffing.agents.task import Case
from diffing.errors import InvalidSetting
from diffing.evidence import Evidence
from evaluate_agents import cost_lines
from tests.agents import planted
from tests.agents.investigators import COMPATIBLE, GENERATION, by_name, investigator, submits, tokens
from tests.agents.play import Echo
from tests.agents.script import Acts, Seen, Tokens
from tests.agents.server import AgentServer, Sends, agent_server
from tests.judge_server import Fails

OPUS = "anthropic/claude-opus-4-8"
AGAIN = "ended in an error or were not run: the same command with retry_errors=true"
OWN = {"input": 3.0, "output": 7.0, "cache_write": 4.0, "cache_read": 0.5}
CASE = Case(Evidence([planted.report()]), planted.TRUTH, Echo())


def run(folder: Path, model: str = OPUS, retry_errors: bool = False, **more: object) -> Evaluation:
    settings = {"turns": 8, "generation": GENERATION, **more}
    return evaluate([CASE], Agent(model, **settings), folder, retry_errors=retry_errors)  # type: ignore[arg-type]


def spent(result: Evaluation) -> float:
    assert result.spent is not None
    return result.spent


def bill(used: Tokens, price: Price) -> float:
    counts = {"input": used.uncached, "output": used.output, "cache_write": used.written, "cache_read": used.read}
    return sum(count * getattr(price, part) / 1_000_000 for part, count in counts.items())


def restless(seen: Seen) -> Acts:
    """Reads on until it is told to submit."""
    if any(prompts.LAST_TURN in text for text in seen.texts):
        return submits("airships", "yarn")
    return Acts([("table_rows", {"report": "R1", "table": "steering", "limit": 5 + seen.turn})], "More.")


@pytest.mark.parametrize(("model", "prices"), [(OPUS, None), (OPUS, OWN), (COMPATIBLE, OWN)])
def test_tokens_and_dollars_are_those_of_the_service_to_the_unit(
    model: str, prices: dict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [Fails(529), None, Fails(429)]
    with agent_server(investigator, monkeypatch, lambda asked: dict(enumerate(faults)).get(asked)) as server:
        result = run(tmp_path, model, prices=prices, repeats=3)
    assert tokens(result.grades) == by_name(server.used)
    price = price_of(model, prices)
    assert price
    assert result.grades.dollars.sum() == pytest.approx(bill(server.used, price), rel=1e-12)
    assert result.spent == pytest.approx(bill(server.used, price), rel=1e-12)
    assert result.grades.retries.sum() == 2, "tried again, and not charged twice"
    assert (result.grades.working_seconds <= result.grades.seconds).all()


def test_from_the_second_turn_on_everything_that_was_said_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(restless, monkeypatch) as server:
        row = run(tmp_path, turns=6).grades.iloc[0]
    assert (row.outcome, row.forced) == ("submitted", "turns")
    assert len(server.requests) == 6
    first = json.dumps([server.requests[0][part] for part in ("tools", "system")])
    assert all(json.dumps([request[part] for part in ("tools", "system")]) == first for request in server.requests)
    everything = row.input_tokens + row.cache_write_tokens + row.cache_read_tokens
    assert row.cache_hits == row.cache_read_tokens / everything
    assert row.input_tokens == 0
    assert row.cache_write_tokens == largest_input(server), "each token was written once, also in the last turn"


def largest_input(server: AgentServer) -> int:
    """Tokens of the longest conversation, without any cache."""
    from tests.agents import anthropic_wire
    from tests.agents.caching import PromptCache

    return max(anthropic_wire.charged(request, PromptCache()).input for request in server.requests)


def test_samples_read_what_they_have_in_common_from_the_cache_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(restless, monkeypatch):
        grades = run(tmp_path, repeats=2, generation={**GENERATION, "max_connections": 1}).grades
    assert grades.cache_write_tokens[1] < grades.cache_write_tokens[0]
    assert grades.cache_hits[1] > grades.cache_hits[0] > 0.5


def test_without_a_price_dollars_are_missing_and_never_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(investigator, monkeypatch):
        result = run(tmp_path, COMPATIBLE, access=["method", "scripted"])
    assert result.spent is None
    assert pd.isna(result.grades.dollars[0])
    assert result.grades.input_tokens[0] > 0
    assert result.grades.dollars[1] == 0.0, "no paid model"
    rows = [row for _, row in summary(result.grades).iterrows()]
    assert cost_in_words(rows[0]).startswith("no known price, ")
    assert cost_in_words(rows[1]).startswith("$0.0000, 0 tokens in, 0 out")


def test_a_price_of_one_evaluation_is_not_that_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(investigator, monkeypatch):
        assert run(tmp_path, COMPATIBLE, prices=OWN).grades.dollars[0] > 0
        known = get_model_info(COMPATIBLE)
        assert known is None or known.cost is None, "a judge may be the same model"
        assert pd.isna(run(tmp_path, COMPATIBLE).grades.dollars[0])


def test_usage_that_the_service_does_not_tell_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untold = {"id": "1", "object": "chat.completion", "created": 0, "model": "planned", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hm."}, "finish_reason": "stop"}
    ]}  # fmt: skip
    with agent_server(restless, monkeypatch, lambda asked: Sends(json.dumps(untold)) if asked == 0 else None) as server:
        result = run(tmp_path, COMPATIBLE, prices=OWN, dollars=1.0)
    row, owned = result.grades.iloc[0], price_of(COMPATIBLE, OWN)
    assert owned
    assert row.outcome == "submitted", row.detail
    assert row[["dollars", "input_tokens", "output_tokens", "cache_hits"]].isna().all()
    assert spent(result) > bill(server.used, owned), "what is not known counts as the most that it can be"
    (line,) = [cost_in_words(row) for _, row in summary(result.grades).iterrows()]
    assert line.startswith("no known price, usage unknown")


@pytest.mark.parametrize("limit", [0.2, 0.35, 0.6, 1.0])
def test_a_sample_never_passes_its_dollars_and_submits_before(
    limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(restless, monkeypatch) as server:
        row = run(tmp_path, turns=99, dollars=limit).grades.iloc[0]
    assert (row.outcome, row.forced) == ("submitted", "dollars")
    assert limit / 4 < bill(server.used, PRICES[OPUS]) <= limit
    assert row.dollars == pytest.approx(bill(server.used, PRICES[OPUS]))


def test_a_call_that_could_pass_the_dollars_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(restless, monkeypatch) as server:
        row = run(tmp_path, dollars=0.1).grades.iloc[0]
    assert server.requests == []
    assert (row.outcome, row.forced, row.dollars) == ("no_submission", "dollars", 0.0)
    assert row.detail.startswith("budget of dollars: the next call can cost $0.1")
    assert row.detail.endswith(", and $0.1000 are left")


def test_no_call_costs_more_than_was_set_aside_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, float]] = []
    paid = Meter.paid

    def compared(meter: Meter, output: ModelOutput, messages: Sequence[ChatMessage]) -> None:
        paid(meter, output, messages)
        calls.append((meter.last, meter.needed))

    monkeypatch.setattr(Meter, "paid", compared)
    with agent_server(restless, monkeypatch):
        run(tmp_path, turns=12, dollars=9.0)
    assert len(calls) == 12
    assert all(0 < cost <= needed for cost, needed in calls)
    assert all(needed < 40 * cost + 0.05 for cost, needed in calls), "and it is no empty promise"


def test_an_evaluation_never_passes_its_dollars_and_what_has_not_run_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(restless, monkeypatch) as server:
        result = run(tmp_path, turns=8, dollars=0.2, max_dollars=0.5, repeats=12)
    counts = result.grades.outcome.value_counts().to_dict()
    assert set(counts) == {"submitted", "not_run"}
    assert counts["submitted"] > 2, "what a sample did not need is there for the next"
    assert result.spent == pytest.approx(bill(server.used, PRICES[OPUS]))
    assert 0.3 < spent(result) <= 0.5
    assert cost_lines(result) == {"not graded": f"{counts['not_run']} {AGAIN}"}
    left_out = result.grades[result.grades.outcome == "not_run"]
    assert (left_out.dollars == 0).all()
    assert set(left_out.detail) == {"$0.5 for the evaluation"}
    (line,) = summary(result.grades).to_dict("records")
    assert line["samples"] == 12
    assert "not_run" in line["outcomes"]


def test_what_a_cap_left_out_runs_with_a_higher_one_if_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, Any] = {"dollars": 0.2, "repeats": 6, "turns": 8}
    with agent_server(restless, monkeypatch) as server:
        first = run(tmp_path, max_dollars=0.25, **limits)
        ended, asked = (first.grades.outcome == "submitted").sum(), len(server.requests)
        assert 0 < ended < 6
        stingy = run(tmp_path, max_dollars=0.25, retry_errors=True, **limits)
        assert len(server.requests) == asked, "what was spent counts"
        assert stingy.spent == first.spent
        second = run(tmp_path, max_dollars=9.0, retry_errors=True, **limits)
    assert list(second.grades.outcome) == ["submitted"] * 6
    assert len(server.requests) == asked + 8 * (6 - ended)
    assert second.spent == pytest.approx(bill(server.used, PRICES[OPUS]))


def test_the_cap_holds_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(OPUS, turns=8, generation=GENERATION, repeats=12, dollars=0.2, max_dollars=0.5)
    with agent_server(restless, monkeypatch) as server:
        for _ in range(3):
            with suppress(KeyError), evaluating([CASE], agent, tmp_path) as result:
                raise KeyError
    assert result.spent == pytest.approx(bill(server.used, PRICES[OPUS]))
    assert 0.3 < spent(result) <= 0.5


def test_what_is_spent_on_samples_that_run_again_is_told_beside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, lambda asked: Fails(400) if asked == 2 else None) as server:
        failed = run(tmp_path)
        assert cost_lines(failed) == {"not graded": f"1 {AGAIN}"}
        result = run(tmp_path, retry_errors=True)
    assert spent(failed) > 0
    assert result.spent == pytest.approx(bill(server.used, PRICES[OPUS]))
    assert result.grades.dollars.sum() == pytest.approx(spent(result) - spent(failed))
    assert cost_lines(result) == {
        "cost of all calls": f"${spent(result):.4f}, with samples that were cut off or run again"
    }


def test_a_call_that_ended_a_sample_by_another_limit_is_paid_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(restless, monkeypatch) as server:
        result = run(tmp_path, tokens=10, dollars=1.0)
    assert result.grades.outcome[0] == "no_submission"
    assert "token limit" in result.grades.detail[0]
    assert len(server.requests) == 1
    assert result.spent == pytest.approx(bill(server.used, PRICES[OPUS]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": COMPATIBLE, "dollars": 1.0}, r"agent.prices=\{input: ..., output"),
        ({"model": COMPATIBLE, "dollars": 1.0, "max_dollars": 2.0}, "agent.prices"),
        ({"model": OPUS, "max_dollars": 1.0}, "agent.dollars="),
        ({"model": OPUS, "dollars": 2.0, "max_dollars": 1.0}, "fits into it"),
        ({"model": OPUS, "dollars": 0.0}, "more than 0"),
        ({"model": OPUS, "dollars": 1.0, "generation": {}}, "agent.generation.max_tokens="),
        ({"model": OPUS, "prices": {"input": 1.0}}, "cache_write"),
        ({"model": OPUS, "prices": {**OWN, "output": -1.0}}, "0 or more"),
    ],
)
def test_a_cap_that_could_not_be_kept_is_refused_with_what_to_type(settings: dict, said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        Agent(**{"generation": GENERATION, **settings})


def test_the_scripted_policy_may_have_a_cap_and_costs_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "scripted/words", dollars=0.1, max_dollars=0.1, repeats=3)
    assert list(result.grades.outcome) == ["submitted"] * 3
    assert (result.spent, result.grades.dollars.sum()) == (0.0, 0.0)


def test_prices_are_of_exact_models_and_of_their_dated_snapshots() -> None:
    assert price_of("anthropic/claude-haiku-4-5-20251001") == price_of("anthropic/claude-haiku-4-5")
    for unknown in ("anthropic/claude-haiku-4-5-fast", "claude-opus-4-8", "openrouter/anthropic/claude-opus-4-8"):
        assert price_of(unknown) is None
        assert dollars(unknown, ModelUsage(input_tokens=1)) is None
    for name, price in PRICES.items():
        assert price.source
        assert price.date or name == "scripted/words"
        assert price.cache_read <= price.input <= price.cache_write


def test_dollars_of_a_usage_by_hand() -> None:
    usage = ModelUsage(
        input_tokens=1000, input_tokens_cache_write=2000, input_tokens_cache_read=30_000, output_tokens=400,
        reasoning_tokens=300,
    )  # fmt: skip
    assert dollars(OPUS, usage) == pytest.approx(0.005 + 0.0125 + 0.015 + 0.01)
    assert dollars(OPUS, replace_cost(usage, 0.5)) == 0.5, "as it was noted when the call was made"
    opus = PRICES[OPUS]
    assert opus.most(1_000_000, 0) == pytest.approx(10.0), "written for an hour"
    assert opus.most(0, 1_000_000) == pytest.approx(25.0)
    free = replace(opus, cache_write=0.0)
    assert free.most(1_000_000, 0) == pytest.approx(5.0), "or not cached at all"


def replace_cost(usage: ModelUsage, cost: float) -> ModelUsage:
    return usage.model_copy(update={"total_cost": cost})


def meter(limit: float | None, used: list[float]) -> Meter:
    return Meter(Tariff(PRICES[OPUS], 1000, limit), lambda: sum(used))


def test_a_sample_waits_for_dollars_that_others_may_leave_and_only_then_gives_up() -> None:
    events: list[str] = []

    async def sample(purse: Purse, name: str, used: float, done: anyio.Event | None = None) -> None:
        spent: list[float] = [0.0]
        async with purse.opened(meter(1.0, spent)) as admitted:
            events.append(f"{name} {admitted}")
            if done:
                await done.wait()
            spent.append(used)

    async def all_samples() -> None:
        purse, done = Purse(cap=2.5, spent=0.5), anyio.Event()
        async with anyio.create_task_group() as tasks:
            for name, used in (("a", 1.0), ("b", 0.4), ("c", 0.5), ("d", 0.2)):
                tasks.start_soon(sample, purse, name, used, done)
                await anyio.wait_all_tasks_blocked()
            assert events == ["a True", "b True"]
            done.set()
        assert purse.spent == pytest.approx(0.5 + 1.0 + 0.4)
        assert events[2:] == ["c False", "d False"], "0.6 are left, and a sample may need 1"
        await sample(Purse(cap=1.0, spent=0.5), "e", 0.0)
        free = Purse(cap=1.0, spent=1.0)
        async with free.opened(meter(None, [0.0])) as admitted:
            assert admitted, "what costs nothing needs nothing"

    anyio.run(all_samples)
    assert events[-1] == "e False"
