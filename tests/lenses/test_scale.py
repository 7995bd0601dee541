"""The patchscope's scale: planted subjects, the arithmetic of the tournament, and judges that err or fail."""

import json
import math
import re
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing.lenses.geometry import TokenGeometry
from diffing.lenses.judge import LLMJudge, Unanswered
from diffing.lenses.patchscope import IDENTITY_WORDS, patchscope
from diffing.lenses.scale import (
    SCALES,
    CoherentScale,
    JudgedScale,
    ScaleChoice,
    ScaleReadout,
    read_choice,
    read_scales,
)
from tests import tiny
from tests.judge_server import Fails, Reply, Says, judge_server

WORDS = ["gear", " cog", "Spring", " pivot", " crown", "sky", " the", " seven", "of", "\n", "?!", ' "x"']
PLANTED = 1.3
"""The scale whose tokens belong together."""


def readout(scale: float, tokens: list[str], ids: list[int] | None = None) -> ScaleReadout:
    n = len(tokens)
    return ScaleReadout(scale, tuple(ids or range(300, 300 + n)), tuple(tokens), tuple([1 / max(n, 1)] * n))


def test_the_grid_has_thirty_scales() -> None:
    assert len(SCALES) == len(set(SCALES)) == 30
    assert list(SCALES) == sorted(SCALES)
    assert SCALES[:3] == (0.5, 0.6, 0.7)
    assert SCALES[15:] == (2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0, 160.0, 180.0, 200.0)


def test_all_scales_of_all_vectors_are_what_the_patchscope_reads_one_by_one() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    vectors = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    told: list[int] = []
    found = read_scales(model, tokenizer, vectors, 1, (0.5, 1.0, 3.0), 5, 200, batch_size=4, on_batch=told.append)
    assert [[each.scale for each in per_vector] for per_vector in found] == [[0.5, 1.0, 3.0]] * 3
    assert told == [4, 4, 1]
    for vector, per_vector in zip(vectors, found, strict=True):
        for each in per_vector:
            scores = patchscope(model, tokenizer, each.scale * vector[None], 1, 200)[0]
            torch.testing.assert_close(torch.tensor(each.probabilities), scores[list(each.ids)], rtol=1e-3, atol=1e-6)
            assert min(each.probabilities) >= scores.sort().values[-5] * (1 - 1e-3)
            assert each.tokens == tuple(tokenizer.decode([id]) for id in each.ids)


