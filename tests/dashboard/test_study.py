from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from diffing.dashboard.study import Pair, gather, possible_names
from diffing.entry.choices import CONF
from diffing.entry.setup import pair_spec
from diffing.errors import MissingInput
from diffing.specs import artifact_name
from tests.dashboard.conftest import PROJECT, Published, publish_study
from tests.trackers.conftest import wandb_server  # noqa: F401  # a fixture
from tests.wandb_server.server import WandbServer
from trackers import LocalTracker, WandbTracker

METHOD = "activation_difference_lens"


def test_the_newest_report_of_each_method_and_organism_is_shown(published: Published) -> None:
    dashboard = published.dashboard()
    assert {result.ref for result in dashboard.results} == {published.refs[key] for key in ("new", "null", "kl")}
    assert dashboard.methods == [METHOD, "kl"]
    index = published.store.index
    assert all(result.run == index.version(result.ref).run for result in dashboard.results)
    (sailor,) = [found for pair, found in dashboard.scalars(METHOD)["relative_norm"].items() if not pair.is_control]
    assert sailor.value == 0.125  # the older report has 0.5


def test_null_controls_are_those_of_the_configs_and_come_last(published: Published) -> None:
    assert published.dashboard().pairs == [
        Pair(False, "demo_nautical", "default", "smollm2_135m"),
        Pair(True, "none", "default", "smollm2_135m"),
    ]


def test_each_agent_has_its_newest_grade_and_says_which_version_it_read(published: Published) -> None:
    dashboard = published.dashboard()
    sailor, refs = dashboard.of_pair(dashboard.pairs[0])[METHOD], published.refs
    found = {grade.agent: (grade.ref, grade.graded) for grade in sailor.grades}
    assert found == {
        "scripted/words": (refs["new grade"], str(refs["new"])),
        "someone/else": (refs["other grade"], str(refs["old"])),
    }
    scores = {grade.agent: grade.scores for grade in sailor.grades}["scripted/words"]
    assert scores["fact_recall"] > 0
    assert "correct_null" not in scores  # undefined where there is something to find
    assert dashboard.of_pair(dashboard.pairs[0])["kl"].grades == []


def test_a_project_without_reports_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    with (
        LocalTracker(tmp_path, "empty", "dashboard", {}) as tracker,
        pytest.raises(MissingInput, match=r"python analyze\.py"),
    ):
        gather(tracker, possible_names(), "Nothing")


def test_possible_names_are_those_that_the_entry_points_give() -> None:
    names = possible_names()
    for organism in ("demo_nautical", "none"):
        with initialize_config_dir(str(CONF), version_base=None):
            pair = pair_spec(compose("analyze", [f"organism={organism}"]))
        assert artifact_name("report", "kl", pair) in names


def test_a_study_in_wandb_is_gathered_from_there(
    wandb_server: WandbServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    refs = publish_study(lambda job: WandbTracker(tmp_path / "first", PROJECT, job, {}), tmp_path / "inspect")
    with WandbTracker(tmp_path / "elsewhere", PROJECT, "dashboard", {}) as tracker:
        dashboard = gather(tracker, possible_names(), "From W&B")
    found = {result.ref: len(result.grades) for result in dashboard.results}
    assert found == {refs["new"]: 2, refs["null"]: 1, refs["kl"]: 0}
