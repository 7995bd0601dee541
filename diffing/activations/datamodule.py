"""Activation caches as Lightning wants them: loaders that know the trainer's rank, and a position that is saved.

Lightning itself saves and restores the state of a loader, but restores it only into an unfinished epoch. A run resumed
from a checkpoint of an epoch's end would read its first epoch over again, so the position is also part of this module's
own state, which is always restored.
"""

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningDataModule

from diffing.activations.loader import POOL_ROWS, ShuffledRows, StoredRows
from diffing.activations.store import ActivationCache


class ActivationDataModule(LightningDataModule):
    """Shuffled batches of the training caches, and batches of the validation caches in stored order.

    Under data-parallel training the rows are dealt to the ranks, as many batches to each. Batches are `ActivationBatch`
    in the stored dtype, in pinned memory if the trainer's device is a GPU.
    """

    def __init__(
        self,
        caches: Sequence[ActivationCache],
        layer: int,
        batch_size: int,
        seed: int = 0,
        *,
        validation: Sequence[ActivationCache] = (),
        pool_rows: int = POOL_ROWS,
        weights: Sequence[float | int] | None = None,
        whole_batches: bool = False,
    ):
        """See ShuffledRows."""
        super().__init__()
        self.caches, self.layer, self.batch_size, self.seed = caches, layer, batch_size, seed
        self.validation, self.pool_rows, self.weights = validation, pool_rows, weights
        self.whole_batches = whole_batches
        self.rows: ShuffledRows | None = None
        """The loader of the training in progress."""
        self._restored: Mapping | None = None

    def train_dataloader(self) -> ShuffledRows:
        rank, world = self._rank()
        self.rows = ShuffledRows(
            self.caches,
            self.layer,
            self.batch_size,
            self.seed,
            pool_rows=self.pool_rows,
            weights=self.weights,
            rank=rank,
            world=world,
            whole_batches=self.whole_batches,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        if self._restored is not None:
            self.rows.load_state_dict(self._restored)
            self._restored = None
        return self.rows

    def val_dataloader(self) -> StoredRows | list[StoredRows]:
        rank, world = self._rank()
        if not self.validation:
            return []
        return StoredRows(self.validation, self.layer, self.batch_size, rank=rank, world=world)

    def state_dict(self) -> dict[str, object]:
        return {} if self.rows is None else {"rows": self.rows.state_dict()}

    def load_state_dict(self, state_dict: Mapping) -> None:
        self._restored = state_dict["rows"]

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