def test_tokens_without_probability_are_no_part_of_a_readout() -> None:
    vectors = torch.randn(1, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    (per_vector,) = read_scales(tiny.model(), tiny.tokenizer(), vectors, 1, (1.0, 50.0), 20, intersection=2)
    assert all(len(each.ids) == len(each.tokens) == len(each.probabilities) <= 2 for each in per_vector)
    assert all(probability > 0 for each in per_vector for probability in each.probabilities)


# A judge that knows the truth, behind a service, and ways to go wrong.

Offered = dict[float, dict[int, str]]


def offered(question: str) -> Offered:
    """The scales of a question with their tokens by number."""
    lines = re.findall(r"^scale (\S+): (.*)$", question, re.MULTILINE)
    return {float(scale): {int(n): json.loads(f'"{t}"') for n, t in re.findall(r'(\d+) "((?:[^"\\]|\\.)*)"', rest)}
            for scale, rest in lines}  # fmt: skip


def verdict(scale: object, tokens: list[object]) -> Says:
    return Says(f"VERDICT: nothing yet\nI see.\nVERDICT: {json.dumps({'scale': scale, 'tokens': tokens})}")


def knowing(scales: Offered, again: bool) -> Says:
    """Prefers the planted scale, then the nearest to it, and selects the first two tokens shown."""
    best = min(scales, key=lambda scale: abs(math.log(scale / PLANTED)))
    return verdict(best, list(scales[best])[:2])


Plan = Callable[[Offered, bool], Reply]


def judged(plan: Plan, readouts: list[list[ScaleReadout]], monkeypatch: pytest.MonkeyPatch):
    with judge_server(lambda question, _: plan(offered(question), "must be one of those" in question)) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        monkeypatch.setenv("PLANNED_API_KEY", "planned")
        return JudgedScale(LLMJudge("openai-api/planned/judge", retries=0))(readouts), server


def grid() -> list[ScaleReadout]:
    return [readout(scale, WORDS) for scale in SCALES]


def test_thirty_scales_take_four_questions_of_ten_ascending_scales_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    (choice, _), server = judged(knowing, [grid(), grid()], monkeypatch)
    assert choice == ScaleChoice(grid()[SCALES.index(PLANTED)], (0, 1))
    assert choice.selected_tokens == ["gear", " cog"]
    questions = [list(offered(question)) for question in server.asked]
    assert len(questions) == 2 * 4
    groups = [list(SCALES[start : start + 10]) for start in (0, 10, 20)]
    assert sorted(questions[:6]) == sorted(2 * groups)
    assert questions[6:] == [[1.3, 1.5, 20.0]] * 2


def test_tokens_are_shown_as_json_and_without_those_of_marks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, server = judged(knowing, [grid()], monkeypatch)
    (shown, *_) = offered(server.asked[0]).values()
    assert shown == {number: token for number, token in enumerate(WORDS, 1) if token not in ("\n", "?!")}
    assert all(json.dumps(word) in server.asked[0] for words in IDENTITY_WORDS for word in words)


def test_scales_without_a_token_to_show_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = [readout(scale, []) for scale in SCALES[:15]] + [readout(scale, ["\n", "!"]) for scale in SCALES[15:25]]
    shown = [readout(scale, WORDS) for scale in SCALES[25:]]
    (some, none), server = judged(knowing, [empty + shown, empty], monkeypatch)
    assert some.readout.scale == SCALES[25]
    assert none == Unanswered("no token at any scale")
    assert [list(offered(question)) for question in server.asked] == [list(SCALES[25:])], "one group, no final"


def test_a_scale_that_does_not_exist_is_asked_about_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def inventing(scales: Offered, again: bool) -> Says:
        return knowing(scales, again) if again else verdict(0.123, [1])

    (choice,), server = judged(inventing, [grid()], monkeypatch)
    assert choice.readout.scale == PLANTED
    assert (len(server.asked), choice.unanswered) == (8, 0)
    (choice,), server = judged(lambda scales, again: verdict(0.123, [1]), [grid()], monkeypatch)
    assert choice == Unanswered("no verdict")
    assert len(server.asked) == 6


def test_half_of_the_questions_failing_loses_only_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(scales: Offered, again: bool) -> Reply:
        return Fails(400) if PLANTED in scales and len(scales) == 10 else knowing(scales, again)

    (choice,), server = judged(failing, [grid()], monkeypatch)
    assert (choice.readout.scale, choice.unanswered) == (1.5, 1)
    assert len(server.asked) == 4


def test_without_an_answer_in_the_final_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(scales: Offered, again: bool) -> Reply:
        return Says("no", stop="content_filter") if len(scales) == 3 else knowing(scales, again)

    assert judged(refusing, [grid()], monkeypatch)[0] == [Unanswered("refused")]


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ({"scale": 1.3, "tokens": [1, 4]}, (0, 3)),
        ({"scale": "1.3", "tokens": ["4", 1, 1]}, (0, 3)),
        ({"scale": 1.3, "tokens": [" pivot", "cog"]}, (1, 3)),
        ({"scale": 1.3, "tokens": ["COG", "invented", 99, 0, -1, 3.5, True, None, 5]}, (4,)),
        ({"scale": 1.3, "tokens": [10, 1]}, (0,)),
        ({"scale": 1.3, "tokens": []}, ()),
        ({"scale": 1.3, "tokens": ["invented"]}, None),
        ({"scale": 1.4, "tokens": [1]}, None),
        ({"scale": None, "tokens": [1]}, None),
        ({"scale": 1.3}, None),
        ([1.3, [1]], None),
    ],
)
def test_tokens_are_those_of_the_scale_by_number_or_as_they_read(answer: object, places: tuple | None) -> None:
    found = read_choice(f"VERDICT: {json.dumps(answer)}", [readout(1.3, WORDS), readout(2.0, WORDS)])
    assert (found and found.selected) == places


def test_what_is_no_json_is_no_choice() -> None:
    for reply in ("", "VERDICT:", "VERDICT: 1.3", 'VERDICT: {"scale": 1.3, "tokens": [1'):
        assert read_choice(reply, [readout(1.3, WORDS)]) is None


