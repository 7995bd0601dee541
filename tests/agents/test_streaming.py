"""Messages that come as streams, of Anthropic's protocol: whole, in pieces of any size, and broken off anywhere."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ChatMessageAssistant, GenerateConfig, ModelOutput, get_model

from diffing.agents.replies import PAUSES
from tests.agents import anthropic_wire
from tests.agents.anthropic_wire import error_event
from tests.agents.investigators import (
    CLAUDE,
    COMPATIBLE,
    GENERATION,
    STREAMED,
    THINKING,
    by_name,
    evaluated,
    investigator,
    submits,
    tokens,
)  # fmt: skip
from tests.agents.play import sample_of
from tests.agents.script import Acts, steps
from tests.agents.server import Breaks, Fault, Sends, agent_server, from_then_on, once


def conversation(log: EvalLog) -> list[tuple]:
    """Who said, thought and called what, in order."""
    said = []
    for message in sample_of(log).messages:
        calls = message.tool_calls if isinstance(message, ChatMessageAssistant) else None
        said.append((message.role, message.text, [(call.function, call.arguments) for call in calls or ()]))
    return said


def test_a_streamed_conversation_is_the_same_as_one_in_whole_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, generation in (("whole", GENERATION), ("streamed", STREAMED)):
        with agent_server(investigator, monkeypatch) as server:
            evaluation = evaluated(tmp_path / name, CLAUDE, generation=generation)
        assert server.refused == []
        assert tokens(evaluation.grades) == by_name(server.used), "the input's at the start, the output's at the end"
        found[name] = conversation(read_eval_log(str(evaluation.log))), server.used
    assert found["streamed"] == found["whole"]
    assert found["whole"][1].output


@pytest.mark.parametrize(
    ("model", "generation", "streams"),
    [(CLAUDE, GENERATION, False), (CLAUDE, STREAMED, True), (CLAUDE, THINKING, True), (COMPATIBLE, STREAMED, False)],
)
def test_clients_stream_what_may_become_long(
    model: str, generation: dict, streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch) as server:
        evaluated(tmp_path, model, generation=generation)
    assert {request.get("stream", False) for request in server.requests} == {streams}


HARD = ['"\\', "\n\t", "😀é漢", "{[:,"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(HARD)
VALUES = st.recursive(
    TEXT | st.booleans() | st.none() | st.integers(-(2**40), 2**40) | st.floats(-1e6, 1e6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=3)


def asked(model: str, generation: Mapping[str, Any]) -> ModelOutput:
    async def ask() -> ModelOutput:
        return await get_model(model, config=GenerateConfig(**generation), memoize=False).generate("Go.")

    return asyncio.run(ask())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CALLS, TEXT, TEXT, st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_inputs_of_tools_arrive_whole_however_they_are_split(
    calls: list[dict], text: str, thinking: str, letters: int, octets: int, streams: bool
) -> None:
    """Splits are everywhere: inside of escapes, of numbers and of characters."""
    acts = Acts([("look", given) for given in calls], text.strip(), thinking=thinking)
    with pytest.MonkeyPatch.context() as monkeypatch, agent_server(lambda seen: acts, monkeypatch) as server:
        server.letters, server.octets = letters, octets
        output = asked(CLAUDE, STREAMED if streams else GENERATION)
    made = output.message.tool_calls
    assert made is not None
    assert [(call.function, call.arguments, call.parse_error) for call in made] == [("look", g, None) for g in calls]
    assert output.message.text.strip() == text.strip()
    assert output.usage is not None
    assert output.usage.output_tokens == server.used.output


BREAKS: dict[str, Fault] = {
    "overloaded at once": Breaks(0, error_event()), "overloaded in a text": Breaks(4, error_event()),
    "overloaded in a call": Breaks(12, error_event()), "error of the service": Breaks(9, error_event("api_error")),
    "reset in a text": Breaks(4, resets=True), "reset in a call": Breaks(12, resets=True),
    "empty": Breaks(0), "ends after the start": Breaks(1), "ends in a text": Breaks(4), "ends in a call": Breaks(12),
    "half of an event": Breaks(5, 'event: content_block_delta\ndata: {"type": "content_\n\n'), "page": Sends("<html>"),
}  # fmt: skip


def test_a_stream_that_breaks_is_asked_for_again_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn of one conversation begins with another break."""
    faults = list(BREAKS.values())
    looks = [Acts([("overview", {}), ("overview", {})], f"This is turn {turn}.") for turn in range(len(faults) - 1)]
    script = steps(*looks, submits("airships", "zeppelin"))
    with agent_server(script, monkeypatch, lambda at: None if at % 2 else faults[at // 2]) as server:
        evaluation = evaluated(tmp_path, CLAUDE, generation=STREAMED, turns=len(faults) + 1)
    row = evaluation.grades.iloc[0]
    assert (row.outcome, row.detail) == ("submitted", ""), list(BREAKS)[(len(server.requests) - 1) // 2]
    assert server.refused == []
    for name, broken, repeated in zip(BREAKS, server.requests[::2], server.requests[1::2], strict=True):
        assert broken == repeated, name
    said = [text for role, text, _ in conversation(read_eval_log(str(evaluation.log))) if role == "assistant"]
    assert said == [*(look.text for look in looks), "I am done."]
    assert tokens(evaluation.grades) == by_name(server.used), "what was told of a broken stream's cost is charged"


@pytest.mark.parametrize("name", ["ends in a call", "overloaded in a text", "reset in a call"])
def test_a_stream_that_always_breaks_is_an_error_with_its_cause(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_server(investigator, monkeypatch, from_then_on(BREAKS[name])) as server:
        evaluation = evaluated(tmp_path, CLAUDE, generation=STREAMED)
    row = evaluation.grades.iloc[0]
    causes = {"ends in a call": "a message without an end", "overloaded in a text": "Overloaded"}
    assert row.outcome == "error"
    assert causes.get(name, "peer closed connection") in row.detail
    assert [seen.turn for seen in server.seen] == [0]
    assert len(conversation(read_eval_log(str(evaluation.log)))) == 5, "what was said before is kept"
    assert row.retries >= (len(PAUSES) if name == "ends in a call" else 0)


def test_an_error_of_an_unknown_kind_ends_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent_server(investigator, monkeypatch, once(Breaks(4, error_event("odd_error")))) as server:
        row = evaluated(tmp_path, CLAUDE, generation=STREAMED).grades.iloc[0]
    assert (row.outcome, row.detail, len(server.requests)) == ("error", "planned", 2)


def thinks(server_thoughts: tuple[str, ...]) -> list[Acts]:
    looks = [Acts([("overview", {})], f"Turn {n}.", thinking=thought) for n, thought in enumerate(server_thoughts)]
    return [*looks, submits("airships", "zeppelin")]


def test_thoughts_go_back_unchanged_with_their_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts = ("Hm — what is “it”?\n", '{"a": "\\"}', "漢字 😀", "a thought without a call")
    with agent_server(steps(*thinks(thoughts)), monkeypatch) as server:
        evaluation = evaluated(tmp_path, CLAUDE, generation=THINKING)
    assert server.refused == []
    row = evaluation.grades.iloc[0]
    assert (row.outcome, row.retries) == ("submitted", 0)
    blocks = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "assistant"]
    assert [[block["type"] for block in each] for each in blocks] == [["thinking", "text", "tool_use"]] * 4
    assert [each[0]["thinking"] for each in blocks] == list(thoughts)
    assert tokens(evaluation.grades) == by_name(server.used)
    assert server.used.thinking > 0
    assert server.used.read > 0


def test_the_service_refuses_a_thought_that_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = anthropic_wire.signature
    with agent_server(steps(*thinks(("Hm.",))), monkeypatch) as server:
        monkeypatch.setattr(anthropic_wire, "signature", lambda text: f"{signed(text)} {len(server.requests)}")
        row = evaluated(tmp_path, CLAUDE, generation=THINKING).grades.iloc[0]
    assert server.refused == ["invalid signature in thinking block"]
    assert row.outcome == "error"
