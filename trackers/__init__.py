"""Experiment tracking with versioned artifacts: the same contract in a local folder and in Weights & Biases.

    with LocalTracker(Path("store"), "demo", "train", {"lr": 0.1}) as tracker:
        tracker.log({"loss": 0.5})
        ref = tracker.publish(folder, "my-model", Kind.LEARNER, {"layers": 2})

Knows nothing of the project around it; see docs/tracking.md.
"""

from trackers.auto import auto_tracker
from trackers.base import JSON, ArtifactRef, ArtifactRequest, Kind, Tracker, parse_request
from trackers.errors import (
    ArtifactNotFound,
    CorruptArtifact,
    InvalidName,
    InvalidValue,
    RunNotActive,
    TrackerError,
    TrackerUnavailable,
    WrongKind,
)
from trackers.local import LocalStore, LocalTracker
from trackers.wandb_tracker import WandbTracker

__all__ = [
    "JSON",
    "ArtifactNotFound",
    "ArtifactRef",
    "ArtifactRequest",
    "CorruptArtifact",
    "InvalidName",
    "InvalidValue",
    "Kind",
    "LocalStore",
    "LocalTracker",
    "RunNotActive",
    "Tracker",
    "TrackerError",
    "TrackerUnavailable",
    "WandbTracker",
    "WrongKind",
    "auto_tracker",
    "parse_request",
]
