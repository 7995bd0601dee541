"""Runs a LightningModule over activations: the one place that makes a Trainer.

Quiet, and without files of its own but a checkpoint where one is asked for: metrics go to the logger that is given,
progress to `on_batch`, results stay in the module. With several devices, Lightning starts this program once for each
(or finds them started, by SLURM or torchrun); every one of them comes back from `fit` with the whole result.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from diffing.activations.loader import ActivationBatch
from diffing.errors import InvalidSetting, StorageFailed

_NOT_APPLICABLE = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Total length of `list` across ranks is zero",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "`LightningModule.configure_optimizers` returned `None`",
    "The number of training batches .* is smaller than the logging interval",
    "Sparse CSR tensor support is in beta state",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
"""Starts of warnings: of modules that learn without gradients, of short fits, of Lightning's and torch's own code."""


def fit(
    module: LightningModule,
    data: LightningDataModule,
    *,
    max_epochs: int = 1,
    max_steps: int | None = None,
    logger: Logger | None = None,
    device: torch.device | str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    checkpoint: Path | None = None,
    every_n_steps: int = 1000,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Trains for `max_epochs` passes over the data, or for `max_steps` steps, and leaves the module on the CPU.

    `device` may have an index (`cuda:1`) if it is the only one; otherwise `devices` of its type are used on each of
    `nodes`. `on_batch` is told the rows of each batch that is done, over all devices. All that training depends on is
    written to the file `checkpoint` every so many steps of the optimiser; where the file is there already, training
    goes on from it. What ranks hold must be equal for that.
    """
    device = torch.device(device)
    if device.index is not None and devices * nodes > 1:
        raise InvalidSetting(
            f"device={device} names one device, but {devices} on {nodes} nodes are asked for; give device={device.type}"
        )
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=devices if device.index is None else [device.index],
            num_nodes=nodes,
            strategy=_Ranks() if devices * nodes > 1 else "auto",
            max_epochs=max_epochs if max_steps is None else -1,
            max_steps=-1 if max_steps is None else max_steps,
            logger=logger or False,
            callbacks=[_Tell(on_batch), *([_Save(checkpoint, every_n_steps)] if checkpoint else [])],
            plugins=[_WholeFile()],
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data deals its rows to the ranks itself
        )
        resume = checkpoint is not None and checkpoint.is_file()
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=False)


class _Ranks(DDPStrategy):
    """Data-parallel training that also takes a module without gradients, which has nothing to keep in step."""

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        if any(parameter.requires_grad for parameter in self.lightning_module.parameters()):
            super().configure_ddp()


class _Tell(Callback):
    def __init__(self, on_batch: Callable[[int], object]):
        self._on_batch = on_batch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ActivationBatch, batch_idx: int
    ) -> None:
        self._on_batch(len(batch) * trainer.world_size)


class _Save(Callback):
    """Not Lightning's own ModelCheckpoint, which has names and numbers for its files."""

    def __init__(self, path: Path, every_n_steps: int):
        self._path, self._every = path, every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ActivationBatch, batch_idx: int
    ) -> None:
        if trainer.global_step and trainer.global_step % self._every == 0:
            trainer.save_checkpoint(self._path, weights_only=False)


class _WholeFile(TorchCheckpointIO):
    """Writes next to the file and renames: a process that dies while it saves leaves the file of before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        final = Path(path)
        temporary = final.with_name(f"{final.name}.tmp")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, temporary)
            os.replace(temporary, final)
        except (OSError, RuntimeError) as error:
            raise StorageFailed(f"cannot write the checkpoint {final}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what Lightning says about hardware and what does not apply here."""
    talkative = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [log.level for log in talkative]
    with warnings.catch_warnings():
        for message in _NOT_APPLICABLE:
            warnings.filterwarnings("ignore", message)
        for log in talkative:
            log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for log, level in zip(talkative, before, strict=True):
                log.setLevel(level)
