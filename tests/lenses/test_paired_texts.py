"""Both sides of the same tokens, from a cache and from the models, against the models' own hidden states."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.lenses.paired_texts import GROUP, Selection, cached_blocks, streamed_blocks
from diffing.lenses.texts import CacheBlock, Texts
from diffing.models.pair import ModelPair
from diffing.models.sites import reading
from diffing.text.windows import token_sequences
from tests import tiny
from tests.activations.collecting import collection, corpus_of, texts
from tests.activations.stores import write_cache

SELECTION = Selection(layers=(1, 2), context=64, max_texts=50, skip_first=1, bos=1)


def together(blocks: list[CacheBlock]) -> tuple[Tensor, Tensor, list[tuple[int, list[int], int]]]:
    """All rows of both sides, and (number, tokens, rows) of each text that has any."""
    documents = []
    for block in blocks:
        parts = block.texts.ids.split(block.texts.offsets.diff().tolist())
        for number, (ids, n_rows) in enumerate(zip(parts, block.texts.rows.diff().tolist(), strict=True)):
            if n_rows:
                documents.append((block.texts.first + number, ids.tolist(), n_rows))
    return torch.cat([b.base for b in blocks]).float(), torch.cat([b.finetuned for b in blocks]).float(), documents


def by_layer(blocks: list[dict[int, CacheBlock]]) -> Mapping[int, tuple]:
    return {layer: together([block[layer] for block in blocks]) for layer in blocks[0]}


def same(one: tuple, other: tuple, tolerance: float = 1e-4) -> None:
    assert one[2] == other[2]
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one[1], other[1], rtol=tolerance, atol=tolerance)


def test_rows_are_the_hidden_states_of_each_model(full_pair: ModelPair, tmp_path: Path) -> None:
    corpus, last = corpus_of(texts(1), tmp_path), tiny.LAYERS - 1
    selection = replace(SELECTION, layers=range(tiny.LAYERS), skip_first=0)
    found = by_layer(list(streamed_blocks(full_pair, corpus, selection, batch_size=4)))
    sequences = list(token_sequences(corpus, full_pair.tokenizer, max_tokens=64))
    assert [ids for _, ids, _ in found[0][2]] == sequences
    for number, side in enumerate(Side):
        expected: dict[int, list[Tensor]] = {layer: [] for layer in range(tiny.LAYERS)}
        with full_pair.using(side) as model, reading(model, [last]) as hooked, torch.no_grad():
            for ids in sequences:
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                for layer in range(last):
                    expected[layer].append(hidden[layer + 1][0])
                expected[last].append(hooked[last][0].clone())
        for layer, parts in expected.items():
            torch.testing.assert_close(found[layer][number], torch.cat(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_batch_size_nor_padding_changes_a_row(
    lora_pair: ModelPair, tmp_path: Path, batch_size: int, side: str
) -> None:
    corpus = corpus_of(texts(3), tmp_path)
    expected = by_layer(list(streamed_blocks(lora_pair, corpus, SELECTION, batch_size=3)))
    found = by_layer(list(streamed_blocks(lora_pair, corpus, SELECTION, batch_size, side)))
    assert len(found[1][2]) == 18 > GROUP * 3  # more than one group of batches
    for layer in SELECTION.layers:
        same(found[layer], expected[layer])


CHANGES = [
    {}, {"context": 12}, {"skip_first": 7}, {"max_texts": 5}, {"layers": (2,)},
    {"context": 9, "skip_first": 5, "max_texts": 10},
]  # fmt: skip


def test_a_cache_gives_what_the_models_give(lora_pair: ModelPair, tmp_path: Path) -> None:
    collect = collection(lora_pair, texts(2), tmp_path, dtype="float32")
    assert collect(tmp_path)
    cache = ActivationCache(*(collect.folder(side, tmp_path) for side in Side))
    for change in CHANGES:
        selection = replace(SELECTION, **change)
        assert selection.held_by(cache)
        streamed = by_layer(list(streamed_blocks(lora_pair, corpus_of(texts(2), tmp_path), selection, batch_size=4)))
        for layer in selection.layers:
            same(together(list(cached_blocks(cache, layer, selection))), streamed[layer])


def test_beginning_of_sequence_tokens_are_left_out_either_way(lora_pair: ModelPair, tmp_path: Path) -> None:
    started = [f"<s>{'<s>' * (number % 2)}{text}" for number, text in enumerate(tiny.TEXTS)] + list(tiny.TEXTS)
    selection = replace(SELECTION, skip_first=0)
    collect = collection(lora_pair, started, tmp_path, dtype="float32", skip_first=0)
    assert collect(tmp_path)
    cache = ActivationCache(*(collect.folder(side, tmp_path) for side in Side))
    streamed = by_layer(list(streamed_blocks(lora_pair, corpus_of(started, tmp_path), selection, batch_size=4)))
    for layer in selection.layers:
        same(together(list(cached_blocks(cache, layer, selection))), streamed[layer])
    assert [len(ids) - n_rows for _, ids, n_rows in streamed[1][2]] == [1, 2, 1, 2, 1, 2, *[0] * 6]


def test_texts_that_keep_no_token_are_neither_run_nor_lost_from_the_count(
    lora_pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = replace(SELECTION, skip_first=20)
    blocks = list(streamed_blocks(lora_pair, corpus_of(texts(2), tmp_path), selection, batch_size=1))
    assert sum(len(block[1].texts) for block in blocks) == 12
    shown = together([block[1] for block in blocks])[2]
    assert 0 < len(shown) < 12
    assert all(n_rows == len(ids) - 20 for _, ids, n_rows in shown)
    monkeypatch.setattr("diffing.lenses.paired_texts.residuals", lambda *_: pytest.fail("run for nothing"))
    nothing = list(streamed_blocks(lora_pair, corpus_of(texts(1), tmp_path), replace(selection, skip_first=63), 2))
    assert [len(block[2].base) for block in nothing] == [0]


def planted(folder: Path, lengths: list[int]) -> ActivationCache:
    rows = {layer: torch.zeros(sum(lengths) - len(lengths), 4) for layer in (1, 2)}
    return write_cache(folder, rows, rows, lengths)


def limited(cache: ActivationCache, **limits: int) -> ActivationCache:
    cache.spec = replace(cache.spec, tokens=replace(cache.spec.tokens, **limits))
    return cache


def test_a_cache_that_holds_less_than_is_asked_for_is_known(tmp_path: Path) -> None:
    cache = planted(tmp_path, [9, 5, 7])  # context 1024, position 0 left out
    assert SELECTION.held_by(cache)
    for change in ({"layers": (1, 3)}, {"skip_first": 0}, {"context": 1025}):
        assert not replace(SELECTION, **change).held_by(cache)


def test_a_cache_that_its_own_limits_cut_short_is_known(tmp_path: Path) -> None:
    few = replace(SELECTION, max_texts=2)
    assert not SELECTION.held_by(limited(planted(tmp_path / "a", [9, 5, 7]), max_samples=3))
    assert few.held_by(limited(planted(tmp_path / "b", [9, 5, 7]), max_samples=3))
    assert not SELECTION.held_by(limited(planted(tmp_path / "c", [9, 5, 7]), max_tokens=21))
    assert few.held_by(limited(planted(tmp_path / "d", [9, 5, 7]), max_tokens=21))
    assert SELECTION.held_by(limited(planted(tmp_path / "e", [9, 5, 7]), max_tokens=22, max_samples=4))


def test_cutting_keeps_the_right_rows(tmp_path: Path) -> None:
    rows = {1: torch.arange(18.0)[:, None].expand(18, 4).contiguous()}
    cache = write_cache(tmp_path, rows, rows, [9, 5, 7])
    (block,) = cached_blocks(cache, 1, Selection((1,), context=6, max_texts=3, skip_first=3, bos=None))
    assert block.base[:, 0].tolist() == [2.0, 3.0, 4.0, 10.0, 11.0, 14.0, 15.0, 16.0]
    assert isinstance(block.texts, Texts)
    assert block.texts.ids.tolist() == [*range(6), *range(9, 14), *range(14, 20)]


@pytest.mark.parametrize("wrong", [{"context": 0}, {"max_texts": 0}, {"skip_first": -1}])
def test_a_selection_of_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting, match="expected 1 or more"):
        replace(SELECTION, **wrong)
