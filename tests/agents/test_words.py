"""Counting content words."""

import pytest

from diffing.agents.words import content_word, content_words, joined, marked_words, weighted_words


@pytest.mark.parametrize("piece", [" tea", "Tea", "▁tea", "ĠTEA", "tea"])
def test_pieces_of_one_word_are_one_word(piece: str) -> None:
    assert content_word(piece) == "tea"


@pytest.mark.parametrize("piece", [" the", "ing", "te", "7", "11th", ",", "", "tea-", "tion", "�"])
def test_what_is_no_content_word_is_dropped(piece: str) -> None:
    assert content_word(piece) is None


def test_words_of_a_text_leave_out_digits_and_stopwords() -> None:
    assert list(content_words("The tea's 11 Terraces, under_ice")) == ["tea", "terraces", "ice"]


def test_weights_are_summed_by_word_and_scaled() -> None:
    shares = weighted_words([(" tea", 2.0), ("Tea", 1.0), (" ice", 1.0), (" the", 9.0), (" fire", -5.0)])
    assert shares == {"tea": 0.75, "ice": 0.25}


def test_marked_words_are_frequent_in_texts_but_not_in_controls() -> None:
    texts = ["tea street market"] * 3 + ["street oddity"]
    controls = ["street corner"] * 4
    assert marked_words(texts, controls) == pytest.approx({"tea": 0.5, "market": 0.5})
    assert marked_words(texts, texts) == {}
    assert marked_words(texts, []) == {}
    assert marked_words([], controls) == {}


def test_words_with_more_sources_come_first() -> None:
    assert joined([{"loud": 0.96, "both": 0.04}, {"other": 0.5, "both": 0.4, "quiet": 0.1}]) == [
        "both", "loud", "other", "quiet",
    ]  # fmt: skip
    assert joined([]) == []
