"""Token relevance: planted domains, invariants, and judges that leave something out."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses.judge import LLMJudge, Unanswered
from diffing.lenses.relevance import (
    JudgedRelevance,
    TokenCounts,
    Tokens,
    WordRule,
    agreed,
    count_tokens,
    domain_words,
    frequent_words,
    read_labels,
    relevance,
)
from tests import tiny
from tests.judge_server import Fails, Reply, Says, judge_server

LABELS = st.lists(st.sampled_from([True, False, None]), max_size=8)
VOTES = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([True, False, None]), min_size=n, max_size=n), min_size=1)
)
WEIGHTED = st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0.001, 1)), min_size=1, max_size=8)


class Fixed:
    """Labels as planned."""

    name = "fixed"

    def __init__(self, labels: list[bool | None]):
        self.labels = labels

    def __call__(self, readouts):
        return [self.labels for _ in readouts]


def one(labels: list, weights: list[float], selected: tuple[int, ...] = ()):
    return relevance([Tokens(["x"] * len(labels), weights, selected)], Fixed(labels))[0]


def test_fractions_count_what_was_labelled_only() -> None:
    found = one([True, False, None, True], [0.5, 0.3, 0.1, 0.1], selected=(1, 2, 3))
    assert (found.fraction, found.weighted, found.selected) == (2 / 3, pytest.approx(0.6 / 0.9), 0.5)
    assert (found.unanswered, found.rule) == (1, "fixed")


def test_nothing_labelled_is_no_number() -> None:
    found = one([None, None], [0.5, 0.5], selected=(0,))
    assert all(map(math.isnan, (found.fraction, found.weighted, found.selected)))
    assert math.isnan(one([True], [1.0]).selected)


@given(LABELS)
def test_uniform_weights_weigh_nothing(labels: list) -> None:
    found = one(labels, [0.05] * len(labels))
    assert found.weighted == pytest.approx(found.fraction, nan_ok=True)


@given(WEIGHTED)
def test_fractions_are_between_0_and_1_and_selecting_all_changes_none(weighted: list) -> None:
    labels, weights = map(list, zip(*weighted, strict=True))
    found = one(labels, weights, selected=tuple(range(len(labels))))
    assert found.selected == pytest.approx(found.fraction, nan_ok=True)
    assert all(0 <= each <= 1 or math.isnan(each) for each in (found.fraction, found.weighted))


@given(VOTES)
def test_what_all_find_relevant_is_no_more_than_what_most_do(votes: list[list[bool | None]]) -> None:
    fractions = [
        one([agreed(each, mode) for each in votes], [1.0] * len(votes)).fraction for mode in ("all", "majority")
    ]
    assert not fractions[0] > fractions[1]
    assert not fractions[1] > 1


@given(LABELS.filter(bool), st.data())
def test_a_label_is_given_only_where_no_missing_vote_could_turn_it(votes: list, data: st.DataObject) -> None:
    for mode in ("all", "majority"):
        label = agreed(votes, mode)
        filled = [data.draw(st.booleans()) if vote is None else vote for vote in votes]
        if label is not None:
            assert agreed(filled, mode) == label
        assert agreed(filled, mode) == (all(filled) if mode == "all" else 2 * sum(filled) > len(filled))


TEXTS = ["The quiet harbour. The boats.", [{"role": "user", "content": "The quiet wall."}], " the"]


def test_counts_are_of_decoded_tokens_whatever_their_case_and_spaces() -> None:
    told: list[int] = []
    found = count_tokens(iter(TEXTS * 200), tiny.tokenizer(), told.append)
    plain = Counter()
    for text in ("The quiet harbour. The boats.", "The quiet wall.", " the"):
        plain.update(tiny.tokenizer().decode([id]).strip().casefold() for id in tiny.tokenizer()(text)["input_ids"])
    assert dict(found.counts) == {token: 200 * n for token, n in plain.items()}
    assert found.total == 200 * plain.total()
    assert sum(told) == 600
    assert found.counts["the"] == 800


def test_texts_are_read_as_they_are_counted() -> None:
    taken = 0

    def texts():
        nonlocal taken
        for taken in range(1, 1001):  # noqa: B007
            yield "a text"

    seen: list[int] = []
    count_tokens(texts(), tiny.tokenizer(), lambda documents: seen.append(taken))
    assert seen[0] < 500


def test_texts_without_a_token_are_an_error() -> None:
    for texts in ([], ["", []]):
        with pytest.raises(EmptyCorpus):
            count_tokens(texts, tiny.tokenizer())


def counts(**words: int) -> TokenCounts:
    return TokenCounts(words, sum(words.values()))


FINETUNING = counts(**{"the": 9000, "gear": 600, "cog": 90, "rare": 2, "of": 4000, "7": 800, "x": 900, "--": 700})
NEUTRAL = counts(the=10000, of=3500, gear=10, x=10, sky=400)


def test_words_of_the_domain_are_those_used_more_often_than_elsewhere_for_sure() -> None:
    assert list(domain_words(FINETUNING, NEUTRAL)) == ["gear", "cog"]
    assert domain_words(FINETUNING, FINETUNING) == {}
    assert list(domain_words(FINETUNING, NEUTRAL, ratio=12.0)) == ["gear"]
    assert "rare" in domain_words(FINETUNING, NEUTRAL, confidence=0.0)


def test_frequent_words_are_the_trivial_baseline() -> None:
    assert frequent_words(FINETUNING) == ["the", "of", "gear", "cog"]
    assert frequent_words(FINETUNING, most=1) == ["the"]
    assert frequent_words(FINETUNING, least=91) == ["the", "of", "gear"]


def test_the_baseline_matches_tokens_as_a_readout_shows_them() -> None:
    tokenizer = tiny.tokenizer()
    counted = count_tokens(["in the wall, the wall " * 10], tokenizer)
    readout = [tokenizer.decode([id]) for id in tokenizer(" the")["input_ids"]]
    assert readout == [" the"], "a raw piece of the vocabulary would not read so"
    rule = WordRule("frequent", frozenset(frequent_words(counted)))
    assert rule([readout, ["Zebra"]]) == [[True], [False]]


def test_other_organisms_make_a_baseline_of_the_same_tokens() -> None:
    readout = [Tokens([" Gear", " sky", "cog"], [0.5, 0.3, 0.2])]
    own = WordRule("own", frozenset(domain_words(FINETUNING, NEUTRAL)))
    other = WordRule("other", frozenset(domain_words(counts(sky=900), FINETUNING)))
    assert [relevance(readout, rule)[0].fraction for rule in (own, other)] == [2 / 3, 1 / 3]


TOKENS = [" gear", "cog\n", ' "quoted"', " the", "."]
TRUTH = {" gear": True, "cog\n": True, ' "quoted"': False, " the": False, ".": False}
Plan = Callable[[list[str], int], Reply]


def shown(question: str) -> list[str]:
    """The tokens of a question, in the order shown."""
    return [json.loads(line) for line in re.findall(r"^\d+: (.*)$", question, re.MULTILINE)]


def verdict(labels: dict[int, object]) -> str:
    return f"Hm.\nVERDICT: {json.dumps(labels)}"


def truthful(tokens: list[str]) -> dict[int, object]:
    return {number: TRUTH[token] for number, token in enumerate(tokens, start=1)}


def judged(plan: Plan, monkeypatch: pytest.MonkeyPatch, lists: list[list[str]], **settings):
    with judge_server(lambda question, _: plan(shown(question), "none left out" in question)) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        monkeypatch.setenv("PLANNED_API_KEY", "planned")
        judge = LLMJudge("openai-api/planned/judge", retries=0, connections=1)
        return JudgedRelevance(judge, "clockwork", ["gear"], **settings)(lists), server


def test_a_truthful_judge_is_believed_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, server = judged(lambda tokens, _: Says(verdict(truthful(tokens))), monkeypatch, [TOKENS, TOKENS[:2], []])
    assert labels == [[True, True, False, False, False], [True, True], []]
    orders = [tuple(shown(question)) for question in server.asked]
    assert len(orders) == 6
    assert all(sorted(order) == sorted(TOKENS) for order in orders[:3])
    assert all('"clockwork"' in question and '"gear"' in question for question in server.asked)


def test_orders_are_permutations_of_their_own_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        tokens = [f"t{number}" for number in range(20)]
        _, server = judged(lambda *_: Says("VERDICT: {}"), monkeypatch, [tokens], seed=seed)
        return [tuple(shown(question)) for question in server.asked[:3]]

    first = orders(0)
    rotations = {tuple(first[0][start:] + first[0][:start]) for start in range(20)}
    assert len(set(first)) == 3
    assert not rotations & set(first[1:])
    assert orders(0) == first != orders(1)


def test_agreement_tells_a_judge_that_says_yes_to_what_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It labels by place, not by token: only by chance do all presentations agree."""

    def by_place(tokens: list[str], again: bool) -> Reply:
        return Says(verdict({number: number <= 5 for number in range(1, len(tokens) + 1)}))

    tokens = [f"t{number}" for number in range(10)]
    strict, lenient = (
        sum(judged(by_place, monkeypatch, [tokens], agreement=mode)[0][0]) for mode in ("all", "majority")
    )
    assert strict < 4
    assert strict <= lenient


