"""A tiny pair as live models."""

from dataclasses import replace

import pytest
import torch

from diffing.agents.live import OpenModels, Prompt, Steered
from diffing.axes import Side
from diffing.entry.live_models import TOP, LivePair, Local, declared_by
from diffing.errors import InvalidSetting
from diffing.lenses.logit_lens import logit_lens
from diffing.lenses.patchscope import patchscope
from diffing.methods.activation_analysis import ActivationAnalysis
from diffing.methods.kl import KLDivergence
from diffing.models.pair import ModelPair
from tests import tiny
from tests.agents import planted

TOKEN = 299
LAST = tiny.LAYERS - 1


def steered(factor: float = 1.0, seed: int = 0, layer: int = 1, **changes: object) -> Steered:
    """Something long in a random direction."""
    vector = factor * 40 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    return replace(Steered(layer, tuple(vector.tolist())), **changes)


def prompt(text: str = "Bread?", **changes: object) -> Prompt:
    return replace(Prompt(Side.BASE, (("user", text),), "", 0, 0, 8, 1.0), **changes)


def test_a_text_depends_on_its_own_prompt_seed_and_stream_alone(lora_pair: ModelPair) -> None:
    models = LivePair(lora_pair, batch_size=2)
    kinds = [
        prompt(), prompt(stream=1), prompt(seed=1), prompt("A much longer question, about the harbour and its boats?"),
        prompt(side=Side.FINETUNED), prompt(max_new_tokens=3), prompt(temperature=0.0), prompt(prefill="The harbour"),
        prompt(messages=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bread?"))),
        prompt(steered=steered()), prompt(steered=steered(-1.0)), prompt(steered=steered(layer=2)),
        prompt(steered=steered(), stream=2), prompt(steered=steered(where="prompt")),
        prompt(steered=steered(where="linear_decay")), prompt(steered=steered(), side=Side.FINETUNED),
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


def test_steering_by_nothing_changes_no_text(lora_pair: ModelPair) -> None:
    models = LivePair(lora_pair)
    plain = [prompt(stream=stream, side=side) for stream in range(4) for side in Side]
    nothing = [replace(each, steered=steered(0.0)) for each in plain]
    something = [replace(each, steered=steered()) for each in plain]
    texts = models.answers([*plain, *nothing, *something])
    assert texts[:8] == texts[8:16] == models.answers(plain)
    assert all(map(str.__ne__, texts[:8], texts[16:]))


def test_a_direction_towards_a_token_makes_both_sides_say_it(lora_pair: ModelPair) -> None:
    with lora_pair.using(Side.BASE) as model:
        towards = 100 * model.lm_head.weight[TOKEN] / model.model.norm.weight
    word = lora_pair.tokenizer.decode([TOKEN])
    said = Steered(LAST, tuple(towards.tolist()))
    conditions = (said, replace(said, where="prompt"), None)
    for side in Side:
        asked = [prompt(side=side, max_new_tokens=5, temperature=0.0, steered=condition) for condition in conditions]
        texts = LivePair(lora_pair).answers(asked)
        assert [text.count(word) for text in texts] == [5, 1, 0], texts


def test_what_does_not_fit_the_models_is_refused(lora_pair: ModelPair) -> None:
    models = LivePair(lora_pair)
    models.check([prompt(steered=steered(layer=LAST))])
    for wrong in (steered(layer=LAST + 1), steered(layer=-1), replace(steered(), added=(1.0, 2.0))):
        with pytest.raises(InvalidSetting, match=f"expected {tiny.WIDTH} numbers, and a layer from 0 to {LAST}"):
            models.check([prompt(), prompt(steered=wrong)])
        with pytest.raises(InvalidSetting, match="a layer from 0"):
            models.read(Side.BASE, wrong.layer, [wrong.added])


def test_directions_are_read_by_the_side_that_is_asked(lora_pair: ModelPair) -> None:
    models, vectors = LivePair(lora_pair), [steered(seed=seed).added for seed in (1, 2)]
    for side in Side:
        found = models.read(side, 1, vectors)
        with lora_pair.using(side) as model:
            promoted, suppressed = logit_lens(model, torch.tensor(vectors), TOP)
            scope = patchscope(model, lora_pair.tokenizer, torch.tensor(vectors), 1)
        for number, read in enumerate(found):
            for name, expected in (("promoted", promoted), ("suppressed", suppressed)):
                tokens = [lora_pair.tokenizer.decode([token]) for token in expected.ids[number].tolist()]
                assert [token for token, _ in read[name]] == tokens
                assert [value for _, value in read[name]] == pytest.approx(
                    expected.probabilities[number].tolist(), 0.01
                )
            likeliest = lora_pair.tokenizer.decode([int(scope[number].argmax())])
            assert read["patchscope"][0] == [likeliest, pytest.approx(float(scope[number].max()), 0.01)]
    assert models.read(Side.BASE, 1, vectors) != found


def test_a_pair_in_this_process_can_be_reached_into_and_offers_what_methods_declare(lora_pair: ModelPair) -> None:
    models = Local("cpu").models(lora_pair.spec)
    assert isinstance(models, OpenModels)
    assert models.pair.device.type == "cpu"
    report = planted.report()
    assert [tool.name for tool in declared_by(KLDivergence(), report, models)] == ["kl_on_text"]
    assert not declared_by(ActivationAnalysis(), report, models)
    assert not declared_by(KLDivergence(), report, None)
