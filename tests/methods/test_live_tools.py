"""What methods let agents ask of a pair, against the methods' own measurements and plain forward passes."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.axes import Side
from diffing.entry.live_models import LivePair, declared_by
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.evidence import Evidence
from diffing.lenses.logit_lens import logit_lens
from diffing.lenses.steering import Answers
from diffing.live_tools import LiveTool
from diffing.methods.activation_difference_lens import ActivationDifferenceLens
from diffing.methods.base import Study
from diffing.methods.kl import KLDivergence
from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.text.corpus import Corpus
from tests import tiny
from tests.agents import planted
from tests.agents.play import SUBMISSION, calls, plays
from tests.methods.studies import PLANTED_TOKEN

REPORT = replace(planted.report(), settings={"layers": [0.0, 0.7, 0.99]})


def tool(method: object, pair: ModelPair, report: Report = REPORT) -> LiveTool:
    (declared,) = declared_by(method, report, LivePair(pair))
    return declared


def called(declared: LiveTool, **arguments: object) -> Any:
    """As an agent would call it; what comes back is JSON."""
    given = inspect.signature(declared.run).bind(**arguments)
    given.apply_defaults()
    assert declared.cost(**given.arguments) == len(given.arguments["texts"])
    return json.loads(json.dumps(declared.run(**given.arguments), allow_nan=False))


def activations(pair: ModelPair, text: str, layer: int) -> dict[Side, torch.Tensor]:
    found = {}
    for side in Side:
        with pair.using(side) as model, torch.no_grad():
            ids = torch.tensor([pair.tokenizer(text)["input_ids"]])
            found[side] = model(ids, output_hidden_states=True).hidden_states[layer + 1][0]
    return found


# --- KL ---


def test_kl_on_text_is_that_of_plain_forward_passes(lora_pair: ModelPair) -> None:
    found = called(tool(KLDivergence(), lora_pair), texts=tiny.TEXTS[:2])
    for text, read in zip(tiny.TEXTS, found, strict=False):
        ids = lora_pair.tokenizer(text)["input_ids"]
        log_p = {}
        for side in Side:
            with lora_pair.using(side) as model, torch.no_grad():
                log_p[side] = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        p, q = log_p[Side.FINETUNED], log_p[Side.BASE]
        kl = (p.exp() * (p - q)).sum(-1)
        assert "".join(token for token, _ in read["tokens"]) == text
        assert [value for _, value in read["tokens"]] == pytest.approx(kl.tolist(), rel=0.01, abs=1e-5)
        assert read["mean"] == pytest.approx(float(kl.mean()), rel=0.01)
        place = int(kl.argmax())
        peak = read["peaks"][0]
        assert (peak["after"], peak["kl"]) == (lora_pair.tokenizer.decode(ids[: place + 1]), read["tokens"][place][1])
        parts = p[place].exp() * (p - q)[place] - p[place].exp() + q[place].exp()
        most = int(parts.argmax())
        changed = peak["changed"][0]
        assert changed["token"] == lora_pair.tokenizer.decode([most])
        assert changed["probability_base"] == pytest.approx(float(q[place, most].exp()), rel=0.01)
        assert changed["probability_finetuned"] == pytest.approx(float(p[place, most].exp()), rel=0.01)


def test_identical_models_have_no_kl_and_no_peaks(identical_pair: ModelPair) -> None:
    (read,) = called(tool(KLDivergence(), identical_pair), texts=["Bread needs flour."])
    assert read["mean"] == 0
    assert {value for _, value in read["tokens"]} == {0}
    assert read["peaks"] == []


# --- Activation Difference Lens ---

LENS = ActivationDifferenceLens(Answers(["Bread?"]))


def test_the_lens_reads_what_was_planted_at_any_position_of_any_text(planted_pair: ModelPair) -> None:
    found = called(tool(LENS, planted_pair), texts=tiny.TEXTS[:3], positions=[3, 9])
    assert found["layer"] == 2, "the middle one of the report's"
    assert [(each["position"], each["texts"]) for each in found["positions"]] == [(3, 3), (9, 2)]
    for each in found["positions"]:
        assert each["difference"]["promoted"][0] == planted_pair.tokenizer.decode([PLANTED_TOKEN])
        assert set(each) == {"position", "texts", "relative_size", "difference", "base", "finetuned", "random"}


def test_the_lens_reads_the_mean_difference_of_plain_forward_passes(lora_pair: ModelPair) -> None:
    texts = [tiny.TEXTS[0], tiny.TEXTS[2]]
    (read,) = called(tool(LENS, lora_pair), texts=texts, positions=[6], layer=1)["positions"]
    every = [activations(lora_pair, text, 1) for text in texts]
    base = torch.stack([each[Side.BASE][6] for each in every])
    difference = torch.stack([each[Side.FINETUNED][6] for each in every]).mean(0) - base.mean(0)
    with lora_pair.using(Side.FINETUNED) as model:
        promoted, suppressed = logit_lens(model, difference[None], 10)
    for name, expected in (("promoted", promoted), ("suppressed", suppressed)):
        assert read["difference"][name] == [lora_pair.tokenizer.decode([token]) for token in expected.ids[0].tolist()]
    assert read["relative_size"] == pytest.approx(float(difference.norm() / base.norm(dim=1).mean()), rel=0.01)


def test_identical_models_show_nothing(identical_pair: ModelPair) -> None:
    found = called(tool(LENS, identical_pair), texts=tiny.TEXTS[:1])
    assert found["positions"] == [{"position": n, "texts": 1, "relative_size": 0.0} for n in range(5)]


# --- what is refused ---


@pytest.mark.parametrize("method", [KLDivergence(), LENS])
@pytest.mark.parametrize("texts", [[], ["a"] * 17, ["a", " "]])
def test_too_many_texts_or_none_are_refused_before_any_work(
    method: object, texts: list[str], lora_pair: ModelPair
) -> None:
    with pytest.raises(InvalidSetting, match="expected 1 to 16 texts"):
        called(tool(method, lora_pair), texts=texts)


@pytest.mark.parametrize("positions", [[], [1, 1], [-1], [64], list(range(9))])
def test_positions_out_of_range_are_refused_before_any_work(positions: list[int], lora_pair: ModelPair) -> None:
    with pytest.raises(InvalidSetting, match="expected 1 to 8 different ones from 0 to 63"):
        called(tool(LENS, lora_pair), texts=tiny.TEXTS[:1], positions=positions)


def test_what_texts_do_not_have_is_an_error(lora_pair: ModelPair) -> None:
    with pytest.raises(EmptyCorpus, match=r"positions \[60\]"):
        called(tool(LENS, lora_pair), texts=["A line of more than five tokens."], positions=[1, 60])
    with pytest.raises(EmptyCorpus, match="use longer texts"):
        called(tool(LENS, lora_pair), texts=["a"], positions=[0])
    with pytest.raises(InvalidSetting, match="layer 9"):
        called(tool(LENS, lora_pair), texts=tiny.TEXTS[:1], layer=9)


# --- a whole investigation ---


def test_an_agent_uses_every_live_tool_with_what_it_read_in_the_overview(
    planted_pair: ModelPair, corpus: Corpus, tmp_path: Path
) -> None:
    method = ActivationDifferenceLens(
        Answers(["Bread?"], max_new_tokens=4), layers=(2,), steering_layers=(2,), max_texts=6, positions=(2,),
        patchscope_scales=(1.0,), strengths=(1.0,), steering_positions=(2,),
    )  # fmt: skip
    report = method.run(Study(planted_pair, [corpus]))
    word = planted_pair.tokenizer.decode([PLANTED_TOKEN])
    told: list[Any] = []

    def direction(messages: Sequence[ChatMessage]) -> dict[str, object]:
        tensors = json.loads(messages[-1].text)["reports"][0]["tensors"]
        name = next(name for name, tensor in tensors.items() if name.endswith("difference") and "directions" in tensor)
        return {"report": "R1", "tensor": name, "row": tensors[name]["directions"]["names"][2]}

    def investigates(messages: Sequence[ChatMessage]) -> ModelOutput:
        told.append(direction(messages))
        asked = calls("read_direction", **told[0])(messages)
        steering = calls("ask_steered", **told[0], strength=3.0, prompts=["Bread?"], max_new_tokens=4)
        texts = calls("difference_on_text", texts=tiny.TEXTS[:2], positions=[4])
        for step in (steering, texts):
            asked.message.tool_calls = [*(asked.message.tool_calls or []), *(step(messages).message.tool_calls or [])]
        return asked

    def reads(messages: Sequence[ChatMessage]) -> ModelOutput:
        results = [message for message in messages[-3:] if isinstance(message, ChatMessageTool) and not message.error]
        told.extend(json.loads(result.text) for result in results)
        return SUBMISSION(messages)

    live = LivePair(planted_pair)
    row, _ = plays(
        tmp_path, calls("overview"), investigates, reads, evidence=Evidence([report]), live=live, interactions=6,
        tools=declared_by(method, report, live),
    )  # fmt: skip
    assert (row.outcome, row.tool_errors, row.interactions_used) == ("submitted", 0, 1 + 3 + 2)
    _, read, steered, lens = told
    assert read["of"] == steered["of"] == told[0]["row"] == "position 2"
    assert read["direction"]["promoted"][0][0] == word
    assert read["random"]["promoted"][0][0] != word
    assert list(steered["answers"][0]) == ["prompt", "unsteered", "steered", "random"]
    assert lens["result"]["positions"][0]["difference"]["promoted"][0] == word
