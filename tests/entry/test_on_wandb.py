"""The steps of a study with W&B as the tracker."""

import json
from pathlib import Path

import pytest

from diffing.methods.pca import PrincipalComponents
from tests.entry.preparing import composed, overrides_of, prepared
from tests.test_entry import run
from tests.trackers.conftest import wandb_server  # noqa: F401  # a fixture
from tests.wandb_server.environment import speaking_to
from tests.wandb_server.server import WandbServer, running_server
from tests.wandb_server.state import Run, State

NOT_READ = ("corpus", "corpora", "device", "preprocessing", "infrastructure")  # by evaluate_agents.py
OWN = ("activations", "learner", "report", "evaluation")


def test_caches_and_learners_are_found_again_through_wandb(
    wandb_server: WandbServer,  # noqa: F811
    base_folder: Path,
    adapter_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = composed([*overrides_of(base_folder, adapter_folder, tmp_path), "tracker.kind=wandb"])
    first = prepared(config)
    monkeypatch.setattr(PrincipalComponents, "fit", lambda *args: pytest.fail("fitted again"))
    again = prepared(config)
    assert again[1:] == first[1:]
    assert again[0].learner("layer_1").recipe == first[0].learner("layer_1").recipe


def test_a_study_goes_from_training_to_grades_through_wandb(
    base_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    everything = overrides_of(base_folder, adapter_folder, tmp_path)
    overrides = [each for each in everything if not each.startswith(("tracker=", "tracker.root"))]
    reads = [each for each in overrides if not each.startswith(NOT_READ)]
    with running_server() as server:
        for script, given in (("train", overrides), ("analyze", overrides), ("evaluate_agents", reads)):
            folder = tmp_path / script  # nothing of the scripts before is on disk here
            folder.mkdir()
            done = run(f"{script}.py", *given, "tracker=wandb", folder=folder, **speaking_to(server.url, folder))
            assert done.returncode == 0, done.stderr + done.stdout
    assert server.unknown == set()
    assert server.refused == []
    runs = {found.job: found for found in server.state.runs.values()}
    assert [found.job for found in server.state.runs.values()] == ["train", "analyze", "evaluate_agents"]
    assert {found.state for found in runs.values()} == {"finished"}
    assert any("train/rows_per_second" in row for row in runs["train"].rows())
    assert kinds(server.state, runs["train"].logged) == ["activations", "learner"]
    assert kinds(server.state, runs["analyze"].used) == ["activations", "learner"]
    assert kinds(server.state, runs["analyze"].logged)[-1] == "report"
    assert kinds(server.state, runs["evaluate_agents"].used) == ["report"]
    assert kinds(server.state, runs["evaluate_agents"].logged) == ["evaluation"]
    check_shown(server.state, runs["analyze"])
    downloaded = tmp_path / "evaluate_agents" / "outputs" / "store" / "downloads"
    assert [path.name for path in downloaded.rglob("report.json")] == ["report.json"]


def kinds(state: State, artifacts: list[str]) -> list[str]:
    """Of ours, in order, once each; W&B makes more of its own."""
    found = [state.artifacts[id].type for id in artifacts]
    return list(dict.fromkeys(kind for kind in found if kind in OWN))


def check_shown(state: State, analysis: Run) -> None:
    """Everything of the report is on the run's page: tables, Plotly figures and, in the summary, scalars."""
    (report,) = [each for each in state.artifacts.values() if each.type == "report"]
    body = state.bodies[report.contents()["report.json"]["digest"]]
    stored = json.loads(body)
    shown = {name: value for row in analysis.rows() for name, value in row.items()}
    assert stored["tables"]
    assert stored["figures"]
    assert {shown[name]["_type"] for name in stored["tables"]} == {"table-file"}
    assert {shown[name]["_type"] for name in stored["figures"]} == {"plotly-file"}
    assert all(shown[name]["path"] in analysis.files for name in [*stored["tables"], *stored["figures"]])
    for name, scalar in stored["scalars"].items():
        assert analysis.summary[name] == pytest.approx(scalar["value"], nan_ok=True)
