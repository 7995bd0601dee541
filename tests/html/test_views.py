import re

import numpy as np
import pandas as pd
import pytest

from diffing.errors import SchemaMismatch
from diffing.html import views
from diffing.html.views import MOST_SAMPLES, MOST_WINDOW_TOKENS, view_of
from diffing.report import View

CLOUD = View("tokens", "token", ("source", "position"), weight="weight")


def cloud_frame(weights: list[float], sources: list[str] | None = None) -> pd.DataFrame:
    tokens = [f"t{i}" for i in range(len(weights))]
    sources = sources or ["difference"] * len(weights)
    return pd.DataFrame({"source": sources, "position": 0, "token": tokens, "weight": weights})


def sizes(html: str) -> dict[str, float]:
    """Drawn size of each token, from 0 to 1."""
    return {token: float(w) for w, token in re.findall(r'--w:([\d.]+)"[^>]*>(\w+)</li>', html)}


def test_the_size_of_a_token_is_the_root_of_its_share_of_the_largest_weight() -> None:
    html = view_of("lens", cloud_frame([0.64, 0.16, 0.0, np.nan], ["difference", "base", "base", "base"]), CLOUD)
    assert sizes(html) == {"t0": 1.0, "t1": 0.5, "t2": 0.0, "t3": 0.0}


def test_negative_weights_are_drawn_by_size_and_told_apart() -> None:
    html = view_of("lens", cloud_frame([-0.64, 0.16]), CLOUD)
    assert sizes(html) == {"t0": 1.0, "t1": 0.5}
    assert html.count('<li class="neg"') == 1


def test_weights_that_are_all_zero_are_drawn_small() -> None:
    assert sizes(view_of("lens", cloud_frame([0.0, 0.0]), CLOUD)) == {"t0": 0.0, "t1": 0.0}


def test_tokens_without_weights_are_all_of_one_size() -> None:
    html = view_of("lens", cloud_frame([0.3, 0.1]), View("tokens", "token", ("source",)))
    assert set(sizes(html).values()) == {1.0}


def test_each_cloud_holds_the_tokens_of_its_group_in_their_order() -> None:
    frame = pd.DataFrame(
        [(s, p, f"{s}{p}{r}", 0.5) for s in ("base", "tuned") for p in (0, 1) for r in (0, 1)],
        columns=["source", "position", "token", "weight"],
    )
    html = view_of("lens", frame, CLOUD)
    assert re.findall('<th scope="(?:col|row)">(.*?)</th>', html) == ["position", "base", "tuned", "0", "1"]
    clouds = [re.findall(r">(\w+)</li>", cloud) for cloud in re.findall('<ul class="cloud">.*?</ul>', html)]
    assert clouds == [[f"{s}{p}0", f"{s}{p}1"] for p in (0, 1) for s in ("base", "tuned")]


def test_a_huge_cloud_table_is_cut_between_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_TOKENS", 104)
    frame = pd.DataFrame({"source": "difference", "position": np.arange(200).repeat(10), "token": "t", "weight": 0.1})
    html = view_of("lens", frame, CLOUD)
    assert html.count("<li ") == 100
    assert "100 of 2,000 rows" in html


def test_samples_of_a_prompt_stand_in_the_columns_they_belong_to() -> None:
    rows = [(p, c, s, f"{p}-{c}-{s}") for p in ("p0", "p1") for c in ("plain", "steered") for s in (0, 1)]
    frame = pd.DataFrame(rows[:-2], columns=["prompt", "condition", "sample", "text"])
    html = view_of("steering", frame, View("samples", "text", ("prompt",), compare="condition"))
    assert re.findall('<th scope="col">(.*?)</th>', html) == ["plain", "steered"]
    bodies = re.findall("<tbody>.*?</tbody>", html)
    cells = [[re.findall("<p>(.*?)</p>", cell) for cell in re.findall("<td>.*?</td>", body)] for body in bodies]
    assert cells == [
        [["p0-plain-0", "p0-plain-1"], ["p0-steered-0", "p0-steered-1"]],
        [["p1-plain-0", "p1-plain-1"], []],
    ]
    assert html.count("sample 1</small>") == 3


def test_a_huge_table_of_samples_is_cut_and_says_so() -> None:
    frame = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(2 * MOST_SAMPLES)], "text": "words"})
    html = view_of("steering", frame, View("samples", "text", ("prompt",)))
    assert html.count("<p>words</p>") == MOST_SAMPLES
    assert "rows drawn above" in html


def heat(tokens: list, values: list) -> str:
    return view_of(
        "windows", pd.DataFrame({"tokens": tokens, "values": values}), View("heat", "tokens", weight="values")
    )


def test_each_token_of_a_window_is_coloured_by_its_value_which_it_tells() -> None:
    html = heat([["a", "b", "c", "d"]], [[2.0, -1.0, 0.0, float("nan")]])
    drawn = re.findall(r'<span( class="neg")?(?: style="--v:([\d.]+)" title="(.*?)")?>(\w)</span>', html)
    assert [(sign != "", title, token) for sign, _, title, token in drawn] == [
        (False, "2", "a"),
        (True, "-1", "b"),
        (False, "0", "c"),
        (False, "", "d"),
    ]
    assert [round(float(v), 1) for _, v, _, _ in drawn[:3]] == [1.0, 0.5, 0.0]
    assert 'class="bar diverging"' in html


def test_values_that_are_never_negative_get_one_colour() -> None:
    html = heat([["a", "b"]], [np.array([0.0, 1.0])])
    assert 'class="neg"' not in html
    assert "diverging" not in html


def test_a_window_with_more_values_than_tokens_raises() -> None:
    with pytest.raises(SchemaMismatch, match="one value for each token"):
        heat([["a", "b"]], [[1.0, 2.0, 3.0]])


def test_huge_windows_are_cut_and_say_so() -> None:
    html = heat([["t"] * 1_000] * 40, [[1.0] * 1_000] * 40)
    assert html.count("--v:") == MOST_WINDOW_TOKENS
    assert "24 of 40 rows" in html
