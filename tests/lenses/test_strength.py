"""The search against planted thresholds, and that looking ahead changes no answer of a real model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffing.entry.choices import CONF
from diffing.errors import InvalidSetting
from diffing.lenses import strength as module
from diffing.lenses.coherence import QUESTION, Exchange, JudgedCoherence, OfflineCoherence
from diffing.lenses.judge import Unanswered
from diffing.lenses.strength import (
    SEARCH_PROMPTS,
    Asked,
    CoherentStrength,
    Outcome,
    Probe,
    StrengthSearch,
    coherence_rule,
    coherent_strength,
    find_thresholds,
)
from diffing.models.generation import Sampling
from diffing.models.pair import ModelPair
from tests import tiny

Wanted = Sequence[tuple[str, float]]


def probe(prompt: str, strength: float, share: float) -> Probe:
    return Probe(prompt, strength, round(10 * share), 10 - round(10 * share), 0)


def planted(
    search: StrengthSearch, thresholds: Mapping[str, float], rounds: list[Wanted] | None = None
) -> CoherentStrength:
    """Coherent up to a threshold of each prompt, and never above."""

    def measure(wanted: Wanted) -> list[Probe]:
        if rounds is not None:
            rounds.append(wanted)
        return [probe(prompt, strength, strength <= thresholds[prompt]) for prompt, strength in wanted]

    return find_thresholds(search, measure)


@given(st.floats(0.1, 100), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.floats(0, 1.5), st.floats(0, 1.5))
def test_the_threshold_is_found_to_the_resolution_whatever_the_way_there(
    largest: float, decisions: int, look_ahead: int, doubling: bool, first: float, second: float
) -> None:
    search = StrengthSearch(("one", "two"), largest, decisions, look_ahead, doubling=doubling)
    thresholds = {"one": first * search.largest, "two": second * search.largest}
    found = planted(search, thresholds)
    assert search.resolution == search.largest / 2**search.decisions
    for each in found.thresholds:
        truth = thresholds[each.prompt]
        steps = range(2**search.decisions)
        assert each.strength == max(search.strength(step) for step in steps if search.strength(step) <= truth)
        assert each.limit == min(
            (search.strength(step) for step in steps if search.strength(step) > truth), default=math.inf
        )
        assert math.isinf(each.limit) or each.limit - each.strength == pytest.approx(search.resolution)
    for other in (replace(search, look_ahead=5), replace(search, look_ahead=1, doubling=not search.doubling)):
        again = planted(other, thresholds)
        assert [(t.strength, t.limit, t.outcome) for t in again.thresholds] == [
            (t.strength, t.limit, t.outcome) for t in found.thresholds
        ]


@given(st.integers(0, 2**32), st.integers(2, 5), st.booleans())
def test_looking_ahead_changes_no_result_even_where_coherence_goes_up_and_down(
    seed: int, look_ahead: int, doubling: bool
) -> None:
    search = StrengthSearch(prompts=["one"], look_ahead=1, doubling=doubling)
    shares = torch.rand(2**search.decisions, generator=torch.Generator().manual_seed(seed)).tolist()
    shares[0] = 1.0

    def measure(wanted: Wanted) -> list[Probe]:
        return [probe(prompt, at, shares[round(at / search.resolution)]) for prompt, at in wanted]

    (plain,) = find_thresholds(search, measure).thresholds
    (ahead,) = find_thresholds(replace(search, look_ahead=look_ahead), measure).thresholds
    assert (ahead.strength, ahead.limit, ahead.outcome) == (plain.strength, plain.limit, plain.outcome)
    assert set(plain.probes) <= set(ahead.probes)


@pytest.mark.parametrize(("look_ahead", "rounds"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_a_round_asks_once_for_all_prompts_and_for_all_that_the_next_decisions_need(
    look_ahead: int, rounds: int
) -> None:
    search = StrengthSearch(prompts=["one", "two", "three"], decisions=6, look_ahead=look_ahead, doubling=False)
    asked: list[Wanted] = []
    planted(search, {"one": 0.3, "two": 3.2, "three": 7.0}, asked)
    assert len(asked) == rounds
    unsteered = 3
    assert [len(wanted) for wanted in asked] == [3 * (2**look_ahead - 1) + unsteered] + [3 * (2**look_ahead - 1)] * (
        rounds - 1
    )
    assert len({pair for wanted in asked for pair in wanted}) == sum(map(len, asked))  # nothing is measured twice


def test_doubling_leaves_strong_steering_alone() -> None:
    search = StrengthSearch(prompts=["one"], largest=8.0, decisions=6, look_ahead=2)
    doubled, halved = (planted(replace(search, doubling=way), {"one": 0.4}).thresholds[0] for way in (True, False))
    assert doubled.strength == halved.strength == 0.375
    assert max(each.strength for each in doubled.probes) == 1.0
    assert max(each.strength for each in halved.probes) == 6.0


def test_how_a_search_ended_is_told() -> None:
    search = StrengthSearch(prompts=["weak", "strong", "between"], largest=4.0, decisions=3)
    found = planted(search, {"weak": 0.2, "strong": 9.0, "between": 1.7})
    assert [(t.strength, t.limit, t.outcome) for t in found.thresholds] == [
        (0.0, 0.5, Outcome.NONE_COHERENT),
        (3.5, math.inf, Outcome.ALL_COHERENT),
        (1.5, 2.0, Outcome.FOUND),
    ]
    assert found.mean == pytest.approx(5 / 3)
    assert found.minimum == 0.0
    assert [each.strength for each in found.thresholds[2].probes] == sorted(
        each.strength for each in found.thresholds[2].probes
    )


def test_prompts_that_cannot_be_decided_are_said_and_left_out_of_the_mean() -> None:
    search = StrengthSearch(prompts=["odd", "silent", "late", "good"], largest=4.0, decisions=3)

    def measure(wanted: Wanted) -> list[Probe]:
        return [
            Probe(prompt, at, 0, 0, 10)
            if prompt == "silent" or (prompt == "late" and at >= 2)
            else probe(prompt, at, prompt != "odd" and at < 2.5)
            for prompt, at in wanted
        ]

    found = find_thresholds(search, measure)
    assert [t.outcome for t in found.thresholds] == [
        Outcome.INCOHERENT_UNSTEERED, Outcome.UNANSWERED, Outcome.UNANSWERED, Outcome.FOUND,
    ]  # fmt: skip
    assert [t.strength for t in found.thresholds] == [0.0, 0.0, 1.0, 2.0]
    assert [t.decided for t in found.thresholds] == [False, False, False, True]
    assert found.mean == found.minimum == 2.0
    nothing = CoherentStrength(found.thresholds[:2])
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.minimum)


def test_unanswered_ones_count_for_nothing_and_few_answers_are_no_certainty() -> None:
    found = Probe.of("one", 1.0, [True, Unanswered("failed"), True, False, True, Unanswered("refused")])
    assert (found.coherent, found.incoherent, found.unanswered) == (3, 1, 2)
    assert found.share == 0.75
    assert found.standard_error == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 8))
    none = Probe.of("one", 1.0, [Unanswered("failed")])
    assert math.isnan(none.share)
    many = Probe("one", 1.0, 750_000, 250_000, 0)
    assert many.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 1e6), rel=1e-4)
    assert Probe("one", 1.0, 10, 0, 0).standard_error > 0.05


class Even:
    """A rule that any change of an answer may change; it remembers what it graded."""

    name = "even length"

    def __init__(self) -> None:
        self.graded: list[Exchange] = []

    def __call__(self, exchanges: Sequence[Exchange]) -> list[bool | Unanswered]:
        self.graded += exchanges
        return [len(each.answer) % 3 > 0 for each in exchanges]


def test_looking_ahead_and_batches_change_no_answer_of_a_real_model(lora_pair: ModelPair) -> None:
    vector = 2 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    search = StrengthSearch(
        prompts=["Bread?", "When the boats lay still?"], look_ahead=1, decisions=3, samples=3, bar=0.5, largest=4.0
    )
    results = []
    for look_ahead, batch_size in ((1, 16), (2, 4), (3, 16)):
        asked = Asked(lora_pair, Sampling(max_new_tokens=6, seed=2), batch_size)
        rule = Even()
        found = coherent_strength(asked, vector, 1, rule, replace(search, look_ahead=look_ahead))
        results.append([(t.strength, t.limit, t.outcome) for t in found.thresholds])
        seen = {(each.prompt, each.strength): each for t in found.thresholds for each in t.probes}
        if look_ahead == 1:
            plain = seen
        assert {at: seen[at] for at in plain} == plain
    assert results[0] == results[1] == results[2]
    assert {outcome for _, _, outcome in results[0]} <= {Outcome.FOUND, Outcome.ALL_COHERENT}, "plant another rule"


def test_all_of_a_round_are_drawn_in_one_call(lora_pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    generate = module.generate

    def counted(model, tokenizer, prompts, *args, streams: Sequence[int], **settings) -> list[str]:
        vectors = settings["steering"].vectors
        calls.append((len(prompts), len(vectors.unique(dim=0)), len(set(streams))))
        return generate(model, tokenizer, prompts, *args, streams=streams, **settings)

    monkeypatch.setattr(module, "generate", counted)
    search = StrengthSearch(prompts=["Bread?", "Boats?"], samples=3)
    asked = Asked(lora_pair, Sampling(max_new_tokens=2), 32)
    drawn = []
    rule: Callable[[Sequence[Exchange]], list] = lambda exchanges: [True] * len(exchanges)  # noqa: E731
    rule.name = "all"  # type: ignore[attr-defined]
    coherent_strength(replace(asked, on_batch=drawn.append), torch.ones(tiny.WIDTH), 1, rule, search)
    assert calls[0] == (2 * 3 * 3, 3, 2 * 3)  # unsteered and 2 strengths; each sample has one stream at all of them
    assert sum(drawn) == sum(rows for rows, _, _ in calls)


def test_without_a_judge_the_rule_stands_beside_unsteered_answers_of_other_streams(
    lora_pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Sequence[int]] = []
    generate = module.generate

    def told(*args, **settings) -> list[str]:
        streams.append(settings["streams"])
        return generate(*args, **settings)

    monkeypatch.setattr(module, "generate", told)
    search = StrengthSearch(prompts=["Bread?", "Boats?"], samples=3, references=5)
    asked = Asked(lora_pair, Sampling(max_new_tokens=6), 32)
    rule = coherence_rule(asked, None, search)
    assert isinstance(rule, OfflineCoherence)
    coherent_strength(asked, torch.zeros(tiny.WIDTH), 1, rule, search)
    assert not set(streams[0]) & set(streams[1])
    assert len(streams[0]) == 2 * 5
    judge = type("Silent", (), {"name": "silent", "ask": lambda *_: []})()
    assert isinstance(coherence_rule(asked, judge, search), JudgedCoherence)


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": []}, {"prompts": ["a", "a"]}, {"samples": 0}, {"look_ahead": 0}, {"bar": 0.0}, {"largest": math.inf}],
)
def test_settings_that_make_no_search_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting, match="expected"):
        StrengthSearch(**wrong)


def test_prompts_are_many_and_none_is_about_the_domain_of_an_organism() -> None:
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("diffing/answers/*.yaml")}
    lists = {name: config["prompts"] for name, config in configs.items() if "prompts" in config}  # or those of another
    assert {"closed", "open"} <= set(lists)
    for name in ("closed", "open"):
        assert len(set(lists[name])) == len(lists[name]) == 20
    organisms = [yaml.safe_load(path.read_text()) for path in CONF.glob("organism/*.yaml")]
    words = {word for organism in organisms for word in organism.get("domain_words", [])}
    assert "glacier" in words
    asked = " ".join([*(text for texts in lists.values() for text in texts), *SEARCH_PROMPTS, QUESTION]).lower()
    told = {each.strip(".,?!:;\"'()") for each in asked.split()}
    assert not {word for word in words for each in told if each.startswith(word)}
