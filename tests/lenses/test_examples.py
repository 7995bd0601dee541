"""Max-activating examples against a brute-force search over everything, and as tables."""

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.errors import InvalidSetting, NonFiniteActivations, SchemaMismatch
from diffing.html.views import view_of
from diffing.lenses.examples import Examples, TopExamples, example_table
from diffing.lenses.texts import Texts, document_blocks
from diffing.report import Report
from tests import tiny
from tests.activations.stores import write_cache

Document = tuple[list[int], list[list[float]]]
"""Tokens, and one list of scores for each of the last tokens."""
Found = list[tuple]
"""(score, smallest, rank, value, document, position, tokens, values) of each example."""


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Document]]:
    """Few tokens and few values, so that windows repeat and values tie; documents may have no token, or no score."""
    n_scores = draw(st.integers(1, 3))
    value = st.integers(-2, 2).map(float)
    documents = []
    for _ in range(draw(st.integers(0, 9))):
        ids = draw(st.lists(st.integers(0, 2), max_size=6))
        n_rows = draw(st.integers(0, len(ids)))
        documents.append((ids, [[draw(value) for _ in range(n_scores)] for _ in range(n_rows)]))
    return n_scores, documents


SHAPES = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
"""k, before, after"""


def texts(documents: Sequence[Document], first: int) -> Texts:
    ids = [token for document, _ in documents for token in document]
    borders = (
        ([0, *(len(part) for part in parts)] for parts in zip(*documents, strict=True)) if documents else [[0]] * 2
    )
    return Texts(first, torch.tensor(ids, dtype=torch.int32), *(torch.tensor(b).cumsum(0) for b in borders))


def scores(documents: Sequence[Document], n_scores: int) -> Tensor:
    return torch.tensor([row for _, rows in documents for row in rows]).reshape(-1, n_scores)


def means(documents: Sequence[Document], n_scores: int) -> Tensor:
    return torch.tensor(
        [[sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [math.nan] * n_scores
         for _, rows in documents]
    ).reshape(-1, n_scores)  # fmt: skip


def blocks(documents: Sequence[Document], cuts: Sequence[int]) -> Iterator[tuple[int, Sequence[Document]]]:
    for start, stop in pairwise([0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]):
        yield start, documents[start:stop]


def brute_force(
    documents: Sequence[Document], n_scores: int, k: int, before: int, after: int, both_ends: bool, by_mean: bool
) -> Found:
    found = []
    for score in range(n_scores):
        for sign in (1, -1) if both_ends else (1,):
            candidates = []
            for number, (ids, rows) in enumerate(documents):
                if not rows:
                    continue
                column = [row[score] for row in rows]
                skipped = len(ids) - len(rows)
                peak = max(range(len(column)), key=lambda at: (sign * column[at], -at)) + skipped
                window = range(max(0, peak - before), min(len(ids), peak + after + 1))
                values = [column[at - skipped] if at >= skipped else None for at in window]
                value = sum(column) / len(column) if by_mean else column[peak - skipped]
                candidates.append((-sign * value, number, peak, value, tuple(ids[at] for at in window), values))
            taken: set[tuple[int, ...]] = set()
            for _, number, peak, value, tokens, values in sorted(candidates, key=lambda entry: entry[:3]):
                if tokens not in taken and len(taken) < k:
                    taken.add(tokens)
                    found.append((score, sign < 0, len(taken), value, number, peak, list(tokens), values))
    return found


def listed(examples: Examples) -> Found:
    rows = []
    for i, ids in enumerate(examples.ids.tolist()):
        tokens = [token for token in ids if token >= 0]
        values = [None if math.isnan(value) else value for value in examples.trace[i].tolist()]
        assert ids[len(tokens) :] == [-1] * (len(ids) - len(tokens))
        assert values[len(tokens) :] == [None] * (len(ids) - len(tokens))
        fields = (
            getattr(examples, name)[i].item() for name in ("score", "smallest", "rank", "value", "document", "position")
        )
        rows.append((*fields, tokens, values[: len(tokens)]))
    return rows


@settings(max_examples=200)
@given(streams(), SHAPES, st.booleans(), st.booleans(), st.lists(st.integers(0, 9), max_size=3), st.randoms())
def test_any_order_of_blocks_finds_what_brute_force_finds(stream, shape, both_ends, by_mean, cuts, random) -> None:
    n_scores, documents = stream
    top = TopExamples(n_scores, *shape, both_ends=both_ends)
    pieces = list(blocks(documents, cuts))
    random.shuffle(pieces)
    for start, piece in pieces:
        top.add(scores(piece, n_scores), texts(piece, start), means(piece, n_scores) if by_mean else None)
    expected = brute_force(documents, n_scores, *shape, both_ends, by_mean)
    found = listed(top.result())
    assert [row[:3] + row[4:] for row in found] == [row[:3] + row[4:] for row in expected]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected])


