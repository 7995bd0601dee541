"""The same preparation with W&B as the tracker."""

from pathlib import Path

import pytest

from diffing.methods.pca import PrincipalComponents
from tests.entry.preparing import composed, overrides_of, prepared
from tests.trackers.conftest import wandb_server  # noqa: F401  # a fixture
from tests.wandb_server.server import WandbServer


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
