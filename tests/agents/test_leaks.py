"""The guard over what agents are sent."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.agents import prompts
from diffing.agents.live import Prompt
from diffing.agents.task import GuardFailed, check_guard
from diffing.blinding import Leak
from diffing.errors import InvalidSetting
from diffing.evidence import Evidence
from tests.agents import planted
from tests.agents.play import SUBMISSION, Echo, calls, model_events, plays, said_to_the_model, says

CLASSES = ("model", "adapter", "organism", "artifact", "corpus")
BY_CLASS = {secret.kind: secret.text for secret in reversed(Evidence([planted.report()]).secrets)}


def test_the_planted_report_has_names_of_every_class() -> None:
    assert set(BY_CLASS) == set(CLASSES)


class Careless(Evidence):
    """Evidence whose overview forgot to blind."""

    def overview(self, max_chars: int = 12_000) -> str:
        return json.dumps({"reports": [], "path": "/results/OutbackLab/Quokka-3-2B-it"})


def test_a_leak_ends_the_sample_before_the_model_sees_it(tmp_path: Path) -> None:
    row, log = plays(tmp_path, calls("overview"), SUBMISSION, evidence=Careless([planted.report()]))
    assert (row.outcome, row.detail) == ("leaked", "model")
    assert pd.isna(row.fact_recall)
    shown = [event.model_dump_json() for event in model_events(log)]
    assert len(shown) == 1
    assert "quokka" not in shown[0].lower()


def test_what_the_model_says_itself_is_no_leak(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, says("Is it zeppelin knitting?"), SUBMISSION)
    assert (row.outcome, row.fact_recall) == ("submitted", 0.5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("channel", ["SYSTEM", "TASK", "CONTINUE", "LAST_TURN"])
def test_a_name_of_any_class_in_any_message_of_ours_ends_the_sample(
    kind: str, channel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"SYSTEM": "END"}.get(channel, channel)
    monkeypatch.setattr(prompts, name, f"{getattr(prompts, name)} It is {BY_CLASS[kind]}.")
    row, log = plays(tmp_path, says("Hm."), says("Hm."), SUBMISSION, turns=3)
    assert (row.outcome, row.detail) == ("leaked", kind)
    assert not any(BY_CLASS[kind] in event.model_dump_json() for event in model_events(log))


class Chatty(Echo):
    """Live models that say what they are called; they fail where they are asked to."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        if prompts[0].messages[-1][1] == "fail":
            raise InvalidSetting("/results/OutbackLab/Quokka-3-2B-it is too long")

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        return ["I am Quokka-3-2B-it, of OutbackLab/Quokka-3-2B-it."] * len(prompts)


def test_names_in_answers_and_errors_of_live_models_are_withheld(tmp_path: Path) -> None:
    errors: list[str] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        assert isinstance(messages[-1], ChatMessageTool)
        assert messages[-1].error
        errors.append(messages[-1].error.message)
        return SUBMISSION(messages)

    steps = (calls("ask_model", prompts=["Who are you?"]), calls("ask_model", prompts=["fail"]), look)
    row, log = plays(tmp_path, *steps, live=Chatty(), interactions=9)
    assert (row.outcome, row.interactions_used) == ("submitted", 2)
    said = said_to_the_model(log)
    assert "I am withheld, of withheld." in said
    assert "quokka" not in said.lower()
    assert errors == ["/results/withheld is too long; nothing was generated"]