@settings(max_examples=100)
@given(streams(), SHAPES, st.booleans(), st.lists(st.integers(0, 9), max_size=3), st.randoms())
def test_merged_parts_equal_one_pass(stream, shape, both_ends, cuts, random) -> None:
    n_scores, documents = stream
    parts = []
    for start, piece in blocks(documents, cuts):
        part = TopExamples(n_scores, *shape, both_ends=both_ends)
        part.add(scores(piece, n_scores), texts(piece, start))
        parts.append(part)
    random.shuffle(parts)
    merged = TopExamples(n_scores, *shape, both_ends=both_ends)
    for part in parts:
        merged.merge(part)
    assert listed(merged.result()) == brute_force(documents, n_scores, *shape, both_ends, False)


def random_stream(n_documents: int, n_scores: int) -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    documents = []
    for _ in range(n_documents):
        length = int(torch.randint(1, 12, (), generator=generator))
        values = torch.randn(length, n_scores, generator=generator)
        ids = torch.randint(5, (length,), generator=generator).tolist()
        documents.append((ids, values[int(torch.randint(length, (), generator=generator)) :].tolist()))
    return documents


def test_a_long_stream_of_many_scores_finds_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffing.lenses.examples._AT_ONCE", 64)  # scores are merged in several parts
    documents = random_stream(400, 7)
    top = TopExamples(7, 5, 2, 1, both_ends=True)
    for start, piece in blocks(documents, range(0, 400, 37)):
        top.add(scores(piece, 7), texts(piece, start))
    assert listed(top.result()) == brute_force(documents, 7, 5, 2, 1, True, False)


def test_some_scores_are_asked_for_and_values_below_a_bound_are_left_out() -> None:
    documents = random_stream(50, 4)
    top = TopExamples(4, 60, 2, 1, both_ends=True)
    top.add(scores(documents, 4), texts(documents, 0))
    everything = listed(top.result())
    chosen = [row for score in (3, 1) for row in everything if row[0] == score]
    assert listed(top.result([3, 1])) == chosen
    outer = [row for row in chosen if (row[3] < -0.5 if row[1] else row[3] > 0.5)]
    assert 0 < len(outer) < len(chosen)
    assert listed(top.result([3, 1], above=0.5)) == outer


def test_a_score_that_never_fires_has_no_example_above_zero() -> None:
    top = TopExamples(2, 3, 1, 1)
    top.add(torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), Texts.of([[5, 6], [7]], 0))
    assert listed(top.result(above=0.0)) == [(1, False, 1, 2.0, 0, 1, [5, 6], [0.0, 2.0])]


def test_the_same_text_with_another_peak_counts_once() -> None:
    top = TopExamples(1, 3, 5, 5)
    top.add(torch.tensor([[1.0], [0.0], [0.0], [2.0]]), Texts.of([[8, 9], [8, 9]], 4))
    assert listed(top.result()) == [(0, False, 1, 2.0, 5, 1, [8, 9], [0.0, 2.0])]


def test_token_lists_skip_their_first_tokens() -> None:
    made = Texts.of([[4, 5, 6], [], [7], [8, 9]], first=3, n_skipped=1)
    assert (made.ids.tolist(), made.offsets.tolist()) == ([4, 5, 6, 7, 8, 9], [0, 3, 3, 4, 6])
    assert made.rows.tolist() == [0, 2, 2, 2, 3]
    assert len(made) == 4


