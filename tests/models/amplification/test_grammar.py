"""The grammar of configs: what it reads, what it refuses, what it is known by."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.errors import InvalidSetting, UnknownName
from diffing.models.amplification import GROUPS, PRESETS, AddedAdapter, Amplification, LayerRange, Rule

WRITTEN = {
    "name": "careful",
    "description": "for readers",
    "rules": [
        {"weight": 2.0, "layers": "all", "modules": "all"},
        {"weight": -0.5, "layers": {"start": 0.0, "end": 0.8}, "modules": ["attention", "o_proj"]},
        {"weight": 0.0, "layers": [3, 0.5, {"start": 1, "end": 2}], "modules": []},
    ],
    "adapters": [{"id": "user/lora", "rules": [{"weight": 3.0, "layers": 0, "modules": "mlp"}], "revision": "abc"}],
}

layers = st.one_of(
    st.integers(0, 40),
    st.floats(0, 1),
    st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: LayerRange(*sorted(pair))),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: LayerRange(*sorted(pair))),
)
rule = st.builds(
    Rule,
    st.floats(-10, 10),
    st.one_of(st.just("all"), layers, st.lists(layers, max_size=3).map(tuple)),
    st.lists(st.sampled_from(["all", *GROUPS, "q_proj"]), max_size=3).map(tuple),
)
adapter = st.builds(AddedAdapter, st.text(min_size=1), st.lists(rule, max_size=2).map(tuple))
amplification = st.one_of(
    st.builds(
        Amplification, st.just("a"), st.lists(rule, max_size=3).map(tuple), st.lists(adapter, max_size=2).map(tuple)
    ),
    st.builds(Amplification, st.just("a"), logits=st.floats(-3, 3)),
)


def test_a_written_config_comes_back_as_it_was_written() -> None:
    assert Amplification.of(WRITTEN).as_mapping() == WRITTEN


@given(amplification)
def test_every_amplification_comes_back_from_its_mapping(made: Amplification) -> None:
    again = Amplification.of(made.as_mapping())
    assert again == made
    assert again.digest == made.digest


def test_the_digest_covers_what_is_done_and_not_how_it_is_written() -> None:
    plain = Amplification.of({"name": "a", "rules": [{"weight": 2, "modules": "mlp", "layers": 3}]})
    assert (
        plain.digest
        == Amplification.of(
            {"rules": [{"layers": 3, "modules": ["mlp"], "weight": 2.0}], "description": "d", "name": "other"}
        ).digest
    )
    assert plain.digest == Amplification("x", (Rule(2, 3, ("mlp",)),)).digest
    others = [
        {"weight": math.nextafter(2, 3), "modules": "mlp", "layers": 3},
        {"weight": 2, "modules": "attention", "layers": 3},
        {"weight": 2, "modules": "mlp", "layers": 0.3},
        {"weight": 2, "modules": "mlp"},
    ]
    digests = {Amplification.of({"name": "a", "rules": [other]}).digest for other in others}
    assert len(digests | {plain.digest}) == len(others) + 1


def test_the_order_of_rules_is_in_the_digest() -> None:
    first, second = {"weight": 2.0}, {"weight": 0.0, "modules": "mlp"}
    both = [Amplification.of({"name": "a", "rules": order}).digest for order in ([first, second], [second, first])]
    assert both[0] != both[1]


def test_minus_zero_is_zero() -> None:
    assert Amplification.uniform(-0.0).digest == Amplification.uniform(0).digest


def test_presets_are_shallow_but_for_the_opposite() -> None:
    found = {name: preset.rules for name, preset in PRESETS.items()}
    shallow = LayerRange(0.0, 0.8)
    assert found == {
        "2x": (Rule(2.0, shallow),), "2.5x": (Rule(2.5, shallow),), "3x": (Rule(3.0, shallow),), "-1x": (Rule(-1.0),)
    }  # fmt: skip
    assert Amplification.of("2.5x") is PRESETS["2.5x"]


@pytest.mark.parametrize("level", ["amplification", "rule", "range", "adapter"])
def test_an_unknown_key_is_refused_at_every_level(level: str) -> None:
    written = {
        "amplification": {"name": "a", "rule": []},
        "rule": {"name": "a", "rules": [{"weight": 1, "layer": 3}]},
        "range": {"name": "a", "rules": [{"weight": 1, "layers": {"start": 0, "end": 1, "step": 1}}]},
        "adapter": {"name": "a", "adapters": [{"id": "x", "weight": 2}]},
    }[level]
    with pytest.raises((UnknownName, InvalidSetting), match=r"unknown key.*'(rule|layer|step|weight)'"):
        Amplification.of(written)


@pytest.mark.parametrize("weight", [math.nan, math.inf, "2", True, None])
def test_a_weight_that_is_no_number_is_refused_with_its_place(weight: object) -> None:
    with pytest.raises(InvalidSetting, match=r"'careful', rule 2: weight"):
        Amplification.of({"name": "careful", "rules": [{"weight": 1}, {"weight": weight}]})


@pytest.mark.parametrize(
    "layers",
    [1.5, -0.1, math.nan, "some", True, ["all"], [[1]], {"start": 2, "end": 1}, {"start": 0, "end": 0.8}, {"start": 1}],
)
def test_layers_that_cannot_be_are_refused_with_their_place(layers: object) -> None:
    with pytest.raises(InvalidSetting, match=r"'a', rule 1: "):
        Amplification.of({"name": "a", "rules": [{"weight": 1, "layers": layers}]})


@pytest.mark.parametrize(
    "written",
    [
        {"name": " "},
        {"rules": []},
        {"name": "a", "rules": [{}]},
        {"name": "a", "rules": {"weight": 2}},
        {"name": "a", "rules": [{"weight": 2, "modules": 3}]},
        {"name": "a", "rules": [{"weight": 2, "modules": [""]}]},
        {"name": "a", "adapters": [{"rules": []}]},
        {"name": "a", "adapters": ["user/lora"]},
        {"name": "a", "logits": math.nan},
        {"name": "a", "logits": 1, "rules": [{"weight": 2}]},
    ],
    ids=str,
)
def test_what_is_incomplete_or_contradicts_itself_is_refused(written: dict) -> None:
    with pytest.raises(InvalidSetting):
        Amplification.of(written)


def test_an_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(UnknownName, match=r"'4x'; known, nearest first: .*2\.5x"):
        Amplification.of("4x")
