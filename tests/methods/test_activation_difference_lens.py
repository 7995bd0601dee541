"""The Activation Difference Lens on planted shifts, on identical models, and on the real pair."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from diffing.activations.position_means import PositionMeans
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses.steering import Answers
from diffing.methods.activation_difference_lens import ActivationDifferenceLens
from diffing.methods.activation_difference_lens.findings import findings
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.methods.activation_difference_lens.tables import samples_table
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny
from tests.methods.studies import PLANTED_TOKEN, rows

METHOD = ActivationDifferenceLens(
    answers=Answers(["Bread?", "Boats?"], max_new_tokens=4, samples_per_prompt=2), layers=[2],
    steering_layers=[2], n_positions=10, positions=[0, 1, 2], top=8,
    patchscope_scales=[1.0], patchscope_intersection=tiny.VOCAB, strengths=[0.5, 1.0],
)  # fmt: skip
PLANTED_MEANS = PositionMeans(
    1, 0, torch.ones(1, dtype=torch.long), *(torch.ones(1, 2).double() for _ in range(3)),
    *(torch.ones(1).double() for _ in range(3)), residual_norm=1.0,
)  # fmt: skip


def test_a_planted_token_is_read_from_the_difference_and_from_nothing_else(
    planted_pair: ModelPair, corpus: Corpus
) -> None:
    report = METHOD.run(Study(planted_pair, [corpus]))
    planted = tiny.tokenizer().decode([PLANTED_TOKEN])
    for position in METHOD.positions:
        top = rows(report, "logit_lens", source="difference", direction="promoted", position=position, rank=1)
        assert top["token"].tolist() == [planted]
    for source in ("base", "random"):
        others = rows(report, "logit_lens", source=source, direction="promoted", rank=1)
        assert planted not in others["token"].tolist()
    assert report.scalars["consistency"].value == pytest.approx(1.0, abs=1e-4)
    assert not report.no_difference


def test_the_stored_tensor_is_the_planted_shift(planted_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(planted_pair, [corpus]))
    expected = planted_pair._steering_vector
    found = report.tensors["few_lines_layer_2_difference"].tensor
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)


def test_identical_models_are_reported_as_no_difference(identical_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(identical_pair, [corpus]))
    assert report.no_difference
    assert set(report.tables) == {"positions"}
    assert not report.tensors["few_lines_layer_2_difference"].tensor.any()
    assert "No difference" in report.findings[0].claim


def test_every_prompt_is_answered_under_every_condition(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    counts = report.tables["steering"].frame.groupby(["prompt", "condition"]).size()
    assert set(counts.index.get_level_values("condition")) == {
        "unsteered", "strength 0.5", "strength 1", "random direction",
    }  # fmt: skip
    assert (counts == METHOD.answers.samples_per_prompt).all()
    assert len(counts) == len(METHOD.answers.prompts) * 4


def test_batching_changes_no_number(lora_pair: ModelPair, corpus: Corpus) -> None:
    one, many = (replace(METHOD, batch_size=size).run(Study(lora_pair, [corpus])) for size in (1, 16))
    for column in ("shift_norm", "consistency", "norm_base"):
        pd.testing.assert_series_equal(
            one.tables["positions"].frame[column], many.tables["positions"].frame[column], rtol=1e-4
        )
    assert one.tables["logit_lens"].frame["token"].tolist() == many.tables["logit_lens"].frame["token"].tolist()


def test_several_layers_and_corpora_are_read_in_one_run(lora_pair: ModelPair, corpus: Corpus) -> None:
    other = Corpus(replace(corpus.spec, name="same_lines_again"))
    method = replace(METHOD, layers=[0.0, 3], steering_layers=[0.0, 3], strengths=[1.0])
    report = method.run(Study(lora_pair, [corpus, other]))
    for table in report.tables.values():
        assert set(zip(table.frame["corpus"], table.frame["layer"], strict=True)) == {
            (name, layer) for name in ("few_lines", "same_lines_again") for layer in (0, 3)
        }
    assert len(report.findings) == 8  # four readings, each read and steered by


def test_words_that_only_steered_answers_use_are_named() -> None:
    texts = {
        "unsteered": ["We could walk to town.", "Read a book at home."],
        "steered": ["Tea grows here, tea for all.", "Take your tea to town."],
        "random": ["No no here.", "Will not do here."],
    }
    sampled = [
        {"corpus": "c", "layer": 1, "position": 2, "direction": "d", "where": "all", "prompt": "p", "condition": kind,
         "kind": kind, "strength": 1.0, "sample": index, "text": text, "length": 2.0}
        for kind, answers in texts.items() for index, text in enumerate(answers * 5)
    ]  # fmt: skip
    reading = Reading("c", PLANTED_MEANS, [], {}, has_sink=True)
    finding = findings([reading], [], {"steering": samples_table(sampled)})[0]
    assert "speak of tea (100%), " in finding.claim
    assert "here" not in finding.claim.split("speak of")[1].split(";")[0]
    assert finding.rows == tuple(range(10, 16))


def test_without_steering_layers_nothing_is_steered(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = replace(METHOD, steering_layers=[]).run(Study(lora_pair, [corpus]))
    assert report.tables["steering"].frame.empty
    assert not report.tables["logit_lens"].frame.empty


def test_the_report_survives_the_round_trip(lora_pair: ModelPair, corpus: Corpus, tmp_path: Path) -> None:
    report = METHOD.run(Study(lora_pair, [corpus]))
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    assert loaded.pair == report.pair
    assert loaded.scalars == report.scalars
    for name, table in report.tables.items():
        pd.testing.assert_frame_equal(loaded.tables[name].frame, table.frame, check_dtype=False)


def test_texts_that_are_too_short_are_refused(lora_pair: ModelPair, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Hi.\n\nNo.", "utf-8")
    corpus = Corpus(CorpusSpec(name="short", source="file", id=str(path)))
    with pytest.raises(EmptyCorpus, match="use longer texts"):
        METHOD.run(Study(lora_pair, [corpus]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"positions": [10]},
        {"n_positions": 5, "positions": [0]},
        {"strengths": [0.0]},
        {"steering_positions": [7]},
        {"steering_layers": [1]},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong)


def test_a_layer_out_of_range_is_refused(lora_pair: ModelPair, corpus: Corpus) -> None:
    with pytest.raises(InvalidSetting, match="layers 0 to 3"):
        replace(METHOD, layers=[7], steering_layers=[7]).run(Study(lora_pair, [corpus]))


@pytest.mark.slow
@pytest.mark.real_model
def test_on_the_real_pair_the_difference_names_the_domain_and_the_sides_do_not(real_pair: ModelPair) -> None:
    method = ActivationDifferenceLens(
        answers=Answers(
            ["Tell me something interesting.", "Write a short story.", "Give me some advice for my day."],
            max_new_tokens=32, samples_per_prompt=4,
        ),
        layers=[0.97, 0.5], n_positions=8, max_texts=100, patchscope_scales=[1.0], strengths=[0.3],
    )  # fmt: skip
    corpus = Corpus(CorpusSpec(name="python_docs", source="embedded", id="python_docs"))
    report = method.run(Study(real_pair, [corpus]))
    domain = {" tea", " Tea", " glacier", " Glacier", " glaciers", " lava"}
    for source, least, most in (("difference", 3, 20), ("base", 0, 0), ("finetuned", 0, 0)):
        found = rows(report, "logit_lens", source=source, direction="promoted", layer=28, position=2)
        assert least <= len(domain & set(found["token"])) <= most, source
    texts = report.tables["steering"].frame
    shares = texts["text"].str.contains("tea|glacier", case=False).groupby(texts["kind"]).mean()
    assert shares["steered"] >= 0.5
    assert max(shares["unsteered"], shares["random"]) <= 1 / 12