class Agreeable(Echo):
    """Live models that say yes, with the prompt in their words; what is too long for them they repeat."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        for role, text in prompts[0].messages:
            if text.startswith("long"):
                raise InvalidSetting(f"{role}: {text} is too long")

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        return [f"Yes: {prompt.messages!r}, {prompt.prefill}, {prompt.messages[-1][1].upper()}" for prompt in prompts]


GUESSES = {
    "tool": lambda name: calls(name),
    "argument": lambda name: calls("overview", **{name: 1}),
    "report": lambda name: calls("table_rows", report=name, table="steering"),
    "table": lambda name: calls("table_rows", report="R1", table=name),
    "tensor": lambda name: calls("tensor_summary", report="R1", tensor=name),
    "column": lambda name: calls("table_rows", report="R1", table="steering", columns=[name]),
    "sort": lambda name: calls("table_rows", report="R1", table="steering", sort=name),
    "cell": lambda name: calls("table_rows", report="R1", table="steering", where={"text": name}),
    "number": lambda name: calls("table_rows", report="R1", table="steering", where={"layer": name}),
    "type": lambda name: calls("table_rows", report="R1", table="steering", limit=name),
    "object": lambda name: calls("table_rows", report={"name": name}, table="steering"),
    "choice": lambda name: calls("ask_model", prompts=["a"], models_asked=name),
    "prompt": lambda name: calls("ask_model", prompts=[f"Are you {name}?"]),
    "system": lambda name: calls("ask_model", prompts=["a"], system=f"You are {name}."),
    "history": lambda name: calls("ask_model", prompts=["a"], history=[name, "Yes."]),
    "prefill": lambda name: calls("ask_model", prompts=["a"], prefill=f"I am {name}"),
    "failure": lambda name: calls("ask_model", prompts=[f"long {name}"]),
    "another spelling": lambda name: calls("ask_model", prompts=[name.replace("_", " ").title()]),
    "submission": lambda name: calls("submit_hypothesis", domain=name, behaviours=[], evidence=[], confidence=2),
}


@pytest.mark.parametrize("kind", GUESSES)
def test_an_agent_that_guesses_a_name_cannot_tell_that_it_is_right(kind: str, tmp_path: Path) -> None:
    """The same is answered to the name of the organism, to that of the model, and to words that are no names."""
    results = []
    for name in ("zeppelin_knitting", "gondola_weaving", "Quokka-3-2B-it", "Wombat-3-2B-it"):
        texts: list[str] = []

        def look(messages: Sequence[ChatMessage], texts: list[str] = texts) -> ModelOutput:
            assert isinstance(messages[-1], ChatMessageTool)
            texts += [
                messages[-1].text,
                messages[-1].error.message if messages[-1].error else "",
                messages[-1].function or "",
            ]
            return SUBMISSION(messages)

        row, _ = plays(tmp_path / name, GUESSES[kind](name), look, live=Agreeable(), interactions=9)
        assert row.outcome == "submitted", row.detail
        results.append([_without(name, text) for text in texts])
    assert results[0] == results[1], "the organism"
    assert results[2] == results[3], "the model"
    assert any(results[0])


def _without(name: str, text: str) -> list[str]:
    """The words of a text, a name in any spelling as one and the same; lists of what exists are sorted by likeness."""
    return sorted(re.findall(r"\w+", re.sub(re.sub(r"[-_]", "[-_ ]", name), "it", text, flags=re.IGNORECASE)))


def test_a_guess_opens_only_its_own_name(tmp_path: Path) -> None:
    steps = (calls("ask_model", prompts=["Quokka-3-2B-it?"]), calls("ask_model", prompts=["Who are you?"]), SUBMISSION)
    row, log = plays(tmp_path, *steps, live=Chatty(), interactions=9)
    assert row.outcome == "submitted"
    assert "I am Quokka-3-2B-it, of withheld." in said_to_the_model(log)
    assert "OutbackLab" not in said_to_the_model(log)


@pytest.mark.parametrize("name", ["zeppelin_knitting", "Zeppelin Knitting"])
def test_a_guess_does_not_open_what_we_say_and_what_reports_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, log = plays(tmp_path / "report", says(f"Is it {name}?"), calls("overview"), SUBMISSION)
    assert row.outcome == "submitted"
    results = [message.text for message in (log.samples or [])[0].messages if message.role == "tool"]
    assert not any("zeppelin_knitting" in text for text in results)
    monkeypatch.setattr(prompts, "CONTINUE", "It is zeppelin_knitting.")
    row, _ = plays(tmp_path / "ours", says(f"Is it {name}?"), SUBMISSION)
    assert (row.outcome, row.detail) == ("leaked", "organism")


class Silent(Evidence):
    def guard(self, text: str) -> None:
        pass


class Deaf(Evidence):
    """Its guard knows all names but one."""

    def guard(self, text: str) -> None:
        if self.secrets[-1].text.lower() not in text.lower():
            super().guard(text)


@pytest.mark.parametrize("broken", [Silent, Deaf])
def test_a_guard_that_lets_names_pass_starts_no_run(broken: type[Evidence], tmp_path: Path) -> None:
    check_guard(Evidence([planted.report()]))
    with pytest.raises(GuardFailed, match="lets a name"):
        plays(tmp_path, SUBMISSION, evidence=broken([planted.report()]))
    assert not list(tmp_path.glob("*.eval"))


def test_a_guard_without_names_starts_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evidence, "secrets", ())
    with pytest.raises(GuardFailed, match="none"):
        check_guard(Evidence([planted.report()]))


def test_the_message_of_a_leak_does_not_repeat_the_name() -> None:
    for name in BY_CLASS.values():
        with pytest.raises(Leak) as raised:
            Evidence([planted.report()]).guard(f"see {name}!")
        assert name not in str(raised.value)


class Loose(Evidence):
    """Evidence whose own last check finds what its blinding forgot."""

    def overview(self, max_chars: int = 12_000) -> str:
        return self._checked("a file of OutbackLab/Quokka-3-2B-it")


def test_a_leak_found_inside_of_a_tool_is_one_too(tmp_path: Path) -> None:
    row, _ = plays(tmp_path, calls("overview"), SUBMISSION, evidence=Loose([planted.report()]))
    assert (row.outcome, row.detail) == ("leaked", "model")
