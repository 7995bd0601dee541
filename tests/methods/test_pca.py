"""PCA of activation differences on planted directions, on identical models, and on collected activations."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.errors import IncompatiblePair, InvalidSetting
from diffing.lenses.steering import Answers
from diffing.methods.base import Study
from diffing.methods.pca import PrincipalComponents
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.report import Report
from tests import tiny
from tests.activations.stores import write_cache
from tests.methods.studies import collected, rows, study_of

METHOD = PrincipalComponents(
    answers=Answers(["Bread?", "Boats?"], max_new_tokens=3), n_components=8, read=2, steered=1, steering_layers=[2],
    top=8, patchscope_scales=[1.0], patchscope_intersection=tiny.VOCAB, strengths=[1.0, 2.0], examples=3, window=(2, 2),
    batch_size=64,
)  # fmt: skip
MEAN_TOKEN, COMPONENT_TOKEN = 299, 300


def head_direction(token: int) -> Tensor:
    """A direction that the tiny model's head reads as this token."""
    model = tiny.model()
    return torch.nn.functional.normalize(model.lm_head.weight[token] / model.model.norm.weight, dim=0)


@pytest.fixture
def planted(tmp_path: Path) -> ActivationCache:
    """base: noise; finetuned: + 3 of one direction everywhere, + N(0, 4) of another per token, + a little noise."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, tiny.WIDTH, generator=generator)
    amount = torch.randn(400, 1, generator=generator) * 4
    change = 3 * head_direction(MEAN_TOKEN) + amount * head_direction(COMPONENT_TOKEN)
    noise = 0.01 * torch.randn(400, tiny.WIDTH, generator=generator)
    ids = torch.randint(3, tiny.VOCAB, (450,), generator=generator)
    return write_cache(tmp_path / "caches", {2: base}, {2: base + change + noise}, ids=ids)


def test_the_mean_and_the_component_are_read_as_the_tokens_that_were_planted(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path
) -> None:
    report = METHOD.run(study_of(identical_pair, [planted], tmp_path, METHOD))
    mean, component = (tiny.tokenizer().decode([token]) for token in (MEAN_TOKEN, COMPONENT_TOKEN))
    first = {(row.vector, row.direction): row.token for row in rows(report, "logit_lens", rank=1).itertuples()}
    assert first["mean", "promoted"] == mean
    assert component in (first["component 0 +", "promoted"], first["component 0 -", "promoted"])
    assert {mean, component}.isdisjoint(first[control, "promoted"] for control in ("base mean", "random direction"))
    assert not report.no_difference


def test_numbers_are_those_of_the_planted_change(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path
) -> None:
    report = METHOD.run(study_of(identical_pair, [planted], tmp_path, METHOD))
    difference = planted.finetuned.read(2, 0, 400) - planted.base.read(2, 0, 400)
    means, first = report.tables["means"].frame.iloc[0], report.tables["components"].frame.iloc[0]
    mean_square = difference.double().square().sum(1).mean()
    assert means["mean_norm"] == pytest.approx(float(difference.double().mean(0).norm()), rel=1e-6)
    assert means["mean_share"] == pytest.approx(
        float(difference.double().mean(0).square().sum() / mean_square), rel=1e-6
    )
    assert first["share"] > 0.99
    assert first["share_with_mean"] == pytest.approx(first["variance"] / float(mean_square), rel=1e-5)
    components = report.tensors["layer_2_components"].tensor
    projections = (difference - difference.mean(0)) @ components[0]
    assert first["largest"] == pytest.approx(float(projections.max()), rel=1e-4)
    assert first["smallest"] == pytest.approx(float(projections.min()), rel=1e-4)
    fourth = float(projections.double().pow(4).mean() / projections.double().var(correction=0) ** 2)
    assert first["kurtosis"] == pytest.approx(fourth, rel=1e-3)


def test_examples_show_the_tokens_with_the_extreme_projections(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path
) -> None:
    report = METHOD.run(study_of(identical_pair, [planted], tmp_path, METHOD))
    components = report.tensors["layer_2_components"].tensor
    difference = planted.finetuned.read(2, 0, 400) - planted.base.read(2, 0, 400)
    projections = (difference - difference.mean(0)) @ components[1]
    for end, row in (("largest", int(projections.argmax())), ("smallest", int(projections.argmin()))):
        shown = rows(report, "examples", vector="component 1", end=end, rank=1).iloc[0]
        window = planted.window(row, 2, 2)
        assert shown["tokens"] == [tiny.tokenizer().decode([token]) for token in window.ids.tolist()]
        expected = [float(projections[each]) if each >= 0 else float("nan") for each in window.rows.tolist()]
        assert shown["values"] == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)


def test_strength_one_is_the_largest_projection_in_that_direction(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path
) -> None:
    report = METHOD.run(study_of(identical_pair, [planted], tmp_path, METHOD))
    components, samples = report.tables["components"].frame, report.tables["steering"].frame
    length = samples.groupby(["direction", "condition"])["length"].first()
    assert length["component 0 +", "strength 1"] == pytest.approx(components.loc[0, "largest"], rel=1e-4)
    assert length["component 0 -", "strength 1"] == pytest.approx(-components.loc[0, "smallest"], rel=1e-4)
    assert length["component 0 -", "strength 2"] == pytest.approx(-2 * components.loc[0, "smallest"], rel=1e-4)
    for direction in ("mean", "component 0 +", "component 0 -"):
        assert length[direction, "random direction"] == pytest.approx(length[direction, "strength 2"], rel=1e-4)
        assert length[direction, "unsteered"] == 0
    assert len(samples) == len(METHOD.answers.prompts) * 3 * (2 + len(METHOD.strengths))
    unsteered = samples[samples["kind"] == "unsteered"]
    assert (unsteered.groupby("prompt")["text"].nunique() == 1).all()


@pytest.mark.parametrize("target", ["base", "finetuned"])
def test_either_side_can_be_decomposed(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path, target: str
) -> None:
    method = replace(METHOD, target=target)
    report = method.run(study_of(identical_pair, [planted], tmp_path, method))
    stored = (planted.base if target == "base" else planted.finetuned).read(2, 0, 400).double()
    values = torch.linalg.eigvalsh(torch.cov(stored.T, correction=0)).flip(0)[:8]
    assert report.tables["components"].frame["variance"].tolist() == pytest.approx(values.tolist(), rel=1e-5)


def test_identical_models_are_reported_as_no_difference(identical_pair: ModelPair, tmp_path: Path) -> None:
    cache = collected(identical_pair, tmp_path, [1, 2])
    report = METHOD.run(study_of(identical_pair, [cache], tmp_path, METHOD))
    assert report.no_difference
    assert set(report.tables) == {"means"}
    assert not report.tables["means"].frame["rms_norm"].any()
    assert "No difference" in report.findings[0].claim


def test_a_steering_vector_is_a_mean_without_components(base_folder: Path, tmp_path: Path) -> None:
    vector = 5 * head_direction(MEAN_TOKEN)
    save_file({"v": vector}, tmp_path / "v.safetensors")
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=2)), "cpu")
    report = METHOD.run(study_of(pair, [collected(pair, tmp_path, [2])], tmp_path, METHOD))
    assert report.tables["means"].frame.loc[0, "mean_norm"] == pytest.approx(5.0, rel=1e-4)
    assert report.tables["means"].frame.loc[0, "mean_share"] == pytest.approx(1.0, rel=1e-6)
    assert not report.no_difference


def test_collected_activations_of_a_real_pair_give_a_report_that_survives_the_round_trip(
    lora_pair: ModelPair, tmp_path: Path
) -> None:
    method = replace(METHOD, layers=[2])
    report = method.run(study_of(lora_pair, [collected(lora_pair, tmp_path, [1, 2])], tmp_path, method))
    assert set(report.tables["components"].frame["layer"]) == {2}
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    for name, table in report.tables.items():
        stored = loaded.tables[name].frame
        lists: Mapping[str, type] = {column: list for column in ("tokens", "values") if column in stored}
        for column, kind in lists.items():
            stored[column] = stored[column].map(kind)
        pd.testing.assert_frame_equal(stored, table.frame, check_dtype=False)
    assert loaded.findings == report.findings


def test_a_learner_of_another_pair_is_refused(
    identical_pair: ModelPair, planted: ActivationCache, tmp_path: Path
) -> None:
    study = study_of(identical_pair, [planted], tmp_path, METHOD)
    rows_of = {2: planted.base.read(2, 0, 400)}
    other = write_cache(tmp_path / "other", rows_of, rows_of, model="org/another-base")
    with pytest.raises(IncompatiblePair, match="another-base"):
        METHOD.run(replace(study, caches=[other]))


def test_a_layer_that_is_not_cached_is_refused(lora_pair: ModelPair, planted: ActivationCache) -> None:
    with pytest.raises(InvalidSetting, match=r"preprocessing\.layers"):
        replace(METHOD, layers=[1]).fit(Study(lora_pair, [], caches=[planted]), None)


@pytest.mark.parametrize(
    "wrong",
    [{"read": 0}, {"read": 9}, {"steered": 3}, {"strengths": [0.0]}, {"patchscope_scales": [-1.0]}],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="difference"):
        replace(METHOD, target="delta")
