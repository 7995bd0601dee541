"""Loaders inside a real Lightning fit: interrupted anywhere, resumed with exactly the batches that were left."""

import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.loader import ActivationBatch, ShuffledRows
from diffing.activations.store import ActivationCache
from tests.activations.stores import write_cache

LAYER, ROWS, BATCH = 0, 1100, 128
BATCHES = -(-ROWS // BATCH)
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]


class Interrupted(Exception):
    """Stands for a killed job."""


class Recorder(pl.LightningModule):
    """Trains one number and keeps the rows of every batch; may stop after so many batches."""

    def __init__(self, stop_after: int | None = None, file: Path | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after, self.file = stop_after, file
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_after:
            raise Interrupted
        self.seen.append(batch.row.tolist())
        return (self.weight - batch.base.mean()) ** 2

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        self.validated.append(batch.row.tolist())

    def on_train_end(self) -> None:
        if self.file is not None:
            self.file.with_suffix(f".{self.trainer.global_rank}").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, max_epochs: int = 3, **options: object) -> pl.Trainer:
    plain = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = options.pop("callbacks", [])
    return pl.Trainer(
        default_root_dir=folder, max_epochs=max_epochs, enable_checkpointing=bool(callbacks), callbacks=callbacks,
        **(plain | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    rows = torch.arange(ROWS * 2.0).reshape(ROWS, 2)
    return write_cache(tmp_path_factory.mktemp("cache"), {LAYER: rows}, {LAYER: rows + 1}, documents_per_shard=40)


def data(cache: ActivationCache, **options: object) -> ActivationDataModule:
    return ActivationDataModule([cache], LAYER, BATCH, seed=3, pool_rows=300, **options)


@pytest.fixture(scope="module")
def uninterrupted(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    module = Recorder()
    trainer(tmp_path_factory.mktemp("straight")).fit(module, datamodule=data(cache))
    return module


def test_each_epoch_of_a_fit_reads_every_row_once_in_another_order(uninterrupted: Recorder) -> None:
    epochs = [uninterrupted.seen[first : first + BATCHES] for first in range(0, 3 * BATCHES, BATCHES)]
    assert len(uninterrupted.seen) == 3 * BATCHES
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(ROWS))
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]


# Within an epoch, at its last batch, at the first of the next, and within a later one.
@pytest.mark.parametrize("saved_after", [1, 4, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES, 2 * BATCHES + 5])
def test_a_fit_resumed_from_a_step_checkpoint_continues_bit_exactly(
    saved_after: int, cache: ActivationCache, uninterrupted: Recorder, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=saved_after, save_top_k=-1, filename="{step}")
    killed = Recorder(stop_after=saved_after + 1)
    with pytest.raises(Interrupted):
        trainer(tmp_path, callbacks=[saving]).fit(killed, datamodule=data(cache))
    resumed = Recorder()
    trainer(tmp_path).fit(resumed, datamodule=data(cache), ckpt_path=tmp_path / f"step={saved_after}.ckpt")
    assert killed.seen[:saved_after] + resumed.seen == uninterrupted.seen
    assert torch.equal(resumed.weight, uninterrupted.weight)


def test_lightning_alone_resumes_a_bare_loader_within_an_epoch(
    cache: ActivationCache, uninterrupted: Recorder, tmp_path: Path
) -> None:
    def loader() -> ShuffledRows:
        return ShuffledRows([cache], LAYER, BATCH, seed=3, pool_rows=300)

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=BATCHES + 4, filename="saved")
    killed, resumed = Recorder(stop_after=BATCHES + 5), Recorder()
    with pytest.raises(Interrupted):
        trainer(tmp_path, callbacks=[saving]).fit(killed, loader())
    trainer(tmp_path).fit(resumed, loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert killed.seen[: BATCHES + 4] + resumed.seen == uninterrupted.seen


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_fit_resumed_from_the_end_of_an_epoch_starts_the_next(
    epochs: int, cache: ActivationCache, uninterrupted: Recorder, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(
        tmp_path, every_n_epochs=1, save_on_train_epoch_end=True, save_top_k=-1, filename="{epoch}"
    )
    first, rest = Recorder(), Recorder()
    trainer(tmp_path, max_epochs=epochs, callbacks=[saving]).fit(first, datamodule=data(cache))
    trainer(tmp_path).fit(rest, datamodule=data(cache), ckpt_path=tmp_path / f"epoch={epochs - 1}.ckpt")
    assert first.seen + rest.seen == uninterrupted.seen


def test_validation_reads_its_caches_in_stored_order(cache: ActivationCache, tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(module, datamodule=data(cache, validation=[cache]))
    assert [row for batch in module.validated for row in batch] == list(range(ROWS))
    assert len(module.seen) == BATCHES


def test_a_precision_that_rebuilds_batches_gets_them(cache: ActivationCache, tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=1, precision="64-true").fit(module, datamodule=data(cache))
    assert sorted(row for batch in module.seen for row in batch) == list(range(ROWS))


def test_the_loader_needs_no_trainer(cache: ActivationCache) -> None:
    module = data(cache, whole_batches=True)
    assert [len(batch) for batch in module.train_dataloader()] == [BATCH] * (ROWS // BATCH)
    assert module.val_dataloader() == []


@pytest.mark.parametrize("whole_batches", [False, True])
def test_two_processes_share_the_rows_in_equally_many_batches(
    whole_batches: bool, cache: ActivationCache, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, max_epochs=1, strategy="ddp_fork", devices=2).fit(
            Recorder(file=tmp_path / "rows"), datamodule=data(cache, whole_batches=whole_batches)
        )
    seen = [json.loads((tmp_path / f"rows.{rank}").read_text()) for rank in range(2)]
    assert [len(batches) for batches in seen] == [ROWS // (2 * BATCH) + (not whole_batches)] * 2
    rows = [row for batches in seen for batch in batches for row in batch]
    assert len(set(rows)) == len(rows) == (ROWS // (2 * BATCH) * 2 * BATCH if whole_batches else ROWS)
