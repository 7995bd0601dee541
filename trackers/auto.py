"""Chooses the tracker: Weights & Biases where an API key is configured, else the local store."""

from collections.abc import Mapping
from pathlib import Path

from trackers.base import JSON, Tracker
from trackers.credentials import key_source, obstacle, server_url
from trackers.local import LocalTracker
from trackers.wandb_tracker import WandbTracker


def auto_tracker(
    root: Path, project: str, job: str, config: Mapping[str, JSON], entity: str | None = None
) -> tuple[Tracker, str]:
    """A tracker that is not yet started, and one line for a person that says which it is and why.

    `root` is the local store, or where the W&B client keeps its files; `entity` is the W&B user or team.
    """
    reason = obstacle()
    if reason is None:
        line = f"tracking with W&B at {server_url()} (API key from {key_source()})"
        return WandbTracker(root, project, job, config, entity), line
    return LocalTracker(root, project, job, config), f"tracking locally in {root} ({reason})"
