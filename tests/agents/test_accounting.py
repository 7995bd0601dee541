"""What samples say that they cost, against what the service charged: to the unit, each kind of token for itself."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.agents.prices import price_of
from diffing.specs import JSON
from tests.agents import anthropic_wire
from tests.agents.caching import LOOK_BACK, PromptCache, size
from tests.agents.investigators import (
    CLAUDE,
    COMPATIBLE,
    GENERATION,
    MODELS,
    STREAMED,
    THINKING,
    by_name,
    evaluated,
    investigator,
    submits,
    tokens,
)  # fmt: skip
from tests.agents.script import Acts, Tokens, steps
from tests.agents.server import AgentServer, Breaks, Fault, agent_server
from tests.judge_server import Fails, HangsUp

PRICED = "anthropic/claude-opus-4-8"
FAULTS: tuple[Fault, ...] = (Fails(529), HangsUp(), Breaks(60), Fails(429))


@pytest.mark.parametrize(
    ("model", "generation"),
    [*((model, GENERATION) for model in MODELS), (CLAUDE, STREAMED), (CLAUDE, THINKING)],
    ids=["anthropic", "openai", "streamed", "thinking"],
)
def test_tokens_equal_those_of_the_service_to_the_unit(
    model: str, generation: Mapping[str, JSON], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [Acts([("overview", {})], f"Turn {n}.", thinking="Hm. " * n if model == CLAUDE else "") for n in range(3)]
    with agent_server(steps(*looks, submits("airships", "yarn")), monkeypatch) as server:
        grades = evaluated(tmp_path, model, generation=generation, repeats=3).grades
    assert set(grades.outcome) == {"submitted"}
    assert tokens(grades) == by_name(server.used)
    assert server.used.output > 0


@pytest.mark.parametrize("model", MODELS)
def test_what_is_repeated_is_charged_once(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faults(number: int) -> Fault | None:
        return None if number % 2 else FAULTS[number // 2 % len(FAULTS)]

    script = steps(*[Acts([("overview", {})])] * 5, submits("airships", "yarn"))
    with agent_server(script, monkeypatch) as calm:
        expected = tokens(evaluated(tmp_path / "calm", model).grades)
    with agent_server(script, monkeypatch, faults) as server:
        grades = evaluated(tmp_path / "faults", model).grades
    assert len(server.requests) == 2 * len(calm.requests)
    assert tokens(grades) == by_name(server.used) == expected
    assert grades.retries[0] >= len(calm.requests)


def test_a_message_in_two_parts_is_charged_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = steps(Acts(text="Let me see ...", stop="pause_turn"), submits("airships", "yarn"))
    with agent_server(script, monkeypatch) as server:
        grades = evaluated(tmp_path, CLAUDE).grades
    assert len(server.requests) == 2
    assert tokens(grades) == by_name(server.used)


@pytest.mark.parametrize("model", MODELS)
def test_from_the_second_turn_on_all_that_was_said_is_read_from_the_cache(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the last turn, whose words differ, and by a conversation with many calls side by side."""
    asked: list[Tokens] = []
    looks = [Acts([("overview", {})] * 3, f"Turn {n}.") for n in range(5)]

    def noted(server: AgentServer) -> None:
        charge = server._cache.charge

        def charged(blocks: list[str], marks: list[int]) -> Tokens:
            asked.append(charge(blocks, marks))
            return asked[-1]

        monkeypatch.setattr(server._cache, "charge", charged)

    with agent_server(steps(*looks, submits("airships", "yarn")), monkeypatch) as server:
        noted(server)
        row = evaluated(tmp_path, model, turns=6).grades.iloc[0]
    assert (row.outcome, row.forced, len(asked)) == ("submitted", "turns", 6)
    assert asked[0].read == 0
    for before, after in pairwise(asked):
        assert after.read == before.input
    assert row.cache_read_tokens > row.cache_write_tokens + row.input_tokens


def test_samples_share_what_they_have_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats begin alike: all but the first read the first request from the cache."""
    generation = GENERATION | {"max_connections": 1}
    with agent_server(investigator, monkeypatch) as server:
        grades = evaluated(tmp_path, CLAUDE, generation=generation, repeats=3).grades
    assert tokens(grades) == by_name(server.used)
    shared = anthropic_wire.charged(server.requests[0], PromptCache()).written
    first, *others = grades.cache_write_tokens
    assert others == [first - shared] * 2


def test_dollars_are_those_of_the_price_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(investigator, monkeypatch) as server:
        row = evaluated(tmp_path, PRICED).grades.iloc[0]
    price, used = price_of(PRICED), server.used
    assert price is not None
    million = (
        used.uncached * price.input + used.written * price.cache_write
        + used.read * price.cache_read + used.output * price.output
    )  # fmt: skip
    assert row.dollars == pytest.approx(million / 1e6)
    assert row.dollars > 0


@pytest.mark.parametrize("model", MODELS)
def test_a_model_without_a_price_costs_an_unknown_sum(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch):
        row = evaluated(tmp_path, model).grades.iloc[0]
    assert pd.isna(row.dollars)


def test_who_fails_has_paid_for_what_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(investigator, monkeypatch, lambda number: Fails(400) if number else None) as server:
        grades = evaluated(tmp_path, COMPATIBLE).grades
    assert list(grades.outcome) == ["error"]
    assert tokens(grades) == by_name(server.used)
    assert server.used.total > 0


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=60), st.data())
def test_the_simulated_cache_charges_each_token_once(blocks: list[str], data: st.DataObject) -> None:
    cache, places = PromptCache(), st.integers(0, len(blocks) - 1)
    marks = data.draw(st.lists(places, max_size=4, unique=True))
    first, second = cache.charge(blocks, marks), cache.charge([*blocks, "more"], marks)
    total = sum(map(size, blocks))
    kept = sum(map(size, blocks[: max(marks, default=-1) + 1]))
    assert (first.read, first.written, first.uncached) == (0, kept, total - kept)
    assert (second.read, second.written, second.input) == (kept, 0, total + size("more"))


def test_the_simulated_cache_finds_prefixes_that_are_near_a_mark_and_no_others() -> None:
    blocks = [f"block {number}" for number in range(50)]
    cache = PromptCache()
    cache.charge(blocks[:10], [9])
    assert cache.charge(blocks, [9 + LOOK_BACK]).read == 0
    cache = PromptCache()
    cache.charge(blocks[:10], [9])
    assert cache.charge(blocks, [9 + LOOK_BACK - 1]).read == sum(map(size, blocks[:10]))
    assert cache.charge(["other", *blocks[1:]], [9]).read == 0
