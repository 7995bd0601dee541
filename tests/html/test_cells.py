import html
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.html.cells import cell, label, number, plain, visible, words

SEEN = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" \n\t"), min_size=1)


def text_of(markup: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", markup))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.083124, "0.08312"),
        (812.44, "812.4"),
        (61.0, "61"),
        (12345.6, "12,346"),
        (3_000_000_000.0, "3,000,000,000"),
        (3.21e-9, "3.21e-9"),
        (-1.5e20, "-1.5e20"),
        (50256, "50256"),
        (0.0, "0"),
        (np.float32(0.5), "0.5"),
        (float("nan"), "\N{EN DASH}"),
        (float("-inf"), "-∞"),
    ],
)
def test_numbers_have_four_significant_digits_and_integers_are_whole(value: float, expected: str) -> None:
    assert number(value) == expected


@given(st.floats(-1e300, 1e300))
def test_a_written_number_is_within_half_a_unit_of_its_fourth_digit(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.0001e-4, abs=0)


@given(SEEN)
def test_visible_text_is_the_exact_string_once_the_marks_are_gone(text: str) -> None:
    assert text_of(visible(text)) == text_of(visible(text, spaces=False)) == text


@pytest.mark.parametrize(
    ("character", "escape"), [("\u200b", "\\u200b"), ("\u202e", "\\u202e"), ("\x00", "\\u0000"), ("\xa0", "\\u00a0")]
)
def test_characters_that_cannot_be_seen_are_spelled_out(character: str, escape: str) -> None:
    assert text_of(visible(f"a{character}b")) == f"a{escape}b"
    assert character not in visible(f"a{character}b")


def test_each_kind_of_white_space_has_its_own_mark() -> None:
    marked = visible(" a\n\t")
    assert re.findall(r'class="ws (\w+)"', marked) == ["sp", "nl", "tab"]
    assert 'class="ws sp"' not in visible(" a", spaces=False)


@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, pd.NaT])
def test_missing_values_are_a_dash_in_every_form(value: object) -> None:
    assert plain(value) == text_of(label(value)) == text_of(cell(value)) == "\N{EN DASH}"


def test_an_empty_string_is_not_a_missing_value() -> None:
    assert text_of(label("")) == text_of(cell("")) == "empty"


@pytest.mark.parametrize("value", [0.123456789, np.float64(1e-12), np.int64(7), 3])
def test_a_number_carries_its_full_value_for_sorting(value: float) -> None:
    found = re.search('data-v="([^"]*)"', cell(value))
    assert found is not None
    assert float(found[1]) == value


def test_truth_values_and_lists_are_not_numbers() -> None:
    assert cell(True) == "<td>true</td>"
    assert cell(np.bool_(False)) == "<td>false</td>"
    assert text_of(cell(np.array([0.5, 2.0]))) == text_of(cell([0.5, 2.0])) == "[0.5, 2]"
    assert "40 in all" in plain(list(range(40)))


def test_names_become_words() -> None:
    assert words("mean_kl_by_position") == "mean KL by position"
