"""Rows per second and the share of waiting, by a clock that the test turns."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from diffing.activations.datamodule import ActivationDataModule
from diffing.learners import pace as pace_module
from diffing.learners.fitting import fit
from diffing.learners.pace import Pace
from diffing.learners.pca import PCAFit
from tests.activations.stores import write_cache


class Loading(Trainer):
    """A trainer whose loader has waited for so long."""

    def __init__(self) -> None:
        self.loader: Any = SimpleNamespace(stall_seconds=0.0)

    @property
    def train_dataloader(self) -> Any:
        return self.loader


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pace_module.time, "perf_counter", lambda: clock.now)
    return clock


def test_each_lap_counts_from_the_end_of_the_one_before(clock: SimpleNamespace) -> None:
    pace, trainer = Pace(), Loading()
    clock.now, trainer.loader.stall_seconds = 110.0, 3.0
    pace.start(trainer)
    clock.now, trainer.loader.stall_seconds = 114.0, 4.0
    assert pace.lap(trainer, 100) == {"rows_per_second": 25.0, "stall_share": 0.25}
    clock.now = 116.0
    assert pace.lap(trainer, 10) == {"rows_per_second": 5.0, "stall_share": 0.0}


def test_a_lap_goes_on_in_another_process(clock: SimpleNamespace) -> None:
    before, trainer = Pace(), Loading()
    before.start(trainer)
    clock.now, trainer.loader.stall_seconds = 102.0, 1.0
    kept = before.state(trainer)
    clock.now, trainer.loader.stall_seconds = 500.0, 0.0
    after = Pace()
    after.restore(kept)
    after.start(trainer)
    clock.now, trainer.loader.stall_seconds = 502.0, 1.0
    assert after.lap(trainer, 40) == {"rows_per_second": 10.0, "stall_share": 0.5}


def test_a_loader_that_counts_no_waiting_has_none(clock: SimpleNamespace) -> None:
    pace, trainer = Pace(), Loading()
    trainer.loader = []
    pace.start(trainer)
    clock.now = 101.0
    assert pace.lap(trainer, 7) == {"rows_per_second": 7.0, "stall_share": 0.0}


def test_principal_components_log_their_pace(tmp_path: Path) -> None:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    cache = write_cache(tmp_path / "cache", {0: rows}, {0: rows * 2})
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(PCAFit.of([cache], 0), ActivationDataModule([cache], 0, 64), logger=logger)
    header, line = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    logged = dict(zip(header.split(","), map(float, line.split(",")), strict=True))
    assert logged["train/rows_per_second"] > 0
    assert 0 <= logged["train/stall_share"] < 1
