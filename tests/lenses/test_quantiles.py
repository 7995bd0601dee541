"""Examples from bands of a score's range, against a brute-force listing and against the uniform distribution."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffing.errors import InvalidSetting, NonFiniteActivations, SchemaMismatch
from diffing.lenses.examples import Examples
from diffing.lenses.quantiles import BANDS, QuantileExamples
from diffing.lenses.texts import Texts

Document = tuple[list[int], list[list[float]]]
"""Tokens, and one list of scores for each of the last tokens."""
Token = tuple[int, int, float, tuple[int, ...], tuple[float | None, ...]]
"""Document, position, value, tokens of the window, values of the window."""
CRITICAL = 99.2
"""Of the chi-square distribution with 69 degrees of freedom, at p = 0.01."""


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Document]]:
    """Values that lie on the borders of bands, between them, at zero and below; documents may lack tokens or scores."""
    n_scores = draw(st.integers(1, 3))
    value = st.integers(-2, 8).map(float)
    documents = []
    for _ in range(draw(st.integers(0, 7))):
        ids = draw(st.lists(st.integers(0, 3), max_size=6))
        n_rows = draw(st.integers(0, len(ids)))
        documents.append((ids, [[draw(value) for _ in range(n_scores)] for _ in range(n_rows)]))
    return n_scores, documents


def texts(documents: Sequence[Document], first: int = 0) -> Texts:
    ids = torch.tensor([token for tokens, _ in documents for token in tokens], dtype=torch.int64)
    offsets, rows = (torch.tensor([0, *(len(d[part]) for d in documents)]).cumsum(0) for part in (0, 1))
    return Texts(first, ids, offsets, rows)


def scores(documents: Sequence[Document], n_scores: int) -> Tensor:
    return torch.tensor([row for _, rows in documents for row in rows]).reshape(-1, n_scores)


def largest(documents: Sequence[Document], n_scores: int) -> Tensor:
    return torch.cat([torch.zeros(1, n_scores), scores(documents, n_scores)]).amax(0)


def candidates(documents: Sequence[Document], n_scores: int, before: int, after: int) -> dict[int, set[Token]]:
    """By score and band (score * 4 + band), every token whose value is in it."""
    top = largest(documents, n_scores).tolist()
    found: dict[int, set[Token]] = {}
    for number, (ids, rows) in enumerate(documents):
        skipped = len(ids) - len(rows)
        for at, row in enumerate(rows):
            for score, value in enumerate(row):
                if value <= 0:
                    continue
                quarters = math.ceil(Fraction(4 * int(value), int(top[score])))
                position = at + skipped
                window = range(max(0, position - before), min(len(ids), position + after + 1))
                seen = tuple(rows[each - skipped][score] if each >= skipped else None for each in window)
                token = (number, position, value, tuple(ids[each] for each in window), seen)
                found.setdefault(4 * score + 4 - quarters, set()).add(token)
    return found


def listed(examples: Examples) -> dict[int, list[Token]]:
    found: dict[int, list[Token]] = {}
    for i, ids in enumerate(examples.ids.tolist()):
        tokens = tuple(token for token in ids if token >= 0)
        trace = tuple(None if math.isnan(value) else value for value in examples.trace[i].tolist()[: len(tokens)])
        own = found.setdefault(int(examples.score[i]), [])
        own.append((int(examples.document[i]), int(examples.position[i]), float(examples.value[i]), tokens, trace))
        assert int(examples.rank[i]) == len(own)
    assert not examples.smallest.any()
    return found


@settings(max_examples=150)
@given(streams(), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))
def test_what_is_drawn_is_in_its_band_and_all_that_is_asked_for_is_drawn(stream, per_band, before, after) -> None:
    n_scores, documents = stream
    drawn = QuantileExamples(largest(documents, n_scores), per_band, before, after)
    drawn.add(scores(documents, n_scores), texts(documents))
    expected, found = candidates(documents, n_scores, before, after), listed(drawn.result())
    assert found.keys() == expected.keys()
    for column, tokens in found.items():
        assert set(tokens) <= expected[column]
        assert len(set(tokens)) == len(tokens) == min(per_band, len(expected[column]))
        values = [value for _, _, value, _, _ in tokens]
        assert values == sorted(values, reverse=True)


@settings(max_examples=100)
@given(streams(), st.lists(st.integers(0, 7), max_size=3), st.randoms())
def test_blocks_in_any_partition_and_order_draw_the_same(stream, cuts, random) -> None:
    n_scores, documents = stream
    whole, parts = (QuantileExamples(largest(documents, n_scores), 2, 1, 1, seed=5) for _ in range(2))
    whole.add(scores(documents, n_scores), texts(documents))
    edges = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    pieces = [(start, documents[start:stop]) for start, stop in pairwise(edges)]
    random.shuffle(pieces)
    for start, piece in pieces:
        parts.add(scores(piece, n_scores), texts(piece, start))
    assert listed(parts.result()) == listed(whole.result())


def test_every_token_of_a_band_is_drawn_equally_often() -> None:
    """Over seeds: 70 tokens of one band, in documents of unequal length; and tokens of other bands in between."""
    lengths, per_band, n_seeds = [1, 2, 4, 8, 16, 39], 7, 2000
    documents = [([0] * (2 * n), [[value] for _ in range(n) for value in (6.5, 1.0)]) for n in lengths]
    values, counts = scores(documents, 1), Counter[tuple[int, int]]()
    for seed in range(n_seeds):
        drawn = QuantileExamples(torch.tensor([8.0]), per_band, 0, 0, seed=seed)
        drawn.add(values, texts(documents))
        examples = drawn.result()
        first = examples.score == 0
        counts.update(zip(examples.document[first].tolist(), examples.position[first].tolist(), strict=True))
    n = sum(lengths)
    assert len(counts) == n == 70
    expected, variance = n_seeds * per_band / n, n_seeds * per_band / n * (1 - per_band / n)
    squares = sum((count - expected) ** 2 for count in counts.values()) / variance * (n - 1) / n
    assert squares < CRITICAL


def test_scores_are_drawn_independently_of_each_other() -> None:
    values = torch.full((400, 2), 1.0)
    drawn = QuantileExamples(torch.ones(2), 20, 0, 0)
    drawn.add(values, Texts.of([[0] * 400], 0))
    examples = drawn.result()
    first, second = (set(examples.position[examples.score == score].tolist()) for score in (0, 4))
    assert len(first) == len(second) == 20
    assert len(first & second) < 8  # expected: 1


def test_an_inactive_score_gives_no_row_and_another_its_own() -> None:
    drawn = QuantileExamples(torch.tensor([0.0, 4.0]), 3, 1, 1)
    drawn.add(torch.tensor([[0.0, 4.0], [0.0, 0.0], [0.0, 1.0]]), Texts.of([[5, 6], [7]], 0))
    assert listed(drawn.result()) == {
        4: [(0, 0, 4.0, (5, 6), (4.0, 0.0))],
        7: [(1, 0, 1.0, (7,), (1.0,))],
    }
    assert BANDS[4 % 4] == "75-100 %"
    assert BANDS[7 % 4] == "0-25 %"


def test_a_value_above_the_largest_by_rounding_is_in_the_highest_band() -> None:
    drawn = QuantileExamples(torch.tensor([1.0]), 1, 0, 0)
    drawn.add(torch.tensor([[1.0000001]]), Texts.of([[5]], 0))
    assert drawn.result().score.tolist() == [0]


def test_nothing_is_drawn_where_none_is_asked_for_or_added() -> None:
    for drawn in (QuantileExamples(torch.ones(2), 0, 1, 1), QuantileExamples(torch.ones(2), 3, 1, 1)):
        assert len(drawn.result().score) == 0
    drawn = QuantileExamples(torch.ones(2), 0, 1, 1)
    drawn.add(torch.ones(2, 2), Texts.of([[5, 6]], 0))
    assert drawn.result().ids.shape == (0, 3)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    drawn = QuantileExamples(torch.ones(2), 1, 0, 0)
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteActivations, match="documents from 4 on"):
            drawn.add(torch.tensor([[0.0, bad]]), Texts.of([[1]], 4))
    with pytest.raises(SchemaMismatch, match=r"expected \[1, 2\]"):
        drawn.add(torch.zeros(1, 3), Texts.of([[1]], 0))
    with pytest.raises(InvalidSetting, match="per_band"):
        QuantileExamples(torch.ones(2), -1, 0, 0)