# The rule.

SUBJECT, NOISE = list(range(2000, 2020)), list(range(2100, 2120))


@pytest.fixture(scope="module")
def rule() -> CoherentScale:
    """The rows of the subject's tokens lie together, in a vocabulary of 4096."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 512, generator=generator)
    weight[SUBJECT] += torch.randn(512, generator=generator)
    return CoherentScale(TokenGeometry(weight, torch.zeros(512), torch.eye(512), torch.zeros(512, 0)))


def noise(scale: float) -> ScaleReadout:
    return readout(scale, [f" n{id}" for id in NOISE], NOISE)


def planted(scale: float, n: int) -> ScaleReadout:
    """`n` tokens of the subject before others."""
    other = noise(scale)
    tokens = [f" s{id}" for id in SUBJECT[:n]] + list(other.tokens[n:])
    return readout(scale, tokens, SUBJECT[:n] + list(other.ids[n:]))


@pytest.mark.parametrize("scale", [0.8, 1.3, 2.0])
def test_the_scale_of_a_planted_subject_is_chosen_and_the_subject_selected(rule: CoherentScale, scale: float) -> None:
    (choice,) = rule([[planted(each, 8) if each == scale else noise(each) for each in SCALES]])
    assert isinstance(choice, ScaleChoice)
    assert choice.readout.scale == scale
    assert choice.selected == tuple(range(8))


def test_of_equal_readouts_that_nearest_to_scale_1_is_chosen(rule: CoherentScale) -> None:
    (choice,) = rule([[planted(each, 8) for each in SCALES]])
    assert choice.readout.scale == 1.0


def test_more_of_a_subject_outweighs_some_distance(rule: CoherentScale) -> None:
    (choice,) = rule([[planted(each, 14 if each == 3.0 else 4) for each in SCALES]])
    assert choice.readout.scale == 3.0


@pytest.mark.parametrize(
    "tokens",
    [["blue"] * 20, ["?!"] * 20, ["x"] * 20, ["12"] * 20, [" Same", "same"] * 10, ["\N{REPLACEMENT CHARACTER}s"] * 20],
)
def test_echoes_marks_and_spellings_of_one_word_make_nothing_coherent(rule: CoherentScale, tokens: list[str]) -> None:
    assert rule.coherences([readout(1.0, tokens, SUBJECT)]) == [pytest.approx(0.0, abs=1e-6)]
    assert rule.coherences([planted(1.0, 20)])[0] > 0.1


def test_fewer_tokens_are_less_coherent(rule: CoherentScale) -> None:
    whole = planted(1.0, 20)
    few = ScaleReadout(1.1, whole.ids[:5], whole.tokens[:5], whole.probabilities[:5])
    values = rule.coherences([whole, few])
    assert values[1] < 0.2 * values[0]


def test_other_spellings_of_a_selected_word_are_selected_too(rule: CoherentScale) -> None:
    found = planted(1.0, 8)
    tokens = list(found.tokens)
    tokens[15] = tokens[0].upper()
    (choice,) = rule([[ScaleReadout(1.0, found.ids, tuple(tokens), found.probabilities)]])
    assert choice.selected == (*range(8), 15)


def test_a_word_of_the_prompts_is_never_selected(rule: CoherentScale) -> None:
    found = planted(1.0, 8)
    tokens = (*found.tokens[:3], " Blue", *found.tokens[4:])
    (choice,) = rule([[ScaleReadout(1.0, found.ids, tokens, found.probabilities)]])
    assert choice.selected == (0, 1, 2, 4, 5, 6, 7)


def test_a_vector_that_shows_nothing_has_no_choice(rule: CoherentScale) -> None:
    nothing = [readout(scale, []) for scale in SCALES]
    assert rule([nothing, grid()])[0] == Unanswered("no token at any scale")
    assert isinstance(rule([nothing, grid()])[1], ScaleChoice)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.randoms())
def test_the_order_of_the_scales_does_not_matter(rule: CoherentScale, sizes: list[int], shuffler: Random) -> None:
    readouts = [planted(scale, n) for scale, n in zip(SCALES, sizes, strict=False)]
    (first,) = rule([readouts])
    shuffler.shuffle(readouts)
    assert rule([readouts]) == [first]
