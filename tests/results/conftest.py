"""A small study as it lies in a local store, and as a log."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.results import planted
from trackers import ArtifactRef, Kind, LocalTracker

PROJECT = "study"


@dataclass
class Store:
    """A local store, into which evaluations are published as frames."""

    root: Path

    def publish(self, name: str, grades: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> ArtifactRef:
        tracker = LocalTracker(self.root, PROJECT, "evaluate_agents", {})
        with tracker, tempfile.TemporaryDirectory() as folder:
            grades.to_parquet(Path(folder) / "grades.parquet")
            if verdicts is not None:
                verdicts.to_parquet(Path(folder) / "verdicts.parquet")
            return tracker.publish(Path(folder), name, Kind.EVALUATION, {}, uses=[])

    def rows(self, name: str, *rows: dict[str, object], drop: Sequence[str] = ()) -> ArtifactRef:
        _, method, base, organism, variant = name.split("-")
        about = planted.labels(method, organism, organism == "none") | {"base": base, "variant": variant}
        made = [planted.graded("case_1", number, "kl", 0) | about | row for number, row in enumerate(rows, start=1)]
        return self.publish(name, planted.frame(made).drop(columns=list(drop)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
