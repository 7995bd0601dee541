"""The guard over what agents are sent."""

import json
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


def test_a_name_that_a_model_types_itself_ends_nothing(tmp_path: Path) -> None:
    steps = (calls("Quokka-3-2B-it"), calls("table_rows", report="Quokka-3-2B-it"), SUBMISSION)
    row, _ = plays(tmp_path, *steps)
    assert (row.outcome, row.tool_errors) == ("submitted", 2)


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
