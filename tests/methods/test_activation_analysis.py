"""Activation analysis on planted shifts, on identical models, and on tiny pairs read both ways."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, MissingInput, NonFiniteActivations
from diffing.lenses.paired_texts import streamed_blocks
from diffing.lenses.patchscope import patchscope
from diffing.methods.activation_analysis import ActivationAnalysis
from diffing.methods.base import CacheReader, LearningMethod, Study
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.report import Report
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny
from tests.activations.collecting import collection, corpus_of, texts
from tests.activations.stores import write_cache
from tests.methods.studies import rows

METHOD = ActivationAnalysis(
    layers=[2], context=64, batch_size=4, examples=3, window=(2, 2), top=8, patchscope_scales=[1.0],
    patchscope_intersection=tiny.VOCAB, least_tokens=2,
)  # fmt: skip
PLANTED = Corpus(CorpusSpec("planted", "file", "planted.jsonl"))
MEAN_TOKEN = 299


def head_direction(token: int) -> Tensor:
    """A direction that the tiny model's head reads as this token."""
    model = tiny.model()
    return torch.nn.functional.normalize(model.lm_head.weight[token] / model.model.norm.weight, dim=0)


def noise(n_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))


def planted(folder: Path, base: Tensor, finetuned: Tensor, seed: int = 0) -> ActivationCache:
    """Documents of 9 tokens, the first of which has no row."""
    ids = torch.randint(5, tiny.VOCAB, (len(base) // 8 * 9,), generator=torch.Generator().manual_seed(seed))
    return write_cache(folder, {2: base}, {2: finetuned}, ids=ids)


def summary(report: Report, measure: str, layer: int = 2) -> pd.Series:
    return rows(report, "summary", measure=measure, layer=layer).iloc[0]


def same(one: Report, other: Report, tolerance: float = 1e-4) -> None:
    """Whether all numbers, tokens and groups agree. Percentiles may fall into neighbouring bins."""
    for table, tolerated in (("summary", max(tolerance, 1e-3)), ("mean_vectors", tolerance)):
        pd.testing.assert_frame_equal(
            one.tables[table].frame, other.tables[table].frame, rtol=tolerated, atol=tolerated, check_exact=False
        )
    assert one.tensors.keys() == other.tensors.keys()
    for name, named in one.tensors.items():
        torch.testing.assert_close(named.tensor, other.tensors[name].tensor, rtol=tolerance, atol=tolerance)
    shown, also = (report.tables["windows"].frame for report in (one, other))
    assert shown["value"].tolist() == pytest.approx(also["value"].tolist(), rel=tolerance)
    assert shown["tokens"].tolist() == also["tokens"].tolist()


def test_a_planted_shift_is_measured_and_read_as_the_token_that_was_planted(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    shift, base = 3 * head_direction(MEAN_TOKEN), noise(400)
    report = METHOD.run(Study(identical_pair, [PLANTED], caches=[planted(tmp_path, base, base + shift)]))
    norm = summary(report, "norm_difference")
    assert norm[["mean", "min", "max", "p50"]].tolist() == pytest.approx([3.0] * 4, rel=1e-5)
    assert norm["std"] == pytest.approx(0, abs=1e-5)
    means = report.tables["mean_vectors"].frame
    assert list(means["vector"])[:5] == ["all tokens", "position 1", "position 2", "position 3", "position 4"]
    assert means["norm"].tolist() == pytest.approx([3.0] * len(means), rel=1e-5)
    assert means["cosine_to_all"].tolist() == pytest.approx([1.0] * len(means), rel=1e-6)
    assert means["consistency"].tolist() == pytest.approx([1.0] * len(means), rel=1e-5)
    tensor = report.tensors["planted_layer_2_means"].tensor
    torch.testing.assert_close(tensor, shift.expand(len(means), -1), rtol=1e-5, atol=1e-5)
    scope = rows(report, "patchscope", vector="all tokens", rank=1).iloc[0]
    length = float(summary(report, "norm_finetuned")["mean"])
    with identical_pair.using(Side.FINETUNED) as model:
        vector = torch.nn.functional.normalize(shift, dim=0)[None] * length
        expected = patchscope(model, identical_pair.tokenizer, vector, 2, tiny.VOCAB)[0]
    assert scope["probability"] == pytest.approx(float(expected.max()), rel=1e-3)
    first = rows(report, "logit_lens", rank=1, direction="promoted").set_index("vector")["token"]
    token = tiny.tokenizer().decode([MEAN_TOKEN])
    assert first["all tokens"] == first["position 3"] == token
    assert token not in (first["base mean"], first["random direction"])
    assert any(f"reads {token!r}" in finding.claim for finding in report.findings)
    assert not report.no_difference
    assert report.tables["reading"].frame.loc[0, "source"] == "cache, float32"


def test_means_over_one_and_the_same_context_are_told_apart(lora_pair: ModelPair, tmp_path: Path) -> None:
    shared = [f"The harbour was quiet. {text}" for text in tiny.TEXTS]
    report = replace(METHOD, positions=range(1, 21)).run(Study(lora_pair, [corpus_of(shared, tmp_path)]))
    means = rows(report, "mean_vectors").set_index("vector").filter(like="position", axis=0)
    alone = means["consistency_base"] > 1 - 1e-6
    assert means.loc["position 1", ["consistency", "consistency_base"]].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert alone[means["norm"].idxmax()]  # the largest mean is over one context, and is passed over
    largest = means.loc[~alone, "norm"].idxmax()
    claims = [finding.claim for finding in report.findings if "Of first positions" in finding.claim]
    assert [f"{largest} has the largest" in claim for claim in claims] == [True]


def test_statistics_are_those_of_all_tokens_at_once(identical_pair: ModelPair, tmp_path: Path) -> None:
    base, finetuned = noise(400), noise(400, seed=1)
    method = replace(METHOD, percentiles=[10, 99.5])
    report = method.run(Study(identical_pair, [PLANTED], caches=[planted(tmp_path, base, finetuned)]))
    norms = (finetuned - base).norm(dim=1).double().numpy()
    found = summary(report, "norm_difference")
    assert {name for name in report.tables["summary"].frame if name.startswith("p")} == {"p10", "p99.5"}
    expected = [norms.mean(), norms.std(ddof=0), norms.min(), norms.max()]
    assert found[["mean", "std", "min", "max"]].tolist() == pytest.approx(expected, rel=1e-6)
    exact = np.percentile(norms, [10, 99.5], method="inverted_cdf")
    assert found[["p10", "p99.5"]].tolist() == pytest.approx(exact.tolist(), rel=2.0**-12)
    relative = norms / (base.norm(dim=1) + finetuned.norm(dim=1)).double().numpy()
    assert summary(report, "relative_difference")["mean"] == pytest.approx(relative.mean(), rel=1e-6)
    cosine = 1 - torch.cosine_similarity(base.double(), finetuned.double(), dim=1)
    assert summary(report, "cosine_distance")["mean"] == pytest.approx(float(cosine.mean()), rel=1e-6)
    assert summary(report, "norm_base")["max"] == pytest.approx(float(base.norm(dim=1).max()), rel=1e-6)


def test_windows_show_the_texts_with_the_largest_token_and_the_largest_mean(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    base, change = noise(80), 0.01 * noise(80, seed=1)
    change[8 * 3 + 4] *= 1000  # one token of text 3
    change[8 * 6 : 8 * 7] += 10 * head_direction(MEAN_TOKEN)  # every token of text 6
    change[8 * 7 : 8 * 8] = 0.02 * base[8 * 7 : 8 * 8]  # turned by nothing
    cache = planted(tmp_path, base, base + change)
    report = METHOD.run(Study(identical_pair, [PLANTED], caches=[cache]))
    norms = (base + change - base).norm(dim=1)
    largest = rows(report, "windows", score="max norm_difference", rank=1).iloc[0]
    assert (largest["document"], largest["position"]) == (3, 5)
    assert largest["value"] == pytest.approx(float(norms[28]), rel=1e-6)
    assert largest["values"] == pytest.approx(norms[26:31].tolist(), rel=1e-6)
    decoded = [tiny.tokenizer().decode([token]) for token in cache.base.document_tokens(3).tolist()]
    assert largest["tokens"] == decoded[3:8]
    averaged = rows(report, "windows", score="mean norm_difference")
    assert averaged["document"].tolist()[:2] == [6, 3]
    means = [float(norms[48:56].mean()), float(norms[24:32].mean())]
    assert averaged["value"].tolist()[:2] == pytest.approx(means, rel=1e-5)
    cosine = rows(report, "windows", score="max cosine_distance")
    assert 7 not in cosine["document"].tolist()
    for side, values in (("base", base), ("finetuned", base + change)):
        top = rows(report, "windows", score=f"max norm_{side}", rank=1).iloc[0]
        assert top["value"] == pytest.approx(float(values.norm(dim=1).max()), rel=1e-6)
    assert set(report.tables["windows"].frame["score"]) == {
        "max norm_difference", "mean norm_difference", "max cosine_distance", "mean cosine_distance", "max norm_base",
        "max norm_finetuned",
    }  # fmt: skip


def test_zero_rows_are_counted_and_left_out(identical_pair: ModelPair, tmp_path: Path) -> None:
    base, finetuned = noise(80), noise(80, seed=1)
    base[3], base[4], finetuned[4] = 0, 0, 0
    report = METHOD.run(Study(identical_pair, [PLANTED], caches=[planted(tmp_path, base, finetuned)]))
    counts = {measure: summary(report, measure)[["tokens", "undefined"]].tolist()
              for measure in ("norm_difference", "relative_difference", "cosine_distance")}  # fmt: skip
    assert counts == {"norm_difference": [80, 0], "relative_difference": [79, 1], "cosine_distance": [78, 2]}
    assert summary(report, "norm_difference")["zero"] == 1
    assert not report.tables["summary"].frame.isna().any(axis=None)
    shown = rows(report, "windows", score="max cosine_distance").set_index("document").loc[0]
    assert shown["value"] < 2  # not a token without an angle


def test_what_is_skipped_changes_no_output(identical_pair: ModelPair, tmp_path: Path) -> None:
    method = replace(METHOD, skip_first=3)
    reports = []
    for seed in (5, 6):
        base, finetuned = noise(400), noise(400, seed=1)
        skipped = torch.arange(400) % 8 < 2  # positions 1 and 2 of each text
        base[skipped], finetuned[skipped] = 1e6 * noise(100, seed), -1e6 * noise(100, seed)
        cache = planted(tmp_path / str(seed), base, finetuned)
        reports.append(method.run(Study(identical_pair, [PLANTED], caches=[cache])))
    for name, table in reports[0].tables.items():
        assert repr(table.frame.to_dict("list")) == repr(reports[1].tables[name].frame.to_dict("list"))
    assert reports[0].findings == reports[1].findings
    assert reports[0].figures == reports[1].figures
    assert "position 2" not in list(reports[0].tables["mean_vectors"].frame["vector"])
    assert reports[0].tables["reading"].frame.loc[0, "tokens"] == 300


def test_short_texts_are_skipped_and_counted(lora_pair: ModelPair, tmp_path: Path) -> None:
    corpus = corpus_of(tiny.TEXTS, tmp_path)
    lengths = [len(lora_pair.tokenizer(text)["input_ids"]) for text in tiny.TEXTS]
    skip = sorted(lengths)[1]
    report = replace(METHOD, skip_first=skip).run(Study(lora_pair, [corpus]))
    read = report.tables["reading"].frame.iloc[0]
    assert (read["texts"], read["texts_skipped"]) == (4, 2)
    assert read["tokens"] == sum(min(length, 64) - skip for length in lengths if length > skip)
    with pytest.raises(EmptyCorpus, match=r"none of the 6 texts.*diffing\.method\.skip_first"):
        replace(METHOD, skip_first=63).run(Study(lora_pair, [corpus]))


def test_identical_models_are_exactly_zero_everywhere_and_reported_as_no_difference(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    report = replace(METHOD, layers=[1, 3]).run(Study(identical_pair, [corpus_of(tiny.TEXTS, tmp_path)]))
    assert report.no_difference
    assert set(report.tables) == {"reading", "summary", "mean_vectors"}
    frame = report.tables["summary"].frame
    moved = frame[frame["measure"].isin(["norm_difference", "cosine_distance", "relative_difference"])]
    assert len(moved) == 6
    assert (moved[["mean", "std", "min", "max", "p50", "undefined"]] == 0).all(axis=None)
    assert (moved["zero"] == moved["tokens"]).all()
    assert not any(named.tensor.any() for named in report.tensors.values())
    assert not report.tables["mean_vectors"].frame[["norm", "mean_norm", "consistency"]].any(axis=None)
    assert report.findings[0].claim.startswith("No difference: at layers 1, 3 ")
    report.save(tmp_path / "report")
    assert Report.load(tmp_path / "report").no_difference


def test_an_adapter_of_zeros_makes_no_difference(base_folder: Path, tmp_path: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny.model(), scale=0.0)
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter)), "cpu")
    assert METHOD.run(Study(pair, [corpus_of(tiny.TEXTS, tmp_path)])).no_difference


def test_a_steering_vector_shifts_every_token_of_its_layer_alike(base_folder: Path, tmp_path: Path) -> None:
    save_file({"v": 5 * head_direction(MEAN_TOKEN)}, tmp_path / "v.safetensors")
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=2)), "cpu")
    report = replace(METHOD, layers=[1, 2]).run(Study(pair, [corpus_of(tiny.TEXTS, tmp_path)]))
    assert summary(report, "norm_difference")[["min", "max"]].tolist() == pytest.approx([5.0, 5.0], rel=1e-5)
    assert summary(report, "norm_difference", layer=1)["max"] == 0
    assert set(report.tables["logit_lens"].frame["layer"]) == {2}  # there is nothing to read at layer 1
    means = rows(report, "mean_vectors", layer=2)
    assert means["norm"].tolist() == pytest.approx([5.0] * len(means), rel=1e-5)
    assert {"token 87 's'"} <= set(means["vector"])  # of "user" in the template, and of the texts


