"""The autoencoder of differences on a planted direction, on identical models, and on what it must refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.learners.base import load_learner
from diffing.learners.sae import SAE
from diffing.learners.schedules import Training
from diffing.methods.base import Study
from diffing.methods.base_dictionary import noise, sizes
from diffing.methods.sae_difference import SAEDifference
from diffing.models.pair import ModelPair
from diffing.report import Report
from tests import tiny
from tests.activations.stores import write_cache
from tests.methods import dictionaries as planted
from tests.methods.studies import rows, study_of

METHOD = SAEDifference(**planted.SETTINGS, expansion=0.25, k=1, min_steps=200)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return planted.planted_cache(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def study(cache: ActivationCache, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("fitted")
    return study_of(planted.planted_pair(base_folder, folder), [cache], folder, METHOD)


@pytest.fixture(scope="module")
def report(study: Study) -> Report:
    return METHOD.run(study)


def dictionary_of(study: Study) -> SAE:
    learner = study.learner(f"layer_{planted.LAYER}")
    assert isinstance(learner, SAE)
    return learner


def test_the_planted_direction_is_the_latent_that_lowers_the_kl_most(study: Study, report: Report) -> None:
    best = rows(report, "contributions", rank=1).iloc[0]
    found = dictionary_of(study).directions(Side.FINETUNED)[int(best["latent"])]
    assert float(torch.cosine_similarity(found, planted.direction(), dim=0)) > 0.98
    assert best["share"] > 0.7
    assert best["class"] == "finetuned-only"
    assert abs(best["nu"]) < 0.1


def test_it_is_read_as_its_token_and_the_controls_are_not(report: Report) -> None:
    token = tiny.tokenizer().decode([planted.TOKEN])
    top = f"latent {rows(report, 'contributions', rank=1).iloc[0]['latent']}"
    first = {row.vector: row.token for row in rows(report, "logit_lens", rank=1, direction="promoted").itertuples()}
    assert first[top] == token
    assert token not in (first["base mean"], first["random direction"])
    claim = next(finding.claim for finding in report.findings if finding.claim.startswith(top.capitalize()))
    assert repr(token) in claim


def test_examples_show_what_the_latent_adds_in_units_of_the_stream(
    study: Study, report: Report, cache: ActivationCache
) -> None:
    latent = int(rows(report, "contributions", rank=1).iloc[0]["latent"])
    dictionary = dictionary_of(study)
    read = dictionary.recipe.rows(*cache.read(planted.LAYER, 0, cache.n_rows))
    added = dictionary.encode(read)[:, latent] * dictionary.directions(Side.FINETUNED)[latent].norm()
    shown = rows(report, "examples", vector=f"latent {latent}", band="top", rank=1).iloc[0]
    window = cache.window(int(added.argmax()), 2, 2)
    assert shown["tokens"] == [tiny.tokenizer().decode([token]) for token in window.ids.tolist()]
    assert shown["value"] == pytest.approx(float(added.max()), rel=1e-4)
    assert float(added.max()) == pytest.approx(float(planted.amounts().max()), rel=0.25)
    largest = rows(report, "latents", latent=latent).iloc[0]["largest_length"]
    assert largest == pytest.approx(float(added.max()), rel=1e-4)


def test_examples_are_drawn_from_all_of_a_latents_range(study: Study, report: Report, cache: ActivationCache) -> None:
    dictionary = dictionary_of(study)
    latent = int(rows(report, "contributions", rank=1).iloc[0]["latent"])
    read = dictionary.recipe.rows(*cache.read(planted.LAYER, 0, cache.n_rows))
    added = dictionary.encode(read)[:, latent] * dictionary.directions(Side.FINETUNED)[latent].norm()
    quarter = float(added.max()) / 4
    shown = rows(report, "examples", vector=f"latent {latent}")
    assert set(shown["why"]) == {"top"}
    assert (shown["band"] == "top").sum() == METHOD.examples
    for number, band in enumerate(("0-25 %", "25-50 %", "50-75 %", "75-100 %")):
        drawn = shown[shown["band"] == band]
        in_band = (added > number * quarter) & (added <= (number + 1) * quarter)
        assert len(drawn) == min(METHOD.per_band, int(in_band.sum()))
        assert len(drawn) == METHOD.per_band or number < 2
        for row in drawn.itertuples():
            assert number * quarter < row.value <= (number + 1) * quarter * (1 + 1e-5)
            at = row.document * (planted.LENGTH - 1) + row.position - 1
            assert row.value == pytest.approx(float(added[at]), rel=1e-4)


def test_steering_at_one_adds_what_the_latent_adds_where_it_is_largest(study: Study, report: Report) -> None:
    dictionary = dictionary_of(study)
    latent = int(rows(report, "contributions", rank=1).iloc[0]["latent"])
    peak = float(rows(report, "latents", latent=latent).iloc[0]["largest_value"])
    values = torch.zeros(2, dictionary.sparsity.n_latents)
    values[1, latent] = peak
    without, with_it = dictionary.decode(values)
    added = float((with_it - without).norm())
    for where in METHOD.steering_at:
        steered = rows(report, "steering", direction=f"latent {latent}", where=where)
        lengths = steered.groupby("condition")["length"].first()
        assert lengths["strength 1"] == pytest.approx(added, rel=1e-4)
        assert lengths["strength 0.5"] == pytest.approx(added / 2, rel=1e-4)
        assert lengths["unsteered"] == 0


def test_each_latent_that_steers_stands_beside_controls_of_its_own(report: Report) -> None:
    samples, best = report.tables["steering"].frame, rows(report, "contributions")["latent"].head(METHOD.steered)
    assert set(samples["direction"]) == {f"latent {latent}" for latent in best}
    lengths = samples.groupby(["direction", "where", "kind"])["length"].max().unstack()
    assert lengths["random"].tolist() == pytest.approx(lengths["steered"].tolist(), rel=1e-6)
    assert lengths["steered"].nunique() == METHOD.steered
    unsteered = samples[samples["kind"] == "unsteered"]
    assert (unsteered.groupby(["direction", "where"]).size() == len(METHOD.answers.prompts)).all()
    assert (unsteered.groupby("prompt")["text"].nunique() == 1).all()


def test_the_bridge_reaches_the_finetuned_model_by_its_first_latent_and_not_by_a_random_one(report: Report) -> None:
    recovered = rows(report, "bridge").set_index(["order", "added"])["recovered"]
    assert recovered["control", "nothing"] == 0
    assert recovered["control", "everything"] == pytest.approx(1, abs=1e-4)
    assert recovered["contribution", "first 1"] > 0.7
    assert recovered["size", "first 1"] > 0.7
    faithful = rows(report, "faithfulness").set_index(["measure", "of"])["value"]
    assert faithful["KL", "original"] == pytest.approx(0, abs=1e-6)
    assert faithful["KL recovered", "base"] > 0.9
    assert faithful["variance explained", "difference"] > 0.95


def test_every_latent_has_a_row_and_dead_ones_are_in_no_class(report: Report) -> None:
    latents, counts = report.tables["latents"].frame, rows(report, "classes", data="the pair")
    assert len(latents) == counts["latents"].sum() == 8
    dead = latents[latents["n_active"] == 0]
    assert len(dead) == counts.set_index("class").loc["dead", "latents"]
    assert set(dead["class_activation"]) <= {"dead"}
    assert (latents["class_activation"] == "finetuned-only").sum() >= 1


def test_noise_alone_is_reported_beside_the_pair_and_never_looks_like_something_the_base_had(report: Report) -> None:
    chance = rows(report, "classes", data="noise alone").set_index("class")["latents"]
    assert chance["base-only"] == 0
    assert chance.sum() == len(report.tables["latents"].frame)
    assert any("noise alone" in finding.claim for finding in report.findings)


def test_a_report_survives_the_round_trip(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    planted.assert_the_same(report, Report.load(tmp_path))


def test_an_order_by_size_or_contribution_never_has_a_dead_latent(report: Report) -> None:
    latents = report.tables["latents"].frame.set_index("latent")
    assert (latents.loc[rows(report, "contributions")["latent"], "n_active"] > 0).all()


def test_identical_models_are_reported_as_no_difference_and_nothing_is_fitted(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    same = planted.planted_cache(tmp_path / "caches", torch.zeros(len(planted.amounts())), noise=0)
    study = study_of(identical_pair, [same], tmp_path, METHOD)
    report = METHOD.run(study)
    assert report.no_difference
    assert not study.learners
    assert set(report.tables) == {"differences"}
    assert "No difference" in report.findings[0].claim


def test_a_difference_that_is_the_same_everywhere_has_a_mean_and_no_latents(
    identical_pair: ModelPair, tmp_path: Path
) -> None:
    base = torch.randint(-8, 8, (400, tiny.WIDTH), generator=torch.Generator().manual_seed(0)).float()
    shifted = write_cache(tmp_path / "caches", {planted.LAYER: base}, {planted.LAYER: base + 2.0})
    report = METHOD.run(study_of(identical_pair, [shifted], tmp_path, METHOD))
    assert not report.no_difference
    assert "same on every token" in report.findings[0].claim


def test_a_learner_of_another_pair_is_refused(study: Study, cache: ActivationCache, tmp_path: Path) -> None:
    stored = {planted.LAYER: cache.base.read(planted.LAYER, 0, 400)}
    other = write_cache(tmp_path, stored, stored, model="org/another-base")
    with pytest.raises(IncompatiblePair, match="another-base"):
        METHOD.run(replace(study, caches=[other]))


def test_a_layer_that_is_not_cached_is_refused(study: Study) -> None:
    with pytest.raises(InvalidSetting, match=r"preprocessing\.layers"):
        replace(METHOD, layers=[1]).fit(study, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0}, {"activation": "softmax"}, {"lr": 0.0}, {"expansion": -1.0}, {"min_steps": 0}, {"read": 0},
        {"read": 7}, {"steered": 3}, {"drawn": -1}, {"bridge_documents": 0}, {"bridge_tokens": 1},
        {"bridge_sizes": [0]}, {"strengths": [0.0]}, {"patchscope_scales": [-1.0]},
        {"steering_at": ["answer"]}, {"per_band": -1},
        {"training": Training(lr=1e-3)}, {"training": Training(seed=1)},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidSetting):
        replace(METHOD, **wrong)


def test_more_active_latents_than_there_are_is_refused(study: Study) -> None:
    with pytest.raises(InvalidSetting, match="8 latents"):
        replace(METHOD, k=9).fit(study, None)


def test_rows_that_fill_no_batch_are_refused(study: Study) -> None:
    with pytest.raises(EmptyCorpus, match="batch_size"):
        replace(METHOD, training=Training(batch_size=4096)).fit(study, None)


def test_what_the_learner_depends_on_is_in_its_settings_and_nothing_else() -> None:
    settings = METHOD.learner_settings()
    assert replace(METHOD, k=3).learner_settings() != settings
    assert replace(METHOD, training=Training(clip=2.0)).learner_settings() != settings
    assert replace(METHOD, read=2, drawn=0, bridge_documents=3).learner_settings() == settings


def test_a_learner_of_the_method_is_loaded_from_its_folder_alone(study: Study) -> None:
    learner = load_learner(study.learners[f"layer_{planted.LAYER}"])
    assert isinstance(learner, SAE)
    assert learner.sparsity.n_latents == 8


@pytest.mark.parametrize(("n_rows", "expected"), [(10**9, 1152), (32_000, 1000), (3, 1)])
def test_few_rows_give_few_latents(n_rows: int, expected: int) -> None:
    assert sizes.n_latents(2, 576, n_rows, 32) == expected


@pytest.mark.parametrize(
    ("n_latents", "n_rows", "expected"),
    [(73_728, 10**8, 100), (1_152, 10**8, 24), (73_728, 50_000, 3), (10, 10**8, 1), (1_152, 100, 1)],
)
def test_few_latents_or_rows_have_few_active_ones(n_latents: int, n_rows: int, expected: int) -> None:
    assert sizes.k(n_latents, n_rows) == expected


def test_a_short_training_has_short_phases_and_a_long_one_those_that_were_asked_for() -> None:
    asked = Training(batch_size=100, epochs=2, k_start=512, k_annealing_steps=2000)
    short = sizes.adapted(asked, 1_000, 64, 400, 3, 1e-3)
    assert (short.steps(1_000), short.warmup_steps, short.k_annealing_steps, short.k_start) == (400, 40, 80, 64)
    assert (short.dead_after_rows, short.seed, short.lr) == (4_000, 3, 1e-3)
    long = sizes.adapted(asked, 2_000_000_000, 1024, 400, 3, 1e-3)
    assert long == replace(asked, max_steps=40_000_000, seed=3, lr=1e-3)
    assert sizes.adapted(replace(asked, max_steps=30), 1_000, 64, 400, 3, 1e-3).steps(1_000) == 30


def test_noise_is_as_large_as_the_difference_and_has_its_mean(cache: ActivationCache) -> None:
    noisy = noise.NoisyCache(cache, seed=0)
    base, finetuned = noisy.read(planted.LAYER, 0, cache.n_rows)
    real = cache.finetuned.read(planted.LAYER, 0, cache.n_rows) - base
    found = finetuned - base
    torch.testing.assert_close(found.mean(0), real.mean(0), atol=0.1, rtol=0)
    assert float(found.var(0).sum()) == pytest.approx(float(real.var(0).sum()), rel=0.05)
    assert float(found.var(0).max() / found.var(0).min()) < 1.5
