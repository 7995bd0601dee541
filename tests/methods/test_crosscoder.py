"""The crosscoder on planted concepts, on identical models, on a real pair, and on what it must refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import IncompatiblePair, InvalidSetting
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.schedules import Training
from diffing.methods.base import Study
from diffing.methods.crosscoder import CrosscoderDiffing
from diffing.models.pair import ModelPair
from diffing.report import Report
from tests import tiny
from tests.activations.stores import write_cache
from tests.methods import dictionaries as planted
from tests.methods.studies import collected, rows, study_of

METHOD = CrosscoderDiffing(
    **planted.SETTINGS | {"lr": 2e-2, "read": 4, "candidates": 4}, expansion=0.5, k=3, min_steps=300
)
SHORT = replace(METHOD, min_steps=5, training=Training(batch_size=32), rows_per_latent=1, noise=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return planted.sparse_cache(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def study(cache: ActivationCache, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("fitted")
    return study_of(planted.planted_pair(base_folder, folder), [cache], folder, METHOD)


@pytest.fixture(scope="module")
def report(study: Study) -> Report:
    return METHOD.run(study)


@pytest.fixture(scope="module")
def exclusive(report: Report) -> int:
    """The latent that changes the stream most."""
    return int(report.tables["latents"].frame["largest_length"].idxmax())


def dictionary_of(study: Study) -> Crosscoder:
    learner = study.learner(f"layer_{planted.LAYER}")
    assert isinstance(learner, Crosscoder)
    return learner


def test_the_planted_direction_is_a_latent_of_the_finetuned_side_by_both_rules(
    study: Study, report: Report, exclusive: int
) -> None:
    found = dictionary_of(study).directions(Side.FINETUNED)[exclusive]
    assert float(torch.cosine_similarity(found, planted.direction(), dim=0)) > 0.98
    row = rows(report, "latents", latent=exclusive).iloc[0]
    assert row["class_norm"] == row["class_scaling"] == "finetuned-only"
    assert row["delta"] > 0.9
    assert abs(row["nu_error"]) < 0.1
    assert row["frequency"] == pytest.approx(float((planted.amounts() > 0).float().mean()), abs=0.02)
    assert row["largest_length"] == pytest.approx(float(planted.amounts().max()), rel=0.15)
    assert row["norm_finetuned"] * row["largest_value"] == pytest.approx(row["largest_length"], rel=0.05)


def test_concepts_of_both_sides_are_not_classed_as_of_one(report: Report, exclusive: int) -> None:
    others = report.tables["latents"].frame.drop(exclusive)
    often = others[others["frequency"] > 0.1]
    assert len(often) >= 8
    exclusive_by_both = often["class_norm"].str.endswith("only") & often["class_scaling"].str.endswith("only")
    assert not exclusive_by_both.any()


def test_it_is_read_as_its_token_and_the_controls_are_not(report: Report, exclusive: int) -> None:
    token = tiny.tokenizer().decode([planted.TOKEN])
    first = {row.vector: row.token for row in rows(report, "logit_lens", rank=1, direction="promoted").itertuples()}
    assert first[f"latent {exclusive}"] == first[f"latent {exclusive}, change"] == token
    assert token not in (first["base mean"], first["random direction"])
    assert any(repr(token) in finding.claim for finding in report.findings if f"Latent {exclusive} " in finding.claim)


def test_latents_drawn_at_random_stand_beside_the_top_ones(report: Report) -> None:
    for name in ("logit_lens", "examples"):
        shown = report.tables[name].frame.groupby("why")["vector"].unique()
        tops, drawn = set(shown["top"]), set(shown["drawn"])
        assert tops.isdisjoint(drawn)
        assert len(drawn) >= METHOD.drawn


def test_dead_latents_are_counted_and_in_no_class(report: Report) -> None:
    latents = report.tables["latents"].frame
    dead = latents[latents["n_active"] == 0]
    for rule in ("norm", "scaling"):
        counts = rows(report, "classes", rule=rule, data="the pair").set_index("class")["latents"]
        assert counts["dead"] == len(dead) == report.scalars["dead_latents"].value
        assert counts.sum() == len(latents)
    assert set(dead["class_norm"]) <= {"dead"}
    assert dead["kl_contribution"].isna().all()
    noise = rows(report, "classes", data="noise alone")
    assert set(noise["rule"]) == {"scaling"}


def test_orders_of_the_bridge_are_those_of_the_table(report: Report) -> None:
    bridge = rows(report, "bridge").set_index(["order", "added"])["kl"]
    assert bridge["control", "everything"] == pytest.approx(0, abs=1e-5)
    assert {order for order, _ in bridge.index} == {
        "control", "delta", "nu", "frequency", "size", "contribution", "random 0", "random 1",
    }  # fmt: skip
    best = rows(report, "contributions", rank=1).iloc[0]
    assert bridge["contribution", "first 1"] == pytest.approx(
        bridge["control", "nothing"] - best["kl_contribution"], rel=1e-4
    )


def test_figures_show_the_norms_the_scatter_and_the_bridge(report: Report) -> None:
    assert set(report.figures) == {"delta_histogram", "scatter", "bridge", "training"}
    alive = len(report.tables["latents"].frame) - report.scalars["dead_latents"].value
    traces: Any = report.figures["delta_histogram"].plotly["data"]
    assert sum(traces[0]["y"]) == alive


def test_latents_may_be_dedicated_to_a_side(study: Study, tmp_path: Path) -> None:
    method = replace(METHOD, dedicated=[0.25, 0.25], min_steps=5)
    fitted = method.fit(study, None)[f"layer_{planted.LAYER}"]
    base, finetuned = (fitted.directions(side).norm(dim=1) for side in Side)
    n = fitted.sparsity.n_latents // 4
    assert not finetuned[:n].any()
    assert not base[-n:].any()
    assert base[:-n].all()
    fitted.save(tmp_path)
    report = replace(method, noise=False, per_band=0).run(replace(study, learners={f"layer_{planted.LAYER}": tmp_path}))
    assert set(rows(report, "latents").iloc[:n]["class_norm"]) <= {"base-only", "dead"}
    assert set(report.tables["examples"].frame["band"]) == {"top"}  # no bands were asked for


def test_a_real_pair_gives_a_report_that_survives_the_round_trip(lora_pair: ModelPair, tmp_path: Path) -> None:
    report = SHORT.run(study_of(lora_pair, [collected(lora_pair, tmp_path, [1, 2])], tmp_path, SHORT))
    assert set(report.tables["latents"].frame["layer"]) == {1, 2}
    assert set(report.tables["steering"].frame["layer"]) == {planted.LAYER}
    report.save(tmp_path / "report")
    planted.assert_the_same(report, Report.load(tmp_path / "report"))


def test_identical_models_are_reported_as_no_difference_and_nothing_is_fitted(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    study = study_of(identical_pair, [collected(identical_pair, tmp_path, [1])], tmp_path, SHORT)
    report = SHORT.run(study)
    assert report.no_difference
    assert not study.learners
    assert set(report.tables) == {"differences"}


def test_a_learner_of_another_pair_is_refused(study: Study, cache: ActivationCache, tmp_path: Path) -> None:
    stored = {planted.LAYER: cache.base.read(planted.LAYER, 0, 400)}
    other = write_cache(tmp_path, stored, {planted.LAYER: stored[planted.LAYER] + 1}, model="org/another-base")
    with pytest.raises(IncompatiblePair, match="another-base"):
        METHOD.run(replace(study, caches=[other]))


@pytest.mark.parametrize(
    "wrong", [{"code_weight": "l3"}, {"dedicated": [0.6, 0.6]}, {"dedicated": [-0.1, 0.1]}, {"dedicated": [0.1]}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong)


def test_what_the_learner_depends_on_is_in_its_settings() -> None:
    settings = METHOD.learner_settings()
    assert replace(METHOD, code_weight="l2").learner_settings() != settings
    assert replace(METHOD, dedicated=[0.1, 0.1]).learner_settings() != settings
    assert replace(METHOD, strengths=[3.0]).learner_settings() == settings