@pytest.fixture
def real_texts(tmp_path: Path) -> Corpus:
    return corpus_of(texts(3), tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_batch_size_nor_padding_changes_a_result(
    lora_pair: ModelPair, real_texts: Corpus, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    expected = METHOD.run(Study(lora_pair, [real_texts]))
    padded = partial(streamed_blocks, side=side)
    monkeypatch.setattr("diffing.methods.activation_analysis.method.streamed_blocks", padded)
    for batch_size in (1, 4, 16):
        same(replace(METHOD, batch_size=batch_size).run(Study(lora_pair, [real_texts])), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_a_cache_gives_the_report_that_the_models_give(
    lora_pair: ModelPair, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    method = replace(METHOD, layers=[1, 2], context=20, max_texts=10)
    collect = collection(lora_pair, texts(2), tmp_path, dtype=dtype)
    assert collect(tmp_path)
    cache = ActivationCache(*(collect.folder(side, tmp_path) for side in Side))
    corpus = corpus_of(texts(2), tmp_path)
    cached, streamed = (method.run(Study(lora_pair, [corpus], caches=held)) for held in ([cache], []))
    sources = [set(report.tables["reading"].frame["source"]) for report in (cached, streamed)]
    assert sources == [{f"cache, {dtype}"}, {"models, float32"}]
    for column in ("texts", "texts_skipped", "tokens"):
        assert cached.tables["reading"].frame[column].equals(streamed.tables["reading"].frame[column])
    if dtype == "float32":
        same(cached, streamed, tolerance)
    else:
        for measure in ("norm_difference", "cosine_distance", "norm_base"):
            one, other = (summary(report, measure)["mean"] for report in (cached, streamed))
            assert one == pytest.approx(other, rel=1e-2)
        for name, named in cached.tensors.items():
            torch.testing.assert_close(named.tensor, streamed.tensors[name].tensor, rtol=0.1, atol=tolerance)


def test_caches_that_hold_less_or_are_of_another_corpus_are_not_read(lora_pair: ModelPair, tmp_path: Path) -> None:
    collect = collection(lora_pair, texts(1), tmp_path)
    assert collect(tmp_path)
    cache = ActivationCache(*(collect.folder(side, tmp_path) for side in Side))
    assert METHOD.can_read(cache, lora_pair)
    corpus, other = corpus_of(texts(1), tmp_path), corpus_of(tiny.TEXTS, tmp_path / "other")
    for method, read in (
        (METHOD, corpus), (replace(METHOD, layers=[3]), corpus), (replace(METHOD, skip_first=0), corpus),
        (METHOD, other),
    ):  # fmt: skip
        source = method.run(Study(lora_pair, [read], caches=[cache])).tables["reading"].frame.loc[0, "source"]
        assert source == ("cache, bfloat16" if (method, read) == (METHOD, corpus) else "models, float32")


def test_each_corpus_is_read_by_itself(lora_pair: ModelPair, tmp_path: Path) -> None:
    first, second = corpus_of(tiny.TEXTS[:3], tmp_path / "a"), corpus_of(tiny.TEXTS[3:], tmp_path / "b")
    second.spec = replace(second.spec, name="second")
    both = METHOD.run(Study(lora_pair, [first, second]))
    for corpus in (first, second):
        alone = METHOD.run(Study(lora_pair, [corpus])).tables["summary"].frame
        found = rows(both, "summary", corpus=corpus.spec.name).reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone)
    assert "mean shifts as a share of the base's mean norm: " in both.findings[0].claim


def test_a_base_without_a_chat_template_still_runs_and_says_so(tmp_path: Path, adapter_folder: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "base")
    tiny.tokenizer(chat_template=None).save_pretrained(tmp_path / "base")
    pair = ModelPair(pin(tiny.pair_spec(tmp_path / "base", "lora", adapter_folder)), "cpu")
    report = METHOD.run(Study(pair, [corpus_of(tiny.TEXTS, tmp_path)]))
    assert not report.tables["mean_vectors"].frame["vector"].str.startswith("token").any()
    assert "no chat template" in report.findings[-1].claim


def test_activations_that_are_not_finite_are_named(identical_pair: ModelPair, tmp_path: Path) -> None:
    base = noise(80)
    finetuned = base.clone()
    finetuned[17, 3] = torch.inf
    with pytest.raises(NonFiniteActivations, match="finetuned model at layer 2"):
        METHOD.run(Study(identical_pair, [PLANTED], caches=[planted(tmp_path, base, finetuned)]))


def test_a_report_survives_the_round_trip(lora_pair: ModelPair, tmp_path: Path) -> None:
    report = METHOD.run(Study(lora_pair, [corpus_of(tiny.TEXTS, tmp_path)]))
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    assert loaded.findings == report.findings
    assert loaded.tables["windows"].frame["value"].equals(report.tables["windows"].frame["value"])
    assert {"histograms", "norms", "by_layer"} == set(loaded.figures)


def test_it_reads_caches_and_learns_nothing() -> None:
    assert isinstance(METHOD, CacheReader)
    assert not isinstance(METHOD, LearningMethod)


@pytest.mark.parametrize(
    "wrong",
    [
        {"skip_first": 64}, {"skip_first": -1}, {"positions": [64]}, {"positions": [-1]}, {"percentiles": [101]},
        {"window": [1]}, {"window": [-1, 2]}, {"examples": 0}, {"least_tokens": 0}, {"patchscope_scales": [0.0]},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting, match=r"expected|not among"):
        replace(METHOD, **wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"layers": [9]}, {"layers": []}])
def test_settings_that_the_pair_refuses_are_named(lora_pair: ModelPair, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong).run(Study(lora_pair, [corpus_of(tiny.TEXTS, tmp_path)]))


def test_no_corpus_is_refused(lora_pair: ModelPair) -> None:
    with pytest.raises(MissingInput, match=r"corpus=\[python_docs\]"):
        METHOD.run(Study(lora_pair, []))
