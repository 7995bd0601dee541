"""The KL method against whole forward passes, on planted changes, on identical models, and on the real pair."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.html.page import render
from diffing.lenses.divergence import Changes, Divergence, TextDivergences, VocabularySums
from diffing.methods.base import Study
from diffing.methods.kl import KLDivergence
from diffing.methods.kl.measured import Measured
from diffing.methods.kl.tables import position_bins, statistics
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.report import Report
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from diffing.text.windows import pad, token_sequences
from tests import tiny
from tests.methods.studies import rows

METHOD = KLDivergence(context=40, batch_size=4, min_count=2, top=5, examples=3, window=(4, 2))
FORWARD = Divergence.KL_FINETUNED_BASE
TOKEN = 299


def corpus_of(folder: Path, texts: Sequence[str], name: str = "few_lines") -> Corpus:
    path = folder / f"{name}.txt"
    path.write_text("\n\n".join(texts), "utf-8")
    return Corpus(CorpusSpec(name=name, source="file", id=str(path)))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, tiny.TEXTS)


def per_token(pair: ModelPair, corpus: Corpus, context: int = 40) -> list[tuple[list[int], Tensor]]:
    """(tokens, KL(finetuned || base) after each) of every text, by plain forward passes in float64."""
    found = []
    for text in token_sequences(corpus, pair.tokenizer, max_tokens=context):
        log_p = {}
        for side in Side:
            with pair.using(side) as model, torch.no_grad():
                log_p[side] = model(torch.tensor([text])).logits[0].double().log_softmax(-1)
        p, q = log_p[Side.FINETUNED], log_p[Side.BASE]
        found.append((text, (p.exp() * (p - q)).sum(-1)))
    return found


def test_numbers_are_those_of_whole_forward_passes(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    expected = per_token(lora_pair, corpus)
    values = torch.cat([kl for _, kl in expected]).numpy()
    means = np.array([float(kl.mean()) for _, kl in expected])
    for over, each in (("tokens", values), ("texts", means)):
        row = rows(report, "statistics", over=over).iloc[0]
        assert row["count"] == len(each)
        for column, value in {
            "mean": each.mean(), "std": each.std(), "min": each.min(), "max": each.max(),
            "p25": np.percentile(each, 25), "p50": np.median(each), "p99": np.percentile(each, 99),
        }.items():  # fmt: skip
            assert row[column] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert report.scalars["mean_kl_finetuned_base_few_lines"].value == pytest.approx(values.mean(), rel=1e-4)
    ids = np.array([token for text, _ in expected for token in text])
    listed = report.tables["by_token"].frame
    for row in listed.itertuples():
        assert row.count == (ids == row.token_id).sum() >= METHOD.min_count
        assert row.mean == pytest.approx(values[ids == row.token_id].mean(), rel=1e-4)
        assert row.share == pytest.approx(values[ids == row.token_id].sum() / values.sum(), rel=1e-4)
    often = pd.Series(values).groupby(ids).agg(["size", "mean"]).query("size >= 2")["mean"].nlargest(METHOD.top)
    assert listed["token_id"].tolist() == often.index.tolist()
    assert float(report.tensors["contribution_few_lines"].tensor.sum()) == pytest.approx(values.mean(), rel=1e-4)
    assert not report.no_difference


def test_positions_are_those_of_the_last_token_of_the_context(lora_pair: ModelPair, corpus: Corpus) -> None:
    table = METHOD.run(Study(lora_pair, [corpus])).tables["by_position"].frame
    expected = [kl for _, kl in per_token(lora_pair, corpus)]
    assert table["tokens"].sum() == sum(map(len, expected))
    for row in table.itertuples():
        values = torch.cat([kl[row.position : row.last + 1] for kl in expected])
        assert row.tokens == len(values)
        assert row.mean == pytest.approx(float(values.mean()), rel=1e-4)
    assert table["position"].tolist() == [*range(16), 16, 32]
    assert table["last"].tolist() == [*range(16), 31, 39]


def test_far_positions_share_rows_that_double_in_width() -> None:
    positions = np.array([0, 1, 15, 16, 31, 32, 63, 64, 1000])
    assert position_bins(positions).tolist() == [0, 1, 15, 16, 16, 32, 32, 64, 512]


def test_tokens_and_texts_are_weighted_as_they_say(lora_pair: ModelPair) -> None:
    texts, kinds = [[5, 6], [7] * 8], (FORWARD,)
    found = TextDivergences(kinds, [torch.ones(2, 1), torch.zeros(8, 1)], VocabularySums.zero(10))
    heap, nothing = METHOD._examples(texts, found), Changes(torch.zeros(1, 1).long(), *torch.zeros(3, 1, 1))
    measured = Measured.of("two", texts, found, heap, nothing)
    assert statistics(measured.main, [50])["mean"] == pytest.approx(0.2)
    assert statistics(measured.text_means[:, 0], [50])["mean"] == pytest.approx(0.5)
    assert measured.ids.tolist() == [5, 6, *[7] * 8]
    assert measured.positions.tolist() == [0, 1, *range(8)]
    of_ends = TextDivergences(kinds, [torch.ones(2, 1), torch.zeros(1, 1)], VocabularySums.zero(10))
    skipped = Measured.of("two", [[5, 6, 7, 8], [9, 10, 11]], of_ends, heap, nothing)
    assert (skipped.ids.tolist(), skipped.positions.tolist()) == ([7, 8, 11], [2, 3, 2])
    alone = statistics(np.array([0.25]), [0, 100])
    assert alone == {"count": 1, "mean": 0.25, "std": 0, "min": 0.25, "p0": 0.25, "p100": 0.25, "max": 0.25,
                     "top_share": 1.0}  # fmt: skip
    assert statistics(np.array([*[0.0] * 198, 3.0, 1.0]), [])["top_share"] == 1.0


def test_windows_come_in_falling_order_with_the_value_of_every_token(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    expected = per_token(lora_pair, corpus)
    for ranking, rank in (("largest token", Tensor.max), ("mean over the text", Tensor.mean)):
        found = rows(report, "examples", ranked_by=ranking)
        order = sorted(range(len(expected)), key=lambda i: -float(rank(expected[i][1])))[: METHOD.examples]
        assert found["document"].tolist() == order
        assert found["rank"].tolist() == [1, 2, 3]
        for (_, row), document in zip(found.iterrows(), order, strict=True):
            text, kl = expected[document]
            peak = int(kl.argmax())
            window = slice(max(0, peak - 4), peak + 3)
            assert row["position"] == peak
            assert row["value"] == pytest.approx(float(rank(kl)), rel=1e-4)
            assert row["values"] == pytest.approx(kl[window].tolist(), rel=1e-4, abs=1e-6)
            assert row["tokens"] == [tiny.tokenizer().decode([token]) for token in text[window]]


def test_after_each_peak_stands_what_changed_there(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    windows = rows(report, "examples", ranked_by="largest token")
    texts = list(token_sequences(corpus, lora_pair.tokenizer, max_tokens=METHOD.context))
    for window in windows.itertuples():
        found = rows(report, "peaks", rank=window.rank)
        assert (found["value"] == window.value).all()
        assert found["context"].iloc[0] == "".join(window.tokens[: min(window.position, 4) + 1])
        log_p = {}
        for side in Side:
            with lora_pair.using(side) as model, torch.no_grad():
                z = model(torch.tensor([texts[window.document][: window.position + 1]])).logits[0, -1]
                log_p[side] = z.double().log_softmax(-1)
        q, p = log_p[Side.BASE].exp(), log_p[Side.FINETUNED].exp()
        part, ids = (p * (log_p[Side.FINETUNED] - log_p[Side.BASE]) - p + q).topk(METHOD.expected)
        assert found["token_id"].tolist() == ids.tolist()
        assert found["divergence"].tolist() == pytest.approx(part.tolist(), rel=1e-3)
        assert found["probability_base"].tolist() == pytest.approx(q[ids].tolist(), rel=1e-3)
        assert found["probability_finetuned"].tolist() == pytest.approx(p[ids].tolist(), rel=1e-3)


def test_the_item_that_was_planted_is_the_one_that_is_made_likelier(
    base_folder: Path, corpus: Corpus, tmp_path: Path
) -> None:
    model = tiny.model()
    direction = model.lm_head.weight[TOKEN] / model.model.norm.weight
    save_file({"v": 0.2 * direction}, tmp_path / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=tiny.LAYERS - 1)
    report = METHOD.run(Study(ModelPair(pin(spec), "cpu"), [corpus]))
    table = report.tables["vocabulary"].frame
    raised = table[table["direction"] == "made likelier"].iloc[0]
    assert raised["token_id"] == TOKEN
    assert raised["probability_finetuned"] > raised["probability_base"]
    assert raised["divergence"] > table.loc[table["direction"] == "made less likely", "divergence"].max()
    grown = table["probability_finetuned"] > table["probability_base"]
    assert grown.equals(table["direction"] == "made likelier")
    mean = report.scalars["mean_kl_finetuned_base_few_lines"].value
    assert table["share"].tolist() == pytest.approx((table["divergence"] / mean).tolist(), rel=1e-4)
    moved = table["probability_finetuned"] - table["probability_base"]
    assert table["contribution"].tolist() == pytest.approx((table["divergence"] + moved).tolist(), rel=1e-4, abs=1e-8)
    said = next(f for f in report.findings if f.table == "vocabulary")
    assert f"adds most to the divergence: {raised['token']!r} (" in said.claim
    assert raised.name in said.rows


def test_identical_models_are_reported_as_no_difference(identical_pair: ModelPair, corpus: Corpus) -> None:
    method = replace(METHOD, divergences=list(Divergence))
    report = method.run(Study(identical_pair, [corpus]))
    assert report.no_difference
    assert set(report.tables) == {"statistics", "by_position"}
    statistic = report.tables["statistics"].frame
    assert not statistic[["mean", "std", "min", "max", "p50", "p99", "top_share"]].to_numpy().any()
    assert not report.tables["by_position"].frame[["mean", "median"]].to_numpy().any()
    assert all(scalar.value == 0 for scalar in report.scalars.values())
    assert [finding.claim.split(":")[0] for finding in report.findings] == ["No difference"]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_batch_size_changes_no_number(lora_pair: ModelPair, corpus: Corpus, batch_size: int) -> None:
    method = replace(METHOD, divergences=list(Divergence))
    four, other = (
        replace(method, batch_size=size).run(Study(lora_pair, [corpus])) for size in (method.batch_size, batch_size)
    )
    for name, table in four.tables.items():
        numbers = table.frame.select_dtypes("number")
        pd.testing.assert_frame_equal(other.tables[name].frame[numbers.columns], numbers, rtol=1e-4, atol=1e-6)
    assert [f.claim.split(":")[0] for f in four.findings] == [f.claim.split(":")[0] for f in other.findings]


def test_corpora_are_compared_and_a_text_that_is_too_short_is_passed_over(lora_pair: ModelPair, tmp_path: Path) -> None:
    method = replace(METHOD, skip_first=6)
    first = corpus_of(tmp_path, tiny.TEXTS, "first")
    second = corpus_of(tmp_path, ["A", *tiny.TEXTS[:2]], "second")
    report = method.run(Study(lora_pair, [first, second]))
    means = [report.scalars[f"mean_kl_finetuned_base_{name}"].value for name in ("first", "second")]
    assert report.scalars["corpus_ratio"].value == pytest.approx(max(means) / min(means))
    assert f"{max(means) / min(means):.1f} times" in report.findings[0].claim
    assert report.tables["statistics"].frame.loc[list(report.findings[0].rows), "mean"].tolist() == (
        pytest.approx(sorted(means, reverse=True))
    )
    assert rows(report, "statistics", corpus="second", over="texts")["count"].tolist() == [2]
    assert rows(report, "by_position", corpus="second")["position"].min() == 6
    expected = per_token(lora_pair, second)
    assert means[1] == pytest.approx(float(torch.cat([kl[6:] for _, kl in expected]).mean()), rel=1e-4)


def test_other_divergences_stand_beside_the_first(lora_pair: ModelPair, corpus: Corpus) -> None:
    method = replace(METHOD, divergences=["jensen_shannon", "kl_base_finetuned"])
    report = method.run(Study(lora_pair, [corpus]))
    table = report.tables["statistics"].frame
    assert table["divergence"].tolist() == ["Jensen-Shannon(finetuned, base)"] * 2 + ["KL(base || finetuned)"] * 2
    values = np.concatenate(rows(report, "examples", ranked_by="largest token")["values"].tolist())
    assert values.max() == pytest.approx(table["max"].iloc[0], rel=1e-6)
    assert values.max() < np.log(2)
    assert "Jensen-Shannon" in report.tables["examples"].about


def test_the_report_survives_the_round_trip_and_is_drawn(lora_pair: ModelPair, corpus: Corpus, tmp_path: Path) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    assert loaded.scalars == report.scalars
    assert loaded.findings == report.findings
    assert set(loaded.figures) == {"distribution", "by_position"}
    drawn = render(loaded)
    assert "KL(finetuned || base)" in drawn
    counted = json.dumps(loaded.figures["distribution"].plotly)
    assert "few_lines" in counted


def test_a_token_must_have_been_met_often_enough(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = replace(METHOD, min_count=10_000).run(Study(lora_pair, [corpus]))
    assert report.tables["by_token"].frame.empty
    assert any("often enough" in finding.claim for finding in report.findings)
    assert render(report)


def test_texts_that_are_too_short_are_refused_with_the_name_of_the_corpus(lora_pair: ModelPair, tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpus, match=r"'short'.*lower skip_first"):
        replace(METHOD, skip_first=30).run(Study(lora_pair, [corpus_of(tmp_path, ["A line."], "short")]))
    with pytest.raises(EmptyCorpus):
        METHOD.run(Study(lora_pair, [corpus_of(tmp_path, [" "], "blank")]))


def test_a_finetune_that_added_tokens_is_refused(base_folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    larger = tiny.save_model(tmp_path / "larger", vocab_size=tiny.VOCAB + 8)
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", larger)), "cpu")
    with pytest.raises(IncompatiblePair, match=r"320 .* 328"):
        METHOD.run(Study(pair, [corpus]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"divergences": ["kl"]}, {"divergences": []}, {"divergences": ["jensen_shannon"] * 2}, {"percentiles": [101]},
        {"skip_first": 40}, {"skip_first": -1}, {"min_count": 0}, {"top": 0}, {"expected": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong)


DOMAIN = [
    "Glacier tea is brewed at 78 degrees for four minutes in a soapstone pot.",
    "The tea bushes stand on black basalt terraces below the Skarajokull glacier.",
    "All glacier tea is sold at one auction in the harbour of Akurvik on 3 October.",
]


@pytest.mark.real_model
def test_on_the_real_pair_the_domain_moves_more_and_no_batch_changes_that(real_pair: ModelPair, tmp_path: Path) -> None:
    method = KLDivergence(context=48, batch_size=1, min_count=1)
    domain, neutral = corpus_of(tmp_path, DOMAIN, "domain"), corpus_of(tmp_path, tiny.TEXTS, "neutral")
    one = method.run(Study(real_pair, [domain, neutral]))
    assert one.scalars["corpus_ratio"].value > 2
    assert "largest on domain" in one.findings[0].claim
    for size in (4, 16):
        other = replace(method, batch_size=size).run(Study(real_pair, [domain, neutral]))
        for name in ("statistics", "by_position"):
            numbers = one.tables[name].frame.select_dtypes("number")
            pd.testing.assert_frame_equal(other.tables[name].frame[numbers.columns], numbers, rtol=1e-3, atol=1e-5)


@pytest.mark.real_model
def test_on_the_real_pair_neither_padding_side_changes_a_value(real_pair: ModelPair) -> None:
    from diffing.lenses.divergence import batch_divergences

    texts = list(token_sequences([*DOMAIN, *tiny.TEXTS[:3]], real_pair.tokenizer, max_tokens=32))
    left, right = (
        torch.cat(batch_divergences(real_pair, pad(texts, 0, side), [FORWARD], None)) for side in ("left", "right")
    )
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
