"""Steered answers and their controls, and the one place where they are configured."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st

from diffing.entry.choices import CONF, options
from diffing.errors import InvalidSetting
from diffing.lenses.steering import (
    Answers,
    Condition,
    Sample,
    _by_chance,
    beside_controls,
    direction_rows,
    steering_findings,
    steering_table,
    words_steered_towards,
)
from diffing.models.generation import Where
from diffing.report import Table
from tests import tiny

LAYER = 1
ANSWERS = Answers(["Bread?", "Boats at sea?"], samples_per_prompt=2, max_new_tokens=6, temperature=0.0, batch_size=5)
VECTORS = 40 * torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(9))
DIRECTIONS = {"first": VECTORS[0], "second": 0.5 * VECTORS[1]}
BOTH = (Where.ALL, Where.PROMPT)


def draw(conditions: list[Condition], answers: Answers = ANSWERS, **settings) -> list[Sample]:
    return answers.draw(tiny.model(), tiny.tokenizer(), conditions, LAYER, seed=3, **settings)


def test_every_prompt_is_answered_under_every_condition_and_the_batches_are_counted() -> None:
    conditions, told = beside_controls(DIRECTIONS, [0.5, 1.0], 0), []
    samples = draw(conditions, on_batch=told.append)
    assert ANSWERS.count(conditions) == len(samples) == sum(told) == 2 * 7 * 2
    assert max(told) == ANSWERS.batch_size
    assert [(sample.prompt, sample.condition.name, sample.index) for sample in samples] == [
        (prompt, condition.name, index) for prompt in ANSWERS.prompts for condition in conditions for index in (0, 1)
    ]


@pytest.mark.parametrize("where", list(Where))
def test_strength_0_gives_the_tokens_of_the_baseline_exactly_and_strength_1_does_not(where: Where) -> None:
    samples = draw(beside_controls({"first": VECTORS[0]}, [0.0, 1.0], 0, [where]))
    texts: dict[float, list[str]] = {}
    for sample in samples:
        if sample.condition.kind == "steered":
            texts.setdefault(sample.condition.strength, []).append(sample.text)
    unsteered = [sample.text for sample in samples if sample.condition.kind == "unsteered"]
    assert texts[0.0] == unsteered
    assert all(steered != plain for steered, plain in zip(texts[1.0], unsteered, strict=True))


def test_each_direction_has_a_random_control_of_its_own_as_long_as_at_its_greatest_strength() -> None:
    conditions = beside_controls(DIRECTIONS, [2.0, 1.0], 0, BOTH)
    assert [condition.kind for condition in conditions].count("unsteered") == 1
    assert not conditions[0].vector.any()
    randoms = {}
    for name, vector in DIRECTIONS.items():
        for where in BOTH:
            own = [each for each in conditions if (each.direction, each.where) == (name, where)]
            steered, (random,) = own[:2], own[2:]
            assert [each.kind for each in own] == ["steered", "steered", "random"]
            for condition in steered:
                torch.testing.assert_close(condition.vector, condition.strength * vector, rtol=0, atol=0)
            assert float(random.vector.norm()) == pytest.approx(float(steered[0].vector.norm()), rel=1e-6)
            assert abs(float(torch.cosine_similarity(random.vector, vector, dim=0))) < 0.7
            randoms.setdefault(name, []).append(random.vector)
        assert torch.equal(*randoms[name])  # what differs between places is the place
    cosine = torch.cosine_similarity(randoms["first"][0], randoms["second"][0], dim=0)
    assert abs(float(cosine)) < 0.7


def test_without_a_direction_nothing_is_drawn() -> None:
    assert draw(beside_controls({}, [1.0], 0)) == []


def table(samples: list[Sample]) -> Table:
    rows = [{"layer": LAYER, **row} for row in direction_rows(samples)]
    return steering_table(rows, "Answers", {"layer": "a block"}, "a direction", "its length")


def test_unsteered_answers_stand_beside_each_direction_in_each_place() -> None:
    answers = replace(ANSWERS, samples_per_prompt=1, batch_size=32)
    frame = table(draw(beside_controls(DIRECTIONS, [0.5, 1.0], 0, BOTH), answers)).frame
    assert set(frame["direction"]) == set(DIRECTIONS)
    for group, rows in frame.groupby(["direction", "where"]):
        assert group[1] in BOTH
        assert rows["condition"].value_counts().to_dict() == {
            "unsteered": 2, "strength 0.5": 2, "strength 1": 2, "random direction": 2,
        }  # fmt: skip
    unsteered = frame[frame["kind"] == "unsteered"].groupby(["direction", "where"])["text"].agg(list)
    assert len(unsteered) == 4
    assert all(texts == unsteered.iloc[0] for texts in unsteered)
    lengths = frame.groupby(["direction", "where", "condition"])["length"].unique()
    assert lengths["second", "prompt", "strength 0.5"].item() == pytest.approx(float(VECTORS[1].norm()) / 4)
    assert lengths["first", "all", "unsteered"].item() == 0


def said(direction: str, kind: str, where: Where, *texts: str) -> list[Sample]:
    condition = Condition(f"{kind} {where}", kind, 1.0, VECTORS[0], where, direction)
    return [Sample("p", condition, index, text) for index, text in enumerate(texts * 4)]


def test_a_direction_is_compared_with_its_own_controls_in_the_same_place() -> None:
    steering = table(
        [
            *said("", "unsteered", Where.ALL, "Walk here.", "Read here."),
            *said("one", "steered", Where.ALL, "Tea here.", "Tea, boats."),
            *said("one", "random", Where.ALL, "Boats.", "Boats."),
            *said("one", "steered", Where.PROMPT, "Tea, tea.", "Tea, milk, boats."),
            *said("one", "random", Where.PROMPT, "Tea.", "Tea."),
            *said("two", "steered", Where.ALL, "Boats.", "Boats here, tea."),
            *said("two", "random", Where.ALL, "Tea.", "Tea."),
        ]
    )
    found = steering_findings(steering)
    spoken = [finding.claim.removesuffix("answers do not, or far less often.").split("; ")[0] for finding in found]
    assert spoken == [
        "Steered by one of layer 1, answers to neutral prompts speak of tea (100%)",
        "Steered by one of layer 1 at the prompt alone, answers to neutral prompts speak of boats (50%), milk (50%)",
        "Steered by two of layer 1, answers to neutral prompts speak of boats (100%)",
    ]
    texts = [steering.frame.loc[list(finding.rows), "text"].tolist() for finding in found]
    assert texts[1:] == [["Tea, tea.", "Tea, milk, boats."] * 3, ["Boats.", "Boats here, tea."] * 3]


def test_words_that_few_answers_happen_to_use_are_no_finding() -> None:
    """Of 8 and 16 answers, 4 and 0 are 0.0066 likely by chance, 3 and 0 are 0.028 likely (hypergeometric)."""
    controls = [["Boats."] * 8, ["Boats."] * 8]
    assert words_steered_towards(["Tea."] * 4 + ["Boats."] * 4, controls) == ["tea (50%)"]
    assert words_steered_towards(["Tea."] * 3 + ["Boats."] * 5, controls) == []
    assert _by_chance(4, 8, 0, 16) == pytest.approx(70 / 10626)
    dealt = list(combinations(range(12), 5))  # texts 0 to 4 have the word
    assert _by_chance(3, 5, 2, 7) == pytest.approx(sum(len({0, 1, 2, 3, 4} & set(each)) >= 3 for each in dealt) / 792)


@given(st.lists(st.sampled_from(["the cat sat", "a dog ran far", "cats and dogs"]), min_size=24, max_size=24))
def test_answers_dealt_at_random_share_no_words(texts: list[str]) -> None:
    """Whatever is said: what both controls say as often is never claimed."""
    assert words_steered_towards(texts, [texts, texts]) == []


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": []}, {"samples_per_prompt": 0}, {"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}],
)
def test_answers_that_cannot_be_drawn_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        Answers(**{"prompts": ["Bread?"]} | wrong)


def method(name: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("analyze", [f"diffing/method={name}", "organism=none", *overrides])
    return instantiate(config.diffing.method, _convert_="object")


def test_all_methods_that_steer_ask_the_same_and_are_told_otherwise_on_the_command_line() -> None:
    names = [
        name for name in options("diffing/method") if "answers" in (CONF / f"diffing/method/{name}.yaml").read_text()
    ]
    assert {"activation_difference_lens", "pca", "sae_difference", "crosscoder"} <= set(names)
    asked = [method(name, "diffing.method.answers.max_new_tokens=8").answers for name in names]
    asked = [replace(answers, samples_per_prompt=1) for answers in asked]  # of one direction or of many
    assert all(answers == asked[0] for answers in asked)
    assert len(asked[0].prompts) == 8
    assert asked[0].max_new_tokens == 8


def test_an_unknown_key_of_the_answers_is_refused() -> None:
    with pytest.raises(InstantiationException, match="max_tokens"):
        method("pca", "+diffing.method.answers.max_tokens=8")