def test_bfloat16_scores_are_compared_as_they_are() -> None:
    values = torch.tensor([[1.0], [1.0078125], [1.001]]).bfloat16()
    top = TopExamples(1, 3, 0, 0)
    top.add(values, Texts.of([[1], [2], [3]], 0))
    assert [row[3:5] for row in listed(top.result())] == [(1.0078125, 1), (1.0, 0), (1.0, 2)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    texts_of = Texts.of([[1, 2], [], [3]], 4, n_skipped=1)
    with pytest.raises(NonFiniteActivations, match=f"got {bad} for score 1 of document 4"):
        TopExamples(2, 2, 0, 0).add(torch.tensor([[0.0, bad]]), texts_of, torch.zeros(3, 2))
    with pytest.raises(NonFiniteActivations, match=f"got {bad} for score 0 of document 4"):
        TopExamples(2, 2, 0, 0).add(torch.zeros(1, 2), texts_of, torch.full((3, 2), bad))


def test_scores_of_other_tokens_are_refused() -> None:
    top = TopExamples(2, 2, 0, 0)
    for shape in ((2, 2), (3, 1)):
        with pytest.raises(SchemaMismatch, match=r"expected \[3, 2\]"):
            top.add(torch.zeros(shape), Texts.of([[1, 2], [3]], 0))
    with pytest.raises(SchemaMismatch, match="more scores than tokens"):
        top.add(torch.zeros(3, 2), Texts(0, torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([0, 3])))
    with pytest.raises(InvalidSetting, match="k of 1 or more"):
        TopExamples(2, 0, 1, 1)
    with pytest.raises(InvalidSetting, match="to merge"):
        top.merge(TopExamples(2, 2, 0, 1))


def test_a_window_found_by_another_process_is_recognised(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from diffing.lenses.examples import TopExamples;"
        "from diffing.lenses.texts import Texts; top = TopExamples(1, 4, 2, 2);"
        "top.add(torch.tensor([[3.0], [1.0]]), Texts.of([[11, 12]], 7)); torch.save(top, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "top.pt")], check=True)
    top = TopExamples(1, 4, 2, 2)
    top.add(torch.tensor([[1.0], [2.0]]), Texts.of([[11, 12]], 0))
    top.merge(torch.load(tmp_path / "top.pt", weights_only=False))
    assert listed(top.result()) == [(0, False, 1, 3.0, 7, 0, [11, 12], [3.0, 1.0])]


def sentence_tokenizer() -> PreTrainedTokenizerFast:
    """Of the kind that strips the space before the first token when it decodes."""
    vocabulary = {"<unk>": 0, "▁the": 1, "▁sea": 2, "s": 3, "▁": 4, "<s>": 5}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def test_the_table_shows_each_token_with_its_space_and_value() -> None:
    top = TopExamples(2, 2, 1, 1, both_ends=True)
    top.add(torch.tensor([[1.5, 0.0], [-2.0, 3.0]]), Texts.of([[5, 1, 2, 3]], 6, n_skipped=2))
    other = TopExamples(2, 2, 1, 1, both_ends=True)
    table = example_table(
        {"sea": top.result([1]), "none": other.result()}, sentence_tokenizer(), "Extremes",
        labels={"component": ["first", "second"]}, columns={"component": "principal component"}, unit="projection (1)",
    )  # fmt: skip
    shown = table.frame.drop(columns=["tokens", "values"])
    assert shown.columns.tolist() == ["component", "end", "corpus", "rank", "value", "document", "position"]
    assert shown.to_numpy().tolist() == [
        ["second", "largest", "sea", 1, 3.0, 6, 3],
        ["second", "smallest", "sea", 1, 0.0, 6, 2],
    ]
    assert table.frame["tokens"].tolist() == [[" sea", "s"], [" the", " sea", "s"]]
    assert table.frame["values"][0] == [0.0, 3.0]
    assert math.isnan(table.frame["values"][1][0])
    assert table.frame["values"][1][1:] == [0.0, 3.0]


def test_the_tokens_of_a_window_are_the_text() -> None:
    tokenizer = tiny.tokenizer()
    documents = [tokenizer(text)["input_ids"] for text in tiny.TEXTS]
    top = TopExamples(1, len(documents), 100, 100)
    top.add(torch.arange(sum(map(len, documents)), dtype=torch.float32)[:, None], Texts.of(documents, 0))
    table = example_table(
        {"tiny": top.result()}, tokenizer, "Last tokens", labels={"score": ["order"]},
        columns={"score": "what was looked for"}, unit="number of the token",
    )  # fmt: skip
    decoded = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in documents]
    assert ["".join(tokens) for tokens in table.frame["tokens"]] == decoded[::-1]
    assert "end" not in table.frame.columns
    assert table.view.group == ("score", "corpus")


def test_a_table_survives_a_report_and_is_drawn(tmp_path: Path) -> None:
    top = TopExamples(1, 2, 1, 1)
    top.add(torch.tensor([[1.0], [2.5]]), Texts.of([[40, 41, 42]], 0, n_skipped=1))
    table = example_table(
        {"tiny": top.result(), "empty": TopExamples(1, 2, 1, 1).result()}, tiny.tokenizer(), "Windows",
        labels={"latent": [0]}, columns={"latent": "number of the latent"}, unit="activation (1)",
    )  # fmt: skip
    report = Report("planted", tiny.pair_spec(tmp_path), {}, [], no_difference=False, tables={"examples": table})
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report").tables["examples"]
    assert loaded.frame["tokens"][0].tolist() == table.frame["tokens"][0]
    assert loaded.frame["values"][0].tolist() == [1.0, 2.5]
    assert loaded.view == table.view
    assert 'title="2.5"' in view_of("examples", loaded.frame, loaded.view)


def planted_cache(root: Path) -> ActivationCache:
    """30 documents in shards of 7, some without a row and some without a token, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 9, (30,), generator=generator).tolist()
    kept = [min(int(torch.randint(0, 9, (), generator=generator)), length) for length in lengths]
    ids = torch.randint(0, 4, (sum(lengths),), generator=generator)
    base, finetuned = ({2: torch.randn(sum(kept), 4, generator=generator).bfloat16()} for _ in Side)
    return write_cache(root, base, finetuned, lengths, kept, ids, documents_per_shard=7, chunk_rows=8)


@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_blocks_of_a_cache_are_its_whole_documents_in_order(tmp_path: Path, rows: int) -> None:
    cache = planted_cache(tmp_path)
    borders = cache.base.document_rows().tolist()
    expected = {
        number: (cache.base.document_tokens(number).tolist(), [side.tolist() for side in cache.read(2, start, stop)])
        for number, (start, stop) in enumerate(pairwise(borders))
    }
    found = {}
    for block in document_blocks(cache, 2, rows):
        assert len(block.base) <= rows or int((block.texts.rows.diff() > 0).sum()) == 1
        for j in range(len(block.texts)):
            own = slice(*block.texts.rows[j : j + 2].tolist())
            ids = block.texts.ids[slice(*block.texts.offsets[j : j + 2].tolist())].tolist()
            found[block.texts.first + j] = (ids, [block.base[own].tolist(), block.finetuned[own].tolist()])
    assert list(found) == sorted(found)
    assert set(expected) - set(found) <= {number for number, (_, (rows_of, _)) in expected.items() if not rows_of}
    assert found == {number: expected[number] for number in found}


def test_blocks_start_and_stop_at_documents(tmp_path: Path) -> None:
    cache = planted_cache(tmp_path)
    parts = [
        block.texts for part in ((0, 11), (11, 99)) for block in document_blocks(cache, 2, start=part[0], stop=part[1])
    ]
    assert [part.first for part in parts] == [0, 11]
    assert sum(len(part) for part in parts) == 30
    assert list(document_blocks(cache, 2, start=30)) == []


@pytest.mark.parametrize("rows", [3, 1000])
def test_the_top_of_a_projection_of_a_cache_is_what_brute_force_finds(tmp_path: Path, rows: int) -> None:
    cache = planted_cache(tmp_path)
    directions = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).round()
    top = TopExamples(3, 4, 2, 2, both_ends=True)
    for block in document_blocks(cache, 2, rows):
        top.add(block.stream(Stream.DIFFERENCE) @ directions, block.texts)
    base, finetuned = (side.float() for side in cache.read(2, 0, cache.n_rows))
    projected, borders = (finetuned - base) @ directions, cache.base.document_rows().tolist()
    documents = [
        (cache.base.document_tokens(number).tolist(), projected[start:stop].tolist())
        for number, (start, stop) in enumerate(pairwise(borders))
    ]
    assert listed(top.result()) == brute_force(documents, 3, 4, 2, 2, True, False)


def test_label_columns_cannot_hide_the_columns_of_every_table() -> None:
    with pytest.raises(SchemaMismatch, match="rank"):
        example_table({}, tiny.tokenizer(), "x", labels={"rank": [1]}, columns={"rank": "?"}, unit="?")
