"""Lets a Lightning Trainer log into a run that is already open. Importing this imports lightning."""

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from trackers.base import Tracker


class TrackerLogger(Logger):
    """Forwards the Trainer's metrics to `tracker`; it never starts or ends a run.

    Hyperparameters are not forwarded: a run's config is given once, where its secrets are removed.
    """

    def __init__(self, tracker: Tracker):
        super().__init__()
        self._tracker = tracker

    @property
    def name(self) -> str:
        return self._tracker.project

    @property
    def version(self) -> str:
        return self._tracker.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tracker.log(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: see the class."""
