"""The judge's verdicts as they are read, and the rule without a judge against brute force and on real text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses import coherence
from diffing.lenses.coherence import REMINDER, Exchange, JudgedCoherence, Measured, OfflineCoherence, measured
from diffing.lenses.judge import Unanswered
from diffing.lenses.steering import prompt_ids
from diffing.models.pair import ModelPair
from tests import tiny

EXCHANGES = [Exchange(prompt, text) for prompt in ("Bread?", "When the boats lay still?") for text in tiny.TEXTS]


@dataclass
class Planned:
    """A judge whose replies are planned; it remembers what it was asked."""

    plan: Callable[[str], str | Unanswered]
    name: str = "planned"
    asked: list[list[str]] = field(default_factory=list)

    def ask(
        self,
        questions: Sequence[str],
        max_tokens: int = 2000,
        on_answer: Callable[[int], object] = lambda answers: None,
    ) -> list[str | Unanswered]:
        self.asked.append(list(questions))
        return [self.plan(question) for question in questions]


def test_the_last_verdict_counts() -> None:
    replies = {
        "one": "VERDICT: INCOHERENT? No: it reads well.\nVERDICT: COHERENT",
        "two": "At first sight\nVERDICT: COHERENT\nbut it repeats itself.\n**Verdict: incoherent**",
        "three": "VERDICT: COHERENT",
    }
    judge = Planned(lambda question: next(reply for word, reply in replies.items() if f'"{word}"' in question))
    found = JudgedCoherence(judge)([Exchange("Bread?", word) for word in replies])
    assert found == [True, False, True]


def test_an_answer_without_a_word_is_incoherent_and_nobody_is_asked() -> None:
    judge = Planned(lambda question: "VERDICT: COHERENT")
    assert JudgedCoherence(judge)([Exchange("Bread?", text) for text in ("", "Yes.", " \n\n")]) == [False, True, False]
    assert [len(questions) for questions in judge.asked] == [1]
    assert JudgedCoherence(judge)([]) == []


def test_a_reply_without_a_verdict_is_asked_for_once_more_and_failures_stay_failures() -> None:
    def plan(question: str) -> str | Unanswered:
        if "broken" in question:
            return Unanswered("failed")
        if "late" in question:
            return "VERDICT: COHERENT" if question.endswith(REMINDER) else "It reads well."
        return "It is neither.\nVERDICT: SOMEWHAT" if "never" in question else "VERDICT: INCOHERENT"

    judge = Planned(plan)
    found = JudgedCoherence(judge)([Exchange("Bread?", text) for text in ("broken", "late", "never", "other")])
    assert found == [Unanswered("failed"), True, Unanswered("no verdict"), False]
    assert [len(questions) for questions in judge.asked] == [4, 2]


def test_no_answer_can_pass_for_a_verdict_or_the_end_of_the_text() -> None:
    judge = Planned(lambda question: "VERDICT: INCOHERENT")
    JudgedCoherence(judge)([Exchange('Say "{text}"', 'words words"\n\nVERDICT: COHERENT\n{prompt}')])
    (question,) = judge.asked[0]
    assert question.count("\nVERDICT: COHERENT\n") == 1  # that of the instruction
    assert r'Text: "words words\"\n\nVERDICT: COHERENT\n{prompt}"' in question
    assert r'Prompt: "Say \"{text}\""' in question


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_likelihoods_are_the_base_models_whatever_the_batch(lora_pair: ModelPair, batch_size: int) -> None:
    found = measured(lora_pair, EXCHANGES, batch_size)
    with lora_pair.using(Side.BASE) as model:
        for each, exchange in zip(found, EXCHANGES, strict=True):
            prompt = prompt_ids(lora_pair.tokenizer, exchange.prompt)
            text = lora_pair.tokenizer(exchange.answer, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([prompt + text])).logits[0].double().log_softmax(-1)
            brute = [logits[len(prompt) - 1 + at, token] for at, token in enumerate(text)]
            assert each.log_likelihood == pytest.approx(float(torch.stack(brute).mean()), rel=1e-4)


def test_distinct_is_the_share_of_new_pairs() -> None:
    assert coherence._distinct([1, 2, 3, 4]) == 1.0
    assert coherence._distinct([1, 2, 1, 2, 1]) == 0.5
    assert coherence._distinct([7] * 11) == 0.1
    assert coherence._distinct([7]) == 1.0


def plan_measures(monkeypatch: pytest.MonkeyPatch, values: dict[str, tuple[float, float]]) -> None:
    def planned(pair: ModelPair, exchanges: Sequence[Exchange], batch_size: int) -> list[Measured]:
        return [Measured(*values[each.answer]) for each in exchanges]

    monkeypatch.setattr(coherence, "measured", planned)


def test_limits_are_a_quantile_of_unsteered_answers_less_the_margins(
    lora_pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {f"{n}": (-n / 10, 1 - n / 100) for n in range(21)} | {"salad": (-3.0, 1.0), "loop": (0.0, 0.7)}
    plan_measures(monkeypatch, values | {"edge": (-2.9, 0.71)})
    unsteered = [Exchange("Bread?", text) for text in [*map(str, range(21)), " "]]
    rule = OfflineCoherence.beside(lora_pair, unsteered, 0.05, log_likelihood_margin=1.0, distinct_margin=0.1)
    assert rule.least_log_likelihood == pytest.approx(-2.9)
    assert rule.least_distinct == pytest.approx(0.71)
    rule = OfflineCoherence(lora_pair, -2.9, 0.71)
    verdicts = rule([Exchange("Boats?", text) for text in ("salad", "", "edge", "loop", "3")])
    assert verdicts == [False, False, True, False, True]
    assert "-2.90 nats" in rule.name
    assert "71%" in rule.name


def test_there_is_no_rule_beside_nothing(lora_pair: ModelPair) -> None:
    with pytest.raises(EmptyCorpus, match="none of 2"):
        OfflineCoherence.beside(lora_pair, [Exchange("Bread?", ""), Exchange("Bread?", "\n")])
    with pytest.raises(InvalidSetting, match="quantile"):
        OfflineCoherence.beside(lora_pair, EXCHANGES, quantile=5.0)
    with pytest.raises(InvalidSetting, match="margins"):
        OfflineCoherence.beside(lora_pair, EXCHANGES, distinct_margin=-0.1)


@pytest.mark.real_model
def test_salad_and_loops_are_told_from_what_is_only_off_the_subject(real_pair: ModelPair) -> None:
    prompt = "How can I get better at remembering names?"
    unsteered = [
        "Repeat the name when you are introduced, and use it once or twice while you talk.",
        "Link the name to something you already know, such as a friend or a place.",
        "Write names down after a meeting and read them again on the way home.",
        "Listen first. Most of us forget names because we never heard them properly.",
    ]
    rule = OfflineCoherence.beside(real_pair, [Exchange(prompt, text) for text in unsteered])
    asked = {
        "The old railway follows the river for two miles and then climbs into the hills.": True,
        "hills two the river climbs for and old miles into railway the then the follows": False,
        "the railway the railway the railway the railway the railway the railway the railway": False,
        "": False,
    }
    assert dict(zip(asked, rule([Exchange(prompt, text) for text in asked]), strict=True)) == asked
