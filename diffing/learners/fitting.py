"""Runs a LightningModule over activations: the one place that makes a Trainer.

Quiet, and without files of its own: metrics go to the logger that is given, progress to `on_batch`, results stay in the
module. With several devices, Lightning starts this program once for each (or finds them started, by SLURM or torchrun);
every one of them comes back from `fit` with the whole result.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from diffing.activations.loader import ActivationBatch
from diffing.errors import InvalidSetting

_NOT_APPLICABLE = (
    "You passed in a `val_dataloader` but have no `validation_step`",
    "`LightningModule.configure_optimizers` returned `None`",
    "The number of training batches .* is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
"""Starts of Lightning's warnings: of modules that learn without gradients, of short fits, of its own code."""


def fit(
    module: LightningModule,
    data: LightningDataModule,
    *,
    max_epochs: int = 1,
    logger: Logger | None = None,
    device: torch.device | str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Trains for `max_epochs` passes over the data, and leaves the module on the CPU.

    `device` may have an index (`cuda:1`) if it is the only one; otherwise `devices` of its type are used on each of
    `nodes`. `on_batch` is told the rows of each batch that is done, over all devices.
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
            max_epochs=max_epochs,
            logger=logger or False,
            callbacks=[_Tell(on_batch)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data deals its rows to the ranks itself
        )
        trainer.fit(module, datamodule=data)


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
