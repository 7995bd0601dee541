"""A study of two methods on two organisms, published as the entry points do it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from analyze import publish
from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import Case
from diffing.dashboard.study import Dashboard, gather, report_names
from diffing.evidence import Evidence
from diffing.report import Figure, Report, Scalar
from diffing.specs import ModelSpec, PairSpec, VariantSpec, artifact_name
from evaluate_agents import publish as publish_grades
from tests.agents import planted
from trackers import ArtifactRef, LocalStore, LocalTracker, Tracker

PROJECT = "study"
BASE = ModelSpec("smollm2_135m", "owner/smollm2")
NAUTICAL = PairSpec(BASE, VariantSpec("lora", "owner/sailor"), "demo_nautical")
NOTHING = PairSpec(BASE, VariantSpec("identical"), "none")


def report_of(method: str, pair: PairSpec, **changes: object) -> Report:
    norms = Figure({"data": [{"type": "scatter", "y": [1.0, 2.0]}], "layout": {}}, "Norms by position.")
    planted_report = planted.report(no_difference=pair is NOTHING)
    return replace(planted_report, method=method, pair=pair, figures={"norms": norms}, **changes)


@dataclass
class Published:
    """A store with the study in it."""

    root: Path
    refs: dict[str, ArtifactRef]

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root)

    def dashboard(self) -> Dashboard:
        runs = {str(version.ref): version.run for version in self.store.index.versions()}
        with LocalTracker(self.root, PROJECT, "dashboard", {}) as tracker:
            return gather(tracker, report_names(self.store, PROJECT), "Two methods", runs)


def publish_study(tracker_for: Callable[[str], Tracker], folder: Path) -> dict[str, ArtifactRef]:
    """Two versions of a report on the sailor, two more reports, and grades; another agent read only the first."""
    refs = {}
    older = {"scalars": {"relative_norm": Scalar(0.5, "norm of the difference over that of the base")}}
    for key, method, pair, changes in (
        ("old", "activation_difference_lens", NAUTICAL, older),
        ("new", "activation_difference_lens", NAUTICAL, {}),
        ("null", "activation_difference_lens", NOTHING, {}),
        ("kl", "kl", NAUTICAL, {}),
    ):
        report = report_of(method, pair, **changes)
        with tracker_for("analyze") as tracker:
            refs[key] = publish(report, tracker)
        if key == "kl":
            continue
        agent = Agent("scripted/words", turns=5)
        result = evaluate([Case(Evidence([report]), planted.TRUTH)], agent, folder / key)
        name = artifact_name("evaluation", method, pair)
        with tracker_for("evaluate_agents") as tracker:
            refs[f"{key} grade"] = publish_grades(result, name, agent, refs[key], tracker)
            if key == "old":
                others = replace(result, grades=result.grades.assign(model="someone/else"))
                refs["other grade"] = publish_grades(others, name, agent, refs[key], tracker)
    return refs


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("study")
    root = folder / "store"
    return Published(root, publish_study(lambda job: LocalTracker(root, PROJECT, job, {}), folder / "inspect"))