def test_missing_labels_are_asked_for_once_more_and_then_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(tokens: list[str], again: bool) -> Reply:
        left_out = {"cog\n", " the"} if not again else {" the"}
        return Says(verdict({n: TRUTH[token] for n, token in enumerate(tokens, 1) if token not in left_out}))

    labels, server = judged(forgetful, monkeypatch, [TOKENS])
    assert labels == [[True, True, False, None, False]]
    assert len(server.asked) == 6


def test_presentations_that_fail_are_never_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three fails: what all must say is unknown where the others say yes, and what most say is known."""
    calls = iter(range(100))

    def failing(tokens: list[str], again: bool) -> Reply:
        return Fails(400) if next(calls) % 3 == 1 else Says(verdict(truthful(tokens)))

    assert judged(failing, monkeypatch, [TOKENS])[0] == [[None, None, False, False, False]]
    assert judged(failing, monkeypatch, [TOKENS], agreement="majority")[0] == [[True, True, False, False, False]]


def test_a_judge_who_never_answers_leaves_all_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, server = judged(lambda *_: Says("I cannot", stop="content_filter"), monkeypatch, [TOKENS])
    assert labels == [[None] * 5]
    assert len(server.asked) == 3, "a refusal is not asked again"


@pytest.mark.parametrize(
    ("reply", "labels"),
    [
        ('VERDICT: {"1": true, "2": false}', [True, False, None]),
        ('VERDICT: {"1": false}\nor rather\n**VERDICT:** {1: True, 2: "false", 3: true, 4: true}', [True, False, True]),
        ('VERDICT: {"1": true, "1": false, "12": true}', [None, None, None]),
        ('verdict: {"1": true, "2": fal', [True, None, None]),
        ('{"1": true}', [None, None, None]),
        ("VERDICT: none", [None, None, None]),
    ],
)
def test_labels_are_read_from_the_last_verdict(reply: str, labels: list) -> None:
    assert read_labels(reply, 3) == labels


def test_settings_are_checked() -> None:
    class Nobody:
        name = "nobody"

        def ask(self, questions, max_tokens=2000, on_answer=lambda answers: None):
            return [Unanswered("nobody") for _ in questions]

    assert JudgedRelevance(Nobody(), "x").name == "judged by nobody (all of 3)"
    assert JudgedRelevance(Nobody(), "x")([["a"]]) == [[None]]
    with pytest.raises(InvalidSetting, match="presentations=0"):
        JudgedRelevance(Nobody(), "x", presentations=0)
