import re
from collections.abc import Sequence

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from diffing.html.layout import Layout, layout_of, panels, values, within
from diffing.report import View


def crossed(**choices: Sequence[object]) -> pd.DataFrame:
    """Every combination of the values, one row each."""
    index = pd.MultiIndex.from_product(list(choices.values()), names=list(choices))
    return index.to_frame(index=False)


FRAME = crossed(position=range(9), source=["difference", "base"], layer=[4, 12], direction=["promoted"], token=["a"])


def test_token_lists_stand_side_by_side_by_the_first_group_column_with_few_values() -> None:
    view = View("tokens", "token", ("position", "source", "layer", "direction"))
    assert layout_of(view, FRAME) == Layout("source", "position", ["layer", "direction"])


def test_compare_goes_side_by_side_whatever_it_holds() -> None:
    view = View("samples", "token", ("source", "position"), compare="position")
    assert layout_of(view, FRAME) == Layout("position", "source", [])


@pytest.mark.parametrize("group", [(), ("position",)])
def test_with_one_group_or_none_nothing_stands_side_by_side(group: tuple[str, ...]) -> None:
    assert layout_of(View("tokens", "token", group), FRAME) == Layout(None, group[0] if group else None, [])


def test_values_are_in_order_if_numbers_and_as_they_come_if_not_with_missing_ones_last() -> None:
    frame = pd.DataFrame({"number": [2.0, None, 0.5, 2.0], "word": ["steered", None, "base", "steered"]})
    assert values(frame, "number") == [0.5, 2.0, None]
    assert values(frame, "word") == ["steered", "base", None]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 5))
def test_a_limit_holds_and_tears_no_row_apart_unless_the_first_is_too_large(
    rows: list[int], limit: int, cost: int
) -> None:
    frame = pd.DataFrame({"position": rows})
    kept = within(frame, Layout(None, "position", []), pd.Series(cost, frame.index), limit)
    assert len(kept) * cost <= limit
    whole = all((frame["position"] == value).sum() == count for value, count in kept["position"].value_counts().items())
    first_is_too_large = (frame["position"] == rows[0]).sum() * cost > limit
    assert whole or first_is_too_large
    assert len(kept) == len(frame) or len(frame) * cost > limit


def draw(rows: pd.DataFrame) -> Markup:
    return Markup("{}").format("+".join(rows["token"]))


def test_each_combination_that_has_rows_is_a_panel_and_the_first_is_shown() -> None:
    frame = pd.DataFrame({"layer": [12, 4, 4], "side": ["up", "up", "down"], "token": ["x", "y", "z"]})
    html = panels("lens", frame, Layout(None, None, ["layer", "side"]), draw)
    found = re.findall(r'<div class="panel( on)?" data-at="([\d ]+)">.*?</p>(\w+)</div>', html)
    assert found == [(" on", "0 0", "y"), ("", "0 1", "z"), ("", "1 0", "x")]
    assert re.findall(r'data-axis="(\d)"', html) == ["0", "1"]
    assert html.count(" checked") == 2


def test_a_selector_with_one_value_is_no_choice_and_one_with_many_is_a_list() -> None:
    frame = crossed(layer=[12], scale=[0.5 * i for i in range(8)], token=["a"])
    html = panels("lens", frame, Layout(None, None, ["layer", "scale"]), draw)
    assert 'type="radio"' not in html
    assert html.count("<option") == 8
    assert '<label for="pick-lens-scale">' in html
    assert 'data-axis="1"' in html


def test_a_missing_group_value_has_a_panel_of_its_own() -> None:
    frame = pd.DataFrame({"layer": [4.0, None], "token": ["x", "y"]})
    html = panels("lens", frame, Layout(None, None, ["layer"]), draw)
    assert re.findall(r'data-at="(\d)">.*?</p>(\w)</div>', html) == [("0", "x"), ("1", "y")]
