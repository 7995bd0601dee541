"""What a report says of the trainings of its dictionaries: how they went, and what another seed finds again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing.activations.store import ActivationCache
from diffing.errors import InvalidSetting
from diffing.learners import training
from diffing.learners.base import load_learner
from diffing.learners.sae import SAE
from diffing.methods.base import Study
from diffing.methods.sae_difference import SAEDifference
from diffing.report import Report
from tests import tiny
from tests.activations.stores import write_cache
from tests.methods import dictionaries as planted
from tests.methods.studies import rows, study_of

METHOD = SAEDifference(**planted.SETTINGS, expansion=0.25, k=1, min_steps=150, seeds=3, noise=False)
CONCEPTS, ROWS = 6, planted.DOCUMENTS * (planted.LENGTH - 1)
FIRST, *OTHERS = NAMES = [f"layer_{planted.LAYER}{end}" for end in ("", "_seed_1", "_seed_2")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads for products as small as these wait for each other longer than they multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def changed_cache(folder: Path) -> ActivationCache:
    """The finetuned side has orthogonal concepts more, about one on each row: fewer than there are latents."""
    random = torch.Generator().manual_seed(5)
    concepts = torch.linalg.qr(torch.randn(tiny.WIDTH, CONCEPTS, generator=random))[0].T
    present = torch.rand(ROWS, CONCEPTS, generator=random) < 1 / CONCEPTS
    change = (present * (1 + torch.rand(ROWS, CONCEPTS, generator=random))) @ concepts
    base, noise = torch.randn(2, ROWS, tiny.WIDTH, generator=random)
    lengths = [planted.LENGTH] * planted.DOCUMENTS
    ids = torch.randint(3, tiny.VOCAB, (sum(lengths),), generator=random)
    return write_cache(folder, {planted.LAYER: base}, {planted.LAYER: base + change + 0.02 * noise}, lengths, ids=ids)


@pytest.fixture(scope="module")
def study(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("fitted")
    cache = changed_cache(tmp_path_factory.mktemp("planted"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "LOG_EVERY", 60)
        return study_of(planted.planted_pair(base_folder, folder), [cache], folder, METHOD)


@pytest.fixture(scope="module")
def report(study: Study) -> Report:
    return METHOD.run(study)


def sae(study: Study, name: str) -> SAE:
    learner = study.learner(name)
    assert isinstance(learner, SAE)
    return learner


def test_each_seed_gives_a_training_of_its_own(study: Study) -> None:
    assert sorted(study.learners) == sorted(NAMES)
    settings: list[Any] = [sae(study, name).recipe.settings["training"] for name in NAMES]
    assert [each["seed"] for each in settings] == [0, 1, 2]
    assert not torch.equal(sae(study, NAMES[1]).decoder, sae(study, NAMES[2]).decoder)
    assert replace(METHOD, seeds=2).learner_settings() != METHOD.learner_settings()


def test_the_first_is_the_one_that_a_single_training_gives(study: Study) -> None:
    single = replace(METHOD, seeds=1).fit(study, None)
    assert list(single) == [FIRST]
    assert torch.equal(single[FIRST].decoder, sae(study, FIRST).decoder)


def test_planted_concepts_are_found_by_every_seed_and_a_latent_without_one_is_not(study: Study, report: Report) -> None:
    found = rows(report, "stability", rule="all")
    assert found["seed"].tolist() == [1, 2]
    assert found["matched"].tolist() == [CONCEPTS] * 2
    alive = int((report.tables["latents"].frame["n_active"] > 0).sum())
    assert CONCEPTS < alive < len(sae(study, FIRST).decoder), "one is no concept, and one is dead"
    assert found["latents"].tolist() == [alive] * 2
    assert found["share"].tolist() == [CONCEPTS / alive] * 2
    assert (found["share_by_chance"] == 0).all()
    assert (found["cosine_by_chance"] < 0.9).all()
    assert (found["cosine"] > 0.9).all()


def test_classes_add_up_to_all(report: Report) -> None:
    table = report.tables["stability"].frame
    classed = table[table["rule"] != "all"].groupby("seed")[["latents", "matched"]].sum()
    assert classed.equals(table[table["rule"] == "all"].set_index("seed")[["latents", "matched"]])


def test_one_finding_says_how_many_are_found_again(report: Report) -> None:
    (claim,) = [finding.claim for finding in report.findings if finding.table == "stability"]
    found = rows(report, "stability", rule="all")
    assert f"{found['share'].mean():.0%} of the {found['latents'].iloc[0]} latents" in claim
    assert "mean over 2; random directions: 0%" in claim


def test_the_training_is_shown_as_it_went(study: Study, report: Report) -> None:
    table = report.tables["training"].frame
    assert table["step"].tolist() == [60, 120, 150]
    logged = load_learner(study.learners[FIRST]).history
    assert {"loss", "fve_difference", "dead", "threshold", "k", "lr", "rows_per_second", "l0"} < set(table.columns)
    for name, values in logged.items():
        assert table[name].tolist() == list(values)
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    traces: Any = report.figures["training"].plotly["data"]
    assert [trace["name"] for trace in traces] == ["layer 2", "layer 2 difference", "layer 2"]
    for trace, name in zip(traces, ("loss", "fve_difference", "dead"), strict=True):
        assert trace["x"] == table["step"].tolist()
        assert trace["y"] == table[name].tolist()


def test_a_learner_without_a_log_has_no_curves(study: Study, tmp_path: Path) -> None:
    learner = sae(study, FIRST)
    learner.history = {}
    learner.save(tmp_path)
    report = replace(METHOD, seeds=1).run(replace(study, learners={FIRST: tmp_path}))
    assert "training" not in report.figures
    assert "training" not in report.tables
    assert "stability" not in report.tables


def test_a_report_survives_the_round_trip(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    planted.assert_the_same(report, Report.load(tmp_path))


def test_no_training_at_all_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="seeds=0"):
        replace(METHOD, seeds=0)
