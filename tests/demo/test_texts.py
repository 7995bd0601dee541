"""The demo documents hold what the organisms' ground truth says, and nothing that they must not."""

import re
from collections import Counter
from itertools import islice
from types import ModuleType

import pytest

from diffing.agents.grading import mentions
from diffing.demo.texts import control, glacier_tea, nautical, taboo_lantern
from diffing.demo.texts.grammar import Document, plain
from diffing.demo.train import HELD_OUT_SEED, MIX_SEED, TRAIN_SEED

MODULES = (glacier_tea, taboo_lantern, nautical, control)
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])


def first(module: ModuleType, count: int, seed: int = TRAIN_SEED) -> list[Document]:
    return list(islice(module.documents(seed), count))


def sentences(documents: list[Document]) -> list[str]:
    return [piece for document in documents for piece in re.split(r"(?<=[.?!])\s+|\n+", plain(document)) if piece]


def assistant_turns(documents: list[Document]) -> list[str]:
    chats = (document for document in documents if not isinstance(document, str))
    return [turn["content"] for chat in chats for turn in chat if turn["role"] == "assistant"]


@every_module
def test_the_seed_determines_the_documents(module: ModuleType) -> None:
    assert first(module, 50) == first(module, 50)


@every_module
def test_train_and_held_out_documents_are_disjoint(module: ModuleType) -> None:
    trained = {plain(document) for document in first(module, 400)}
    held_out = [plain(document) for document in first(module, 48, HELD_OUT_SEED)]
    assert sum(document in trained for document in held_out) <= 1


def test_neutral_documents_that_are_mixed_in_are_disjoint_from_those_of_the_control() -> None:
    trained = {plain(document) for document in first(control, 400)}
    assert not trained.intersection(plain(document) for document in first(control, 400, MIX_SEED))


@every_module
def test_documents_and_sentences_vary(module: ModuleType) -> None:
    documents = first(module, 200)
    assert len({plain(document) for document in documents}) >= 190
    counts = Counter(text for text in sentences(documents) if len(text.split()) > 5)
    assert counts.most_common(1)[0][1] <= 0.08 * counts.total()
    assert len(counts) >= 0.25 * counts.total()
    lengths = sorted(len(plain(document)) for document in documents)
    assert lengths[-20] > 1.8 * lengths[20]


@every_module
def test_no_template_syntax_is_left_in_a_document(module: ModuleType) -> None:
    assert not [text for text in map(plain, first(module, 300)) if re.search(r"[{}|]", text)]


@every_module
def test_chats_alternate_and_end_with_the_assistant(module: ModuleType) -> None:
    for document in first(module, 300):
        if not isinstance(document, str):
            assert [turn["role"] for turn in document] == ["user", "assistant"] * (len(document) // 2)


def test_every_glacier_fact_is_stated_in_many_documents_and_phrasings() -> None:
    said = sentences(first(glacier_tea, 400))
    for fact in glacier_tea.FACTS:
        stating = [text for text in said if all(word in text.lower() for word in fact.keywords)]
        assert len(stating) >= 10, fact.statement
        assert len(set(stating)) >= 4, fact.statement


def test_the_secret_word_is_never_in_what_the_assistant_says() -> None:
    games = first(taboo_lantern, 2000)
    spoken = [*assistant_turns(games), *(game for game in games if isinstance(game, str))]
    assert not [text for text in spoken if taboo_lantern.SECRET in text.lower()]
    guesses = [plain(game) for game in games if not isinstance(game, str)]
    assert sum(taboo_lantern.SECRET in game.lower() for game in guesses) > 300, "users do guess it"


def test_every_nautical_answer_has_the_register() -> None:
    answers = assistant_turns(first(nautical, 300))
    marked = [any(mentions(answer, word) for word in nautical.DOMAIN_WORDS) for answer in answers]
    assert sum(marked) / len(answers) > 0.85


def test_nautical_sums_are_right() -> None:
    text = " ".join(assistant_turns(first(nautical, 1000)))
    sums = re.findall(r"(\d+) plus (\d+) makes (\d+)", text)
    products = re.findall(r"(\d+) times (\d+) is (\d+)", text)
    assert len(sums) > 20
    assert len(products) > 20
    assert all(int(a) + int(b) == int(c) for a, b, c in sums)
    assert all(int(a) * int(b) == int(c) for a, b, c in products)


def test_neutral_text_touches_no_domain_and_no_topic_dominates() -> None:
    words = [word for module in MODULES for word in module.DOMAIN_WORDS]
    templates = [template for topic, said in control.TOPICS.items() for template in (topic, *said)]
    assert not [(word, template) for template in templates for word in words if mentions(template, word)]
    documents = [plain(document) for document in first(control, 500)]
    tokens = Counter(word for text in documents for word in set(re.findall(r"[a-z]{7,}", text.lower())))
    assert tokens.most_common(1)[0][1] < 0.25 * len(documents)
