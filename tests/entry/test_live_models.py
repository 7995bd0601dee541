"""A tiny pair as live models."""

from dataclasses import replace

import pytest

from diffing.agents.live import Prompt
from diffing.axes import Side
from diffing.entry.live_models import LivePair
from diffing.errors import InvalidSetting
from diffing.models.pair import ModelPair


def prompt(text: str = "Bread?", **changes: object) -> Prompt:
    return replace(Prompt(Side.BASE, (("user", text),), "", 0, 0, 8, 1.0), **changes)


def test_a_text_depends_on_its_own_prompt_seed_and_stream_alone(lora_pair: ModelPair) -> None:
    models = LivePair(lora_pair, batch_size=2)
    kinds = [
        prompt(), prompt(stream=1), prompt(seed=1), prompt("A much longer question, about the harbour and its boats?"),
        prompt(side=Side.FINETUNED), prompt(max_new_tokens=3), prompt(temperature=0.0), prompt(prefill="The harbour"),
        prompt(messages=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bread?"))),
    ]  # fmt: skip
    together = models.answers(kinds)
    assert together == [models.answers([each])[0] for each in kinds]
    assert together == models.answers(kinds[::-1])[::-1]
    assert len(set(together)) == len(together), "each of these changes the text"


def test_identical_sides_answer_alike(identical_pair: ModelPair) -> None:
    base, finetuned = LivePair(identical_pair).answers([prompt(stream=5), prompt(stream=5, side=Side.FINETUNED)])
    assert base == finetuned


def test_a_prompt_that_does_not_fit_is_refused(lora_pair: ModelPair) -> None:
    models = LivePair(lora_pair)
    models.check([prompt(), prompt("word " * 10)])
    with pytest.raises(InvalidSetting, match="the models take 256"):
        models.check([prompt(), prompt("word " * 200)])


def test_without_a_template_a_prompt_is_plain_text(lora_pair: ModelPair) -> None:
    models, chat = LivePair(lora_pair), LivePair(lora_pair).answers([prompt()])
    lora_pair.tokenizer.chat_template = None
    assert models.answers([prompt()]) != chat
    with pytest.raises(InvalidSetting, match="no chats"):
        models.check([prompt(messages=(("system", "Be brief."), ("user", "Hi")))])
